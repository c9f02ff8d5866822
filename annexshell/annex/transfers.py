"""Transfers in progress, told to others through lock and info files (spec: objects §10).

A download is content coming into this repository, an upload content leaving it. The locks keep two processes from
writing the same temp file; the info files are for display and tell how much disk space is still going to be needed.
"""

from __future__ import annotations

import errno
import os
import time

from annexshell.annex import lockfile
from annexshell.annex.logs import clock
from annexshell.errors import RepositoryError, TransferRefused, Unnameable
from annexshell.key import BadKey, Key
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType
    from typing import TypeVar

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions
    from annexshell.repository import AssociatedFile

    T = TypeVar("T")

_IN_PROGRESS = "transfer already in progress, or unable to take transfer lock"
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_ATTEMPTS = 5  # others delete lock files when they are done, and directories when nothing is running
_LOCK_PREFIX = b"lck."
_INFO_LIMIT = 1 << 16  # bytes
_PROGRESS_STEP = 100 * 1024  # bytes; telling of less is not worth a write
_NAME_BYTES = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-")


class Transfers:
    """The transfers of one repository."""

    __slots__ = ("_directory", "_permissions")

    def __init__(self, repo: GitRepository, permissions: Permissions) -> None:
        self._directory = repo.annexdir + b"/transfer/"
        self._permissions = permissions

    def download(self, key: Key, client: UUID, file: AssociatedFile, *, may_be_unnamed: bool = False) -> Transfer:
        """Begin to receive KEY. Raises TransferRefused when somebody else is at it, RepositoryError.

        Where the process may not write, it goes on without lock and info file; the temp file may still be writable.
        A transfer from a client without a uuid, if that is allowed, is not shown to others.
        """
        transfer = Transfer(self._permissions, self._directory, b"download", key, client, file)
        if not (transfer.peer or may_be_unnamed):
            raise Unnameable(f"{_IN_PROGRESS}: the client did not give a uuid")
        # In this order, as everybody does; the second is the only one that old versions know.
        locks: tuple[bytes, ...] = (self._directory + b"download/lck/" + transfer.lock_name, transfer.own_lock)
        if not transfer.peer:
            locks = locks[:1]
        try:
            if transfer.begin(locks):
                return transfer
        except OSError as reason:
            if reason.errno not in _UNWRITABLE:
                raise RepositoryError(f"unable to take transfer lock: {reason.strerror}") from reason
            return transfer
        raise TransferRefused(_IN_PROGRESS)

    def upload(self, key: Key, client: UUID, file: AssociatedFile) -> Transfer:
        """Begin to send KEY, which any number may do at once; only the first to one client is shown."""
        transfer = Transfer(self._permissions, self._directory, b"upload", key, client, file)
        try:
            if transfer.peer:
                transfer.begin((transfer.own_lock,))
        except OSError:
            pass  # a disk that cannot be written to, be it full, is no reason not to read from it
        return transfer

    def running(self, direction: bytes, *, other_than: Key | None = None) -> Iterator[Running]:
        """The transfers that some process is at, by ``b"download"`` or ``b"upload"``; stale entries are left out.

        Those of the key OTHER_THAN are, too.
        """
        top = self._directory + direction
        excluded = None if other_than is None else other_than.filename
        for peer in _names(top):
            if peer == b"lck":
                continue
            directory = b"%s/%s/" % (top, peer)
            for name in _names(directory):
                if name.startswith(_LOCK_PREFIX) or name == excluded:
                    continue
                try:
                    key = Key.from_filename(name)
                except BadKey:
                    continue
                locks = [directory + _LOCK_PREFIX + name]
                if direction == b"download":
                    locks.insert(0, b"%s/lck/%s%s" % (top, _LOCK_PREFIX, name))
                if any(map(_is_held, locks)):
                    yield Running(key, UUID(peer), directory + name)


class Running:
    """A transfer that some process is at."""

    __slots__ = ("_path", "key", "peer")

    def __init__(self, key: Key, peer: UUID, path: bytes) -> None:
        self.key = key
        self.peer = peer
        self._path = path

    def bytes_complete(self) -> int | None:
        """How much has been transferred, None where that is not told."""
        try:
            fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            return parse_bytes_complete(os.read(fd, _INFO_LIMIT))
        except OSError:
            return None
        finally:
            os.close(fd)


def parse_bytes_complete(info: bytes) -> int | None:
    """The byte count of an info file, which may be empty, partial or malformed."""
    start, space, count = info.split(b"\n", 1)[0].partition(b" ")
    if not space or clock.parse(start) is None or not count.isdigit() or len(count) > 20:
        return None
    return int(count)


