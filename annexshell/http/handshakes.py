"""Taking connections for TLS, each of which counts as one before TLS has been agreed on.

asyncio's own servers tell nobody of a connection until then, so clients that never agree could be any number: in the
way of all others, as soon as nothing can be opened any more.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import ssl
from typing import TYPE_CHECKING, Protocol

from annexshell import log

if TYPE_CHECKING:
    from collections.abc import Callable

_PAUSE = 1.0  # seconds, when nothing more can be opened
_OUT_OF_RESOURCES = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


class Agreeing(Protocol):
    """A connection to be."""

    def accepted(self, client: socket.socket) -> asyncio.Protocol:
        """TLS is about to be agreed on; gives what is told of everything from then on."""

    def failed(self) -> None:
        """It was not."""


class Handshakes:
    """Takes connections from a listening socket, which is its own from now on, until it is closed."""

    def __init__(
        self,
        new: Callable[[], Agreeing],
        listener: socket.socket,
        tls: ssl.SSLContext,
        timeout: float,
        backlog: int,
    ) -> None:
        """On the event loop's thread. TIMEOUT is in seconds."""
        self._new = new
        self._tls = tls
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._agreeing: set[asyncio.Task[None]] = set()
        listener.setblocking(False)
        listener.listen(backlog)
        self._accepting = self._loop.create_task(self._accept(listener))

    def close(self) -> None:
        """Take no more. Whoever is agreeing goes on."""
        self._accepting.cancel()

    async def _accept(self, listener: socket.socket) -> None:
        with listener:
            while True:
                try:
                    client, _ = await self._loop.sock_accept(listener)
                except OSError as reason:
                    log.debug(f"cannot take a connection: {reason}")
                    if reason.errno in _OUT_OF_RESOURCES:
                        await asyncio.sleep(_PAUSE)
                    continue
                task = self._loop.create_task(self._agree(client))
                self._agreeing.add(task)  # nobody else keeps it
                task.add_done_callback(self._agreeing.discard)

    async def _agree(self, client: socket.socket) -> None:
        connection = self._new()
        protocol = connection.accepted(client)
        try:
            if client.family != socket.AF_UNIX:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await self._loop.connect_accepted_socket(
                lambda: protocol, client, ssl=self._tls, ssl_handshake_timeout=self._timeout
            )
        except OSError as reason:
            log.debug(f"TLS was not agreed on: {reason}")
            connection.failed()
