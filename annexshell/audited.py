"""A Repository, whichever it is, that tells the audit log what becomes of the keys that a client asks it for.

What was acknowledged to the client is in the log: what stores, removes or locks is told of before its answer is sent.
Whether content is present is not told of. The bytes of content are not touched, only counted where somebody else
moves them, so that the kernel can go on moving them.
"""

from __future__ import annotations

from time import monotonic

from annexshell.audit import FAILED, INCOMPLETE, OK, PRESENT, why
from annexshell.errors import AnnexshellError, Hangup, ProtocolError
from annexshell.relay import Source
from annexshell.repository import AlreadyHave, Content, ContentLock, Repository, Upload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from annexshell.audit import Audit
    from annexshell.key import Key
    from annexshell.repository import AssociatedFile, Outcome, Timestamp
    from annexshell.uuid import UUID

STORE, SEND, REMOVE, LOCK, UNLOCK = "store", "send", "remove", "lock", "unlock"


class AuditedRepository(Repository):
    """REPOSITORY, of whose use AUDIT is told."""

    def __init__(self, repository: Repository, audit: Audit) -> None:
        self.uuid = repository.uuid
        self.protocol_version = repository.protocol_version
        self._repository = repository
        self._audit = audit

    def agree(self, highest: int) -> int:
        self.protocol_version = self._repository.agree(highest)
        return self.protocol_version

    def bypass(self, uuids: Sequence[UUID]) -> None:
        self._repository.bypass(uuids)

    def is_alive(self) -> bool:
        return self._repository.is_alive()

    def checkpresent(self, key: Key) -> bool:
        return self._repository.checkpresent(key)

    def gettimestamp(self) -> Timestamp:
        return self._repository.gettimestamp()

    def putoffset(self, key: Key, file: AssociatedFile) -> int | AlreadyHave:
        return self._repository.putoffset(key, file)

    def close(self) -> None:
        self._repository.close()

    def lockcontent(self, key: Key) -> ContentLock:
        began = monotonic()
        try:
            lock = self._repository.lockcontent(key)
        except (AnnexshellError, OSError) as error:
            self._audit.event_by(LOCK, error, key=key, since=began)
            raise
        self._audit.event(LOCK, OK, key=key, since=began)
        return _AuditedLock(lock, key, self._audit)

    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        began = monotonic()
        try:
            outcome = self._repository.remove(key, before)
        except (AnnexshellError, OSError) as error:
            self._audit.event_by(REMOVE, error, key=key, since=began)
            raise
        self._audit.event(REMOVE, OK if outcome else FAILED, key=key, since=began, reason=outcome.why)
        return outcome

    def get(self, key: Key, offset: int, file: AssociatedFile) -> Content:
        began = monotonic()
        try:
            content = self._repository.get(key, offset, file)
        except (AnnexshellError, OSError) as error:
            self._audit.event_by(SEND, error, key=key, offset=offset, since=began)
            raise
        return _AuditedContent(content, key, offset, self._audit, began)

    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        began = monotonic()
        try:
            upload = self._repository.put(key, file)
        except (AnnexshellError, OSError) as error:
            self._audit.event_by(STORE, error, key=key, since=began)
            raise
        if isinstance(upload, AlreadyHave):
            self._audit.event(STORE, PRESENT, key=key, since=began)
            return upload
        return _AuditedUpload(upload, key, self._audit, began)


class _AuditedLock(ContentLock):
    def __init__(self, lock: ContentLock, key: Key, audit: Audit) -> None:
        self._lock = lock
        self._key = key
        self._audit = audit
        self._began = monotonic()
        self._kept = False

    def keep(self) -> None:
        self._kept = True
        self._lock.keep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.__exit__(kind, error, trace)
        outcome, reason = OK, ""
        if self._kept:
            outcome, reason = INCOMPLETE, "the client went without unlocking, so that it stays locked for its time"
        self._audit.event(UNLOCK, outcome, key=self._key, since=self._began, reason=reason)


class _AuditedContent(Content):
    def __init__(self, content: Content, key: Key, offset: int, audit: Audit, began: float) -> None:
        self._content = content
        self._key = key
        self._offset = offset
        self._audit = audit
        self._began = began
        self._outcome, self._reason = INCOMPLETE, "the client did not say whether it got it"
        self._changed = False
        self.length = content.length
        self.source = self._counted = _Counted(content.source)

    def narrow(self, start: int, length: int) -> bool:
        if not self._content.narrow(start, length):
            return False
        self._offset += start
        self.length = self._content.length
        self.source = self._counted = _Counted(self._content.source)
        return True

    def still_valid(self) -> bool:
        valid = self._content.still_valid()
        self._changed = not valid
        return valid

    def acknowledge(self, received: bool) -> None:
        if received:
            self._outcome, self._reason = OK, ""
        else:
            self._outcome = FAILED
            self._reason = "the client did not accept it"
            if self._changed:
                self._reason = "it changed while it was sent"
        self._content.acknowledge(received)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self._outcome, self._reason = INCOMPLETE, why(error)
        try:
            self._content.__exit__(kind, error, trace)
        finally:
            self._audit.event(
                SEND,
                self._outcome,
                key=self._key,
                count=self._counted.count,
                offset=self._offset,
                since=self._began,
                reason=self._reason,
            )


class _AuditedUpload(Upload):
    def __init__(self, upload: Upload, key: Key, audit: Audit, began: float) -> None:
        self._upload = upload
        self._key = key
        self._audit = audit
        self._began = began
        self._counted: _Counted | None = None
        self._told = False
        self.offset = upload.offset

    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        self._counted = _Counted(source)
        try:
            outcome = self._upload.receive(length, self._counted, validity)
        except (Hangup, ProtocolError):
            raise  # see __exit__
        except (AnnexshellError, OSError) as error:
            self._told = True
            self._audit.event_by(
                STORE, error, key=self._key, count=self._counted.count, offset=self.offset, since=self._began
            )
            raise
        return self._tell(outcome)

    def check_stored(self) -> Outcome:
        return self._tell(self._upload.check_stored())

    def _tell(self, outcome: Outcome) -> Outcome:
        self._tell_of(OK if outcome else FAILED, outcome.why)
        return outcome

    def _tell_of(self, outcome: str, reason: str) -> None:
        self._told = True
        count = 0 if self._counted is None else self._counted.count
        self._audit.event(
            STORE, outcome, key=self._key, count=count, offset=self.offset, since=self._began, reason=reason
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._upload.__exit__(kind, error, trace)
        finally:
            if not self._told:
                self._tell_of(INCOMPLETE, "the client sent nothing" if error is None else why(error))


class _Counted(Source):
    """Another source, and how many of its bytes were taken."""

    __slots__ = ("_source", "count")

    def __init__(self, source: Source) -> None:
        self._source = source
        self.count = 0

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self.count += count
        return count

    def file(self) -> tuple[int, int] | None:
        return self._source.file()

    def skip(self, count: int) -> None:
        self.count += count
        self._source.skip(count)

    def splice(self, out: int, count: int) -> int | None:
        moved = self._source.splice(out, count)
        if moved is not None:
            self.count += moved
        return moved
