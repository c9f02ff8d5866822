"""Word left for git-annex of what it should do about the work tree when it next runs (spec: objects §14.5-14.6)."""

from __future__ import annotations

import os
import time

from annexshell import log, relay
from annexshell.annex import lockfile
from annexshell.annex.logs import clock
from annexshell.annex.othertmp import OtherTmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.inodecache import InodeCache
    from annexshell.annex.permissions import Permissions

_HEAD_LIMIT = 1 << 12  # bytes
_ADJUSTED = b"ref: refs/heads/adjusted/"


def note_restage(repo: GitRepository, permissions: Permissions, relative: bytes, cache: InodeCache) -> None:
    """A work tree file was replaced by one with that inode cache: git's index should be told.

    Until it is, git status has to look into the file to see that it is not modified.
    """
    if b"\n" in relative:
        return  # there is no way to write it: readers would see two lines
    line = b"%s:%s\n" % (str(cache).encode(), relative)
    try:
        with _locked(repo, permissions, b"restage"):
            _append(permissions, repo.annexdir + b"/restage.log", line)
    except OSError as reason:
        log.warn(f"cannot write restage.log: {reason.strerror}")


def note_adjusted_branch(repo: GitRepository, permissions: Permissions) -> None:
    """Content came or went: a branch that shows only what is present should be made anew, if one is checked out."""
    if not _shows_presence(_head(repo)):
        return
    line = clock.render(time.time_ns() * (clock.SECOND // 10**9)) + b" 1\n"
    try:
        with OtherTmp(repo, permissions) as temporary, _locked(repo, permissions, b"adjust"):
            fresh = temporary.unique(b"adjust.log")
            _append(permissions, fresh, line)
            # A rename, because its readers take no lock.
            os.rename(fresh, repo.annexdir + b"/adjust.log")
    except OSError as reason:
        log.warn(f"cannot write adjust.log: {reason.strerror}")


def _locked(repo: GitRepository, permissions: Permissions, name: bytes) -> lockfile.LockFile:
    path = repo.annexdir + b"/" + name + b".lck"
    lock = lockfile.acquire(path, lockfile.EXCLUSIVE, wait=True)
    assert lock is not None  # a waiting lock is obtained or raises
    permissions.adjust_file(path)
    return lock


def _append(permissions: Permissions, path: bytes, line: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        relay.write_all(fd, line)
    finally:
        os.close(fd)
    permissions.adjust_file(path)


def _head(repo: GitRepository) -> bytes:
    try:
        fd = os.open(repo.gitdir + b"/HEAD", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return b""
    try:
        return os.read(fd, _HEAD_LIMIT)
    finally:
        os.close(fd)


def _shows_presence(head: bytes) -> bool:
    """Whether HEAD is an adjusted branch that depends on which content is present."""
    if not head.startswith(_ADJUSTED):
        return False
    adjustment = head.rstrip(b"\n").rpartition(b"(")[2].removesuffix(b")")
    return adjustment in (b"hidemissing", b"unlockpresent") or adjustment.startswith(b"hidemissing-")
