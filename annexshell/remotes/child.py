"""A program that speaks the protocol on its stdin and stdout (spec: proxy §5.5)."""

from __future__ import annotations

import _signal  # signal, its wrapper, takes long to import
import os
import time

from annexshell import process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

GRACE = 5.0  # seconds for ending by itself: a program may have something to write down when we have hung up
_LAST_GRACE = 2.0  # seconds for tidying up after SIGTERM
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0005, 0.05
# Restrictions and requests of our own session, which a program would take for its own (spec: proxy §15 D11).
_OURS = (b"GIT_ANNEX_SHELL_DIRECTORY", b"SSH_ORIGINAL_COMMAND")


def environment_for_children() -> dict[bytes, bytes]:
    environment = dict(os.environb)
    for name in _OURS:
        environment.pop(name, None)
    return environment


class Child:
    """A running program and our ends of two pipes to it, on descriptors that no other child gets."""

    __slots__ = ("_pid", "_status", "read_fd", "write_fd")

    read_fd: int  # -1 once closed
    write_fd: int

    def __init__(self, argv: Sequence[bytes], environment: Mapping[bytes, bytes]) -> None:
        """Its stderr is ours. Raises process.ProgramNotFound, OSError."""
        self._status: int | None = None
        with process.Pipe() as to_child, process.Pipe() as from_child:
            self._pid = process.spawn(argv, stdin=to_child.read_fd, stdout=from_child.write_fd, env=environment)
            self.write_fd, to_child.write_fd = to_child.write_fd, -1
            self.read_fd, from_child.read_fd = from_child.read_fd, -1

    def hang_up(self) -> None:
        """Close both pipes, which tells it to end."""
        fds, self.write_fd, self.read_fd = (self.write_fd, self.read_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)

    def close(self, grace: float = GRACE) -> int:
        """Hang up, and wait for its end; one that has not ended after GRACE seconds is made to.

        Gives its exit status, negative for a signal. Can be repeated.
        """
        try:
            self.hang_up()
        finally:
            if self._status is None:
                self._status = end(self._pid, grace)
        return self._status

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def end(pid: int, grace: float) -> int:
    """Wait for a child to end by itself, then for its end by SIGTERM, then by SIGKILL; gives the exit status.

    An exception, as of a signal that came to us, does not leave it running either.
    """
    try:
        for seconds, number in ((grace, _signal.SIGTERM), (_LAST_GRACE, _signal.SIGKILL)):
            status = _wait_at_most(pid, seconds)
            if status is not None:
                return status
            os.kill(pid, number)
    except BaseException:
        try:
            os.kill(pid, _signal.SIGKILL)
            process.wait(pid)
        except (ProcessLookupError, ChildProcessError):
            pass  # it had ended just before
        raise
    return process.wait(pid)


def _wait_at_most(pid: int, seconds: float) -> int | None:
    """The exit status, None if it is still running after SECONDS."""
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= deadline:
            return None
        time.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE)
