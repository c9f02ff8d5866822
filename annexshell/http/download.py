"""Content on its way to an HTTP client (spec: http §5).

The client takes the content for complete and valid if as many bytes arrive as were announced. So the last of them
is sent only when it is certain that the others are what they should be.
"""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from annexshell import log, relay
from annexshell.errors import AnnexshellError
from annexshell.http import ranges

if TYPE_CHECKING:
    from annexshell.http.api import ApiRequest
    from annexshell.http.repositories import Served
    from annexshell.http.sessions import Sessions
    from annexshell.http.work import Workers
    from annexshell.repository import Content

HEADERS = {"Content-Type": "application/octet-stream"}
SMALL = 1 << 16  # content up to this size is sent in one piece with the headers
STALL_TIMEOUT = 600.0  # seconds for which a client need not take anything


class Stalled(AnnexshellError):
    """The client has taken nothing for a long time."""


class Opened:
    """Content that is about to be sent: in memory if it is small (or nothing of it is wanted), else still open."""

    def __init__(
        self, status: int, headers: dict[str, str], length: int, data: bytes | None, parts: ExitStack
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length
        self.data = data  # one byte less than announced if it was not valid to its end
        self._parts = parts  # the repository's session and the content, the latter on top
        self.content: Content | None = None

    def close(self) -> None:
        self._parts.close()


def open_content(sessions: Sessions, request: web.BaseRequest, api: ApiRequest, served: Served) -> Opened:
    """Open what a GET or HEAD asks for. Raises NotPresent, Refusal, and what opening the repository raises."""
    with ExitStack() as parts:
        repository = parts.enter_context(sessions.open(api, served))
        content = parts.enter_context(repository.get(api.the_key, api.offset, api.file))
        etag = f'"{quote(api.the_key.serialized)}"'
        headers = HEADERS | {"ETag": etag}
        status = 200
        if not served.proxied and not api.offset:
            headers["Accept-Ranges"] = "bytes"
            total = content.length
            part = ranges.wanted(request.headers, total, etag)
            if part is not None and content.narrow(*part):
                status = 206
                headers["Content-Range"] = f"bytes {part[0]}-{part[0] + part[1] - 1}/{total}"
        headers["X-git-annex-data-length"] = str(content.length)
        length = content.length
        if etag in (tag.strip() for tag in request.headers.get("If-None-Match", "").split(",")):
            return Opened(304, {"ETag": etag}, 0, b"", ExitStack())
        if request.method == "HEAD":
            headers["Content-Length"] = str(length)
            return Opened(status, headers, length, b"", ExitStack())
        if length <= SMALL:
            return Opened(status, headers, length, _read_small(content), ExitStack())
        opened = Opened(status, headers, length, None, parts.pop_all())
        opened.content = content
        return opened


def _read_small(content: Content) -> bytes:
    """All of the content, or all but its last byte if it was not valid to its end."""
    pieces: list[bytes] = []
    relay.to_callable(content.source, content.length, lambda view: pieces.append(bytes(view)))
    data = b"".join(pieces)
    if data and not content.still_valid():
        return data[:-1]
    content.acknowledge(True)
    return data


async def send(request: web.BaseRequest, response: web.StreamResponse, opened: Opened, workers: Workers) -> bool:
    """Send the headers and the content, which is then closed; false if it was cut short."""
    try:
        await response.prepare(request)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        await _flushed(transport)
        if transport.get_extra_info("sslcontext") is None:
            sink: _Sink = _Socket(transport)
        else:
            sink = _Stream(response)
        future = workers.transfer(lambda: _send(opened, sink))
    except BaseException:
        opened.close()
        raise
    try:
        complete = await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        sink.abort()
        raise
    if complete:
        await response.write_eof()
    else:
        transport.abort()
    return complete


def _send(opened: Opened, sink: _Sink) -> bool:
    """In a thread of its own."""
    content = opened.content
    assert content is not None
    try:
        with closing(opened):
            sink.send(content.source, content.length - 1)
            last: list[bytes] = []
            relay.to_callable(content.source, 1, lambda view: last.append(bytes(view)))
            if not content.still_valid():
                return False
            sink.send(relay.BytesSource(last[0]), 1)
            content.acknowledge(True)
            return True
    except (AnnexshellError, OSError) as reason:
        log.debug(f"content was not sent to its end: {reason}")
        return False
    finally:
        sink.close()


async def _flushed(transport: asyncio.WriteTransport) -> None:
    """Wait until what was written before is on its way: others are about to write to the same socket."""
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(0.001)


class _Sink:
    """Where content goes."""

    def send(self, source: relay.Source, length: int) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        """Nobody waits for it any more; from the event loop."""

    def close(self) -> None:
        pass


class _Socket(_Sink):
    """The client's socket, written to without the event loop, by sendfile() or splice() where that can be."""

    def __init__(self, transport: asyncio.BaseTransport) -> None:
        # A descriptor of our own, as the event loop closes its when the client goes.
        self._socket = socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno()))
        self._closing = threading.Lock()  # so that nothing is done to whoever gets the descriptor's number next
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLOUT)

    def send(self, source: relay.Source, length: int) -> None:
        relay.to_descriptor(source, length, self._socket.fileno(), self._wait)

    def _wait(self) -> None:
        if not self._poll.poll(STALL_TIMEOUT * 1000):
            raise Stalled(f"the client has taken nothing for {STALL_TIMEOUT:g} seconds")

    def abort(self) -> None:
        # Ends whatever the thread waits for on it.
        with self._closing:
            try:
                self._socket.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is gone anyway

    def close(self) -> None:
        with self._closing:
            self._socket.close()


class _Stream(_Sink):
    """The client behind TLS, which the event loop has to encrypt for."""

    def __init__(self, response: web.StreamResponse) -> None:
        self._loop = asyncio.get_running_loop()
        self._response = response
        self._aborted = False

    def send(self, source: relay.Source, length: int) -> None:
        relay.to_callable(source, length, self._write)

    def _write(self, view: memoryview) -> None:
        if self._aborted:
            raise ConnectionResetError("the client is gone")
        writing = asyncio.run_coroutine_threadsafe(self._response.write(bytes(view)), self._loop)
        try:
            writing.result(STALL_TIMEOUT)
        except TimeoutError as reason:
            writing.cancel()
            raise Stalled(f"the client has taken nothing for {STALL_TIMEOUT:g} seconds") from reason

    def abort(self) -> None:
        self._aborted = True
