"""nginx in front of a server, as the man page has it, for the real git-annex."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import shutil
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from tests.http.certificates import make_certificate
from tests.interop.conftest import IN_CI
from tests.interop.harness import Repo, wait_until
from tests.interop.test_http_door import LARGE, SHAPES, home, make_client, parts, serve
from tests.interop.webservers import Door, Nginx, trusting

__all__ = ["home", "make_client", "parts", "serve"]

PROGRAM = shutil.which("nginx", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
CLIENT = "79a5a1f4-07e8-11ef-873d-97f93ca91925"
WRITER = {"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret"}
LOGIN = {"Authorization": "Basic YWxpY2U6c2VjcmV0"}


class Fronted:
    """A server with nginx in front."""

    def __init__(self, server: Repo, door: Door, nginx: Nginx, certificate: Path | None, log: Path) -> None:
        self.server = server
        self.door = door
        self.nginx = nginx
        self.certificate = certificate
        self._log = log

    def connect(self) -> http.client.HTTPConnection:
        if self.certificate is None:
            return http.client.HTTPConnection("localhost", self.nginx.port, timeout=30)
        trust = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection("localhost", self.nginx.port, timeout=30, context=trust)

    def path(self, action: str, key: str, rest: str = "") -> str:
        return f"/git-annex/{self.server.uuid}/v4/{action}?clientuuid={CLIENT}&key={key}{rest}"

    def entries(self, count: int) -> list[dict[str, object]]:
        wait_until(lambda: self._log.exists() and self._log.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    def upstream(self) -> set[str]:
        """The connections that nginx has to us, by their inodes, but not the socket that listens."""
        found = (line.split() for line in Path("/proc/net/unix").read_text().splitlines())
        connected = ["03", str(self.door.socket_path)]
        return {words[6] for words in found if [words[5], words[-1]] == connected}


@pytest.fixture(params=SHAPES)
def fronted(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    make_server: Callable[..., Repo],
    serve: Callable[..., Door],
    parts: ExitStack,
) -> Iterator[Callable[..., Fronted]]:
    def start(*options: str) -> Fronted:
        assert PROGRAM, "there is no nginx; install it"
        server = make_server()
        log = tmp_path / "access.log"
        watching = (f"--access-log={log}", "--access-log-format=json")
        door = serve(server, *(options or ("--wideopen",)), *watching, socket_path=tmp_path / "socket", env=WRITER)
        certificate = make_certificate(tmp_path / "certificate.pem") if request.param == "tls" else None
        nginx = Nginx(PROGRAM, tmp_path / "nginx", door, certificate)
        parts.callback(nginx.stop)
        return Fronted(server, door, nginx, certificate, log)

    return start


def key_of(content: bytes) -> str:
    return f"SHA256E-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


if PROGRAM or IN_CI:

    def test_there_and_back(
        tmp_path: Path, fronted: Callable[..., Fronted], make_client: Callable[..., Repo]
    ) -> None:
        front = fronted()
        server = front.server
        client = make_client(origin=(server, front.nginx.url))
        if front.certificate:
            client.env["PATH"] = trusting(tmp_path / "trusting", front.certificate, client.env["PATH"])
        name = "directory \u4e2d/" + "\u4e2d" * 80 + "/a file #1?&%2F+"
        (client.path / name).parent.mkdir(parents=True)
        key = client.add(name, LARGE)
        client.annex("copy", "--to=origin", name)
        client.annex("drop", name)  # by a lock there
        client.annex("get", name)
        client.annex("move", "--to=origin", name)
        client.annex("move", "--from=origin", name)
        assert (client.content(key), server.object(key)) == (LARGE, None)
        assert server.leftovers() == []
        assert front.nginx.kept() == []
        statuses = {entry["status"] for entry in front.entries(10)}
        assert statuses == {200}

    def test_an_upload_is_stored_as_it_comes(fronted: Callable[..., Fronted]) -> None:
        front = fronted()
        key = key_of(LARGE)
        with closing(front.connect()) as client:
            client.putrequest("POST", front.path("put", key))
            client.putheader("X-git-annex-data-length", str(len(LARGE)))
            client.putheader("Transfer-Encoding", "chunked")
            client.endheaders()
            for end, piece in ((1_000_000, LARGE[:1_000_000]), (len(LARGE), LARGE[1_000_000:])):
                client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
                if end < len(LARGE):
                    wait_until(lambda: _size(front.server.temporary(key)) == 1_000_000)
            client.send(b"0\r\n\r\n")
            assert client.getresponse().read() == b'{"plusuuids":[],"stored":true}'
        assert front.server.content(key) == LARGE
        assert front.nginx.kept() == []

    def test_an_upload_that_is_not_allowed_is_told_so(fronted: Callable[..., Fronted]) -> None:
        """And nginx does not take it for a failure that it was not read."""
        front = fronted("--authenv-http", "--unauth-readonly")
        path, headers = front.path("put", key_of(LARGE)), {"X-git-annex-data-length": str(len(LARGE))}
        for _ in range(3):
            with closing(front.connect()) as client:
                client.request("POST", path, LARGE, headers)
                answer = client.getresponse()
                assert (answer.status, answer.headers["WWW-Authenticate"][:12]) == (401, "Basic realm=")
        with closing(front.connect()) as client:
            client.request("POST", path, LARGE, headers | LOGIN)
            assert client.getresponse().status == 200

    def test_connections_are_used_again(fronted: Callable[..., Fronted]) -> None:
        front = fronted()
        used: set[str] = set()
        for _ in range(3):
            with closing(front.connect()) as client:
                for _ in range(10):
                    client.request("POST", front.path("checkpresent", key_of(LARGE)))
                    assert client.getresponse().read() == b'{"present":false}'
                    used |= front.upstream()
        assert len(used) == 1

    def test_a_server_that_is_started_again(fronted: Callable[..., Fronted]) -> None:
        """What nginx has kept is of no use then, and it has noticed."""
        front = fronted()
        for _ in range(3):
            with closing(front.connect()) as client:
                client.request("POST", front.path("put", key_of(b"abc")), b"abc", {"X-git-annex-data-length": "3"})
                assert client.getresponse().status == 200
            front.door.stop()
            front.door.start()

    def test_a_lock_is_kept_as_long_as_the_client_says(fronted: Callable[..., Fronted]) -> None:
        front = fronted()
        key = key_of(b"content")

        def post(action: str, rest: str = "") -> dict[str, object]:
            with closing(front.connect()) as client:
                client.request("POST", front.path(action, key, rest))
                return dict(json.loads(client.getresponse().read()))

        with closing(front.connect()) as client:
            client.request("POST", front.path("put", key), b"content", {"X-git-annex-data-length": "7"})
            assert client.getresponse().status == 200
        lockid = post("lockcontent")["lockid"]
        with closing(front.connect()) as client:
            client.putrequest("POST", front.path("keeplocked", key, f"&lockid={lockid}"))
            client.putheader("Transfer-Encoding", "chunked")
            client.endheaders()
            client.send(b'11\r\n{"unlock":false}\n\r\n')
            time.sleep(0.5)
            assert post("remove")["removed"] is False
            client.send(b'10\r\n{"unlock":true}\n\r\n')
            assert client.getresponse().read() == b'{"locked":false}'
        assert post("remove")["removed"] is True

    @pytest.mark.parametrize("trusts", [True, False])
    def test_who_the_client_is(fronted: Callable[..., Fronted], trusts: bool) -> None:
        front = fronted("--authenv-http", *(["--trust-forwarded-for"] if trusts else []))
        with closing(front.connect()) as client:
            headers = {**LOGIN, "X-Forwarded-For": "192.0.2.1"}  # which is a lie
            client.request("POST", front.path("checkpresent", key_of(LARGE)), headers=headers)
            assert client.getresponse().status == 200
        (entry,) = front.entries(1)
        assert (entry["remote"], entry["user"]) == ("127.0.0.1" if trusts else None, "alice")

    def test_a_long_url(fronted: Callable[..., Fronted]) -> None:
        front = fronted()
        name = "%E4%B8%AD" * 1365  # as long as the name of a file can be
        with closing(front.connect()) as client:
            headers = {"X-git-annex-data-length": "3"}
            client.request("POST", front.path("put", key_of(b"abc"), f"&associatedfile={name}"), b"abc", headers)
            assert client.getresponse().read() == b'{"plusuuids":[],"stored":true}'


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1
