"""Connections that nobody can hold for nothing (spec: http §11.2).

aiohttp closes a connection that is idle for long, and nothing else. What can go wrong besides is looked for once in a
while, as that is less to do than setting an alarm for each thing that might happen:

- A client sends a header byte by byte, or nothing at all.
- It does not take its answer; or not the last of it, so that a connection which was closed does not end.
- It has gone while nothing is read from it, because there is more than its request needs for now. Who works for it
  would never be told.
- There are so many connections that nothing else could be opened.

They end in good order, too (spec: http §10.1).
"""

from __future__ import annotations

import asyncio
import resource
import select
import socket
import ssl
import traceback
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from annexshell import log
from annexshell.http.handshakes import Handshakes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    Handler: TypeAlias = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

PERIOD = 1.0  # seconds between looks at all connections
HEADER_TIMEOUT = 30.0  # seconds from a request's first byte, or the connection's beginning, to the end of its header
TAKE_TIMEOUT = 600.0  # seconds for which a client need not take anything
KEEPALIVE = 300.0  # seconds; clients count on an idle connection for 30
# Seconds, at the end, for requests that keep a lock. They may go on for hours; but one whose client is just done with
# it may say so. Others rely on the retention time, which stays on disk.
LOCK_GRACE = 2.0
_LOCK_PATH = "/keeplocked"
_BACKLOG = 1024
_LONGEST_TARGET = 1 << 16  # bytes; names in it are percent-encoded
_READ_SIZE = 1 << 18
_GONE = getattr(select, "POLLRDHUP", 0)  # what else there can be is always told
_CUT = 1.0  # seconds that a request has to notice that its client is gone
_TICK = 0.02  # seconds between looks at whether all is over


class Server(web.Server):
    """Makes the connections, MOST of them at a time."""

    def __init__(
        self,
        handler: Handler,
        *,
        on_nonsense: Callable[[web.BaseRequest, web.StreamResponse], None] = lambda request, response: None,
        most: int | None = None,
    ) -> None:
        """ON_NONSENSE gets to know of what was no request, and how that was answered."""
        super().__init__(
            self._answer,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE,
            max_line_size=_LONGEST_TARGET,
            read_bufsize=_READ_SIZE,
            auto_decompress=False,
            access_log=None,
        )
        self._handler = handler
        self.on_nonsense = on_nonsense
        self._listening: list[asyncio.AbstractServer | Handshakes] = []
        self._is_ending = False
        # By default half of what can be opened: the rest is for what the requests need.
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 if most is None else most
        self._here: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> Connection:
        return Connection(self, loop=self._loop, **self._kwargs)

    def begins(self, connection: Connection) -> None:
        if connection in self._here:
            return
        if len(self._here) >= self._most:
            # Somebody is doing this to us, or this is the least harm that can be done.
            least = min(self._idle(), key=lambda other: other.since, default=connection)
            least.abort()
            self._here.discard(least)  # at once: there may be more to come before it notices that it has ended
            if least is connection:
                return
        self._here.add(connection)
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD, self._look)

    def _idle(self) -> list[Connection]:
        return [connection for connection in self._here if connection.is_idle]

    def ended(self, connection: Connection) -> None:
        self._here.discard(connection)

    def _look(self) -> None:
        now = self._loop.time()
        for connection in tuple(self._here):
            connection.look(now)
        self._timer = self._loop.call_later(PERIOD, self._look) if self._here else None

    async def listen(self, listener: socket.socket, tls: ssl.SSLContext | None = None) -> None:
        """Serve what comes in by a socket, which is ours from now on."""
        if tls is not None:
            self._listening.append(Handshakes(self, listener, tls, HEADER_TIMEOUT, _BACKLOG))
        else:
            # What asyncio has for unix sockets would remove the path in the end, which is others' as well.
            self._listening.append(await self._loop.create_server(self, sock=listener, backlog=_BACKLOG))

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        response = await self._handler(request)
        if self._is_ending:
            response.force_close()
        return response

    async def end(self, grace: float) -> None:
        """Take no more connections, wait for what is going on for GRACE seconds, and cut off what still is."""
        # Not by means of aiohttp, which reads no more of a request's body then, and closes idle connections last.
        self._is_ending = True
        for listening in self._listening:
            listening.close()
        # What has come in by now becomes a request.
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for connection in self._idle():
            connection.dismiss()
        await self._wait(min(grace, LOCK_GRACE))
        for connection in tuple(self._here):
            if connection.only_keeps_lock:
                connection.abort()
        await self._wait(grace - LOCK_GRACE)
        for connection in tuple(self._here):
            connection.abort()
        await self._wait(_CUT)
        if self._timer is not None:
            self._timer.cancel()

    async def _wait(self, seconds: float) -> None:
        """Until there is no connection, and no request being answered, or time is up."""
        end = self._loop.time() + seconds
        while (self._here or self.connections) and self._loop.time() < end:
            await asyncio.sleep(_TICK)


