"""The journal: changes to the git-annex branch that are not committed yet (spec: branch §3, §4).

One file per branch file, all in one directory, each the complete new content of the branch file. What is in it is
read instead of the branch, and whoever commits next, be it git-annex, commits all of it.
"""

from __future__ import annotations

import _thread
import errno
import os
import time

from annexshell import relay
from annexshell.annex import lockfile
from annexshell.annex.othertmp import OtherTmp
from annexshell.errors import RepositoryError, TemporaryFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions
    from annexshell.key import Key

_DIRECTORY = b"/journal"
_LONGEST_NAME = 255
_PAUSE = 0.02  # seconds
# By path of the lock file. Where there are no open-file-description locks, the lock on the file alone would let
# threads of one process in together, and be lost when one of them leaves.
_mutexes: dict[bytes, _thread.LockType] = {}


def file_name(path: bytes) -> bytes:
    """The name in the journal of a branch file (spec: branch §4.2)."""
    return path.replace(b"_", b"__").replace(b"/", b"_")


def branch_path(name: bytes) -> bytes:
    """The branch file that a journal file is staged as.

    Not always what :func:`file_name` was given: a component that starts with an underscore comes back with the
    underscore at the end of its parent. That is what git-annex does, and it has to be done the same way.
    """
    return b"_".join(part.replace(b"_", b"/") for part in name.split(b"__"))


def can_log(repo: GitRepository, key: Key) -> bool:
    """Whether the location log of KEY can be written at all: to be asked before storing content that could not be
    accounted for (spec: branch §4.2).
    """
    return len(file_name(key_log(repo, key))) <= _LONGEST_NAME


def key_log(repo: GitRepository, key: Key, suffix: bytes = b".log") -> bytes:
    """The branch file with a key's location log, or the log with another SUFFIX (spec: branch §4.1)."""
    levels = 1 if repo.config.get_bool(b"annex.tune.branchhash1") else 2
    return b"%s/%s%s" % (key.hashdirs_lower(levels), key.filename, suffix)


def is_dirty(repo: GitRepository) -> bool:
    """Whether there is anything in the journal that could be committed. Raises OSError."""
    return bool(_names(repo.annexdir + _DIRECTORY))


def refuse_pidlock(repo: GitRepository) -> None:
    """Raise RepositoryError if git-annex uses lock files of another kind here, which we could not respect."""
    if repo.config.get_bool(b"annex.pidlock"):
        raise RepositoryError(
            f"cannot change the repository {os.fsdecode(repo.path)}: it has annex.pidlock set, and the locks that "
            "git-annex uses then are not supported. If its file system supports locking, unset annex.pidlock there."
        )


def without_cut_tail(content: bytes) -> bytes:
    """CONTENT up to its last line end: what follows is being written, or was when its writer died."""
    return content[: content.rfind(b"\n") + 1]


