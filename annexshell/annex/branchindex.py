"""git-annex's own index of the git-annex branch: what the next commit's tree is made of (spec: branch §6.1, §6.2)."""

from __future__ import annotations

import errno
import os

from annexshell import log
from annexshell.annex import git, unionmerge
from annexshell.annex.journal import read_file, write_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.othertmp import OtherTmp
    from annexshell.annex.permissions import Permissions

_NO_HARD_LINKS = frozenset((errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV))


class BranchIndex:
    """A copy of ``annex/index`` to work on, so that nothing half done is ever seen under that name.

    Also, git processes of a commit that was killed may still be running; they have a copy of their own.
    """

    __slots__ = ("_cat_file", "_env", "_included", "_index", "_othertmp", "_permissions", "_repo", "_working")

    def __init__(self, repo: GitRepository, permissions: Permissions, cat_file: CatFile, othertmp: OtherTmp) -> None:
        self._repo = repo
        self._permissions = permissions
        self._cat_file = cat_file
        self._othertmp = othertmp
        self._index = repo.annexdir + b"/index"
        self._working = othertmp.unique(b"index")
        self._env: Mapping[bytes, bytes] = {**os.environb, b"GIT_INDEX_FILE": self._working}
        self._included: bytes | None = None

    def __enter__(self) -> BranchIndex:
        # Left by a git process that died: nobody else uses the index while the journal is locked.
        _unlink_if_there(self._index + b".lock")
        self._included = self._read_included() if self._copy_index() else None
        return self

    def __exit__(self, *_: object) -> None:
        _unlink_if_there(self._working)
        _unlink_if_there(self._working + b".lock")

    def _copy_index(self) -> bool:
        """Make the working copy; whether there was an index."""
        try:
            # As good as a copy, since git replaces an index and does not write into it.
            os.link(self._index, self._working)
        except FileNotFoundError:
            return False
        except OSError as reason:
            if reason.errno not in _NO_HARD_LINKS:
                raise
            fd = os.open(self._index, os.O_RDONLY | os.O_CLOEXEC)
            try:
                write_file(self._working, read_file(fd))
            finally:
                os.close(fd)
        return True

    def _read_included(self) -> bytes | None:
        """The commit that the index is said to include."""
        try:
            fd = os.open(self._index + b".lck", os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            return os.read(fd, 256).split(b"\n", 1)[0]
        finally:
            os.close(fd)

    def tree(self, staged: list[bytes], tip: bytes, others: tuple[bytes, ...] = ()) -> bytes:
        """The tree of a commit that follows TIP and OTHERS, and has the entries STAGED in it."""
        try:
            return self._tree(staged, tip, others)
        except git.GitFailed:
            if self._included is None:
                raise
        # Everything in the index is in the journal or in the branch as well, so it can be made anew.
        log.warn("cannot use the index of the git-annex branch; building a new one")
        self._included = None
        _unlink_if_there(self._working)
        return self._tree(staged, tip, others)

    def _tree(self, staged: list[bytes], tip: bytes, others: tuple[bytes, ...]) -> bytes:
        unionmerge.update_index(self._repo, staged, self._env)
        if self._included != tip:
            self._merge(tip)
        for other in others:
            self._merge(other)
        return self._write_tree()

    def merged_tree(self, commit: bytes) -> bytes:
        """The tree when COMMIT is merged as well."""
        self._merge(commit)
        return self._write_tree()

    def _merge(self, commit: bytes) -> None:
        unionmerge.merge_into_index(self._repo, self._cat_file, self._othertmp, commit, self._env)

    def _write_tree(self) -> bytes:
        return git.object_id(git.output(self._repo, b"write-tree", env=self._env), "write-tree")

    def publish(self) -> None:
        """Make the working copy the index."""
        os.rename(self._working, self._index)
        self._permissions.adjust_file(self._index)

    def set_included(self, commit: bytes) -> None:
        """Tell others which commit the index includes."""
        temporary = self._othertmp.unique(b"index.lck")
        try:
            write_file(temporary, commit + b"\n")
            os.rename(temporary, self._index + b".lck")
        except BaseException:
            _unlink_if_there(temporary)
            raise
        self._permissions.adjust_file(self._index + b".lck")


def _unlink_if_there(path: bytes) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
