"""Connections that nobody can hold for nothing (spec: http §11.2).

aiohttp closes a connection that is idle for long, and nothing else. What can go wrong besides is looked for once in a
while, as that is less to do than setting an alarm for each thing that might happen:

- A client sends a header byte by byte, or nothing at all.
- It does not take its answer; or not the last of it, so that a connection which was closed does not end.
- It has gone while nothing is read from it, because there is more than its request needs for now. Who works for it
  would never be told.
- There are so many connections that nothing else could be opened.
"""

from __future__ import annotations

import asyncio
import resource
import select
import socket
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

PERIOD = 1.0  # seconds between looks at all connections
HEADER_TIMEOUT = 30.0  # seconds from a request's first byte, or the connection's beginning, to the end of its header
TAKE_TIMEOUT = 600.0  # seconds for which a client need not take anything
# Of a client that does not even say that it is gone, as its machine or its network is. A lock may be kept for hours
# over a connection on which nothing is said.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 20, "TCP_KEEPCNT": 6}
_GONE = getattr(select, "POLLRDHUP", 0)  # what else there can be is always told


def notice_dead_clients(listening: socket.socket) -> None:
    """Have the system look after the connections that are going to be made."""
    if listening.family in (socket.AF_INET, socket.AF_INET6):
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            if hasattr(socket, name):
                listening.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


class Server(web.Server):
    """Makes the connections, MOST of them at a time."""

    def __init__(
        self,
        handler: Callable[[web.BaseRequest], Awaitable[web.StreamResponse]],
        *,
        most: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(handler, **options)
        # By default half of what can be opened: the rest is for what the requests need.
        self._most = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2 if most is None else most
        self._here: set[Connection] = set()
        self._timer: asyncio.TimerHandle | None = None

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)

    def begins(self, connection: Connection) -> None:
        if len(self._here) >= self._most:
            # Somebody is doing this to us, or this is the least harm that can be done.
            (min(self._idle(), key=lambda other: other.since, default=connection)).abort()
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

    async def shutdown(self, timeout: float | None = None) -> None:
        await super().shutdown(timeout)
        for connection in tuple(self._here):
            connection.abort()  # it was closed, but may have something that its client does not take


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_gone", "_header_since", "_own_transport", "_server", "_unsent", "_unsent_since", "since")

    def __init__(self, manager: Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._server = manager
        self._own_transport: asyncio.Transport | None = None  # aiohttp forgets it when it has closed it
        self.since = self._header_since = loop.time()  # when it was last heard of; infinite while no header is due
        self._unsent = 0
        self._unsent_since = 0.0
        self._gone = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
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
        if not self.is_idle:
            self._header_since = float("inf")
        elif self._header_since == float("inf") and data.strip():
            self._header_since = self.since

    @property
    def is_idle(self) -> bool:
        """Whether there is no request."""
        return self._request_count == 0 if self._waiter is None else not self._waiter.done()

    def abort(self) -> None:
        if self._own_transport is not None:
            self._own_transport.abort()

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
