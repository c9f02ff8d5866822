"""Locks on content: shared ones keep it from being removed, an exclusive one goes with removal (spec: objects §6).

Which file is locked depends on the repository version, and that may change under us::

    10        KF.lck beside the object; a shared holder also writes a retention time (see retention.py)
    8, 9, -   the object itself, with a shared lock on annex/sentinal around it

Order (spec: objects §17): sentinal (wait), content lock (try), KF.rtl (wait), othertmp.lck (wait).
"""

from __future__ import annotations

import os

from annexshell import log
from annexshell.annex import lockfile
from annexshell.annex.lockfile import ClosedOnError
from annexshell.annex.permissions import retry_thawed
from annexshell.annex.retention import Retention
from annexshell.errors import ContentLocked, NotLocked, NotPresent, RepositoryError
from annexshell.repository import ContentLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeVar

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.lockfile import LockFile
    from annexshell.annex.objects import Objects
    from annexshell.annex.permissions import Permissions
    from annexshell.key import Key

    Held = TypeVar("Held", bound="_Lock")

RETENTION = 600  # seconds; what clients rely upon from the moment they are told that the content is locked
_LOCK_FILE_VERSION = 10
_SANE_ATTEMPTS = 3  # who unlocks deletes the lock file that we may just have opened; hardly twice in a row
_LOCKED = "content is locked"


class ContentLocks:
    """The content locks of one repository. Any thread may ask for one."""

    __slots__ = ("_objects", "_permissions", "_repo")

    def __init__(self, repo: GitRepository, objects: Objects, permissions: Permissions) -> None:
        self._repo = repo
        self._objects = objects
        self._permissions = permissions

    def lock_shared(self, key: Key, is_present: Callable[[], bool]) -> SharedLock:
        """Keep the content from being removed. IS_PRESENT is asked when the lock is held.

        Raises ContentLocked when it is being removed, else NotLocked.
        """
        try:
            path = self._objects.locate(key)
            sentinal = self._sentinal()
            if sentinal is None:
                return _LockFile(self, path).lock_shared(is_present)
            with ClosedOnError(sentinal):
                return _lock_object_shared(path, is_present, sentinal)
        except FileNotFoundError as reason:
            raise NotLocked(f"{key} is not present") from reason
        except OSError as reason:
            raise NotLocked(f"failed to lock content of {key}: {reason.strerror or reason}") from reason

    def lock_for_removal(self, key: Key) -> RemovalLock:
        """Take the lock that removal needs.

        Raises ContentLocked when somebody holds it or its retention time has not passed, NotPresent when there is
        nothing to lock, RepositoryError when it cannot be locked.
        """
        try:
            path = self._objects.locate(key)
            sentinal = self._sentinal()
            if sentinal is None:
                return _LockFile(self, path).lock_for_removal()
            with ClosedOnError(sentinal):
                return _lock_object_for_removal(path, self._permissions, sentinal)
        except FileNotFoundError as reason:
            raise NotPresent(f"{key} is not present") from reason
        except OSError as reason:
            raise RepositoryError(f"failed to lock content of {key}: {reason.strerror or reason}") from reason

    def is_locked_for_removal(self, key: Key) -> bool:
        """Whether somebody holds the exclusive lock; nothing is locked for it (spec: objects §5.2)."""
        try:
            path = self._objects.locate(key)
            try:
                sentinal = self._sentinal()
            except OSError:
                if os.path.lexists(self._sentinal_path):
                    raise
                # Nobody holds what is not there, and we may not make it: a repository that is only read.
                return lockfile.is_held_exclusively(path)
            if sentinal is None:
                return lockfile.is_held_exclusively(path + b".lck")
            with sentinal:
                return lockfile.is_held_exclusively(path)
        except OSError as reason:
            log.debug(f"cannot tell whether {key} is locked: {reason.strerror or reason}")
            return True  # the safe answer, which the asker understands as "not sure"

    def _sentinal(self) -> LockFile | None:
        """The lock around locks on objects; None where locks are files of their own.

        An upgrade holds it exclusively while it raises the version, so an old version counts only when it is read
        under the lock. A new one always does: versions never fall.
        """
        if self._has_lock_files():
            return None
        sentinal = lockfile.waited_for(self._sentinal_path, lockfile.SHARED)
        with ClosedOnError(sentinal):
            self._repo.refresh_config()
        if not self._has_lock_files():
            return sentinal
        sentinal.close()
        return None

    @property
    def _sentinal_path(self) -> bytes:
        return self._repo.annexdir + b"/sentinal"

    def _has_lock_files(self) -> bool:
        version = self._repo.version
        return version is not None and version >= _LOCK_FILE_VERSION


class _Lock:
    """What is held for the length of a ``with`` block."""

    __slots__ = ("_held", "_tidy", "path")

    def __init__(self, path: bytes, held: tuple[LockFile, ...], tidy: Callable[[], None]) -> None:
        self.path = path  # of the object; a copy in another place is not locked
        self._held = held
        self._tidy = tidy  # run before the locks are dropped

    def release(self) -> None:
        """End the block early; once is enough."""
        held, self._held = self._held, ()
        try:
            if held:
                self._tidy()
        finally:
            for lock in held:
                lock.close()

    def __enter__(self: Held) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


class RemovalLock(_Lock):
    """The exclusive lock on content, for the length of a ``with`` block in which it is removed."""

    __slots__ = ()


class SharedLock(_Lock, ContentLock):
    """Content that stays for the length of a ``with`` block."""

    __slots__ = ()

    def keep(self) -> None:
        self._tidy = _nothing


