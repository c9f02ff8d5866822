"""The git-annex branch: reading its files, changing them by way of the journal, and committing (spec: branch).

Nothing is cached: other processes change journal and branch all the time, and are to be believed at once.
"""

from __future__ import annotations

from annexshell.annex import branchref, journal
from annexshell.annex.catfile import CatFile
from annexshell.annex.commit import commit_journal
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from annexshell.annex.config import Config
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions
    from annexshell.key import Key


class Branch:
    """The git-annex branch of one repository. May be used by several threads. Close it when done."""

    __slots__ = (
        "_cat_file",
        "_exists",
        "_permissions",
        "_private",
        "_private_source",
        "_repo",
        "_tip",
        "_tree",
        "journal",
    )

    def __init__(self, repo: GitRepository, permissions: Permissions) -> None:
        self._repo = repo
        self._permissions = permissions
        self._cat_file = CatFile(repo)
        self._tip: bytes | None = None
        self._tree = b""  # of that tip
        self._exists = False  # once seen, the branch is there to stay
        self._private: frozenset[bytes] = frozenset()
        self._private_source: Config | None = None
        self.journal = journal.Journal(repo, permissions)

    def key_log(self, key: Key, suffix: bytes = b".log") -> bytes:
        """The branch file with a key's location log, or the log with another SUFFIX (spec: branch §4.1)."""
        return journal.key_log(self._repo, key, suffix)

    def read(self, path: bytes) -> bytes:
        """The content of a file; empty if there is none. Raises RepositoryError, OSError."""
        private = self.journal.read(path, private=True) if self._private_uuids() else None
        public = self.journal.read(path)
        if private is not None:
            return _join(public or b"", self._committed(path), private)
        return self._committed(path) if public is None else public

    def expect_change(self, path: bytes) -> None:
        """A change of this file is likely to come: have git look it up meanwhile."""
        name = self._name(path)
        if not name.startswith(branchref.BRANCH):
            self._cat_file.expect(name)

    def change(self, path: bytes, function: Callable[[bytes], bytes | None], regarding: UUID) -> None:
        """Replace a file by what FUNCTION makes of its content; None leaves it as it is.

        REGARDING is the repository that the change says something of: if that is private, so is the change. It is
        in the journal, and visible to everybody, when this returns. Raises RepositoryError, OSError.
        """
        journal.refuse_pidlock(self._repo)
        with self.lock():
            self.change_locked(path, function, regarding)

    def lock(self) -> journal.JournalLock:
        """Keeps everybody else from changing or committing anything. For :meth:`change_locked`."""
        return self.journal.lock()

    def change_locked(self, path: bytes, function: Callable[[bytes], bytes | None], regarding: UUID) -> None:
        """:meth:`change` for those that hold the lock already."""
        self.ensure_exists()
        private = regarding in self._private_uuids()
        new = function(self.read(path) if private else self._public(path))
        if new is not None:
            self.journal.write(path, new, private=private)

    def ensure_exists(self) -> None:
        """Create the branch if it is missing. The lock has to be held."""
        if not self._exists:
            branchref.ensure_exists(self._repo, self._cat_file)
            self._exists = True

    def commit(self, *, always: bool = False) -> bool:
        """Commit the journal, all of it, whoever wrote it; whether there was anything to commit.

        With annex.alwayscommit=false that is only done if ALWAYS. Raises RepositoryError, OSError; the journal still
        has what is not committed then.
        """
        if not always and not self._repo.config.get_bool(b"annex.alwayscommit", True):
            return False
        if not journal.is_dirty(self._repo):
            return False
        journal.refuse_pidlock(self._repo)
        return commit_journal(self._repo, self._permissions, self.journal, self._cat_file)

    def update(self) -> bool:
        """Merge what was pushed or fetched to other refs into the branch; whether that changed it.

        To be done once before reading what must not be missed, such as proxy.log. Raises RepositoryError; everything
        can be read as before then.
        """
        from annexshell.annex.mergerefs import merge_refs  # which most sessions do not need

        return merge_refs(self._repo, self._permissions, self.journal, self._cat_file)

    def close(self) -> None:
        """End the git process that reads the branch."""
        self._cat_file.close()

    def __enter__(self) -> Branch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _public(self, path: bytes) -> bytes:
        """What a change starts from: the journal's version and the branch's, which may have been pushed since."""
        journaled = self.journal.read(path)
        committed = self._committed(path)
        return committed if journaled is None else _join(journaled, committed)

    def _committed(self, path: bytes) -> bytes:
        found = self._cat_file.get(self._name(path))
        if found is None and not self._exists:
            if branchref.tip(self._cat_file) is not None:
                self._exists = True
            else:
                # It will be created from this as soon as something is written.
                found = self._cat_file.get(branchref.ORIGIN + b":" + path)
        return found.content if found is not None and found.kind == b"blob" else b""

    def _name(self, path: bytes) -> bytes:
        """What git finds the branch's version of a file by.

        By the tree's id if we can, which takes git half as long; and what it found then is not out of date as long as
        the tip is the same.
        """
        tip = branchref.loose_tip(self._repo)
        if tip is None:
            return branchref.BRANCH + b":" + path
        if tip != self._tip:
            tree = self._cat_file.get(tip + b"^{tree}")
            if tree is None:
                return branchref.BRANCH + b":" + path
            self._tip, self._tree = tip, tree.id
        return self._tree + b":" + path

    def _private_uuids(self) -> frozenset[bytes]:
        config = self._repo.config
        if config is not self._private_source:
            self._private = private_uuids(config)
            self._private_source = config
        return self._private


def private_uuids(config: Config) -> frozenset[bytes]:
    """The repositories that nothing is to be published of (spec: branch §4.6)."""
    found = set()
    if config.get_bool(b"annex.private"):
        found.add(config.get(b"annex.uuid"))
    for name in config.names():
        if name.startswith(b"remote.") and name.endswith(b".annex-private") and config.get_bool(name):
            remote = name.removesuffix(b"private")
            found.add(config.get(remote + b"config-uuid") or config.get(remote + b"uuid"))
    return frozenset(filter(None, found))


def _join(*parts: bytes) -> bytes:
    """Log files one after the other, with a line end where one lacks it."""
    return b"".join(part if part[-1:] in (b"\n", b"") else part + b"\n" for part in parts)
