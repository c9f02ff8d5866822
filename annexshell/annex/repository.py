"""The repository on this disk, shared with every other process that has it open."""

from __future__ import annotations

import errno
import os
import time

from annexshell import log
from annexshell.annex.contentlock import ContentLocks
from annexshell.annex.objects import Objects
from annexshell.annex.permissions import Permissions
from annexshell.errors import NotLocked, NotPresent, RepositoryError, TransferRefused
from annexshell.p2p.versions import HIGHEST
from annexshell.repository import AlreadyHave, Outcome, Repository
from annexshell.uuid import NO_UUID, UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.branch import Branch
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.send import LocalContent
    from annexshell.annex.transfers import Transfers
    from annexshell.annex.verify import Verifier
    from annexshell.annex.worktree import Worktree
    from annexshell.key import Key
    from annexshell.repository import AssociatedFile, ContentLock, Timestamp, Upload


class LocalRepository(Repository):
    """A git-annex repository on disk, as one client uses it.

    What only some requests need is made when the first of them comes, so that a session that asks one thing pays for
    one thing.
    """

    def __init__(self, repo: GitRepository, client: UUID = NO_UUID) -> None:
        self.repo = repo
        self.client = client
        self.uuid = repo.uuid
        self.protocol_version = HIGHEST
        self.permissions = Permissions(repo)
        self.objects = Objects(repo)
        self.locks = ContentLocks(repo, self.objects, self.permissions)
        self._thin = repo.config.get_bool(b"annex.thin")
        self._recorded = False  # this session has changed a log
        self._branch: Branch | None = None
        self._verifier: Verifier | None = None
        self._transfers: Transfers | None = None
        self._worktree: Worktree | None = None
        self._shares_parts = False  # its own are used by others
        self._uses_parts = False  # of another one

    def share(self) -> None:
        """Have everything ready that :meth:`for_client` shares, for use in several threads."""
        self._shares_parts = True
        _ = (self.branch, self.transfers, self.worktree)

    def for_client(self, client: UUID) -> LocalRepository:
        """The same repository as another client uses it, in one thread. Call :meth:`share` before.

        Closing it commits nothing, and leaves everything open that is shared.
        """
        other = LocalRepository.__new__(LocalRepository)
        other.__dict__.update(self.__dict__)
        other.client = client
        other._recorded = False
        other._verifier = None
        other._shares_parts, other._uses_parts = False, True
        return other

    @property
    def branch(self) -> Branch:
        if self._branch is None:
            from annexshell.annex.branch import Branch

            self._branch = Branch(self.repo, self.permissions)
        return self._branch

    @property
    def transfers(self) -> Transfers:
        if self._transfers is None:
            from annexshell.annex.transfers import Transfers

            self._transfers = Transfers(self.repo, self.permissions)
        return self._transfers

    @property
    def worktree(self) -> Worktree | None:
        """The unlocked files; None in a bare repository, which has none."""
        if self._worktree is None and not self.repo.bare:
            from annexshell.annex.keysdb import KeysDatabase
            from annexshell.annex.worktree import Worktree

            database = KeysDatabase(self.repo, self.permissions)
            verify = self._verify_in_any_thread if self._shares_parts else self.verifier.verify
            self._worktree = Worktree(self.repo, self.permissions, self.objects, database, verify, self._has_space)
        return self._worktree

    def _verify_in_any_thread(self, key: Key, path: bytes) -> bool | None:
        from annexshell.annex.verify import Verifier

        verifier = Verifier(self._equivalent_keys)
        try:
            return verifier.verify(key, path)
        finally:
            verifier.close()

    def _has_space(self, key: Key) -> bool:
        from annexshell.annex.diskspace import require_space

        try:
            require_space(self.repo, key, already=0, transfers=self.transfers)
        except TransferRefused:
            return False
        return True

    @property
    def verifier(self) -> Verifier:
        if self._verifier is None:
            from annexshell.annex.verify import Verifier

            self._verifier = Verifier(self._equivalent_keys)
        return self._verifier

    def _equivalent_keys(self, key: Key) -> list[Key]:
        from annexshell.annex.logs.equivalent import equivalent_keys

        return equivalent_keys(self.branch, key)

    def refuse_insecure(self, key: Key) -> None:
        """annex.securehashesonly keeps other keys from being transferred (spec: objects §12.4).

        Raises TransferRefused.
        """
        if self.repo.config.get_bool(b"annex.securehashesonly") and not self.verifier.is_secure(key):
            variety = key.variety.decode("utf-8", "backslashreplace")
            raise TransferRefused(f"annex.securehashesonly blocked transfer of {variety} key")

    # What a Repository does.

    def checkpresent(self, key: Key) -> bool:
        return self.find(key) is not None

    def find(self, key: Key) -> bytes | None:
        """The path of the key's object if its whole content is there, unmodified (spec: objects §5.1)."""
        for path in self.objects.candidates(key):
            try:
                os.stat(path)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as reason:
                if reason.errno == errno.ENAMETOOLONG:
                    return None
                raise RepositoryError(f"cannot look for {key}: {reason.strerror}") from reason
            if self._thin and self.worktree is not None and not self.worktree.is_unmodified(key, path):
                return None
            return path
        return None

    def record_presence(self, key: Key) -> None:
        """Record in the location log whether the content is there; nothing in a repository without a uuid.

        Raises RepositoryError, OSError.
        """
        if not self.uuid:
            # Not even by making the branch: an encrypted repository has none, its clients keep the log.
            return
        from annexshell.annex.logs.location import record_presence

        self._recorded = True
        record_presence(self.branch, key, self.uuid, lambda: self.find(key) is not None)

    def record_presence_elsewhere(self, key: Key, uuid: UUID, is_present: bool) -> None:
        """Record in the location log what became of the content in another repository. Raises as the above."""
        from annexshell.annex.logs.location import set_presence

        self._recorded = True
        set_presence(self.branch, key, uuid, is_present)

    def expect_recording(self, key: Key) -> None:
        """:meth:`record_presence` is going to be called soon: get ready for it."""
        if self.uuid:
            self.branch.expect_change(self.branch.key_log(key))

    def can_record(self, key: Key) -> bool:
        """Whether :meth:`record_presence` can do what it is to do: to be asked before storing content."""
        from annexshell.annex.journal import can_log

        return not self.uuid or can_log(self.repo, key)

    def lockcontent(self, key: Key) -> ContentLock:
        if self.repo.config.get_bool(b"annex.pidlock"):
            # git-annex would not look at the lock.
            raise NotLocked("annex.pidlock is set, which annexshell does not support")
        return self.locks.lock_shared(key, lambda: self.checkpresent(key))

    def gettimestamp(self) -> Timestamp:
        return clock()

    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        from annexshell.annex.remove import remove

        return remove(self, key, before)

    def get(self, key: Key, offset: int, file: AssociatedFile) -> LocalContent:
        from annexshell.annex.send import LocalContent

        path = self.find(key)
        if path is None:
            raise NotPresent(f"{key} is not present")
        return LocalContent(self, key, path, offset, file)

    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        from annexshell.annex.receive import LocalUpload

        while True:
            occupant = self.objects.occupant(key)
            if self.checkpresent(key):
                return AlreadyHave()
            if occupant is None:
                return LocalUpload(self, key, file)
            # Another one may have stored or removed it between our looks; only what stays is in the way.
            if self.objects.occupant(key) == occupant:
                raise TransferRefused("the repository has a modified version of the content in its place")

    def putoffset(self, key: Key, file: AssociatedFile) -> int | AlreadyHave:
        """Looks, and begins nothing: another one may be uploading it (spec: http §6.1)."""
        from annexshell.annex.receive import refuse_long_name, resumable_size

        if self.checkpresent(key):
            return AlreadyHave()
        refuse_long_name(self, key)
        return resumable_size(self, key)

    def close(self) -> None:
        """Commit what the session logged, and what others left in the journal (spec: branch §6.6)."""
        try:
            if not self._uses_parts:
                self._commit()
        finally:
            self.abandon()

    def abandon(self) -> None:
        """End what is not somebody else's, and commit nothing."""
        own = (self._verifier,) if self._uses_parts else (self._branch, self._worktree, self._verifier)
        for part in own:
            if part is not None:
                part.close()

    def _commit(self) -> None:
        # The journal may have entries of others even if this session wrote none; then they are committed too.
        from annexshell.annex.journal import is_dirty

        if not is_dirty(self.repo):
            return
        try:
            self.branch.commit()
        except (RepositoryError, OSError) as reason:
            if self._recorded:
                raise
            # Somebody who may only read can do nothing about what others left, and need not hear of it.
            log.debug(f"cannot commit what others left in the journal: {reason}")


def clock() -> Timestamp:
    """Whole seconds since boot, suspended time included: what REMOVE-BEFORE compares (spec: protocol §5.4)."""
    return int(time.clock_gettime(_CLOCK))


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