class _LockFile:
    """The lock file of one object, as version 10 has it."""

    __slots__ = ("_directory", "_lock", "_object", "_objects", "_permissions", "_repo", "_retention")

    def __init__(self, locks: ContentLocks, path: bytes) -> None:
        self._repo = locks._repo
        self._objects = locks._objects
        self._permissions = locks._permissions
        self._object = path
        self._directory = os.path.dirname(path)
        self._lock = path + b".lck"
        self._retention = Retention(path)

    def lock_shared(self, is_present: Callable[[], bool]) -> SharedLock:
        held: LockFile | None = None
        written: bytes | None = None

        def lock() -> bool:
            # Lock and retention time share one thawing of the directory, unless somebody freezes it in between.
            nonlocal held, written
            if held is None:
                held = self._try(lockfile.SHARED)
            # Looked for only under the lock, which keeps it there. At this very path: the lock says nothing about
            # a copy elsewhere. Before the retention time is written, so that absent content does not get one.
            if not (os.path.exists(self._object) and is_present()):
                return False
            written = self._retention.extend(self._repo, self._permissions, RETENTION)
            return True

        present = False
        try:
            present = retry_thawed(self._permissions, self._directory, lock)
        finally:
            if held is not None:
                shared = SharedLock(self._object, (held,), lambda: self._unlock(held, written, present))
                if not present:
                    shared.release()
        if not present:
            raise NotLocked("the content is not present")
        return shared

    def lock_for_removal(self) -> RemovalLock:
        # Before anything is created; most refusals end here.
        if self._retention.is_future():
            raise ContentLocked(_LOCKED)

        held: LockFile | None = None

        def lock() -> LockFile:
            nonlocal held
            held = self._try(lockfile.EXCLUSIVE)
            # Again: since then, a holder may have come, been told that the content is locked, and been killed.
            with ClosedOnError(held):
                if not self._retention.delete_if_past():
                    raise ContentLocked(_LOCKED)
            return held

        try:
            locks = (retry_thawed(self._permissions, self._directory, lock),)
        except BaseException:
            if held is not None:
                held.close()
            raise
        return RemovalLock(self._object, locks, self._unlock_after_removal)

    def _try(self, kind: int) -> LockFile:
        """Lock the file, in the thawed directory. Raises ContentLocked, OSError."""
        for _ in range(_SANE_ATTEMPTS):
            held = self._acquire(kind)
            if held is None:
                break
            with ClosedOnError(held):
                self._permissions.adjust_file(held.fd)
            # Once it is sane it stays so: only who has it exclusively unlinks it.
            if held.is_sane():
                return held
            held.close()
        raise ContentLocked(_LOCKED)

    def _acquire(self, kind: int) -> LockFile | None:
        try:
            return lockfile.acquire(self._lock, kind, wait=False, writable=True)
        except PermissionError:
            if kind == lockfile.EXCLUSIVE:
                raise
            return lockfile.acquire(self._lock, kind, wait=False)  # it is another user's, who left us reading

    def _unlock(self, held: LockFile, written: bytes | None, present: bool) -> None:
        """Delete what a shared lock left, unless others hold the content too (spec: objects §6.4)."""

        def clean() -> None:
            if held.become_exclusive():
                self._clean(held, written)
                if not present:
                    self._objects.prune(self._directory)
                return
            # While it is known that others are here; whoever is the last of them goes by what is left.
            self._retention.give_up(self._repo, self._permissions, written, is_alone=False)
            held.close()
            # Once more without ours: if two are here at the same moment, each was in the other's way.
            again = lockfile.acquire(self._lock, lockfile.EXCLUSIVE, wait=False)
            if again is not None:
                with again:
                    self._clean(again, written)
                    # The content may have been removed while nobody held it, but not the directory with our file.
                    self._objects.prune(self._directory)

        self._thawed(clean)

    def _clean(self, held: LockFile, written: bytes | None) -> None:
        self._retention.give_up(self._repo, self._permissions, written)
        if held.is_sane():
            os.unlink(self._lock)

    def _unlock_after_removal(self) -> None:
        try:
            os.unlink(self._lock)  # removal has left the directory thawed
        except FileNotFoundError:
            pass
        except OSError:
            self._thawed(lambda: os.unlink(self._lock))
        # Before the lock is dropped, so that nobody locks what is about to be pruned.
        self._objects.prune(self._directory)

    def _thawed(self, action: Callable[[], None]) -> None:
        try:
            retry_thawed(self._permissions, self._directory, action)
        except FileNotFoundError:
            pass
        except OSError as reason:
            # What is left behind keeps the content longer than was asked for, and no longer than its time.
            log.debug(f"cannot clean up after unlocking: {reason.strerror or reason}")


def _lock_object_shared(path: bytes, is_present: Callable[[], bool], sentinal: LockFile) -> SharedLock:
    held = lockfile.acquire(path, lockfile.SHARED, wait=False, create=False)
    if held is None:
        raise ContentLocked(_LOCKED)
    # Sane: the object that we opened may have been removed before we had locked it.
    with ClosedOnError(held):
        if not (held.is_sane() and is_present()):
            raise NotLocked("the content is not present")
    return SharedLock(path, (held, sentinal), _nothing)


def _lock_object_for_removal(path: bytes, permissions: Permissions, sentinal: LockFile) -> RemovalLock:
    permissions.thaw_object(path)  # an exclusive lock needs a descriptor to write
    try:
        held = lockfile.acquire(path, lockfile.EXCLUSIVE, wait=False, create=False)
    finally:
        try:
            permissions.freeze_object(path)
        except FileNotFoundError:
            pass  # gone, or moved away, since we thawed it
    if held is None:
        raise ContentLocked(_LOCKED)
    with ClosedOnError(held):
        # Another file there now may be locked by others.
        if not held.is_sane():
            raise ContentLocked(_LOCKED)
    return RemovalLock(path, (held, sentinal), _nothing)


def _nothing() -> None:
    pass
