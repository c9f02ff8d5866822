"""What the commands that take keys on their command line have in common."""

from __future__ import annotations

from annexshell import log
from annexshell.errors import Refused
from annexshell.key import BadKey, Key
from annexshell.termination import Terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


def parse(word: bytes) -> Key:
    """The key that a client named. Raises Refused."""
    try:
        return Key(word)
    except BadKey as reason:
        raise Refused(f"bad key: {reason}") from reason


class Story:
    """What becomes of a key that ACTION (``store`` or ``send``) is done with, told to the audit log if there is one.

    Used in a ``with`` inside the one of Termination, whose end a signal does not let anybody survive.
    """

    __slots__ = ("_action", "_began", "_key")

    def __init__(self, action: str, key: Key) -> None:
        self._action = action
        self._key = key
        self._began = 0.0
        if log.audit is not None:
            import time

            self._began = time.monotonic()

    def done(self, size: int) -> int:
        """All SIZE bytes are where they belong; gives the exit status."""
        if log.audit is not None:
            log.audit.event(self._action, "ok", key=self._key, count=size, since=self._began)
        return 0

    def failed(self, reason: str) -> int:
        """Nothing was stored, or what was sent is not to be relied upon; gives the exit status."""
        if log.audit is not None:
            log.audit.event(self._action, "failed", key=self._key, since=self._began, reason=reason)
        return 1

    def cut_short(self, reason: str, size: int | None = None) -> int:
        """The same where only SIZE bytes have come, or nobody knows how many; gives the exit status."""
        if log.audit is not None:
            log.audit.event(self._action, "incomplete", key=self._key, count=size, since=self._began, reason=reason)
        return 1

    def __enter__(self) -> Story:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if log.audit is not None and error is not None:
            log.audit.event_by(self._action, error, key=self._key, since=self._began)
            if isinstance(error, Terminated):
                log.audit.end_by(error)