class Transfer:
    """One transfer of ours. Used in a ``with``; leaving it without :meth:`succeed` records that it failed."""

    __slots__ = (
        "_failed_info",
        "_file",
        "_held",
        "_info",
        "_info_fd",
        "_permissions",
        "_started",
        "_step",
        "_told",
        "lock_name",
        "own_lock",
        "peer",
    )

    def __init__(
        self,
        permissions: Permissions,
        top: bytes,
        direction: bytes,
        key: Key,
        client: UUID,
        file: AssociatedFile,
    ) -> None:
        name = key.filename
        self.peer = directory_name(client)
        self.lock_name = _LOCK_PREFIX + name
        directory = b"%s%s/%s/" % (top, direction, self.peer)
        self.own_lock = directory + self.lock_name
        self._permissions = permissions
        self._info = directory + name
        self._failed_info = b"%sfailed/%s/%s/%s" % (top, direction, self.peer, name)
        # The file takes a line of its own; a name that does not fit in one is not told.
        self._file = b"" if file is None or b"\n" in file else file
        self._step = _PROGRESS_STEP if key.size is None else max(_PROGRESS_STEP, key.size // 100)
        self._held: list[lockfile.LockFile] = []
        self._started = b""
        self._info_fd = -1
        self._told = 0

    @property
    def is_locked(self) -> bool:
        """Whether the transfer has its locks: not where there was no writing to the repository."""
        return bool(self._held)

    def begin(self, locks: tuple[bytes, ...]) -> bool:
        """Take the locks and write the info file; False when another has a lock. Raises OSError, holding nothing."""
        try:
            for path in locks:
                if not self._lock(path):
                    # The lock files stay: without all the locks they are not ours to delete.
                    self._close()
                    return False
            self._started = clock.render(time.time_ns() * 1000)
            if self.peer:
                # Written in place: readers must bear with half of it, since progress is written in place anyway.
                self._info_fd = self._open(self._info, os.O_TRUNC)
                os.write(self._info_fd, self._content())
            return True
        except BaseException:
            self._finish()
            raise

    def _lock(self, path: bytes) -> bool:
        for _ in range(_ATTEMPTS):
            lock = self._creating(path, lambda: lockfile.acquire(path, lockfile.EXCLUSIVE, wait=False))
            if lock is None:
                return False
            with lockfile.ClosedOnError(lock):
                self._permissions.adjust_file(lock.fd)
            # Who ends a transfer deletes its lock files, perhaps the one that we have just opened.
            if lock.is_sane():
                self._held.append(lock)
                return True
            lock.close()
        return False

    def _open(self, path: bytes, flags: int) -> int:
        flags |= os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC
        fd = self._creating(path, lambda: os.open(path, flags, 0o666))
        try:
            self._permissions.adjust_file(fd)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _creating(self, path: bytes, action: Callable[[], T]) -> T:
        """Do ACTION, which creates PATH; makes its directory when there is none, which is rare."""
        for _ in range(_ATTEMPTS):
            try:
                return action()
            except FileNotFoundError:
                self._permissions.make_directory(os.path.dirname(path))
        return action()

    def _content(self, count: bytes = b"") -> bytes:
        return b"%s%s\n%s\n" % (self._started, count, self._file)

    def progress(self, bytes_complete: int) -> None:
        """Tell others how much of the content has been transferred; cheap to call often."""
        if bytes_complete - self._told < self._step or self._info_fd < 0:
            return
        self._told = bytes_complete
        try:
            # Without truncating: the count only grows, and the file with it.
            os.pwrite(self._info_fd, self._content(b" %d" % bytes_complete), 0)
        except OSError:
            pass  # nobody sees how far we are; the content is more important

    def succeed(self) -> None:
        """The content has arrived: end the transfer, and forget that it failed earlier."""
        if self._held:
            self._finish()
            if self.peer:
                _unlink(self._failed_info)

    def cancel(self) -> None:
        """End the transfer without a trace: it never really began."""
        self._finish()

    def _fail(self) -> None:
        if not self._held:
            return
        self._finish()
        if not self.peer:
            return
        try:
            self._record_failure()
        except OSError:
            pass  # it is only missing from a list of what could be tried again

    def _record_failure(self) -> None:
        # Neither its own name nor, with a dash missing, anything else that reads as a key.
        temporary = b"%s/.%d.%s" % (os.path.dirname(self._failed_info), os.getpid(), os.urandom(4).hex().encode())
        fd = self._open(temporary, os.O_EXCL)
        try:
            try:
                os.write(fd, self._content())
            finally:
                os.close(fd)
            # In one step: another transfer of this client may be failing at the same moment.
            os.rename(temporary, self._failed_info)
        except BaseException:
            _unlink(temporary)
            raise

    def _finish(self) -> None:
        if self._info_fd >= 0:
            _unlink(self._info)
        # Before they are dropped: later the names may be somebody else's locks.
        for lock in self._held:
            _unlink(lock.path)
        self._close()

    def _close(self) -> None:
        held, self._held = self._held, []
        for lock in reversed(held):
            lock.close()
        fd, self._info_fd = self._info_fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Transfer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._fail()


def directory_name(client: UUID) -> bytes:
    """A client's uuid as the name of a directory, which it must not be able to choose freely; empty for none."""
    name = bytes(filter(_NAME_BYTES.__contains__, client))
    return b"" if name == b"lck" else name  # download/lck has the locks of all clients


def _is_held(path: bytes) -> bool:
    try:
        return lockfile.is_held_exclusively(path)
    except OSError:
        return False


def _names(directory: bytes) -> list[bytes]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _unlink(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # gone already, or not to be changed any more: then others see that nobody holds the lock
