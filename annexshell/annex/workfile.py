"""One file of the work tree, looked at and replaced without ever leaving the work tree.

Its name comes from a database, its directories belong to somebody else who may change them meanwhile, so it is
reached directory by directory, through descriptors, and no symlink is followed.
"""

from __future__ import annotations

import errno
import os
import stat

from annexshell import relay
from annexshell.annex import pointers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.key import Key

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_EXECUTE = 0o111
_COPY_STEP = 1 << 30
# Why the kernel may be unable to copy between two files by itself.
_CANNOT_COPY = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF)


class WorkFile:
    """A file that may or may not exist, in a directory that does. Used in a ``with``."""

    __slots__ = ("_directory", "_name", "path", "relative")

    path: bytes  # absolute, for other programs and for messages
    relative: bytes  # to the top of the work tree

    def __init__(self, top: bytes, relative: bytes) -> None:
        """Raises OSError: FileNotFoundError for what cannot be a file in a work tree."""
        *directories, name = relative.split(b"/")
        for part in (*directories, name):
            if part in (b"", b".", b"..") or part.lower() == b".git" or b"\0" in part:
                raise FileNotFoundError(errno.ENOENT, "not the path of a file in the work tree", relative)
        self.path = top + b"/" + relative
        self.relative = relative
        self._name = name
        fd = os.open(top, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in directories:
            try:
                inner = os.open(part, _DIRECTORY, dir_fd=fd)
            finally:
                os.close(fd)
            fd = inner
        self._directory = fd

    def __enter__(self) -> WorkFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._directory)

    def status(self) -> os.stat_result:
        """As lstat. Raises OSError."""
        return os.stat(self._name, dir_fd=self._directory, follow_symlinks=False)

    def pointer(self) -> pointers.Pointer | None:
        """The pointer that the file is, if it is one."""
        return pointers.read_pointer(self._name, self._directory)

    def is_as(self, before: os.stat_result) -> bool:
        """Whether the file still is the one of that status, not written since."""
        try:
            now = self.status()
        except OSError:
            return False
        return _identity(now) == _identity(before)

    def replace(self, source: bytes) -> None:
        """Move the file SOURCE to the place of this one. Raises OSError, of EXDEV from another file system."""
        os.rename(source, self._name, dst_dir_fd=self._directory)

    def make_writable(self, status: os.stat_result) -> None:
        if not status.st_mode & 0o200:
            os.chmod(self._name, stat.S_IMODE(status.st_mode) | 0o200, dir_fd=self._directory)

    def beside(self) -> bytes:
        """A name for a temporary file on the same file system, hidden and not ending as the real one does."""
        return b"%s/.annexshell-%s" % (os.path.dirname(self.path), os.urandom(6).hex().encode())


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def make_pointer(path: bytes, key: Key, like: os.stat_result) -> None:
    """Make PATH a new pointer file, with the mode and mtime of the file that it is to replace. Raises OSError."""
    fd = _create(path)
    try:
        relay.write_all(fd, pointers.format_pointer(key))
        os.fchmod(fd, stat.S_IMODE(like.st_mode))
        os.utime(fd, ns=(like.st_mtime_ns, like.st_mtime_ns))
    finally:
        os.close(fd)


def make_copy(path: bytes, object_path: bytes, like: os.stat_result) -> None:
    """Make PATH a new file with the object's content, mode and mtime, but executable as LIKE is. Raises OSError."""
    source = os.open(object_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(source)
        target = _create(path)
        try:
            if copy_content(source, target) != status.st_size:
                raise OSError(errno.EIO, "the object changed while it was copied")
            os.fchmod(target, stat.S_IMODE(status.st_mode) & ~_EXECUTE | like.st_mode & _EXECUTE)
            os.utime(target, ns=(status.st_atime_ns, status.st_mtime_ns))
        finally:
            os.close(target)
    finally:
        os.close(source)


def make_link(path: bytes, object_path: bytes, like: os.stat_result) -> bool:
    """Make PATH a second name of an object that has only one, executable where LIKE is; False if that cannot be."""
    try:
        if os.stat(object_path).st_nlink != 1:
            return False
        os.link(object_path, path)
    except OSError:
        return False
    mode = stat.S_IMODE(os.stat(path).st_mode)
    wanted = mode | like.st_mode & _EXECUTE
    if wanted != mode:
        os.chmod(path, wanted)
    return True


def copy_content(source: int, target: int) -> int:
    """Copy a file's content to an empty one, sharing its blocks if the file system can; gives its length in bytes."""
    length = 0
    if hasattr(os, "copy_file_range"):
        try:
            while count := os.copy_file_range(source, target, _COPY_STEP):
                length += count
        except OSError as reason:
            if reason.errno not in _CANNOT_COPY:
                raise
    # From where that ended, which some file systems let it do at once.
    while part := os.read(source, relay.BUFFER_SIZE):
        relay.write_all(target, part)
        length += len(part)
    return length


def _create(path: bytes) -> int:
    # Nobody else may read it until it has its final mode.
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
