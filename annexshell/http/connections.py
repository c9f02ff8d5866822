"""Connections whose clients have to say what they want within some time (spec: http §11.2).

aiohttp closes a connection that is idle for long, and nothing else: a client that sends a header byte by byte would
hold one for ever.
"""

from __future__ import annotations

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_protocol import RequestHandler

HEADER_TIMEOUT = 30.0  # seconds from a request's first byte to the end of its header


class Server(web.Server):
    """Makes the connections."""

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class Connection(RequestHandler):
    """One client's connection."""

    __slots__ = ("_header_timer",)

    def __init__(self, manager: web.Server, *, loop: asyncio.AbstractEventLoop, **options: Any) -> None:
        super().__init__(manager, loop=loop, **options)
        self._header_timer: asyncio.TimerHandle | None = None

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self._messages or self._current_request is not None:
            self._stop_timer()
        elif self._header_timer is None and data.strip():
            self._header_timer = self._loop.call_later(HEADER_TIMEOUT, self.force_close)

    def connection_lost(self, exc: BaseException | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _stop_timer(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None
