"""Receiving an object: resumed, verified, and only then visible (spec: objects §9, §12; protocol §5.5, §5.6).

Everything that would make the transfer fail anyway is found out before the client is told where to start, so that it
sends nothing in vain. The transfer lock is held from then on, so that the offset stays right.
"""

from __future__ import annotations

import errno
import os

from annexshell import log, relay
from annexshell.annex import journal
from annexshell.annex.diskspace import require_space
from annexshell.annex.verify import hasher, size_matches
from annexshell.errors import RepositoryError, TransferRefused, Unnameable
from annexshell.repository import Outcome, Upload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from annexshell.annex.repository import LocalRepository
    from annexshell.annex.transfers import Transfer
    from annexshell.annex.verify import Hasher
    from annexshell.key import Key
    from annexshell.relay import Source
    from annexshell.repository import AssociatedFile

_STORE_ATTEMPTS = 20  # others may prune the object's directory while it is still empty


class LocalUpload(Upload):
    """Content on its way into the repository, by way of ``annex/tmp``."""

    def __init__(self, repository: LocalRepository, key: Key, file: AssociatedFile) -> None:
        """Take the transfer lock. Raises TransferRefused, RepositoryError."""
        self._repository = repository
        self._key = key
        self._path = temp_path(repository, key)
        self._directory = os.path.dirname(self._path)
        self._data_began = False
        check_acceptable(repository, key)
        self._transfer: Transfer = repository.transfers.download(key, repository.client, file)
        try:
            check_locked(self._transfer)
            self.offset = resumable_size(repository, key)
            require_space(repository.repo, key, already=self.offset, transfers=repository.transfers)
            repository.expect_recording(key)
        except BaseException:
            self._transfer.cancel()
            raise

    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        self._data_began = True
        verify = self._repository.repo.config.get_bool(b"annex.verify", True)
        with _TempFile(self._repository, self._directory, self._path, self.offset) as temp:
            hashing = hasher(self._key) if verify else None
            if hashing is not None:
                temp.read_prefix(hashing)
            position = self.offset

            def store(view: memoryview) -> None:
                nonlocal position
                relay.write_all(temp.fd, view)
                if hashing is not None:
                    hashing.update(view)
                position += len(view)
                self._transfer.progress(position)

            relay.to_callable(source, length, store)
            valid = validity()
            if valid is False and length == 0:
                # What is there stays for the next one.
                return Outcome(False, why="the sender does not have it after all")
            if temp.size() != position:
                log.warn(f"another process changed the temporary file of {self._key}")
                return Outcome(False, why="another process changed the temporary file")
            if not self._is_verified(valid, verify, hashing, position, resumed=temp.existed):
                log.warn(f"Verification of content failed for {self._key}")
                discard(self._repository, self._key)
                return Outcome(False, why="verification of content failed")
        store_temp(self._repository, self._key)
        self._log_presence()
        return Outcome(True)

    def _is_verified(
        self, valid: bool | None, verify: bool, hashing: Hasher | None, size: int, *, resumed: bool
    ) -> bool:
        """The decision of spec: objects §12.1; the file is complete as far as the sender is concerned."""
        if valid and hashing is not None:
            return hashing.matches()
        if valid and not verify and not resumed:
            return True
        if not size_matches(self._key, size):
            return False
        if hashing is not None:
            return hashing.matches()
        return self._repository.verifier.verify(self._key, self._path) is not False

    def _log_presence(self) -> None:
        self._repository.record_presence(self._key)
        self._transfer.succeed()

    def check_stored(self) -> Outcome:
        if self._repository.find(self._key) is None:
            return Outcome(False, why="it is not there")
        self._log_presence()
        return Outcome(True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._data_began:
            self._transfer.__exit__(kind, error, trace)
        else:
            self._transfer.cancel()


def check_acceptable(repository: LocalRepository, key: Key) -> None:
    """Whether content of KEY may be stored at all. Raises TransferRefused, RepositoryError."""
    repository.repo.refresh_config()
    journal.refuse_pidlock(repository.repo)
    refuse_long_name(repository, key)
    repository.refuse_insecure(key)


def check_locked(transfer: Transfer) -> None:
    """Raises TransferRefused."""
    if not transfer.is_locked:
        # Two that write the same temporary file would make a mixture of it.
        raise TransferRefused("the repository is not writable: cannot take the transfer lock")


def temp_path(repository: LocalRepository, key: Key) -> bytes:
    """Where content is while it comes."""
    return b"%s/tmp/%s" % (repository.repo.annexdir, key.filename)


def refuse_long_name(repository: LocalRepository, key: Key) -> None:
    """Raises Unnameable."""
    if not repository.can_record(key):
        raise Unnameable("the key's name is too long to be recorded in the git-annex branch")


def resumable_size(repository: LocalRepository, key: Key) -> int:
    """How much of the content is there from an earlier attempt and can be built upon. Raises OSError."""
    try:
        size = os.stat(temp_path(repository, key)).st_size
    except FileNotFoundError:
        return 0
    # Without a hash nothing would notice that the start is of another version of the content; and what is larger
    # than the key is not its start.
    too_large = key.size is not None and size > key.size
    return 0 if too_large or not repository.verifier.can_verify(key) else size


class _TempFile:
    """``annex/tmp/KEY``, open at the offset from which it is written."""

    __slots__ = ("_offset", "existed", "fd")

    def __init__(self, repository: LocalRepository, directory: bytes, path: bytes, offset: int) -> None:
        self._offset = offset
        self.existed = offset > 0
        try:
            self.fd = open_temp(repository, directory, path)
        except OSError as reason:
            raise RepositoryError(f"cannot write to the repository: {reason.strerror}") from reason
        try:
            if self.size() > offset:
                os.ftruncate(self.fd, offset)  # found not to be the start of this content; see _resumable_size
            os.lseek(self.fd, offset, os.SEEK_SET)
        except BaseException:
            os.close(self.fd)
            raise

    def read_prefix(self, hashing: Hasher) -> None:
        """Hash what an earlier attempt left."""
        prefix = relay.FileSource(self.fd, 0, frozen=False)
        relay.to_callable(prefix, self._offset, hashing.update)

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def __enter__(self) -> _TempFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)