class Journal:
    """The journal of one repository, and the private one, whose content is never committed."""

    __slots__ = ("_lockfile", "_permissions", "_repo", "directory", "private_directory")

    def __init__(self, repo: GitRepository, permissions: Permissions) -> None:
        self._repo = repo
        self._permissions = permissions
        self._lockfile = repo.annexdir + b"/journal.lck"
        self.directory = repo.annexdir + _DIRECTORY
        self.private_directory = repo.annexdir + b"/journal-private"

    def lock(self, patience: float | None = None) -> JournalLock:
        """To be held from reading what a change starts from to writing it, and during all of a commit.

        Whoever can do without it waits no longer than PATIENCE seconds; TemporaryFailure is raised then.
        """
        return JournalLock(self._lockfile, self._permissions, patience)

    def path(self, branch_file: bytes) -> bytes:
        """Where the public journal has the new content of a branch file."""
        return self.directory + b"/" + file_name(branch_file)

    def read(self, branch_file: bytes, *, private: bool = False) -> bytes | None:
        """The content that a branch file is going to have, None when the journal does not change it."""
        directory = self.private_directory if private else self.directory
        try:
            fd = os.open(directory + b"/" + file_name(branch_file), os.O_RDONLY | os.O_CLOEXEC)
        except OSError as reason:
            # A name that is too long cannot have been written.
            if reason.errno in (errno.ENOENT, errno.ENAMETOOLONG):
                return None
            raise
        try:
            return without_cut_tail(read_file(fd))
        finally:
            os.close(fd)

    def write(self, branch_file: bytes, content: bytes, *, private: bool = False) -> None:
        """Replace the journal's version of a branch file. The lock has to be held. Raises OSError."""
        directory = self.private_directory if private else self.directory
        target = directory + b"/" + file_name(branch_file)
        with OtherTmp(self._repo, self._permissions) as othertmp:
            # Never in the journal itself: whatever file is in there gets committed.
            temporary = othertmp.unique(b"journal")
            try:
                write_file(temporary, content)
                self._rename(temporary, target)
            except BaseException:
                _unlink_if_there(temporary)
                raise
        self._permissions.adjust_file(target)

    def _rename(self, temporary: bytes, target: bytes) -> None:
        try:
            os.rename(temporary, target)
        except FileNotFoundError:
            self._permissions.make_directory(os.path.dirname(target))
            os.rename(temporary, target)

    def names(self) -> list[bytes]:
        """The files in the public journal, sorted."""
        return sorted(_names(self.directory))


class JournalLock:
    """Exclusive use of the journal, and of everything that commits it, among all processes and threads."""

    __slots__ = ("_deadline", "_lock", "_mutex", "_path", "_permissions")

    def __init__(self, path: bytes, permissions: Permissions, patience: float | None) -> None:
        self._deadline = None if patience is None else time.monotonic() + patience
        self._path = path
        self._permissions = permissions
        self._mutex = _mutexes.setdefault(path, _thread.allocate_lock())
        self._lock: lockfile.LockFile | None = None

    def __enter__(self) -> JournalLock:
        timeout = -1.0 if self._deadline is None else max(0.0, self._deadline - time.monotonic())
        if not self._mutex.acquire(timeout=timeout):
            raise self._given_up()
        try:
            self._lock = self._acquire()
        except BaseException:
            self._mutex.release()
            raise
        return self

    def _acquire(self) -> lockfile.LockFile:
        try:
            lock = self._wait()
        except FileNotFoundError:
            self._permissions.make_directory(os.path.dirname(self._path))
            lock = self._wait()
        self._permissions.adjust_file(lock.fd)
        return lock

    def _wait(self) -> lockfile.LockFile:
        if self._deadline is None:
            return lockfile.waited_for(self._path, lockfile.EXCLUSIVE)
        while (lock := lockfile.acquire(self._path, lockfile.EXCLUSIVE, wait=False)) is None:
            if time.monotonic() > self._deadline:
                raise self._given_up()
            time.sleep(_PAUSE)
        return lock

    def _given_up(self) -> TemporaryFailure:
        return TemporaryFailure(f"another process has been using {os.fsdecode(self._path)} for too long")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._lock is not None:
                self._lock.close()
                self._lock = None
        finally:
            self._mutex.release()


def _names(directory: bytes) -> list[bytes]:
    # Links are not followed: what they lead to would be committed, be it from the journal or not.
    try:
        with os.scandir(directory) as entries:
            return [entry.name for entry in entries if entry.is_file(follow_symlinks=False)]
    except FileNotFoundError:
        return []


def read_file(fd: int) -> bytes:
    """All of a small file."""
    content = os.read(fd, max(1, os.fstat(fd).st_size + 1))
    while more := os.read(fd, 1 << 16):
        content += more
    return content


def write_file(path: bytes, content: bytes) -> None:
    """Create PATH with CONTENT. No fsync: git-annex would not either, and content is found again without the log."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        relay.write_all(fd, content)
    finally:
        os.close(fd)


def _unlink_if_there(path: bytes) -> None:
    try:
        os.unlink(path)
    except OSError:
        pass  # renamed already, or never made
