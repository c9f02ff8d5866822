"""Committing the journal to the git-annex branch (spec: branch §6).

The order of things is chosen so that a process that is killed between any two of them leaves a state from which the
next commit, by whomever, loses nothing:

1. The journal's files are put into a copy of ``annex/index``. The journal comes before the branch's tip: merging
   the tip first would let a journal file that is older than a push replace what was pushed.
2. If the index had not included the tip yet, the tip is merged in, as a union.
3. Tree, commit, and the ref is moved, from the tip that was merged. If it has moved meanwhile, again from 2.
4. The copy becomes ``annex/index``, then the journal's files are deleted, and only then ``annex/index.lck`` says that
   the index includes the new commit. Were it said before the files were deleted, whoever found them would stage them
   without merging, and undo what 2 has merged into them.
"""

from __future__ import annotations

import errno
import os
import time

from annexshell import log
from annexshell.annex import branchref, git, hooks, unionmerge
from annexshell.annex.journal import branch_path, read_file, without_cut_tail, write_file
from annexshell.annex.othertmp import OtherTmp
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.journal import Journal
    from annexshell.annex.permissions import Permissions

_ATTEMPTS = 50
_PAUSE = 0.02  # seconds, growing with every attempt up to the next
_LONGEST_PAUSE = 0.2
_NO_HARD_LINKS = frozenset((errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.ENOSYS, errno.EXDEV))


def commit_journal(repo: GitRepository, permissions: Permissions, journal: Journal, cat_file: CatFile) -> bool:
    """Commit everything in the journal; whether there was anything. Raises RepositoryError, OSError.

    When it raises, the journal still has whatever is not in the branch.
    """
    # Before the lock is taken, which a hook may need.
    message = branchref.commit_message(repo)
    with journal.lock(), OtherTmp(repo, permissions) as othertmp:
        names = [name for name in journal.names() if _is_committable(name)]
        if not names:
            return False
        with _Index(repo, permissions, cat_file, othertmp) as index:
            staged = _stage(repo, journal, othertmp, names)
            tip = branchref.ensure_exists(repo, cat_file)
            new = index.commit(staged, tip, message)
            index.publish()
            for name in names:
                os.unlink(journal.directory + b"/" + name)
            index.set_included(new)
    _run_post_update_hook(repo)
    return True


def _is_committable(name: bytes) -> bool:
    """Whether a journal file stands for a path that git allows: one that does not would stop all others."""
    for component in branch_path(name).split(b"/"):
        if component in (b"", b".", b"..") or component.lower() == b".git":
            log.warn(f"leaving {os.fsdecode(name)} in the journal, which is no change to the git-annex branch")
            return False
    return True


def _stage(repo: GitRepository, journal: Journal, othertmp: OtherTmp, names: list[bytes]) -> list[bytes]:
    """Index entries for the files in the journal."""
    paths, temporary = [], []
    try:
        for name in names:
            path = journal.directory + b"/" + name
            content = _content_with_cut_tail(path)
            if content is not None:
                # Appending to it was interrupted; the branch is to have whole lines only.
                path = othertmp.unique(b"journal")
                temporary.append(path)
                write_file(path, without_cut_tail(content))
            paths.append(path)
        blobs = unionmerge.hash_files(repo, paths)
    finally:
        for path in temporary:
            os.unlink(path)
    return [unionmerge.index_entry(blob, branch_path(name)) for blob, name in zip(blobs, names, strict=True)]


def _content_with_cut_tail(path: bytes) -> bytes | None:
    """The content of a file whose last line is incomplete, None if it is complete."""
    # Not following links: this may have become one since the journal was listed.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        size = os.fstat(fd).st_size
        if size == 0 or os.pread(fd, 1, size - 1) == b"\n":
            return None
        return read_file(fd)
    finally:
        os.close(fd)


def _run_post_update_hook(repo: GitRepository) -> None:
    # Not while the journal is locked: the hook may use git-annex.
    argv = hooks.command(repo, b"post-update-annex", b"annex.post-update-command")
    if argv is not None and (status := hooks.run(argv)) != 0:
        log.warn(f"the post-update-annex hook failed with status {status}")


class _Index:
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

    def __enter__(self) -> _Index:
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

    def commit(self, staged: list[bytes], tip: bytes, message: bytes) -> bytes:
        """Commit STAGED on top of the branch, whose tip is TIP or something newer; gives the new commit."""
        tree = self._tree_for(staged, tip)
        for attempt in range(1, _ATTEMPTS + 1):
            new = branchref.commit_tree(self._repo, tree, tip, message)
            if branchref.move(self._repo, new, tip, quiet=attempt < _ATTEMPTS):
                return new
            time.sleep(min(_PAUSE * attempt, _LONGEST_PAUSE))
            moved = branchref.ensure_exists(self._repo, self._cat_file)
            if moved != tip:
                tip = moved
                tree = self._merge(tip)
        raise RepositoryError("cannot update the git-annex branch; what was to be committed stays in the journal")

    def _tree_for(self, staged: list[bytes], tip: bytes) -> bytes:
        try:
            return self._stage(staged, tip)
        except git.GitFailed:
            if self._included is None:
                raise
        # Everything in the index is in the journal or in the branch as well, so it can be made anew.
        log.warn("cannot use the index of the git-annex branch; building a new one")
        self._included = None
        _unlink_if_there(self._working)
        return self._stage(staged, tip)

    def _stage(self, staged: list[bytes], tip: bytes) -> bytes:
        unionmerge.update_index(self._repo, staged, self._env)
        return self._merge(tip) if self._included != tip else self._write_tree()

    def _merge(self, tip: bytes) -> bytes:
        unionmerge.merge_into_index(self._repo, self._cat_file, self._othertmp, tip, self._env)
        return self._write_tree()

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
