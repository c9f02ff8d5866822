"""The whole HTTP server in a thread of the test's process, over repositories on disk, and clients of it."""

from __future__ import annotations

import asyncio
import hashlib
import http.client
import json
import os
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote_from_bytes

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.repository import LocalRepository
from annexshell.http import listening
from annexshell.http.auth import Options, open_gate
from annexshell.http.observing import NOBODY, Watch
from annexshell.http.repositories import Repositories
from annexshell.http.server import Limits, serving
from annexshell.key import Key
from annexshell.relay import BytesSource
from annexshell.repository import Upload
from annexshell.uuid import UUID
from tests.shell import make_annex

CLIENT = "79a5a1f4-07e8-11ef-873d-97f93ca91925"
SERVED = UUID(b"0b1f0c20-58a2-4430-bb53-655bdf39e0af")
DEADLINE = 10.0  # seconds that anything is waited for


def key_of(content: bytes, backend: str = "SHA256E") -> Key:
    digest = hashlib.sha256(content).hexdigest()
    return Key(f"{backend}-s{len(content)}--{digest}".encode())


HELLO = key_of(b"hello\n")
EMPTY = key_of(b"")
ABSENT = Key(b"SHA256E-s6--5ad38304b535c2987dbd24657c1a11b884984ff600d9f389deb0d4e634fee792")


class Place:
    """A repository on disk."""

    def __init__(self, directory: Path, uuid: UUID = SERVED, *, bare: bool = False) -> None:
        self.directory = make_annex(directory, uuid.decode(), bare=bare)
        self.git_dir = directory if bare else directory / ".git"
        self.uuid = uuid

    def open(self) -> LocalRepository:
        return LocalRepository(GitRepository(os.fsencode(self.directory)), UUID(b"owner"))

    def store(self, key: Key, content: bytes) -> Key:
        repository = self.open()
        with repository.put(key, None) as upload:
            assert isinstance(upload, Upload)
            assert upload.receive(len(content), BytesSource(content), lambda: True)
        repository.close()
        return key

    def object(self, key: Key) -> Path | None:
        path = self.open().find(key)
        return None if path is None else Path(os.fsdecode(path))

    def beside(self, key: Key, suffix: str) -> Path:
        """A file of a lock on content that is there."""
        path = self.object(key)
        assert path is not None
        return path.with_name(path.name + suffix)

    def content(self, key: Key) -> bytes | None:
        path = self.object(key)
        return None if path is None else path.read_bytes()

    def temporary(self, key: Key) -> Path:
        return self.git_dir / "annex" / "tmp" / os.fsdecode(key.filename)

    def partial(self, key: Key) -> bytes | None:
        """What there is of content that is not complete."""
        path = self.temporary(key)
        return path.read_bytes() if path.exists() else None

    def running(self) -> list[str]:
        """Lock and info files of transfers."""
        top = self.git_dir / "annex" / "transfer"
        found = (path.relative_to(top) for path in top.rglob("*") if path.is_file())
        return sorted(str(path) for path in found if path.parts[0] != "failed")

    def logged(self, key: Key) -> bytes:
        repository = self.open()
        try:
            return bytes(repository.branch.read(repository.branch.key_log(key)))
        finally:
            repository.abandon()


