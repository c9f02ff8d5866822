"""Which disks are quick enough for the event loop to look at them itself.

Having something done by a thread costs several times what most lookups do. But while the event loop waits for a disk,
everybody waits. So it asks only disks of this machine, which answer in any case, and those only as long as they
answer from memory: after one that had to be waited for threads do it for a moment, and for longer with each time that
nothing has changed then.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

# Seconds.
SLOW = 0.005  # more than it takes another thread to let us go on, though not another process on a busy machine
FIRST_PAUSE = 0.05  # for which a slow disk is left to threads
LONGEST_PAUSE = 2.0
# What is not here may be on another machine, or in a program of anybody's.
_LOCAL = frozenset(b"bcachefs btrfs ext2 ext3 ext4 f2fs jfs overlay ramfs reiserfs tmpfs xfs zfs".split())
_MOUNTS = "/proc/self/mountinfo"
_ESCAPED = ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\"))


class Pace:
    """Of some directories' disks. A ``with`` around what is done directly; for one thread."""

    __slots__ = ("_began", "_clock", "_pause", "_slow_until", "is_local")

    def __init__(
        self, directories: Iterable[bytes], clock: Callable[[], float] = time.monotonic, mounts: str = _MOUNTS
    ) -> None:
        self._clock = clock
        self.is_local = all(is_local(directory, mounts) for directory in directories)
        self._slow_until = self._began = 0.0
        self._pause = 0.0  # the last one; 0 if it has been quick since

    @property
    def is_quick(self) -> bool:
        """Whether to do it directly."""
        return self.is_local and (not self._pause or self._clock() >= self._slow_until)

    def __enter__(self) -> None:
        self._began = self._clock()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        now = self._clock()
        if now - self._began <= SLOW:
            self._pause = 0.0
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE) or FIRST_PAUSE
            self._slow_until = now + self._pause


def is_local(directory: bytes, mounts: str = _MOUNTS) -> bool:
    """Whether a directory, which need not exist, is surely on a disk of this machine."""
    real = os.path.realpath(directory)
    try:
        with open(mounts, "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return False  # it is not Linux
    longest, kind = b"", b""
    for line in lines:
        before, _, after = line.partition(b" - ")
        point = before.split(b" ")[4]
        for escaped, character in _ESCAPED:
            point = point.replace(escaped, character)
        # The last one of a place is on top of the others.
        if len(point) >= len(longest) and (real + b"/").startswith(point.rstrip(b"/") + b"/"):
            longest, kind = point, after.split(b" ", 1)[0]
    return kind in _LOCAL
