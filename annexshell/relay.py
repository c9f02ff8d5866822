"""The only place that moves content bytes, by whatever the two ends allow (spec: design "relay")."""

from __future__ import annotations

import errno
import fcntl
import os
from abc import ABC, abstractmethod

from annexshell.errors import Hangup

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_PIPE_SIZE = 1 << 18
BUFFER_SIZE = 1 << 18  # large enough that system calls do not count, small enough to stay in the cache

_AT_ONCE = 1 << 30
_UNSUITABLE = (errno.EINVAL, errno.ENOSYS)  # what sendfile() and splice() say of descriptors that they cannot serve
_HAS_SPLICE = hasattr(os, "splice")


class Source(ABC):
    """Where content bytes come from; whoever consumes it knows how many there are."""

    @abstractmethod
    def readinto(self, view: memoryview) -> int:
        """Fill the start of VIEW and say how much of it, 0 at the end."""

    def file(self) -> tuple[int, int] | None:
        """A descriptor of a regular file that does not change, and the offset to read from; None if it is none.

        Only then may bytes go from the page cache to the reader without a copy: a copy-less pipe shows later writes
        to the file although its bytes were "sent" before.
        """
        return None

    def skip(self, count: int) -> None:
        """COUNT bytes were taken from the file itself."""

    def splice(self, out: int, count: int) -> int | None:
        """Let the kernel move up to COUNT bytes to the descriptor OUT, and say how many, 0 at the end.

        None where it cannot, be it for now or at all: then :meth:`readinto` has to be used.
        """
        return None


class FileSource(Source):
    """A regular file from an offset on. The descriptor stays its owner's."""

    __slots__ = ("_fd", "_frozen", "_offset")

    def __init__(self, fd: int, offset: int, *, frozen: bool) -> None:
        self._fd = fd
        self._offset = offset
        self._frozen = frozen

    def readinto(self, view: memoryview) -> int:
        count = os.preadv(self._fd, [view], self._offset)
        self._offset += count
        return count

    def file(self) -> tuple[int, int] | None:
        return (self._fd, self._offset) if self._frozen else None

    def skip(self, count: int) -> None:
        self._offset += count


class BytesSource(Source):
    """Bytes in memory."""

    __slots__ = ("_rest",)

    def __init__(self, data: bytes) -> None:
        self._rest = memoryview(data)

    def readinto(self, view: memoryview) -> int:
        count = min(len(view), len(self._rest))
        view[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count


def wait_for_nobody() -> None:
    """For descriptors that block, and so never ask anybody to wait."""


class ShortSource(Hangup):
    """A source ended before the length that was announced."""


def to_descriptor(source: Source, length: int, out: int, wait: Callable[[], None] = wait_for_nobody) -> None:
    """Copy exactly LENGTH bytes to the descriptor OUT. Raises ShortSource, OSError.

    WAIT returns when OUT, if it does not block, can take more.
    """
    if not _sendfile(source, length, out, wait):
        _move(source, length, out, wait)


def _move(source: Source, length: int, out: int, wait: Callable[[], None]) -> None:
    buffer: memoryview | None = None
    while length:
        try:
            count = source.splice(out, length)
        except BlockingIOError:
            wait()
            continue
        if count is None:
            if buffer is None:
                buffer = memoryview(bytearray(min(length, BUFFER_SIZE)))
            count = source.readinto(buffer[: min(length, len(buffer))])
            write_all(out, buffer[:count], wait)
        if count == 0:
            raise ShortSource(f"{length} bytes are missing")
        length -= count


def to_callable(source: Source, length: int, consume: Callable[[memoryview], object]) -> None:
    """Hand exactly LENGTH bytes to CONSUME, piece by piece, in a buffer that is reused. Raises ShortSource."""
    buffer = memoryview(bytearray(min(length, BUFFER_SIZE)))
    while length:
        count = source.readinto(buffer[: min(length, len(buffer))])
        if count == 0:
            raise ShortSource(f"{length} bytes are missing")
        consume(buffer[:count])
        length -= count


def widen_pipe(fd: int) -> None:
    """Let a pipe, if FD is one, hold more than usual: fewer changes between its two processes, twice the throughput.

    Not as much as possible, since all the pipes of a user have to share what the kernel allows him.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, _PIPE_SIZE)
    except (OSError, AttributeError):
        pass  # it is something else, or the user has too many, or this is not Linux


def splice(fd: int, out: int, count: int) -> int | None:
    """os.splice(); None where the kernel cannot move bytes between these two, or has no such call."""
    if not _HAS_SPLICE:
        return None
    try:
        return os.splice(fd, out, min(count, _AT_ONCE))
    except OSError as reason:
        if reason.errno in _UNSUITABLE:
            return None
        raise


def write_all(fd: int, data: memoryview | bytes, wait: Callable[[], None] = wait_for_nobody) -> None:
    """os.write() until all of it is written; WAIT as in :func:`to_descriptor`."""
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(fd, view) :]
        except BlockingIOError:
            wait()


def _sendfile(source: Source, length: int, out: int, wait: Callable[[], None]) -> bool:
    """Let the kernel do it; false where it cannot, as from what is no file, or to a file that is appended to."""
    place = source.file()
    if place is None:
        return False
    fd, offset = place
    sent = 0
    while sent < length:
        try:
            count = os.sendfile(out, fd, offset + sent, min(length - sent, _AT_ONCE))
        except BlockingIOError:
            wait()
            continue
        except OSError as reason:
            if sent == 0 and reason.errno in _UNSUITABLE:
                return False
            raise
        if count == 0:
            raise ShortSource("the file became shorter while it was sent")
        source.skip(count)
        sent += count
    return True
