"""SIGTERM, SIGHUP and SIGINT end a session between two of the client's bytes, never between two of our own steps.

A request that is being carried out is finished first; while waiting for the client, the session ends at once. In both
cases what was acknowledged gets committed (spec: branch §6.6), and then the signal does what it would have done.
"""

from __future__ import annotations

# The module behind signal, whose own import takes longer than serving a small request.
import _signal
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_SIGNALS = (_signal.SIGTERM, _signal.SIGHUP, _signal.SIGINT)


class Terminated(BaseException):
    """A signal asks us to end. Not an Exception, so that nobody mistakes it for a failure of his own."""


class Termination:
    """Catches the signals for the length of a ``with`` block, and then lets the one that came have its effect."""

    __slots__ = ("_before", "received", "waiting")

    def __init__(self) -> None:
        self.received: int | None = None
        self.waiting = False  # set while all that can happen is that the peer does something
        self._before: dict[int, object] = {}

    def read(self, fd: int, size: int) -> bytes:
        """os.read() that a signal interrupts with Terminated."""
        before = self.begin_waiting_for_input()
        try:
            return os.read(fd, size)
        finally:
            self.waiting = before

    def readinto(self, fd: int, view: memoryview) -> int:
        """os.readv() likewise."""
        before = self.begin_waiting_for_input()
        try:
            return os.readv(fd, [view])
        finally:
            self.waiting = before

    def begin_waiting(self) -> bool:
        """From now on a signal interrupts with Terminated; gives what to set ``waiting`` back to."""
        before, self.waiting = self.waiting, True
        return before

    def begin_waiting_for_input(self) -> bool:
        """The same, and so does one that came before: what it interrupted was finished, the next is not begun."""
        before = self.begin_waiting()
        if self.received is not None:
            self.waiting = before
            raise Terminated
        return before

    def _handle(self, number: int, frame: object) -> None:
        self.received = number
        self._restore()  # a second signal does not wait for anything
        if self.waiting:
            raise Terminated

    def _restore(self) -> None:
        for number, handler in self._before.items():
            _signal.signal(number, handler)
        self._before = {}

    def __enter__(self) -> Termination:
        for number in _SIGNALS:
            # One that is ignored, as SIGHUP under nohup, stays ignored.
            if _signal.getsignal(number) != _signal.SIG_IGN:
                self._before[number] = _signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()
        if self.received is not None:
            _signal.signal(self.received, _signal.SIG_DFL)
            os.kill(os.getpid(), self.received)
