"""The work tree's share in content coming and going: unlocked files, and what is recorded of them.

An unlocked file is a copy of its object (or, with annex.thin, a hard link to it), and a pointer file while the object
is not here. Whether a file still is what it was is told by inode caches kept in the keys database, else by hashing it
(spec: objects §14-§16).

Nothing here is worth failing a transfer or a removal for: what could not be done is said on stderr, and left as a
pointer file without its content, or as content that was not dropped, both of which git-annex fsck repairs.
"""

from __future__ import annotations

import errno
import os

from annexshell import log
from annexshell.annex import hooks, notes
from annexshell.annex.inodecache import InodeCache, Sentinal
from annexshell.annex.othertmp import OtherTmp
from annexshell.annex.workfile import WorkFile, make_copy, make_link, make_pointer
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.keysdb import KeysDatabase
    from annexshell.annex.objects import Objects
    from annexshell.annex.permissions import Permissions
    from annexshell.key import Key

_RESTAGED_AT_ONCE = 1000  # replaced files to be remembered
# Rows outlive their files, and the index has files that are not checked out.
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


class Worktree:
    """The work tree of one repository; without one (a bare repository), every method costs nothing.

    VERIFY(key, path) tells whether a file has the key's content, None if its backend cannot tell. HAS_SPACE(key)
    tells whether another copy of the key's content may be made. The methods raise nothing.
    """

    __slots__ = (
        "_database",
        "_has_space",
        "_objects",
        "_permissions",
        "_replaced",
        "_repo",
        "_sentinal",
        "_thin",
        "_verify",
    )

    def __init__(
        self,
        repo: GitRepository,
        permissions: Permissions,
        objects: Objects,
        database: KeysDatabase,
        verify: Callable[[Key, bytes], bool | None],
        has_space: Callable[[Key], bool] = lambda key: True,
    ) -> None:
        self._repo = repo
        self._permissions = permissions
        self._objects = objects
        self._database = database
        self._verify = verify
        self._has_space = has_space
        self._replaced: list[bytes] = []
        self._sentinal = Sentinal(repo)
        self._thin = repo.config.get_bool(b"annex.thin") and not repo.config.get_bool(b"annex.crippledfilesystem")

    @property
    def _top(self) -> bytes | None:
        return None if self._repo.bare else self._repo.worktree

    def close(self) -> None:
        """At the end of a session, or of a part of it."""
        self._restage()
        self._database.close()

    # Whether an object is what it was.

    def is_unmodified(self, key: Key, path: bytes) -> bool:
        """Whether the file at PATH has the content of KEY, by a full check (spec: objects §16.2)."""
        return self._unmodified(key, path, self._recorded(key)) is not None

    def may_send(self, key: Key, path: bytes, status: os.stat_result) -> bool:
        """Whether the object at PATH, opened and then found to have STATUS, is what was recorded (spec: objects §13).

        Without a record it is taken as it is: hashing everything that is sent is the receiver's work.
        """
        if self._repo.bare:
            return True
        caches = self._recorded(key)
        if caches is not None and not caches:
            return True
        opened = InodeCache.of(status)
        current = self._unmodified(key, path, caches)
        return opened is not None and current is not None and opened.matches(current)

    def _unmodified(self, key: Key, path: bytes, caches: list[InodeCache] | None) -> InodeCache | None:
        """The inode cache of the file at PATH if it has the content of KEY, else None."""
        cache = InodeCache.of_file(path)
        if cache is None or self._is_among(cache, caches):
            return cache
        if not self._verifies(key, path, cache, when_unknown=True):
            return None
        self._record(key, [cache])  # so that it need not be hashed the next time
        return cache

    def _verifies(self, key: Key, path: bytes, cache: InodeCache, *, when_unknown: bool) -> bool:
        """Whether the file at PATH, of CACHE, hashes to KEY; WHEN_UNKNOWN if no more than its size can be told."""
        if key.size is not None and key.size != cache.size:
            return False
        try:
            verified = self._verify(key, path)
        except (OSError, RepositoryError) as reason:
            log.warn(f"cannot verify {os.fsdecode(path)}: {reason}")
            return False
        if verified is None:
            verified = when_unknown
        return verified and InodeCache.of_file(path) == cache  # else it was written while it was hashed

    def _is_among(self, cache: InodeCache, caches: list[InodeCache] | None) -> bool:
        if not caches:
            return False
        return cache.matches_any(caches) or (self._sentinal.inodes_changed and cache.matches_any(caches, weakly=True))

    def _recorded(self, key: Key) -> list[InodeCache] | None:
        """The inode caches of a key; None when the database cannot say."""
        try:
            return self._database.inode_caches(key)
        except RepositoryError as reason:
            log.warn(str(reason))
            return None

    def _record(self, key: Key, caches: list[InodeCache]) -> None:
        try:
            self._database.add_inode_caches(key, caches)
        except RepositoryError as reason:
            # Of a file that is not recorded nothing is known, which is never wrong.
            log.debug(str(reason))

    # Content came.

    def populate(self, key: Key, object_path: bytes) -> None:
        """Give pointer files of KEY its content, which has arrived at OBJECT_PATH (spec: objects §14.3)."""
        if self._top is None:
            return
        try:
            self._reconcile(key)
        except RepositoryError as reason:
            log.warn(f"new unlocked files are not looked for: {reason}")
        try:
            files = self._database.associated_files(key)
        except RepositoryError as reason:
            log.warn(f"unlocked files are left without their content: {reason}")
            files = []
        if files:
            populated = [self._populate(key, object_path, file) for file in files]
            caches = [InodeCache.of_file(object_path), *populated]
            self._record(key, [cache for cache in caches if cache is not None])
        notes.note_adjusted_branch(self._repo, self._permissions)

    def _populate(self, key: Key, object_path: bytes, relative: bytes) -> InodeCache | None:
        """Give one file the content, if it is a pointer to KEY; gives its inode cache."""
        assert self._top is not None
        try:
            with WorkFile(self._top, relative) as file:
                pointer = file.pointer()
                if pointer is None or pointer.key != key:
                    return None
                if not self._has_space(key):
                    log.warn(f"not enough free space to fill {os.fsdecode(relative)}")
                    return None
                status = pointer.status
                return self._replace(file, status, lambda path: self._stage_content(path, object_path, status))
        except OSError as reason:
            _explain("fill", relative, reason)
            return None

    def _stage_content(self, path: bytes, object_path: bytes, pointer: os.stat_result) -> None:
        if not (self._thin and make_link(path, object_path, pointer)):
            make_copy(path, object_path, pointer)
        # Also a link, by which the object becomes as writable as the file that it now is.
        self._permissions.thaw_object(path)

    # Content went.

    def reset(self, key: Key) -> None:
        """Make pointer files of the unmodified files of KEY, whose object is gone (spec: objects §14.4)."""
        if self._top is None:
            return
        try:
            # Without this, a row may be of a file that is the user's own by now (git annex unannex).
            self._reconcile(key)
            caches = self._database.inode_caches(key)
            for file in self._database.associated_files(key):
                self._reset(key, file, caches, by_hash=True)
            self._database.remove_inode_caches(key)
        except RepositoryError as reason:
            log.warn(f"unlocked files keep their content: {reason}")
        notes.note_adjusted_branch(self._repo, self._permissions)

    def _reset(self, key: Key, relative: bytes, caches: list[InodeCache], *, by_hash: bool) -> None:
        """Make a pointer file of one file, if it has the content of KEY and is no pointer file yet."""
        assert self._top is not None
        try:
            with WorkFile(self._top, relative) as file:
                status = file.status()
                cache = InodeCache.of(status)
                if cache is None or file.pointer() is not None:
                    return
                # What cannot be verified may be somebody's work of the same size. git-annex would drop it.
                if not self._is_among(cache, caches) and not (
                    by_hash and self._verifies(key, file.path, cache, when_unknown=False)
                ):
                    file.make_writable(status)
                    return
                erase = hooks.command(self._repo, b"secure-erase-annex", b"annex.secure-erase-command", file.path)
                self._replace(file, status, lambda path: make_pointer(path, key, status), erase)
        except OSError as reason:
            _explain("make a pointer of", relative, reason)

    # Either way.

    def _replace(
        self,
        file: WorkFile,
        expected: os.stat_result,
        stage: Callable[[bytes], None],
        erase: list[bytes] | None = None,
    ) -> InodeCache | None:
        """Let STAGE(path) make a file, and move that to the place of FILE if it still is as EXPECTED.

        Before the move the command ERASE is run. Gives the new file's inode cache, None when somebody wrote to the
        file meanwhile. Raises OSError.
        """
        with OtherTmp(self._repo, self._permissions) as temporary:
            try:
                return self._replace_by(temporary.unique(b"annexshell"), file, expected, stage, erase)
            except OSError as reason:
                if reason.errno != errno.EXDEV:
                    raise
            # The work tree is on another file system than the repository. The file may have been erased already.
            return self._replace_by(file.beside(), file, None if erase else expected, stage, None)

    def _replace_by(
        self,
        path: bytes,
        file: WorkFile,
        expected: os.stat_result | None,
        stage: Callable[[bytes], None],
        erase: list[bytes] | None,
    ) -> InodeCache | None:
        try:
            stage(path)
            cache = InodeCache.of_file(path)
            # As late as possible: what the user wrote meanwhile must not be lost.
            if cache is None or (expected is not None and not file.is_as(expected)):
                return None
            if erase is not None:
                hooks.run(erase)
            file.replace(path)
        finally:
            try:
                os.unlink(path)
            except OSError:
                pass  # moved to its place, or never made
        notes.note_restage(self._repo, self._permissions, file.relative, cache)
        self._replaced.append(file.relative)
        if len(self._replaced) >= _RESTAGED_AT_ONCE:
            self._restage()
        return cache

    def _restage(self) -> None:
        paths, self._replaced = self._replaced, []
        if paths:
            from annexshell.annex.restage import restage

            restage(self._repo, paths)

    def _reconcile(self, current: Key) -> None:
        """Make the database agree with the index; files of the key CURRENT are the caller's to see to."""

        def fix(key: Key, relative: bytes) -> None:
            if key != current:
                self._fix(key, relative)

        self._database.reconcile(fix)

    def _fix(self, key: Key, relative: bytes) -> None:
        """Bring an unlocked file, new in the index, in line with whether content is here (spec: objects §15.4)."""
        object_path = self._objects.locate(key)
        if not os.path.exists(object_path):
            self._reset(key, relative, self._recorded(key) or [], by_hash=False)
        elif not self._thin or self.is_unmodified(key, object_path):
            cache = self._populate(key, object_path, relative)
            of_object = InodeCache.of_file(object_path)
            if cache is not None and of_object is not None:
                self._record(key, [of_object, cache])


def _explain(what: str, relative: bytes, reason: OSError) -> None:
    if reason.errno not in _NOT_THERE:
        log.warn(f"cannot {what} {os.fsdecode(relative)}: {reason.strerror}")
