"""Merging other versions of the git-annex branch into it: what clients pushed as synced/git-annex, what was fetched
from remotes (spec: branch §7).

Usually nothing is to be merged, which takes some reads of small files to find out, and no git process. Otherwise the
refs are compared with the branch before the journal is locked, and again while it is.

What is merged is committed as the journal is (see :mod:`annexshell.annex.commit` for the order of things), with the
refs as further parents; the journal goes into the same commit. Only when the journal is clean, and one of the refs
has everything that the branch and the others have, the branch simply moves there. The index is left behind then, and
says so: whoever commits next brings it up to date.

Some refs are left to git-annex: those of repositories that are tuned in another way, and those from before or after a
rewriting of the branch's history.
"""

from __future__ import annotations

import os

from annexshell import log
from annexshell.annex import annexrefs, branchref, git
from annexshell.annex.branchindex import BranchIndex
from annexshell.annex.commit import committable, finish, pause, run_post_update_hook, stage
from annexshell.annex.journal import refuse_pidlock
from annexshell.annex.logs import compatible
from annexshell.annex.othertmp import OtherTmp
from annexshell.errors import RepositoryError, TemporaryFailure, is_passing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.journal import Journal
    from annexshell.annex.permissions import Permissions

_ATTEMPTS = 20
_PATIENCE = 10.0  # seconds to wait for the journal; the branch can be read unmerged as well
_AT_A_TIME = 20  # refs in one merge, since a command line has room for so many


def merge_refs(repo: GitRepository, permissions: Permissions, journal: Journal, cat_file: CatFile) -> bool:
    """Merge every other version of the branch that can be merged; whether the branch was changed.

    Does nothing with annex.merge-annex-branches=false. Raises RepositoryError when something stays unmerged that
    should not have; the branch is as good as it was then.
    """
    if not repo.config.get_bool(b"annex.merge-annex-branches", True):
        return False
    try:
        return _Update(repo, permissions, journal, cat_file).run()
    except (OSError, RepositoryError) as reason:
        passing = is_passing(reason) if isinstance(reason, OSError) else isinstance(reason, TemporaryFailure)
        text = reason.strerror if isinstance(reason, OSError) else reason
        kind = TemporaryFailure if passing else RepositoryError
        raise kind(
            f"cannot merge other refs into the git-annex branch of {os.fsdecode(repo.path)}: {text}"
        ) from reason


class _Ref:
    __slots__ = ("commit", "id", "name")

    def __init__(self, name: bytes, id: bytes, commit: bytes) -> None:
        self.name = name
        self.id = id  # what the ref points to
        self.commit = commit  # the same, unless it is a tag


class _Merge:
    """What is to be merged into a TIP."""

    __slots__ = ("considered", "refs", "tip", "tip_is_included")

    def __init__(self, tip: bytes, tip_is_included: bool, refs: list[_Ref], considered: list[_Ref]) -> None:
        self.tip = tip
        self.tip_is_included = tip_is_included  # in one of the refs, all of it
        self.refs = refs  # none of which includes another
        self.considered = considered  # all that are in the branch afterwards

    @property
    def message(self) -> bytes:
        names = [ref.name.removeprefix(b"refs/heads/").removeprefix(b"refs/remotes/") for ref in self.refs]
        return b"merging %s into git-annex" % b" ".join(names)


