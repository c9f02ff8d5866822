"""Repositories behind a real sshd, reached the way a proxy reaches its nodes, beside git-annex doing the same."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import NotLocked, NotPresent, RemoteUnavailable
from annexshell.key import Key
from annexshell.relay import BytesSource, to_callable
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import Remote, Ssh
from annexshell.remotes.ssh import SshRepository, open_ssh
from annexshell.repository import AlreadyHave
from annexshell.uuid import UUID
from tests.interop.harness import Repo, pseudorandom
from tests.interop.sshservers import ClientConfig

# With this, ssh can only go through a connection that is there.
NO_WAY = "Host *\n  ProxyCommand false\n"


@pytest.fixture
def way(tmp_path: Path, ssh: ClientConfig) -> Path:
    """An ssh configuration of this test's own."""
    path = tmp_path / "ssh_config"
    path.write_text(ssh.path.read_text())
    return path


@pytest.fixture
def make_proxy(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], way: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Repo, Repo]]:
    """A repository in which we are, as its owner, and a node behind HOST that is its remote origin."""

    def make(host: str) -> tuple[Repo, Repo]:
        node = make_server("node")
        proxy = make_client(node, "proxy", host=host, sshcaching="true", ssh_options=f"-F {way}")
        for name in ("HOME", "GIT_CONFIG_NOSYSTEM", "LC_ALL"):
            monkeypatch.setenv(name, proxy.env[name])
        monkeypatch.chdir(proxy.path)
        return proxy, node

    return make


def connect(proxy: Repo, node: Repo, host: str, **settings: str) -> SshRepository:
    for name, value in settings.items():
        proxy.git("config", f"remote.origin.{name.replace('_', '-')}", value)
    repo = GitRepository(os.fsencode(proxy.path))
    uuid = UUID(node.uuid.encode())
    place = Ssh(host.encode(), None, os.fsencode(node.path))
    remote = Remote(repo.config, b"origin", place, 200.0, read_uuid=lambda: uuid)
    opened = open_ssh(repo, remote, uuid, 4, Patience())
    assert isinstance(opened, SshRepository)
    return opened


def control_files(proxy: Repo) -> set[str]:
    directory = proxy.git_dir / "annex" / "ssh"
    return {path.name for path in directory.iterdir()}


def master_of(proxy: Repo, host: str) -> int:
    """The process id of the ssh that listens at the control socket."""
    done = subprocess.run(
        ["ssh", "-O", "check", "-S", f".git/annex/ssh/{host}", "any"], cwd=proxy.path, capture_output=True, text=True
    )
    found = re.search(r"pid=(\d+)", done.stderr)
    assert found, done.stderr
    return int(found[1])


@pytest.mark.parametrize("host", ["rw", "real"])
def test_everything_that_can_be_asked(make_proxy, host):
    proxy, node = make_proxy(host)
    content = pseudorandom(300_000)
    key_name = proxy.add("file", content)
    key = Key(key_name.encode())
    remote = connect(proxy, node, host)
    try:
        assert remote.uuid == node.uuid.encode()
        assert remote.protocol_version >= 2
        assert not remote.checkpresent(key)
        with pytest.raises(NotLocked):
            remote.lockcontent(key)
        with pytest.raises(NotPresent):
            remote.get(key, 0, b"file")
        with remote.put(key, b"file") as upload:
            assert upload.receive(len(content), BytesSource(content), lambda: True).done
        assert remote.checkpresent(key)
        with remote.put(key, b"file") as answer:
            assert isinstance(answer, AlreadyHave)
        with remote.lockcontent(key):
            pass
        received = bytearray()
        with remote.get(key, 1000, b"file") as download:
            to_callable(download.source, download.length, received.extend)
            assert download.still_valid()
            download.acknowledge(True)
        assert received == content[1000:]
        assert remote.gettimestamp() > 0
        assert node.content(key_name) == content
        assert remote.remove(key).done
        assert node.content(key_name) is None
        assert control_files(proxy) == {host, f"{host}.lock"}
    finally:
        remote.close()
    assert control_files(proxy) == {f"{host}.lock"}


