"""Content on its way to an HTTP client (spec: http §5).

The client takes the content for complete and valid if as many bytes arrive as were announced. So the last of them
is sent only when it is certain that the others are what they should be.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import select
import socket
import threading
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING
from urllib.parse import quote

from aiohttp import web

from annexshell import log, relay
from annexshell.errors import AnnexshellError, NotPresent
from annexshell.http import observing, ranges
from annexshell.http.work import aside
from annexshell.p2p.versions import VERSIONS

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from annexshell.http.api import ApiRequest
    from annexshell.http.repositories import Served
    from annexshell.http.work import Slot
    from annexshell.repository import Content, Repository

HEADERS = {"Content-Type": "application/octet-stream"}
SMALL = 1 << 16  # content up to this size is sent in one piece with the headers
STALL_TIMEOUT = 600.0  # seconds for which a client need not take anything
_OBSERVED = 1 << 24  # bytes after which it is told how far it has come
_PARTING = 10.0  # seconds for a client to take what is on its way when the connection is closed


class Stalled(AnnexshellError):
    """The client has taken nothing for a long time."""


class Wanted:
    """What a GET or HEAD asks for."""

    def __init__(
        self, request: web.BaseRequest, api: ApiRequest, served: Served, session: AbstractContextManager[Repository]
    ) -> None:
        self._request = request
        self._is_get = request.method == "GET"
        self._api = api
        # Parts, and names for what was got, are about the whole content, and known where it stays as it is.
        self._has_parts = not served.proxied and not api.offset
        self._session = session

    def open(self) -> Opened:
        """Raises NotPresent, Refusal, and what opening the repository raises."""
        api = self._api
        with ExitStack() as parts:
            repository = parts.enter_context(self._session)
            content = parts.enter_context(repository.get(api.the_key, api.offset, api.file))
            is_over = not content.length and not VERSIONS[repository.protocol_version].validity
            if is_over:
                self._check_presence(repository, content)
            status, headers = self._begin(content)
            length = content.length
            headers["X-git-annex-data-length"] = str(length)
            if is_over or not self._is_get or status == 304:
                return Opened(status, headers, length, b"")
            if length <= SMALL:
                return Opened(status, headers, length, _read_small(content))
            return Opened(status, headers, length, None, content, parts.pop_all())

    def _check_presence(self, repository: Repository, content: Content) -> None:
        """Nothing is what a node of version 0 sends of what it does not have. Raises NotPresent."""
        content.still_valid()
        content.acknowledge(True)
        if not repository.checkpresent(self._api.the_key):
            raise NotPresent(f"{self._api.key} is not present")

    def _begin(self, content: Content) -> tuple[int, dict[str, str]]:
        """The status, and the headers about what the content is a part of; makes it that part."""
        headers = dict(HEADERS)
        if not self._has_parts:
            return 200, headers
        etag = f'"{quote(self._api.the_key.serialized)}"'
        headers |= {"ETag": etag, "Accept-Ranges": "bytes"}
        if ranges.is_among(etag, self._request.headers.get("If-None-Match", "")):
            return 304, headers
        total = content.length
        part = ranges.wanted(self._request.headers, total, etag) if self._is_get else None
        if part is None or not content.narrow(*part):
            return 200, headers
        start, length = part
        return 206, headers | {"Content-Range": f"bytes {start}-{start + length - 1}/{total}"}


class Opened:
    """Content that is about to be sent: in memory if it is small (or nothing of it is wanted), else still open."""

    def __init__(
        self,
        status: int,
        headers: dict[str, str],
        length: int,
        data: bytes | None,
        content: Content | None = None,
        parts: ExitStack | None = None,
    ) -> None:
        self.status = status
        self.headers = headers
        self.length = length  # what is announced
        self.data = data  # one byte less than announced if it was not valid to its end
        self.content = content
        self._parts = parts  # the repository's session and the content, the latter on top

    def close(self) -> None:
        if self._parts is not None:
            self._parts.close()


def _read_small(content: Content) -> bytes:
    """All of the content, or all but its last byte if it was not valid to its end."""
    pieces: list[bytes] = []
    try:
        relay.to_callable(content.source, content.length, lambda view: pieces.append(bytes(view)))
    except relay.ShortSource as reason:
        log.debug(f"content was not sent to its end: {reason}")
        return b"".join(pieces)
    data = b"".join(pieces)
    if not content.still_valid():
        return data[:-1]
    content.acknowledge(True)
    return data


async def send(request: web.BaseRequest, opened: Opened, transfer: Callable[[], Slot]) -> web.StreamResponse:
    """Send the headers and the content, which is then closed. What cannot be sent to its end is cut short."""
    if opened.data is None:
        return await _send_large(request, opened, transfer)
    if request.method == "HEAD":
        return web.Response(status=opened.status, headers=opened.headers | {"Content-Length": str(opened.length)})
    if opened.status == 304 or len(opened.data) == opened.length:
        return web.Response(status=opened.status, body=opened.data, headers=opened.headers)
    response = _response(opened)
    await _begin_to_send(response, request)
    await response.write(opened.data)
    _cut(request.transport)
    raise ConnectionResetError("the content was not valid to its end")


def _response(opened: Opened) -> web.StreamResponse:
    response = web.StreamResponse(status=opened.status, headers=opened.headers)
    response.content_length = opened.length
    return response


async def _begin_to_send(response: web.StreamResponse, request: web.BaseRequest) -> None:
    """Send the headers, after which there can be no other answer any more."""
    await response.prepare(request)
    observation = observing.of(request)
    observation.status, observation.length = response.status, response.content_length or 0


async def _send_large(request: web.BaseRequest, opened: Opened, transfer: Callable[[], Slot]) -> web.StreamResponse:
    with ExitStack() as parts:
        parts.callback(aside, opened.close)
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        # Before anything is said, as there may be none to be had.
        slot = transfer()
        parts.callback(slot.give_up)
        response = _response(opened)
        sink = _Socket(transport) if transport.get_extra_info("sslcontext") is None else _Stream(response)
        parts.callback(sink.close)
        await _begin_to_send(response, request)
        await _flushed(transport)
        observation = observing.of(request)
        future = slot.start(lambda: _send(opened, sink, observation))
        parts.pop_all()  # it is all the thread's now
    try:
        complete = await asyncio.shield(asyncio.wrap_future(future))
    except asyncio.CancelledError:
        sink.abort()
        raise
    if not complete:
        _cut(transport)
        raise ConnectionResetError("the content was not sent to its end")
    await response.write_eof()
    return response


def _cut(transport: asyncio.Transport | None) -> None:
    """Close the connection before all that was announced is sent, but not before what is on its way has arrived."""
    if transport is not None:
        transport.close()
        asyncio.get_running_loop().call_later(_PARTING, transport.abort)


def _send(opened: Opened, sink: _Sink, observation: observing.Observation) -> bool:
    """Whether all was sent. In a thread of its own."""
    content = opened.content
    assert content is not None
    try:
        with closing(sink), closing(opened):
            while observation.sent < content.length - 1:
                count = min(content.length - 1 - observation.sent, _OBSERVED)
                sink.send(content.source, count)
                observation.sent += count
            last: list[bytes] = []
            relay.to_callable(content.source, 1, lambda view: last.append(bytes(view)))
            if not content.still_valid():
                return False
            content.acknowledge(True)
            # What was used for it can be used for what the client asks next, which may be at once.
            opened.close()
            observation.sent += 1  # before it is sent, for whoever has got it all may be gone before we are back
            sink.send(relay.BytesSource(last[0]), 1)
            return True
    except (AnnexshellError, OSError) as reason:
        log.debug(f"content was not sent to its end: {reason}")
        return False


async def _flushed(transport: asyncio.WriteTransport) -> None:
    """Wait until what was written before is on its way: others are about to write to the same socket."""
    pause = 0.001
    while transport.get_write_buffer_size() and not transport.is_closing():
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.1)


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
        except concurrent.futures.TimeoutError as reason:
            writing.cancel()
            raise Stalled(f"the client has taken nothing for {STALL_TIMEOUT:g} seconds") from reason

    def abort(self) -> None:
        self._aborted = True
