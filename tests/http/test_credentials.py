"""Passwords: when they are asked for, of whom, and what becomes of them."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from annexshell.errors import PeerError, RemoteUnavailable
from annexshell.key import Key
from annexshell.relay import BytesSource
from annexshell.remotes.patience import Patience
from tests.http.scripted import Gateway, Request, Server, ok, status

KEY = Key(b"SHA256-s5--key")
CHALLENGE = 'WWW-Authenticate: Basic realm="git-annex", charset="UTF-8"'


def authorization(text: str) -> str:
    return "Basic " + base64.urlsafe_b64encode(text.encode()).decode()


class Helper:
    """A credential helper that knows one password, if any, and writes down what it is told."""

    def __init__(self, home: Path) -> None:
        self._log = home / "helper.log"
        self._answer = home / "helper.answer"
        script = home / "helper"
        script.write_text(
            f'#!/bin/sh\necho "[$1]" >> {self._log}\ncat >> {self._log}\n[ "$1" != get ] || cat {self._answer}\n'
        )
        script.chmod(0o755)
        (home / ".gitconfig").write_text(f"[credential]\n\thelper = {script}\n")
        self.knows("")

    def knows(self, answer: str) -> None:
        self._answer.write_text(answer)

    @property
    def said(self) -> list[list[str]]:
        """Each call's action and lines."""
        if not self._log.exists():
            return []
        return [call.splitlines() for call in self._log.read_text().replace("]", "", 1).split("[") if call]

    @property
    def calls(self) -> list[str]:
        return [call[0].rstrip("]") for call in self.said]


@pytest.fixture
def helper(home: Path) -> Helper:
    return Helper(home)


def guarded(*passwords: str, code: int = 401) -> object:
    """Answers that want one of these ``user:password``."""
    wanted = {authorization(password) for password in passwords}

    def answer(request: Request) -> bytes:
        if request.headers.get("authorization") not in wanted:
            return status(code, "", CHALLENGE)
        return ok(present=True, timestamp=5)

    return answer


def sent(server: Server) -> list[str | None]:
    return [request.headers.get("authorization") for request in server.requests]