def test_git_annex_goes_through_our_connection(make_proxy, way):
    proxy, node = make_proxy("rw")
    key = proxy.add("file", b"content")
    remote = connect(proxy, node, "rw")
    try:
        master = master_of(proxy, "rw")
        way.write_text(NO_WAY)
        proxy.annex("copy", "--to=origin", "file")
        assert remote.checkpresent(Key(key.encode()))
        assert master_of(proxy, "rw") == master
        second = connect(proxy, node, "rw")
        remote.close()
        assert second.checkpresent(Key(key.encode()))
        second.close()
    finally:
        remote.close()
    assert control_files(proxy) == {"rw.lock"}


def test_we_go_through_the_connection_of_git_annex(make_proxy, way):
    proxy, node = make_proxy("rw")
    keys = [proxy.add(f"file{n}", b"content %d" % n) for n in range(2)]
    with subprocess.Popen(
        ["git-annex", "copy", "--to=origin", "--batch", "--json"],
        cwd=proxy.path,
        env=proxy.env,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as batch:
        assert batch.stdin is not None and batch.stdout is not None
        batch.stdin.write("file0\n")
        batch.stdin.flush()
        assert '"success":true' in batch.stdout.readline()
        master = master_of(proxy, "rw")
        way.write_text(NO_WAY)
        remote = connect(proxy, node, "rw")
        assert remote.checkpresent(Key(keys[0].encode()))
        remote.close()
        assert master_of(proxy, "rw") == master
        out, _ = batch.communicate("file1\n", timeout=60)
        assert '"success":true' in out
    assert batch.returncode == 0
    assert node.content(keys[1]) == b"content 1"
    assert control_files(proxy) == {"rw.lock"}


def test_several_at_once_make_one_connection(make_proxy, capfd):
    """Those that come too late to be its master would say so."""
    proxy, node = make_proxy("rw")
    capfd.readouterr()
    with ThreadPoolExecutor(4) as pool:
        remotes = list(pool.map(lambda _: connect(proxy, node, "rw"), range(4)))
        assert {remote.uuid for remote in remotes} == {node.uuid.encode()}
        master = master_of(proxy, "rw")
        remotes[0].close()
        assert master_of(proxy, "rw") == master
        list(pool.map(SshRepository.close, remotes))
    assert "ControlSocket" not in capfd.readouterr().err
    assert control_files(proxy) == {"rw.lock"}


def test_a_master_whose_users_were_killed_is_replaced(make_proxy, way):
    proxy, node = make_proxy("rw")
    connect(proxy, node, "rw").close()
    leave = ["ssh", "-F", str(way), "-S", ".git/annex/ssh/rw", "-o", "ControlMaster=yes", "-N", "-f", "rw"]
    subprocess.run(leave, cwd=proxy.path, check=True)
    left = master_of(proxy, "rw")
    remote = connect(proxy, node, "rw")
    try:
        assert master_of(proxy, "rw") != left
    finally:
        remote.close()
    assert control_files(proxy) == {"rw.lock"}


def test_why_there_is_no_connection(make_proxy, way, capfd):
    proxy, node = make_proxy("login")
    with pytest.raises(RemoteUnavailable, match=r"^no-such-shell is missing on login; install it there, or set "):
        connect(proxy, node, "login", annex_shell="no-such-shell")
    with pytest.raises(RemoteUnavailable, match=r"its first line was: 'welcome' .* on login must not print anything"):
        connect(proxy, node, "login", annex_shell="echo welcome; git-annex-shell")
    assert control_files(proxy) == {"login.lock"}
    way.write_text(NO_WAY)
    capfd.readouterr()
    with pytest.raises(RemoteUnavailable, match=r"^ssh to login failed, see its message above"):
        connect(proxy, node, "login")
    assert "onnection closed" in capfd.readouterr().err