class _Update:
    __slots__ = ("_cat_file", "_journal", "_merged", "_pending", "_permissions", "_refs", "_repo")

    def __init__(self, repo: GitRepository, permissions: Permissions, journal: Journal, cat_file: CatFile) -> None:
        self._repo = repo
        self._permissions = permissions
        self._journal = journal
        self._cat_file = cat_file
        # Name and id. Listed once: by its id, a ref is what it was, whatever others do to it, and what arrives later
        # is for the next look.
        self._refs = annexrefs.listed(repo, cat_file)
        self._pending = self._unknown()  # those that are still to be looked at
        self._merged: set[bytes] = set()  # ids that were found to be in the branch, or put there

    def _unknown(self) -> list[tuple[bytes, bytes]]:
        known = annexrefs.known(self._repo)
        known.update(id for name, id in self._refs if name == branchref.BRANCH)
        first: dict[bytes, bytes] = {}
        for name, id in self._refs:
            if id not in known:
                first.setdefault(id, name)
        return [(name, id) for id, name in first.items()]

    def run(self) -> bool:
        """Merge what is to be merged; whether the branch was changed."""
        if not self._pending:
            return False
        tip = branchref.tip(self._cat_file)
        # Before locking the journal, which nobody is to wait for when nothing is to be merged.
        merge = self._next(tip) if tip is not None else None
        changed = False
        if merge is not None or tip is None:
            refuse_pidlock(self._repo)
            with self._journal.lock(_PATIENCE), OtherTmp(self._repo, self._permissions) as othertmp:
                changed = self._merge_all(merge, othertmp)
        self._remember()
        if changed:
            run_post_update_hook(self._repo)
        return changed

    def _merge_all(self, merge: _Merge | None, othertmp: OtherTmp) -> bool:
        """Merge what is pending, MERGE first unless the branch has moved; with None, the branch may be missing."""
        if self._journal.read(compatible.TRANSITIONS) is not None:
            return False  # somebody has begun to rewrite the branch's history
        changed = merge is None
        failures = 0
        while True:
            tip = branchref.ensure_exists(self._repo, self._cat_file)
            if merge is None or merge.tip != tip:
                merge = self._next(tip)
            if merge is None:
                return changed
            if self._merge(merge, othertmp, quiet=failures < _ATTEMPTS - 1):
                self._settle(merge.considered)
                merge = None
                changed = True
                continue
            # Mostly since a push came first, and everything has to be compared with what the branch is now.
            failures += 1
            if failures == _ATTEMPTS:
                raise RepositoryError("the branch could not be changed")
            pause(failures)

    def _next(self, tip: bytes) -> _Merge | None:
        """What to merge first into TIP, None when nothing is left."""
        while self._pending:
            refs = self._mergeable(tip)
            if not refs:
                continue
            heads = self._independent([tip, *(ref.commit for ref in refs)])
            merging: dict[bytes, _Ref] = {}
            for ref in refs:
                if ref.commit in heads and ref.commit != tip:
                    merging.setdefault(ref.commit, ref)
            if merging:
                return _Merge(tip, tip not in heads, list(merging.values()), refs)
            self._settle(refs)
        return None

    def _mergeable(self, tip: bytes) -> list[_Ref]:
        """Those of the first pending refs that can be merged with TIP; the others are not pending any more."""
        refs = []
        for name, id in self._pending[:_AT_A_TIME]:
            found = self._cat_file.get(id + b"^{commit}")
            obstacle = "it does not lead to a commit" if found is None else self._obstacle(found.id, tip)
            if found is not None and obstacle is None:
                refs.append(_Ref(name, id, found.id))
            else:
                self._pending.remove((name, id))
                log.warn(f"not merging {os.fsdecode(name)} into the git-annex branch: {obstacle}")
        return refs

    def _obstacle(self, commit: bytes, tip: bytes) -> str | None:
        """Why a version of the branch cannot be merged, None if it can (spec: branch §9.10, §11)."""
        transitions = self._file(commit, compatible.TRANSITIONS)
        if not compatible.same_transitions(transitions, self._file(tip, compatible.TRANSITIONS)):
            return 'history was rewritten by "git annex forget"; running "git annex merge" here will merge it'
        tunings = compatible.tunings(self._file(commit, compatible.DIFFERENCE))
        if tunings != compatible.configured_tunings(self._repo.config):
            return "it is that of a repository that is tuned in another way"
        return None

    def _file(self, commit: bytes, path: bytes) -> bytes:
        found = self._cat_file.get(commit + b":" + path)
        return found.content if found is not None and found.kind == b"blob" else b""

    def _independent(self, commits: list[bytes]) -> set[bytes]:
        """Those that no other one descends from."""
        return set(git.output(self._repo, b"merge-base", b"--independent", *commits).split())

    def _merge(self, merge: _Merge, othertmp: OtherTmp, *, quiet: bool) -> bool:
        """Whether that was done; it is not if the branch has moved, which git complains of if not QUIET."""
        names = committable(self._journal)
        if not names and merge.tip_is_included and len(merge.refs) == 1:
            return branchref.move(self._repo, merge.refs[0].commit, merge.tip, quiet=quiet)
        others = tuple(ref.commit for ref in merge.refs)
        with BranchIndex(self._repo, self._permissions, self._cat_file, othertmp) as index:
            staged = stage(self._repo, self._journal, othertmp, names) if names else []
            tree = index.tree(staged, merge.tip, others)
            new = branchref.commit_tree(self._repo, tree, (merge.tip, *others), merge.message)
            if not branchref.move(self._repo, new, merge.tip, quiet=quiet):
                return False
            finish(self._journal, index, names, new)
        return True

    def _settle(self, refs: list[_Ref]) -> None:
        """These are in the branch."""
        self._merged.update(ref.id for ref in refs)
        self._pending = [(name, id) for name, id in self._pending if id not in self._merged]

    def _remember(self) -> None:
        merged = [(name, id) for name, id in self._refs if id in self._merged]
        if not merged:
            return
        try:
            annexrefs.remember_merged(self._repo, self._permissions, merged)
        except OSError as reason:
            # Which only means that they will be looked at again.
            log.debug(f"cannot write {os.fsdecode(self._repo.annexdir)}/mergedrefs: {reason.strerror}")
