"""Inode caches: what a file's status was when its content was known, as a text (spec: objects §16)."""

from __future__ import annotations

import os
import stat

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from annexshell.annex.gitrepo import GitRepository

_SECOND = 1_000_000_000
_FRACTION_DIGITS = 9
_SENTINAL_LIMIT = 1 << 12


class BadInodeCache(ValueError):
    """Text that is not an inode cache."""


class InodeCache:
    """Inode, size in bytes, and mtime in nanoseconds since the epoch; of a low resolution, only in its seconds."""

    __slots__ = ("inode", "low_resolution", "mtime_ns", "size")

    def __init__(self, inode: int, size: int, mtime_ns: int, *, low_resolution: bool = False) -> None:
        self.inode = inode
        self.size = size
        self.mtime_ns = mtime_ns
        self.low_resolution = low_resolution

    @classmethod
    def of(cls, status: os.stat_result) -> InodeCache | None:
        """From an lstat; None unless it is of a regular file."""
        if not stat.S_ISREG(status.st_mode):
            return None
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)

    @classmethod
    def of_file(cls, path: bytes) -> InodeCache | None:
        """Of the file at PATH, not following a symlink; None unless it is a regular file that can be looked at."""
        try:
            return cls.of(os.lstat(path))
        except OSError:
            return None

    @classmethod
    def parse(cls, text: str) -> InodeCache:
        """From ``INODE SIZE SECONDS [FRACTION]``; further fields are ignored. Raises BadInodeCache."""
        fields = text.split()
        if len(fields) < 3:
            raise BadInodeCache(text)
        inode, size, seconds = fields[:3]
        fraction = fields[3] if len(fields) > 3 else ""
        # Times before the epoch have a sign and a magnitude: "-0 5" is half a second before it.
        magnitude = seconds.removeprefix("-")
        numbers = (inode, size, magnitude, fraction or "0")
        if not all(number.isascii() and number.isdigit() and len(number) < 40 for number in numbers):
            raise BadInodeCache(text)
        nanoseconds = int(fraction[:_FRACTION_DIGITS].ljust(_FRACTION_DIGITS, "0"))
        mtime_ns = int(magnitude) * _SECOND + nanoseconds
        if seconds != magnitude:
            mtime_ns = -mtime_ns
        return cls(int(inode), int(size), mtime_ns, low_resolution=not fraction)

    def __str__(self) -> str:
        seconds, nanoseconds = divmod(abs(self.mtime_ns), _SECOND)
        sign = "-" if self.mtime_ns < 0 else ""
        # No fraction leaves the space before it, and so it is written by git-annex.
        fraction = f"{nanoseconds:09d}".rstrip("0")
        return f"{self.inode} {self.size} {sign}{seconds} {fraction}"

    @property
    def seconds(self) -> int:
        """The mtime in whole seconds, rounded down."""
        return self.mtime_ns // _SECOND

    def matches(self, other: InodeCache, *, weakly: bool = False) -> bool:
        """Whether both are of the same unchanged file; ``weakly``, of one whose inode number may have changed."""
        if self.size != other.size:
            return False
        if self.inode == other.inode and self._same_time(other):
            return True
        return weakly and abs(self.seconds - other.seconds) < 2

    def _same_time(self, other: InodeCache) -> bool:
        if self.low_resolution or other.low_resolution:
            return self.seconds == other.seconds
        return self.mtime_ns == other.mtime_ns

    def matches_any(self, others: Iterable[InodeCache], *, weakly: bool = False) -> bool:
        return any(self.matches(other, weakly=weakly) for other in others)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, InodeCache) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash((self.inode, self.size, self.mtime_ns))

    def __repr__(self) -> str:
        return f"InodeCache({str(self)!r})"


class Sentinal:
    """A file that tells whether inode numbers still are what they were when the repository was made (§16.3).

    They are not after the repository was copied, or on file systems that make them up at every mount. Looked at
    once, when first asked; never written.
    """

    __slots__ = ("_inodes_changed", "_path")

    def __init__(self, repo: GitRepository) -> None:
        self._path = repo.annexdir + b"/sentinal"
        self._inodes_changed: bool | None = None

    @property
    def inodes_changed(self) -> bool:
        if self._inodes_changed is None:
            recorded, current = self._recorded(), InodeCache.of_file(self._path)
            self._inodes_changed = recorded is None or current is None or not recorded.matches(current)
        return self._inodes_changed

    def _recorded(self) -> InodeCache | None:
        try:
            fd = os.open(self._path + b".cache", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return InodeCache.parse(os.read(fd, _SENTINAL_LIMIT).decode("ascii"))
        except (OSError, ValueError):
            return None
        finally:
            os.close(fd)
