"""The server's life: its sockets, the event loop, and the end (spec: http §10)."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from annexshell.http import systemd
from annexshell.http.connections import Server
from annexshell.http.door import Door
from annexshell.http.locks import Locks
from annexshell.http.sessions import Sessions
from annexshell.http.work import Workers
from annexshell.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from annexshell.http.auth import Gate
    from annexshell.http.repositories import Repositories

KEEPALIVE = 300.0  # seconds; clients count on an idle connection for 30
_LONGEST_TARGET = 1 << 16  # bytes; names in it are percent-encoded
_READ_SIZE = 1 << 18


class Limits(NamedTuple):
    """How much is done at once."""

    jobs: int = 2
    transfers: int = 256
    lockedfiles: int = 100
    proxyconnections: int = 16
    grace: float = 30.0  # seconds for what is going on when the server is told to stop


async def serve(
    sockets: Sequence[socket.socket],
    repositories: Repositories,
    gate: Gate,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
    status: str = "",
) -> None:
    """Serve until a signal comes, and then until what is going on is finished, or time is up."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(sockets, repositories, gate, limits, tls):
        systemd.ready(status)
        await stop.wait()
        systemd.stopping()


@asynccontextmanager
async def serving(
    sockets: Sequence[socket.socket],
    repositories: Repositories,
    gate: Gate,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[None]:
    """Serve for the length of an ``async with`` block, and then until what is going on is finished, or time is up."""
    async with AsyncExitStack() as parts:
        executor = ThreadPoolExecutor(limits.jobs, "job")
        parts.callback(executor.shutdown)
        workers = Workers(executor, limits.transfers)
        sessions = Sessions(Pool(limits.proxyconnections), executor)
        parts.push_async_callback(sessions.close)
        locks = Locks(executor, limits.lockedfiles)
        parts.push_async_callback(locks.close)
        door = Door(repositories, sessions, gate, locks, workers)
        server = Server(
            door.answer,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE,
            max_line_size=_LONGEST_TARGET,
            read_bufsize=_READ_SIZE,
            auto_decompress=False,
            access_log=None,
        )
        runner = web.ServerRunner(server, shutdown_timeout=limits.grace)
        await runner.setup()
        parts.push_async_callback(runner.cleanup)
        for listening in sockets:
            await web.SockSite(runner, listening, ssl_context=tls, backlog=1024).start()
        yield
