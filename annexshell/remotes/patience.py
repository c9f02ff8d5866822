"""How long a remote is waited for, and what else ends the waiting."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.config import Config
    from annexshell.termination import Termination

CONNECT_TIMEOUT = 60.0


class Patience:
    """Limits in seconds, None for none; and the two others who may lose interest."""

    __slots__ = ("connect", "for_whom", "reply", "termination")

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
    return seconds or None