def explain(reason: Exception) -> str:
    """What is wrong with a request, in one line, without what came."""
    text: str = getattr(reason, "message", "") or str(reason)
    return text.partition("\n")[0].partition(": b")[0].rstrip(":")


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = (
        "_agreeing",
        "_gone",
        "_header_since",
        "_own_transport",
        "_server",
        "_unsent",
        "_unsent_since",
        "since",
    )

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._server = manager
        self._agreeing: socket.socket | None = None  # as long as TLS is not agreed on, and there is no transport
        self._own_transport: asyncio.Transport | None = None  # aiohttp forgets it when it has closed it
        self.since = self._header_since = loop.time()  # when it was last heard of; infinite while no header is due
        self._unsent = 0
        self._unsent_since = 0.0
        self._gone = False

    def accepted(self, client: socket.socket) -> Connection:
        self._agreeing = client
        self._server.begins(self)
        return self

    def failed(self) -> None:
        self._agreeing = None
        self._server.ended(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._agreeing = None
        super().connection_made(transport)
        self._own_transport = cast(asyncio.Transport, transport)
        self._server.begins(self)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._own_transport = None
        self._server.ended(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self.since = self._loop.time()
        super().data_received(data)
        self._check_body()
        if not self.is_idle:
            self._header_since = float("inf")
        elif self._header_since == float("inf") and data.strip():
            self._header_since = self.since

    def _check_body(self) -> None:
        """What makes no sense aiohttp answers when the request before it is done; but that may wait for its body."""
        error = self._messages[-1][0] if self._messages else None
        request = self._current_request
        if isinstance(error, _ErrInfo) and request is not None and not request.content.is_eof():
            request.content.set_exception(error.exc)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if not isinstance(exc, HttpProcessingError) or status == 500:  # so it is about a request that makes sense
            return super().handle_error(request, status, exc, message)
        response = super().handle_error(request, status, exc, explain(exc))
        response.headers["X-Content-Type-Options"] = "nosniff"
        self._server.on_nonsense(request, response)
        return response

    def log_exception(self, *message: Any, exc_info: object = None, **_: Any) -> None:
        if isinstance(exc_info, HttpProcessingError):
            log.debug(f"a request makes no sense: {exc_info.message}")
        elif isinstance(exc_info, ConnectionError):
            log.debug(f"a request has ended early: {exc_info}")
        elif isinstance(exc_info, BaseException):
            # As for any other of our programs: what is wrong with us is told in one line, unless somebody wants more.
            log.error(f"internal error: {type(exc_info).__name__}: {exc_info}; --debug shows where")
            for line in "".join(traceback.format_exception(exc_info)).splitlines():
                log.debug(line)
        else:
            log.error(f"internal error: {message[0]}")

    @property
    def is_idle(self) -> bool:
        """Whether there is no request."""
        return self._request_count == 0 if self._waiter is None else not self._waiter.done()

    @property
    def only_keeps_lock(self) -> bool:
        request = self._current_request
        return request is not None and request.path.endswith(_LOCK_PATH)

    def dismiss(self) -> None:
        """As it is idle."""
        self.force_close()
        if self._agreeing is not None:
            self.abort()

    def abort(self) -> None:
        if self._own_transport is not None:
            self._own_transport.abort()
        elif self._agreeing is not None:
            try:
                self._agreeing.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the client was faster

    def look(self, now: float) -> None:
        """Whether it is still worth having."""
        transport = self._own_transport
        if transport is None:
            return
        unsent = transport.get_write_buffer_size()
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        is_idle = self.is_idle
        if (is_idle and self._header_since + HEADER_TIMEOUT < now) or self._unsent_since + TAKE_TIMEOUT < now:
            transport.abort()
        elif not is_idle or unsent:
            # What came before is read within a moment, if it is read at all: it may be all that was to be said.
            was_gone, self._gone = self._gone, self._has_gone(transport)
            if was_gone and self._gone:
                transport.abort()

    @staticmethod
    def _has_gone(transport: asyncio.Transport) -> bool:
        poll = select.poll()
        poll.register(transport.get_extra_info("socket").fileno(), _GONE)
        return bool(poll.poll(0))
