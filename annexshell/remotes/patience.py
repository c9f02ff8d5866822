"""How long a remote is waited for, and what else ends the waiting."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.annex.config import Config
    from annexshell.p2p.wire import Connection
    from annexshell.termination import Termination

CONNECT_TIMEOUT = 60.0
LONGEST = 1e6  # seconds; what is waited with takes no number that is much larger


class Patience:
    """Limits in seconds, None for none; the two others who may lose interest; and who else may listen."""

    __slots__ = ("connect", "for_whom", "make_connection", "reply", "termination")

    def __init__(
        self,
        connect: float | None = CONNECT_TIMEOUT,
        reply: float | None = None,
        *,
        termination: Termination | None = None,
        for_whom: int | None = None,
    ) -> None:
        self.connect = connect  # until the remote has greeted and a version is agreed on
        self.reply = reply  # for each thing that the remote is to say; checking a large file takes long, so no limit
        self.termination = termination  # a signal ends the waiting
        self.for_whom = for_whom  # the descriptor to the client: when nobody reads there any more, nobody waits
        self.make_connection: Callable[..., Connection] | None = None  # by somebody who wants to know what is said

    def connection(self, read_fd: int, write_fd: int) -> Connection:
        """A connection to a remote, with the limits for the time until it has greeted."""
        from annexshell.p2p.wire import Connection

        make = self.make_connection or Connection
        connection = make(
            read_fd,
            write_fd,
            self.termination,
            timeout=self.connect or self.reply,  # to be prepared for either
            watched=self.for_whom,
        )
        connection.timeout = self.connect
        return connection


class Lifeline:
    """A descriptor for :attr:`Patience.for_whom` where another thread knows whether anybody still waits."""

    __slots__ = ("_end", "fd")

    def __init__(self) -> None:
        self._end, self.fd = os.pipe()

    @property
    def is_cut(self) -> bool:
        return self._end < 0

    def cut(self) -> None:
        """Nobody waits any more. Not to be called by two threads at once."""
        fd, self._end = self._end, -1
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        self.cut()
        fd, self.fd = self.fd, -1
        if fd >= 0:
            os.close(fd)


def from_config(config: Config, *, termination: Termination | None = None, for_whom: int | None = None) -> Patience:
    """As ``annexshell.connecttimeout`` and ``annexshell.replytimeout`` say, in seconds, 0 for no limit."""
    connect = _seconds(config.get(b"annexshell.connecttimeout"), CONNECT_TIMEOUT)
    reply = _seconds(config.get(b"annexshell.replytimeout"), None)
    return Patience(connect, reply, termination=termination, for_whom=for_whom)


def _seconds(value: bytes | None, default: float | None) -> float | None:
    try:
        seconds = float(value) if value else -1.0
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        return default  # unset, or nothing that makes sense
    return limit(seconds)


def limit(seconds: float) -> float | None:
    """SECONDS, which are 0 for no limit."""
    return min(seconds, LONGEST) or None
