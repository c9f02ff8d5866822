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

import os
import time

from annexshell import log
from annexshell.annex import branchref, hooks, unionmerge
from annexshell.annex.branchindex import BranchIndex
from annexshell.annex.journal import branch_path, read_file, without_cut_tail, write_file
from annexshell.annex.othertmp import OtherTmp
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.journal import Journal
    from annexshell.annex.permissions import Permissions

_ATTEMPTS = 50
_PAUSE = 0.02  # seconds, growing with every attempt up to the next
_LONGEST_PAUSE = 0.2


def commit_journal(repo: GitRepository, permissions: Permissions, journal: Journal, cat_file: CatFile) -> bool:
    """Commit everything in the journal; whether there was anything. Raises RepositoryError, OSError.

    When it raises, the journal still has whatever is not in the branch.
    """
    # Before the lock is taken, which a hook may need.
    message = branchref.commit_message(repo)
    with journal.lock(), OtherTmp(repo, permissions) as othertmp:
        names = committable(journal)
        if not names:
            return False
        with BranchIndex(repo, permissions, cat_file, othertmp) as index:
            staged = stage(repo, journal, othertmp, names)
            tip = branchref.ensure_exists(repo, cat_file)
            new = _commit(repo, cat_file, index, staged, tip, message)
            finish(journal, index, names, new)
    run_post_update_hook(repo)
    return True


def _commit(
    repo: GitRepository, cat_file: CatFile, index: BranchIndex, staged: list[bytes], tip: bytes, message: bytes
) -> bytes:
    """Commit STAGED on top of the branch, whose tip is TIP or something newer; gives the new commit."""
    tree = index.tree(staged, tip)
    for attempt in range(1, _ATTEMPTS + 1):
        new = branchref.commit_tree(repo, tree, (tip,), message)
        if branchref.move(repo, new, tip, quiet=attempt < _ATTEMPTS):
            return new
        pause(attempt)
        moved = branchref.ensure_exists(repo, cat_file)
        if moved != tip:
            tip = moved
            tree = index.merged_tree(tip)
    raise RepositoryError("cannot update the git-annex branch; what was to be committed stays in the journal")


def pause(attempt: int) -> None:
    """Let whoever has moved the branch before us in our ATTEMPTth attempt finish what they do."""
    time.sleep(min(_PAUSE * attempt, _LONGEST_PAUSE))


def finish(journal: Journal, index: BranchIndex, names: list[bytes], new: bytes) -> None:
    """What is to be done when the branch was moved to NEW, which has the journal files NAMES in it: 4 above."""
    index.publish()
    for name in names:
        os.unlink(journal.directory + b"/" + name)
    index.set_included(new)


def committable(journal: Journal) -> list[bytes]:
    """The files in the journal that can be committed."""
    return [name for name in journal.names() if _is_committable(name)]


def _is_committable(name: bytes) -> bool:
    """Whether a journal file stands for a path that git allows: one that does not would stop all others."""
    for component in branch_path(name).split(b"/"):
        if component in (b"", b".", b"..") or component.lower() == b".git":
            log.warn(f"leaving {os.fsdecode(name)} in the journal, which is no change to the git-annex branch")
            return False
    return True


def stage(repo: GitRepository, journal: Journal, othertmp: OtherTmp, names: list[bytes]) -> list[bytes]:
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


def run_post_update_hook(repo: GitRepository) -> None:
    """Tell of a changed branch those who want to know."""
    # Not while the journal is locked: the hook may use git-annex.
    argv = hooks.command(repo, b"post-update-annex", b"annex.post-update-command")
    if argv is not None and (status := hooks.run(argv)) != 0:
        log.warn(f"the post-update-annex hook failed with status {status}")
