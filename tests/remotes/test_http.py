"""Opening a remote behind the HTTP API."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.remotes.http import open_http
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import AnnexHttp, Remote
from tests.http.scripted import OWN, TARGET, Server, ok, status


def test_nothing_of_http_is_imported_before_it_is_needed() -> None:
    code = "import sys, annexshell.remotes.http; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "annexshell.remotes.http" in loaded
    assert not loaded & {
        "annexshell.http",
        "http.client",
        "socket",
        "ssl",
        "threading",
        "subprocess",
        "json",
        "typing",
    }


@pytest.mark.parametrize("proxied", [False, True])
def test_passwords_are_those_of_the_git_remote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxied: bool
) -> None:
    """Which a remote that is reached through a proxy does not have itself."""
    helper = f"!f() {{ echo $1 >> {tmp_path}/log; cat >> {tmp_path}/log; echo username=u; echo password=p; }}; f"
    (tmp_path / ".gitconfig").write_text(f'[credential "https://localhost"]\n\thelper = "{helper}"\n')
    monkeypatch.setenv("HOME", str(tmp_path))
    subprocess.run(["git", "init", "-q", tmp_path / "repo"], check=True)
    subprocess.run(["git", "-C", tmp_path / "repo", "config", "annex.uuid", OWN.decode()], check=True)

    def answer(request: object) -> bytes:
        return ok(present=True) if "authorization" in request.headers else status(401)

    with Server(checkpresent=answer) as server:
        location = AnnexHttp(b"annex+http://localhost:%d/" % server.port)
        config = Config({b"remote.node.url": [b"https://localhost/node.git"]})
        remote = Remote(config, b"node", location, 100.0, read_uuid=lambda: TARGET)
        if proxied:
            remote = Remote(config, b"node-x", location, 100.0, read_uuid=lambda: TARGET, proxy=remote)
        repo = GitRepository(os.fsencode(tmp_path / "repo"))
        repository = open_http(repo, remote, TARGET, 2, Patience(10, 10))
        assert (repository.uuid, repository.protocol_version) == (TARGET, 2)
        assert repository.agree(1) == 1
        repository.close()
    assert "host=localhost\n" in (tmp_path / "log").read_text()
