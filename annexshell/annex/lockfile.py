"""Locks on whole files that other processes, git-annex among them, respect (spec: objects §6.1).

These are open-file-description locks where the system has them: they conflict with the classic fcntl locks of
git-annex in both directions, exclude threads of one process from each other, and are not lost when some other
descriptor of the same file is closed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

_OFD = sys.platform == "linux" and hasattr(fcntl, "F_OFD_SETLK")
_HELD_BY_OTHER = (errno.EACCES, errno.EAGAIN)
SHARED = fcntl.F_RDLCK
EXCLUSIVE = fcntl.F_WRLCK
# struct flock with 64-bit offsets on Linux, for the whole file: kind, whence, start, length, pid.
_FLOCK = {kind: struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0) for kind in (SHARED, EXCLUSIVE)}


class LockFile:
    """A lock that is held for as long as this object is open; use it in a ``with``."""

    __slots__ = ("fd", "path")

    fd: int
    path: bytes

    def __init__(self, path: bytes, fd: int) -> None:
        self.path = path
        self.fd = fd

    def is_sane(self) -> bool:
        """Whether the path still leads to the file that is locked: holders unlink their lock files."""
        try:
            there = os.stat(self.path)
        except OSError:
            return False  # what cannot be told is not to be relied upon
        here = os.fstat(self.fd)
        return (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)

    def become_exclusive(self) -> bool:
        """Turn a shared lock into an exclusive one without letting go of it, unless others hold it too.

        Also False when it was not acquired as ``writable``, or is closed.
        """
        try:
            _lock(self.fd, EXCLUSIVE, wait=False)
        except (OSError, ValueError):
            return False
        return True

    def close(self) -> None:
        """Drop the lock."""
        if self.fd >= 0:
            fd, self.fd = self.fd, -1
            os.close(fd)

    def __enter__(self) -> LockFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class ClosedOnError:
    """A ``with`` block that drops a lock when it fails, and else leaves it to whoever comes next."""

    __slots__ = ("_lock",)

    def __init__(self, lock: LockFile) -> None:
        self._lock = lock

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._lock.close()


def acquire(path: bytes, kind: int, *, wait: bool, create: bool = True, writable: bool = False) -> LockFile | None:
    """Lock the whole file at PATH, SHARED or EXCLUSIVE; a shared lock that is WRITABLE can become exclusive.

    Gives None when somebody else holds it and ``wait`` is false. Raises OSError when the file cannot be opened
    (FileNotFoundError without ``create``). Permissions of a new file are the caller's to adjust, by the lock's fd.
    """
    flags = os.O_RDWR if writable or kind == EXCLUSIVE else os.O_RDONLY
    fd = os.open(path, flags | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o666)
    try:
        _lock(fd, kind, wait)
    except OSError as reason:
        os.close(fd)
        if not wait and reason.errno in _HELD_BY_OTHER:
            return None
        raise
    except BaseException:
        os.close(fd)
        raise
    return LockFile(path, fd)


def waited_for(path: bytes, kind: int) -> LockFile:
    """Lock the file at PATH, created if need be, waiting for others to let go of it. Raises OSError."""
    lock = acquire(path, kind, wait=True)
    assert lock is not None  # a waiting lock is obtained or raises
    return lock


def is_held_exclusively(path: bytes) -> bool:
    """Whether somebody else, in this process or another, holds an exclusive lock on PATH.

    A missing file is not locked. Raises OSError when PATH cannot be opened.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        if _OFD:
            # Asked for a shared lock: only an exclusive one is in its way.
            answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK[SHARED])
            return bool(struct.unpack_from("h", answer)[0] != fcntl.F_UNLCK)
        try:
            _lock(fd, SHARED, wait=False)
        except OSError as reason:
            return reason.errno in _HELD_BY_OTHER
        return False
    finally:
        os.close(fd)


def _lock(fd: int, kind: int, wait: bool) -> None:
    if _OFD:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW if wait else fcntl.F_OFD_SETLK, _FLOCK[kind])
    else:
        operation = fcntl.LOCK_SH if kind == SHARED else fcntl.LOCK_EX
        fcntl.lockf(fd, operation if wait else operation | fcntl.LOCK_NB)