def test_git_is_asked_once_and_told_that_it_was_right(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=se:cret\n")
    with Server(checkpresent=guarded("me:se:cret"), gettimestamp=guarded("me:se:cret")) as server:
        remote = gateway.open(server)
        assert remote.gettimestamp() == 5
        assert remote.checkpresent(KEY)
        right = authorization("me:se:cret")
        assert sent(server) == [None, right, right, right]
        assert helper.calls == ["get", "store"]
        lines = [set(call) for call in helper.said]
        assert lines[0] >= {"protocol=annex+http", f"host=localhost:{server.port}"}
        assert lines[1] >= {"username=me", "password=se:cret"}
        remote.close()


@pytest.mark.parametrize(
    "git_url, host",
    [
        ("https://localhost/repo.git", "host=localhost"),
        ("http://localhost:8080/", "host=localhost:8080"),
        ("https://elsewhere/repo.git", None),
        ("ssh://localhost/repo.git", None),
        ("https://[bad/", None),
    ],
)
def test_under_the_git_url_if_that_is_the_same_host(
    gateway: Gateway, helper: Helper, git_url: str, host: str | None
) -> None:
    helper.knows("username=me\npassword=secret\n")
    gateway = Gateway(Path(gateway.repo.path.decode()), **{"remote.node.url": git_url})
    with Server(checkpresent=guarded("me:secret")) as server:
        gateway.open(server).close()
        assert (host or f"host=localhost:{server.port}") in helper.said[0]


def test_a_wrong_password_is_forgotten(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=wrong\n")
    with Server(checkpresent=guarded("me:secret")) as server:
        with pytest.raises(RemoteUnavailable, match="401 Unauthorized: it does not accept the password") as failure:
            gateway.open(server)
        assert "wrong" not in str(failure.value)
        assert sent(server) == [None, authorization("me:wrong")]
        assert helper.calls == ["get", "erase"]


def test_a_password_that_changes_later(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=old\n")
    with Server(checkpresent=guarded("me:old")) as server:
        remote = gateway.open(server)
        server.answers["checkpresent"] = guarded("me:new")
        helper.knows("username=me\npassword=new\n")
        with pytest.raises(PeerError, match="401"):
            remote.checkpresent(KEY)
        assert remote.checkpresent(KEY)
        assert helper.calls == ["get", "store", "erase", "get", "store"]
        remote.close()


def test_forbidden_is_neither_right_nor_wrong(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=secret\n")

    def answer(request: Request) -> bytes:
        return status(403 if "authorization" in request.headers else 401, "")

    with Server(checkpresent=answer) as server:
        with pytest.raises(RemoteUnavailable, match="checkpresent failed with HTTP status 403"):
            gateway.open(server)
        assert helper.calls == ["get"]


def test_the_password_in_the_url(gateway: Gateway, helper: Helper) -> None:
    with Server(checkpresent=guarded("m@e:se/cret")) as server:
        gateway.open(server, user="m%40e:se%2Fcret@").close()
        assert sent(server) == [None, authorization("m@e:se/cret")]
        with pytest.raises(RemoteUnavailable) as failure:
            gateway.open(server, user="m%40e:wrong@")
        assert "wrong" not in str(failure.value)
        assert helper.calls == []


def test_a_user_in_the_url_without_a_password(gateway: Gateway, helper: Helper) -> None:
    helper.knows("password=secret\n")
    with Server(checkpresent=guarded("me:secret")) as server:
        gateway.open(server, user="me@").close()
        assert "username=me" in helper.said[0]


@pytest.mark.parametrize("knows", ["", "username=me\n", "quit=1\n"])
def test_nobody_is_asked(gateway: Gateway, helper: Helper, knows: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by a program with a window either."""
    prompt = Path(gateway.repo.path.decode()) / "prompt"
    prompt.write_text("#!/bin/sh\ntouch asked\necho something\n")
    prompt.chmod(0o755)
    for name in ("GIT_ASKPASS", "SSH_ASKPASS"):
        monkeypatch.setenv(name, str(prompt))
    subprocess.run(["git", "config", "--global", "core.askPass", str(prompt)], check=True)
    monkeypatch.chdir(prompt.parent)
    helper.knows(knows)
    with Server(checkpresent=guarded("me:secret")) as server:
        with pytest.raises(RemoteUnavailable, match="git credential has none for it"):
            gateway.open(server)
        assert sent(server) == [None]
    assert not (prompt.parent / "asked").exists()


def test_a_helper_that_hangs(gateway: Gateway, home: Path) -> None:
    (home / ".gitconfig").write_text('[credential]\n\thelper = "!sleep 100; :"\n')
    with Server(checkpresent=guarded("me:secret")) as server:
        begun = time.monotonic()
        with pytest.raises(RemoteUnavailable, match="git credential has none for it"):
            gateway.open(server, patience=Patience(0.5, None))
        assert time.monotonic() - begun < 10


def test_no_git(gateway: Gateway, helper: Helper, monkeypatch: pytest.MonkeyPatch) -> None:
    assert gateway.repo.uuid
    monkeypatch.setenv("PATH", "/nonexistent")
    with Server(checkpresent=guarded("me:secret")) as server, pytest.raises(RemoteUnavailable, match="401"):
        gateway.open(server)


def test_another_host_does_not_get_the_password(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=secret\n")
    with Server() as other:

        def redirect(request: Request) -> bytes:
            return status(307, "", f"Location: http://127.0.0.1:{other.port}{request.target}")

        with Server(checkpresent=guarded("me:secret")) as server:
            remote = gateway.open(server)
            server.answers["checkpresent"] = redirect
            assert remote.checkpresent(KEY)
            assert sent(other) == [None]
            other.answers["checkpresent"] = status(401)
            with pytest.raises(PeerError, match="another host"):
                remote.checkpresent(KEY)
            assert sent(other) == [None, None]
            remote.close()


def test_a_password_for_writing_only_is_there_before_the_content(gateway: Gateway, helper: Helper) -> None:
    helper.knows("username=me\npassword=secret\n")
    right = authorization("me:secret")

    def write(request: Request) -> bytes:
        if request.headers.get("authorization") != right:
            return status(401)
        return ok(offset=0) if request.action == "putoffset" else ok(stored=request.body == b"hello", plusuuids=[])

    for version in range(5):
        with Server(putoffset=write, put=write) as server:
            remote = gateway.open(server, version)
            with remote.put(KEY, None) as upload:
                assert upload.receive(5, BytesSource(b"hello"), lambda: True)
            assert sent(server) == [None, None, right, right]
            remote.close()
