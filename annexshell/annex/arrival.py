"""Receiving an object by a program that writes the temporary file itself (spec: objects §9, shell §7.5).

What that program did is not taken for granted: afterwards the file has to be the one that it was given, and to have
the key's content.
"""

from __future__ import annotations

import os
import stat

from annexshell import log
from annexshell.annex import receive
from annexshell.annex.diskspace import most_that_fits, require_space
from annexshell.annex.verify import size_matches
from annexshell.errors import RepositoryError, TransferRefused
from annexshell.repository import Outcome

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.annex.repository import LocalRepository
    from annexshell.key import Key

# Bytes that content may have more than its key says, so that wrong content is told from a program that failed. What
# is larger only costs the disk.
_SLACK = 1 << 20
_LARGEST = (1 << 63) - 1  # bytes of any file
_ATTEMPTS = 3  # somebody else's file may be in the way, and come back


class Arrival:
    """``annex/tmp/KEY``, ready to be written, with what an earlier attempt left. Used in a ``with``."""

    __slots__ = ("_fd", "_key", "_mode", "_repository", "_stored", "_time", "_transfer", "_verify", "largest", "path")

    path: bytes
    largest: int | None  # bytes that the file may get at most; None where that cannot be told

    def __init__(self, repository: LocalRepository, key: Key) -> None:
        """Take the transfer lock. Raises TransferRefused, RepositoryError, OSError."""
        self._repository = repository
        self._key = key
        self._stored = False
        self.path = receive.temp_path(repository, key)
        receive.check_acceptable(repository, key)
        # Content that is there already is not in the way: the client may not have known, and will not be told before
        # it has sent it.
        if not repository.checkpresent(key) and repository.objects.occupant(key) is not None:
            raise TransferRefused("the repository has a modified version of the content in its place")
        self._verify = repository.repo.config.get_bool(b"annex.verify", True)
        transfers = repository.transfers
        self._transfer = transfers.download(key, repository.client, None, may_be_unnamed=True)
        try:
            receive.check_locked(self._transfer)
            already = self._size()
            require_space(repository.repo, key, already=already, transfers=transfers)
            self.largest = self._limit(already)
            self._open()
            repository.expect_recording(key)
        except BaseException as error:
            self._transfer.__exit__(type(error), error, None)
            raise

    def _size(self) -> int:
        try:
            return os.lstat(self.path).st_size
        except FileNotFoundError:
            return 0

    def _limit(self, already: int) -> int | None:
        transfers = self._repository.transfers
        fits = most_that_fits(self._repository.repo, self._key, already=already, transfers=transfers)
        # Without verification content of any size is stored, as git-annex does.
        if self._key.size is None or not self._verify:
            return fits
        expected = max(self._key.size, already) + _SLACK
        return min(expected, _LARGEST if fits is None else fits)

    def _open(self) -> None:
        try:
            for _ in range(_ATTEMPTS):
                self._fd = receive.open_temp(self._repository, os.path.dirname(self.path), self.path)
                if self._make_ready():
                    return
                os.close(self._fd)
                # Written to, it would change under its other name; and the owner's it is to say when it was changed.
                os.unlink(self.path)
        except OSError as reason:
            raise RepositoryError(f"cannot write to the repository: {reason.strerror}") from reason
        raise RepositoryError("another process gets in the way of the temporary file")

    def _make_ready(self) -> bool:
        """Set a time that the content cannot have, by which to see whether all of it has arrived."""
        status = os.fstat(self._fd)
        if not stat.S_ISREG(status.st_mode):
            os.close(self._fd)
            raise RepositoryError(f"{os.fsdecode(self.path)} is in the way, which is not a regular file")
        if status.st_nlink != 1:
            return False
        self._mode = stat.S_IMODE(status.st_mode)
        # rsync sets the time that the client says when a file is complete, and exits with success also if the client
        # sent no file at all: then that which an earlier attempt left would pass for all of the content.
        self._time = int.from_bytes(os.urandom(7), "little") >> 2  # nanoseconds: less than a year after 1970
        try:
            os.utime(self._fd, ns=(self._time, self._time))
        except PermissionError:
            return False
        self._time = os.fstat(self._fd).st_mtime_ns  # as exactly as the file system keeps it
        return True

    @property
    def size(self) -> int:
        """What is there now, in bytes."""
        return os.fstat(self._fd).st_size

    def progress(self) -> None:
        """Tell others how much has been written so far."""
        self._transfer.progress(self.size)

    def finish(self) -> Outcome:
        """Verify and store what was written by a program that has ended, with success as it says."""
        wrong = self._what_is_wrong()
        if wrong is not None:
            return Outcome(False, why=wrong)
        if stat.S_IMODE(os.fstat(self._fd).st_mode) != self._mode:
            os.fchmod(self._fd, self._mode)  # objects are executable, or more, only if somebody here makes them so
        if self._verify and not self._is_verified():
            receive.discard(self._repository, self._key)
            return Outcome(False, why="verification of content failed")
        receive.store_temp(self._repository, self._key)
        self._stored = True
        self._repository.record_presence(self._key)
        self._transfer.succeed()
        return Outcome(True)

    def _what_is_wrong(self) -> str | None:
        """What the path leads to must be the file that the program was given, under this name only."""
        try:
            there = os.lstat(self.path)
        except OSError:
            return "the temporary file has gone"
        here = os.fstat(self._fd)
        if (there.st_dev, there.st_ino, here.st_nlink) != (here.st_dev, here.st_ino, 1):
            return "another file is in the place of the temporary file"
        if here.st_mtime_ns == self._time:
            return "the client did not send the content"
        return None

    def _is_verified(self) -> bool:
        key = self._key
        return size_matches(key, self.size) and self._repository.verifier.verify(key, self.path) is not False

    def _tidy(self) -> None:
        """Leave what the next attempt can build upon, and nothing else."""
        size = self.size
        is_too_large = self._key.size is not None and size > self._key.size
        if size == 0 or is_too_large or size == self.largest:
            receive.discard(self._repository, self._key)

    def __enter__(self) -> Arrival:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._stored:
                self._tidy()
        except OSError as reason:
            log.debug(f"cannot tidy up after receiving {self._key}: {reason.strerror}")
        finally:
            os.close(self._fd)
            self._transfer.__exit__(kind, error, trace)  # before it, nobody else writes the file