def open_temp(repository: LocalRepository, directory: bytes, path: bytes) -> int:
    """A descriptor of the temporary file, which is created if need be. Raises OSError."""
    # O_NOFOLLOW: a link there is nobody's partial content.
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o666)
    except FileNotFoundError:
        repository.permissions.make_directory(directory)
    except PermissionError:
        repository.permissions.thaw_object(path)  # moved there from the objects by some other process
    return os.open(path, flags, 0o666)


def store_temp(repository: LocalRepository, key: Key) -> None:
    """Make the verified content the object of KEY, unless somebody else has stored it meanwhile."""
    _discard_work_directory(repository, key)
    path = temp_path(repository, key)
    if repository.find(key) is not None:
        _unlink(path)
    else:
        move_into_place(repository, key, path)


def discard(repository: LocalRepository, key: Key) -> None:
    """Delete content that is wrong, and what programs have left with it."""
    _unlink(temp_path(repository, key))
    _discard_work_directory(repository, key)


def _discard_work_directory(repository: LocalRepository, key: Key) -> None:
    work = b"%s/tmp/work.%s" % (repository.repo.annexdir, key.filename)
    if os.path.isdir(work):
        import shutil

        shutil.rmtree(work, ignore_errors=True)


def move_into_place(repository: LocalRepository, key: Key, path: bytes) -> None:
    """Make the verified file at PATH the object of KEY, visible from one moment to the next."""
    permissions = repository.permissions
    destination = repository.objects.locate(key)
    directory = os.path.dirname(destination)
    for attempt in range(_STORE_ATTEMPTS):
        permissions.make_directory(directory)
        try:
            with permissions.thawed(directory):
                _rename(path, destination)
                try:
                    permissions.freeze_object(destination)
                except FileNotFoundError:
                    pass  # it is visible since the rename, and somebody has removed it already
                if repository.worktree is not None:
                    repository.worktree.populate(key, destination)
            return
        except (FileNotFoundError, PermissionError):
            # The directory was pruned, or frozen, by another process between our two calls.
            if attempt + 1 == _STORE_ATTEMPTS or not os.path.exists(path):
                raise


def _rename(path: bytes, destination: bytes) -> None:
    try:
        os.rename(path, destination)
    except OSError as reason:
        if reason.errno != errno.EXDEV:
            raise
        # annex/tmp is on another file system than the objects: the copy gets its name only when it is complete.
        import shutil

        beside = destination + b".annexshell"
        shutil.copyfile(path, beside)
        os.rename(beside, destination)
        os.unlink(path)


def _unlink(path: bytes) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
