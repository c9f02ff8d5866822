"""Removing an object (spec: objects §8)."""

from __future__ import annotations

import os

from annexshell import log
from annexshell.annex import hooks, journal
from annexshell.errors import NotPresent, RepositoryError
from annexshell.repository import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.repository import LocalRepository
    from annexshell.key import Key
    from annexshell.repository import Timestamp


def remove(repository: LocalRepository, key: Key, before: Timestamp | None) -> Outcome:
    """Remove the content and record that. Raises ContentLocked, RepositoryError, OSError."""
    if repository.find(key) is None:
        return Outcome(True)
    repo = repository.repo
    repo.refresh_config()
    journal.refuse_pidlock(repo)
    if repo.config.get(b"annex.trashbin"):
        raise RepositoryError("annex.trashbin is set, which annexshell does not support; nothing was removed")
    repository.expect_recording(key)
    try:
        lock = repository.locks.lock_for_removal(key)
    except NotPresent:
        return Outcome(True)  # somebody else was faster
    with lock:
        # Compared under the lock: waiting for it may have taken us past the time.
        if before is not None and repository.gettimestamp() >= before:
            return Outcome(False, why="the time until which it may be removed is over")
        path = lock.path
        _unlink_object(repository, path)
        if repository.worktree is not None:
            repository.worktree.reset(key)
        repository.objects.prune(os.path.dirname(path))
        # Still under the lock: for others, content that can be locked has a log that is right.
        if repository.can_record(key):
            repository.record_presence(key)
        else:
            log.warn(f"the name of {key} is too long to be recorded in the git-annex branch")
    return Outcome(True)


def _unlink_object(repository: LocalRepository, path: bytes) -> None:
    permissions = repository.permissions
    try:
        permissions.thaw_directory(os.path.dirname(path))
    except OSError:
        pass  # the unlink will say whether that matters
    if permissions.has_thaw_hook:
        permissions.thaw_object(path)
    erase = hooks.command(repository.repo, b"secure-erase-annex", b"annex.secure-erase-command", path)
    if erase is not None:
        hooks.run(erase)
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
