"""An HTTP server that says what a test wants, byte for byte, and remembers what it was asked."""

from __future__ import annotations

import gzip
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.http.client import HttpRepository
from annexshell.remotes.http import open_http
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import AnnexHttp, Remote
from annexshell.uuid import UUID

TARGET = UUID(b"22222222-2222-4222-8222-222222222222")
OWN = UUID(b"11111111-1111-4111-8111-111111111111")


class Request:
    """A request; its body is read when it is first asked for."""

    def __init__(self, stream: Any, line: str, headers: dict[str, str], connection: int) -> None:
        self._stream = stream
        self._body: bytes | None = None
        self.connection = connection  # its number
        self.method, self.target, _ = line.split(" ")
        self.headers = headers
        parts = urlsplit(self.target)
        words = parts.path.split("/git-annex/", 1)[-1].split("/")
        self.version, self.action = [*words[1:3], "", ""][:2]
        self.path = parts.path
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))

    @property
    def body(self) -> bytes:
        if self._body is None:
            if self.headers.get("transfer-encoding") == "chunked":
                self._body = b"".join(self.chunks())
            else:
                self._body = self._stream.read(int(self.headers.get("content-length", "0")))
        return self._body

    def chunks(self):
        """Each chunk as it comes."""
        while size := int(self._stream.readline() or b"0", 16):
            data = self._stream.read(size)
            self._stream.readline()
            yield data
        self._stream.readline()
        self._body = b""


class Server:
    """ANSWERS, by action, are bytes, or functions of a request that give them; None hangs, no bytes hang up.

    It is for the functions to read the request's body before. To be used in a ``with``.
    """

    def __init__(self, tls: ssl.SSLContext | None = None, **answers: Any) -> None:
        self.answers: dict[str, Any] = {"checkpresent": ok(present=True), **answers}
        self.requests: list[Request] = []
        self.connections = 0
        self._tls = tls
        self._over = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self._open: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=(client, self.connections), daemon=True).start()

    def _serve(self, client: socket.socket, number: int) -> None:
        try:
            if self._tls is not None:
                client = self._tls.wrap_socket(client, server_side=True)
            self._open.append(client)
            with client.makefile("rb") as stream:
                self._converse(client, stream, number)
        except (OSError, ValueError):
            pass  # the client has hung up
        finally:
            self._end(client)

    def _converse(self, client: socket.socket, stream: Any, number: int) -> None:
        while line := stream.readline():
            headers = {}
            while (header := stream.readline()) not in (b"\r\n", b""):
                name, _, value = header.decode().partition(":")
                headers[name.lower()] = value.strip()
            request = Request(stream, line.decode().strip(), headers, number)
            self.requests.append(request)
            raw = self._answer(request)
            if raw is None:
                self._over.wait()
                return
            client.sendall(raw)
            if not raw or b"Connection: close" in raw:
                return
            _ = request.body

    def _answer(self, request: Request) -> bytes | None:
        answer = self.answers.get(request.action, status(404))
        if callable(answer):
            return answer(request)
        if answer:
            _ = request.body
        return answer

    def _end(self, client: socket.socket) -> None:
        try:
            client.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        client.close()

    @property
    def actions(self) -> list[str]:
        return [request.action for request in self.requests]

    def hang_up(self) -> None:
        """Close all connections."""
        for client in self._open:
            self._end(client)

    def __enter__(self) -> Server:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Can be repeated."""
        if not self._over.is_set():
            self._over.set()
            self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._thread.join()
            self.hang_up()


def raw(code: int, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {code} Whatever", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ok(**fields: Any) -> bytes:
    return as_json(json.dumps(fields).encode())


def as_json(body: bytes, *headers: str) -> bytes:
    return raw(200, body, "Content-Type: application/json;charset=utf-8", *headers)


def zipped(**fields: Any) -> bytes:
    return as_json(gzip.compress(json.dumps(fields).encode()), "Content-Encoding: gzip")


def status(code: int, text: str = "", *headers: str) -> bytes:
    return raw(code, text.encode(), "Content-Type: text/plain", *headers)


def content(data: bytes, length: int | None = None, *headers: str) -> bytes:
    length = len(data) if length is None else length
    return raw(200, data, "Content-Type: application/octet-stream", f"X-git-annex-data-length: {length}", *headers)


def chunked(*pieces: bytes, headers: tuple[str, ...] = (), end: bytes = b"0\r\n\r\n") -> bytes:
    head = "\r\n".join(["HTTP/1.1 200 OK", "Transfer-Encoding: chunked", *headers, "", ""])
    return head.encode() + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + end


class Gateway:
    """A repository of ours, with settings, that has a server as its remote ``node``."""

    def __init__(self, path: os.PathLike[str], **settings: str) -> None:
        self.repo = GitRepository(os.fsencode(path))
        self._settings = {name.encode(): [value.encode()] for name, value in settings.items()}

    def open(
        self,
        server: Server,
        highest: int = 4,
        patience: Patience | None = None,
        *,
        user: str = "",
        path: str = "/git-annex/",
        url: bytes | None = None,
        make: Callable[..., Remote] = Remote,
    ) -> HttpRepository:
        scheme = "annex+http" if server._tls is None else "annex+https"
        location = AnnexHttp(url or f"{scheme}://{user}localhost:{server.port}{path}".encode())
        remote = make(Config(dict(self._settings)), b"node", location, 100.0, read_uuid=lambda: TARGET)
        repository = open_http(self.repo, remote, TARGET, highest, patience or Patience(10, 10))
        assert isinstance(repository, HttpRepository)
        return repository
