"""``annex/othertmp/``: temp files that other processes delete unless its lock is held (spec: branch §3.3)."""

from __future__ import annotations

import os

from annexshell.annex import lockfile

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions

_counter = 0


class OtherTmp:
    """The directory, kept from being cleaned up for the length of a ``with`` block.

    Its lock may be waited for while holding any other: whoever takes it exclusively only tries.
    """

    __slots__ = ("_lock", "_lockfile", "_permissions", "directory")

    def __init__(self, repo: GitRepository, permissions: Permissions) -> None:
        self.directory = repo.annexdir + b"/othertmp"
        self._lockfile = repo.annexdir + b"/othertmp.lck"
        self._permissions = permissions
        self._lock: lockfile.LockFile | None = None

    def __enter__(self) -> OtherTmp:
        self._lock = _acquire(self._lockfile, self._permissions)
        # Only now: a cleaner that holds the lock would take a directory made earlier.
        try:
            self._permissions.make_directory(self.directory)
        except BaseException:
            self._lock.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def unique(self, prefix: bytes) -> bytes:
        """A path that no other process or thread uses."""
        global _counter
        _counter += 1
        return b"%s/%s.%d.%d.%s" % (self.directory, prefix, os.getpid(), _counter, os.urandom(3).hex().encode())


def _acquire(path: bytes, permissions: Permissions) -> lockfile.LockFile:
    try:
        return _wait_for(path, permissions)
    except FileNotFoundError:
        permissions.make_directory(os.path.dirname(path))
        return _wait_for(path, permissions)


def _wait_for(path: bytes, permissions: Permissions) -> lockfile.LockFile:
    lock = lockfile.waited_for(path, lockfile.SHARED)
    permissions.adjust_file(lock.fd)
    return lock