class Door:
    """A running server. Use it in a ``with``."""

    def __init__(
        self,
        place: Place | None = None,
        *,
        below: Iterable[Path] = (),
        limits: Limits | None = None,
        tls: ssl.SSLContext | None = None,
        trust: ssl.SSLContext | None = None,
        environ: Mapping[bytes, bytes] | None = None,
        loop: Any = asyncio.new_event_loop,
        watch: Watch = NOBODY,
        path_prefix: str = "",
        **options: Any,
    ) -> None:
        self.place = place
        self._below = tuple(map(os.fsencode, below))
        self._limits = limits or Limits(grace=1.0)
        self._tls = tls
        self._trust = trust
        self._gate = open_gate(Options(**(options or {"wideopen": True})), environ or {})
        self._new_loop = loop
        self._watch = watch
        self._path_prefix = path_prefix
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door")
        self._failure: BaseException | None = None

    def _run(self) -> None:
        self._loop = self._new_loop()
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as reason:
            self._failure = reason
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        with listening.listen("127.0.0.1", 0) as listeners, self._repositories() as repositories:
            assert listeners.port is not None
            self.port = listeners.port
            sockets = listeners.for_worker()
            options: Any = {"watch": self._watch, "path_prefix": self._path_prefix}
            async with serving(sockets, repositories, self._gate, self._limits, self._tls, **options):
                self._ready.set()
                await self._stop.wait()

    def _repositories(self) -> Repositories:
        if self.place is not None:
            return Repositories.single(os.fsencode(self.place.directory), interval=0.05)
        return Repositories.below(self._below, interval=0.05)

    def __enter__(self) -> Door:
        self._thread.start()
        assert self._ready.wait(DEADLINE)
        if self._failure is not None:
            raise self._failure
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Can be repeated."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the server does not end"
        if self._failure is not None:
            raise self._failure

    @property
    def url(self) -> str:
        scheme = "annex+http" if self._tls is None else "annex+https"
        return f"{scheme}://localhost:{self.port}/git-annex/"

    def socket(self) -> socket.socket:
        """A new connection."""
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        return plain if self._trust is None else self._trust.wrap_socket(plain, server_hostname="localhost")

    def connect(self) -> Connection:
        connection = Connection("localhost", self.port, timeout=DEADLINE)
        connection.sock = self.socket()
        connection.auto_open = 0  # when it has been closed, that is to be noticed
        return connection

    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Answer:
        """One request over a connection of its own."""
        connection = self.connect()
        try:
            return connection.ask(method, path, {"Connection": "close", **(headers or {})}, body)
        finally:
            connection.close()

    def exchange(self, data: bytes) -> bytes:
        """What is answered to DATA until the server closes the connection."""
        with self.socket() as connection:
            connection.sendall(data)
            return received(connection)

    def get(self, key: Key, version: str = "v4/", uuid: UUID = SERVED, method: str = "GET", **extra: Any) -> Answer:
        path = f"/git-annex/{uuid}/{version}key/{quoted(key)}?clientuuid={CLIENT}"
        return self.ask(method, path + extra.pop("query", ""), **extra)

    def post(self, action: str, version: int = 4, uuid: UUID = SERVED, *, also: str = "", **query: object) -> Answer:
        return self.ask("POST", target(action, version, uuid, **query) + also)

    def put(self, key: Key, content: Any, length: int | None = None, **how: Any) -> Answer:
        """CONTENT is bytes, or an iterable of chunks."""
        headers = {"X-git-annex-data-length": str(len(content) if length is None else length)}
        headers |= how.pop("headers", {})
        return self.ask(
            "POST", target("put", how.pop("version", 4), how.pop("uuid", SERVED), key=key, **how), headers, content
        )

    def offset(self, key: Key, version: int = 4, uuid: UUID = SERVED) -> Any:
        return self.post("putoffset", version, uuid, key=key).json


def quoted(value: object) -> str:
    return quote_from_bytes(value.serialized if isinstance(value, Key) else str(value).encode(), safe="")


def target(action: str, version: int = 4, uuid: UUID = SERVED, **query: object) -> str:
    """The path and query of a request; "_" in names of parameters stands for "-", and None for no such parameter."""
    query = {"clientuuid": CLIENT, **query}
    words = "&".join(
        f"{name.replace('_', '-')}={quoted(value)}" for name, value in query.items() if value is not None
    )
    return f"/git-annex/{uuid}/v{version}/{action}?{words}"


def received(connection: socket.socket) -> bytes:
    """All until the other end closes the connection."""
    pieces = []
    while piece := connection.recv(1 << 16):
        pieces.append(piece)
    return b"".join(pieces)


class Answer:
    def __init__(self, status: int, headers: Mapping[str, str], body: bytes, complete: bool = True) -> None:
        self.status = status
        self.headers = {name.lower(): value for name, value in headers.items()}
        self.body = body
        self.complete = complete

    @property
    def json(self) -> Any:
        assert self.status == 200, self
        assert self.headers["content-type"] == "application/json;charset=utf-8"
        return json.loads(self.body)

    @property
    def data_length(self) -> int:
        return int(self.headers["x-git-annex-data-length"])

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.headers}, {self.body[:200]!r}, complete={self.complete})"


class Connection(http.client.HTTPConnection):
    def ask(self, method: str, path: str, headers: Mapping[str, str] | None = None, body: Any = None) -> Answer:
        """BODY is bytes, or an iterable of chunks."""
        self.send_head(method, path, dict(headers or {}), body)
        if isinstance(body, bytes):
            self.send(body)
        elif body is not None:
            for chunk in body:
                self.send_chunk(chunk)
            self.send_chunk(b"")
        return self.answer(method)

    def send_head(self, method: str, path: str, headers: Mapping[str, str], body: Any = None) -> None:
        self._method = method
        self.putrequest(method, path, skip_accept_encoding=True)
        headers = dict(headers)
        if isinstance(body, bytes):
            headers.setdefault("Content-Length", str(len(body)))
        elif body is not None:
            headers.setdefault("Transfer-Encoding", "chunked")
        elif method == "POST" and "Transfer-Encoding" not in headers:
            headers.setdefault("Content-Length", "0")
        for name, value in headers.items():
            self.putheader(name, value)
        self.endheaders()

    def send_chunk(self, data: bytes) -> None:
        """No data: the end."""
        self.send(b"%x\r\n%s\r\n" % (len(data), data))

    def answer(self, method: str = "POST") -> Answer:
        response = self.getresponse()
        try:
            body, complete = response.read(), True
        except http.client.IncompleteRead as reason:
            body, complete = reason.partial, False
        return Answer(response.status, dict(response.getheaders()), body, complete)


def wait_until(condition: Any, timeout: float = DEADLINE) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.01)
