"""Sending an object (spec: objects §13)."""

from __future__ import annotations

import os
import stat

from annexshell import relay
from annexshell.errors import NotPresent
from annexshell.repository import Content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.annex.repository import LocalRepository
    from annexshell.annex.transfers import Transfer
    from annexshell.key import Key
    from annexshell.repository import AssociatedFile


class LocalContent(Content):
    """An object that is open for sending."""

    def __init__(self, repository: LocalRepository, key: Key, path: bytes, offset: int, file: AssociatedFile) -> None:
        """Raises NotPresent: it vanished, is no regular file, or is not the content that was recorded."""
        self._path = path
        self._offset = offset
        self._transfer: Transfer | None = None
        # Neither waiting for a writer nor going elsewhere, should a FIFO or a link be in the object's place.
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
        except OSError as reason:
            raise NotPresent(f"cannot read the content of {key}: {reason.strerror}") from reason
        try:
            self._status = os.fstat(self._fd)
            if not stat.S_ISREG(self._status.st_mode):
                raise NotPresent(f"the object of {key} is not a regular file")
            # Before the length is announced; later there would be no way left to say that it is not available.
            repository.refuse_insecure(key)
            worktree = repository.worktree
            if worktree is not None and not worktree.may_send(key, path, self._status):
                raise NotPresent(f"the content of {key} was modified")
            self.length = max(0, self._status.st_size - offset)
            # No write bits: nobody changes it under us without first making it writable, which the check afterwards
            # notices.
            frozen = not self._status.st_mode & 0o222
            self.source = relay.FileSource(self._fd, offset, frozen=frozen)
            if self.length:
                self._transfer = repository.transfers.upload(key, repository.client, file)
        except BaseException:
            os.close(self._fd)
            raise

    def narrow(self, start: int, length: int) -> bool:
        frozen = self.source.file() is not None
        self.source = relay.FileSource(self._fd, self._offset + start, frozen=frozen)
        self.length = length
        return True

    def still_valid(self) -> bool:
        try:
            now = os.lstat(self._path)
        except OSError:
            return False
        return _identity(now) == _identity(self._status)

    def acknowledge(self, received: bool) -> None:
        if received and self._transfer is not None:
            self._transfer.succeed()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.close(self._fd)
        finally:
            if self._transfer is not None:
                self._transfer.__exit__(kind, error, trace)


def _identity(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_ino, status.st_size, status.st_mtime_ns
