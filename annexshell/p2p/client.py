"""A conversation used as a Repository: the client's side of the P2P protocol (spec: protocol §8).

A connection on which an exchange was cut short is out of step with its peer. It is marked unusable at once, so that
nobody sends the next request into the middle of the last one; only its owner can replace it.
"""

from __future__ import annotations

from annexshell import relay
from annexshell.annex import backends
from annexshell.errors import (
    NotAsked,
    NotLocked,
    NotPresent,
    PeerError,
    ProtocolError,
    RemoteUnavailable,
    TransferRefused,
)
from annexshell.p2p import messages as m
from annexshell.p2p.versions import HIGHEST, VERSIONS
from annexshell.p2p.wire import Payload, TimedOut
from annexshell.repository import AlreadyHave, Content, ContentLock, Outcome, Repository, Upload
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from annexshell.key import Key
    from annexshell.p2p.wire import Connection
    from annexshell.relay import Source
    from annexshell.repository import AssociatedFile, Timestamp


class P2PRepository(Repository):
    """The repository at the other end of a connection. The connection's descriptors are its owner's to close."""

    def __init__(
        self,
        connection: Connection,
        expected: UUID | None = None,
        highest: int = HIGHEST,
        *,
        name: str = "the remote",
    ) -> None:
        """Wait for the greeting and agree on a version, HIGHEST at the most. NAME is what errors call the peer.

        Raises RemoteUnavailable when the peer is gone, or not what was expected.
        """
        self._connection = connection
        self.name = name
        self.usable = True  # in step with the peer
        self.uuid = self._greeting()
        if expected is not None and self.uuid != expected:
            self.usable = False
            raise RemoteUnavailable(f"{name}: expected repository UUID {expected} but found UUID {self.uuid}")
        self.rules = VERSIONS[0]
        self._negotiate(highest)
        self.protocol_version = self.rules.number

    def _greeting(self) -> UUID:
        line = self._read_line()
        if line is None:
            raise RemoteUnavailable(f"{self.name} closed the connection before it greeted")
        try:
            greeting = m.parse(line)
        except m.Unparsable:
            greeting = None
        if not isinstance(greeting, m.AuthSuccess):
            self.usable = False
            raise RemoteUnavailable(f"{self.name} does not speak the protocol; its first line was: {_quoted(line)}")
        return greeting.uuid

    def _negotiate(self, highest: int) -> None:
        self.send(m.Version(highest))
        try:
            answer = self.receive()
        except PeerError:
            return  # it does not know VERSION: version 0
        if not isinstance(answer, m.Version):
            raise self.out_of_step("VERSION", answer)
        self.rules = VERSIONS[min(answer.number, highest)]

    # What exchanges are made of.

    def send(self, *messages: m.Message) -> None:
        if not self.usable:
            raise RemoteUnavailable(f"the connection to {self.name} is not usable any more")
        try:
            self._connection.send(*messages)
        except (OSError, TimedOut) as reason:
            raise self.lost(reason) from reason
        except BaseException:
            self.usable = False
            raise

    def receive(self) -> m.Message:
        """The next message. Raises PeerError for an ERROR, and RemoteUnavailable."""
        line = self._read_line()
        if line is None:
            self.usable = False
            raise RemoteUnavailable(f"lost the connection to {self.name}")
        try:
            message = m.parse(line)
        except m.Unparsable as reason:
            self.usable = False
            raise RemoteUnavailable(f"{self.name} sent what is no message: {_quoted(line)}") from reason
        if isinstance(message, m.Error):
            raise PeerError(message.text.decode("utf-8", "backslashreplace"), self.name)
        return message

    def _read_line(self) -> bytes | None:
        try:
            return self._connection.read_line()
        except (OSError, ProtocolError, TimedOut) as reason:
            raise self.lost(reason) from reason
        except BaseException:
            self.usable = False
            raise

    def lost(self, reason: Exception) -> RemoteUnavailable:
        """The connection is not usable any more, for REASON."""
        self.usable = False
        why = reason.strerror if isinstance(reason, OSError) else reason
        return RemoteUnavailable(f"lost the connection to {self.name}: {why}")

    def out_of_step(self, request: str, answer: m.Message) -> RemoteUnavailable:
        """The connection is not usable any more, since ANSWER answers nothing that was asked."""
        self.usable = False
        return RemoteUnavailable(f"{self.name} answered {request} with {answer!r}")

    def ask(self, request: m.Message) -> m.Message:
        """The answer to REQUEST. Raises NotAsked if that was not sent, and as :meth:`receive` does."""
        if self._connection.has_read_ahead:
            # It would be taken for the answer.
            self.usable = False
            raise NotAsked(f"{self.name} has said more than it was asked")
        try:
            self.send(request)
        except RemoteUnavailable as reason:
            raise NotAsked(str(reason)) from reason  # its line end comes last, and nobody heeds a part of a line
        return self.receive()

    def outcome(self, request: str, answer: m.Message) -> Outcome:
        if isinstance(answer, m.Success | m.Failure):
            return Outcome(isinstance(answer, m.Success))
        if isinstance(answer, m.SuccessPlus | m.FailurePlus):
            return Outcome(isinstance(answer, m.SuccessPlus), answer.uuids)
        raise self.out_of_step(request, answer)

    # What a Repository does.

    def bypass(self, uuids: Sequence[UUID]) -> None:
        if self.rules.plus:
            self.send(m.Bypass(tuple(sorted(set(uuids)))))  # to which there is no answer

    def is_alive(self) -> bool:
        return self.usable and self._connection.is_quiet

    def checkpresent(self, key: Key) -> bool:
        return self.outcome("CHECKPRESENT", self.ask(m.CheckPresent(key))).done

    def lockcontent(self, key: Key) -> ContentLock:
        if not self.outcome("LOCKCONTENT", self.ask(m.LockContent(key))).done:
            raise NotLocked(f"{self.name} could not lock {key}")
        return _RemoteLock(self)

    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        # A peer that is too old to know when it would be too late removes at once, as it is always asked to.
        timely = before is not None and self.rules.remove_before
        request = m.RemoveBefore(before, key) if before is not None and timely else m.Remove(key)
        return self.outcome("REMOVE", self.ask(request))

    def gettimestamp(self) -> Timestamp:
        answer = self.ask(m.GetTimestamp())
        if not isinstance(answer, m.TimestampIs):
            raise self.out_of_step("GETTIMESTAMP", answer)
        return answer.time

    def get(self, key: Key, offset: int, file: AssociatedFile) -> Content:
        answer = self.ask(m.Get(offset, file, key))
        if not isinstance(answer, m.Data):
            raise self.out_of_step("GET", answer)
        content = _Download(self, _DownloadPayload(self, self._connection, answer.length))
        if answer.length == 0 and self.rules.validity and not content.still_valid():
            content.acknowledge(False)
            raise NotPresent(f"{self.name} does not have {key}")
        return content

    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        try:
            answer = self.ask(m.Put(file, key))
        except PeerError as reason:
            raise TransferRefused(str(reason)) from reason
        if isinstance(answer, m.AlreadyHave):
            return AlreadyHave()
        if isinstance(answer, m.AlreadyHavePlus):
            return AlreadyHave(answer.uuids)
        if isinstance(answer, m.Failure | m.FailurePlus):
            raise TransferRefused(f"{self.name} refused the upload without saying why")
        if not isinstance(answer, m.PutFrom):
            raise self.out_of_step("PUT", answer)
        return _RemoteUpload(self, self._connection, key, answer.offset)

    def close(self) -> None:
        """Ask nothing more. Closing the descriptors, which tells the peer, is their owner's business."""
        self.usable = False


class _RemoteLock(ContentLock):
    def __init__(self, repository: P2PRepository) -> None:
        self._repository = repository
        self._kept = False

    def keep(self) -> None:
        # There is no message for it: the peer keeps the lock when the connection ends without UNLOCKCONTENT.
        self._kept = True
        self._repository.usable = False

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._kept and self._repository.usable:
            self._repository.send(m.UnlockContent())


class _DownloadPayload(Payload):
    """Content bytes from a peer whose hanging up is not the same as our client's."""

    __slots__ = ("_repository",)

    def __init__(self, repository: P2PRepository, connection: Connection, length: int) -> None:
        super().__init__(connection, length)
        self._repository = repository

    def readinto(self, view: memoryview) -> int:
        try:
            return super().readinto(view) or self._end()
        except TimedOut as reason:
            raise self._repository.lost(reason) from reason

    def splice(self, out: int, count: int) -> int | None:
        try:
            moved = super().splice(out, count)
        except TimedOut as reason:
            raise self._repository.lost(reason) from reason
        return self._end() if moved == 0 else moved

    def _end(self) -> int:
        raise RemoteUnavailable(f"lost the connection to {self._repository.name} while it sent content")


class _Download(Content):
    def __init__(self, repository: P2PRepository, payload: _DownloadPayload) -> None:
        self._repository = repository
        self.source = self._payload = payload
        self.length = payload.remaining
        self._valid: bool | None = None
        self._acknowledged = False

    def still_valid(self) -> bool:
        if self._valid is None:
            self._valid = self._receive_validity() if self._repository.rules.validity else True
        return self._valid

    def _receive_validity(self) -> bool:
        try:
            answer = self._repository.receive()
        except PeerError as reason:
            self._repository.usable = False
            raise RemoteUnavailable(f"{reason.who} does not vouch for the content it sent: {reason}") from reason
        if not isinstance(answer, m.Valid | m.Invalid):
            raise self._repository.out_of_step("GET", answer)
        return isinstance(answer, m.Valid)

    def acknowledge(self, received: bool) -> None:
        self.still_valid()  # what the peer says of it comes before, also where nobody wants to know
        self._acknowledged = True
        self._repository.send(m.Success() if received else m.Failure())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._acknowledged:
            # Content is still on its way, or the peer waits for an acknowledgement.
            if self._payload.remaining or self._valid is None:
                self._repository.usable = False
            elif self._repository.usable:
                self.acknowledge(False)


class _RemoteUpload(Upload):
    def __init__(self, repository: P2PRepository, connection: Connection, key: Key, offset: int) -> None:
        self._repository = repository
        self._connection = connection
        self._key = key
        self.offset = offset
        self._begun = False

    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        self._begun = True
        repository = self._repository
        # Until the sender has said that the content is valid, a peer that could not find out must not have all of it:
        # a byte is held back, or if there is none, that there is none.
        careful = not self._peer_can_reject()
        held_back = min(length, 1) if careful else 0
        announcement: m.Data | None = m.Data(length)
        try:
            if length or not careful:
                self._send(announcement, length - held_back, source)
                announcement = None
            last: list[bytes] = []
            relay.to_callable(source, held_back, lambda view: last.append(bytes(view)))
            valid = validity()
            if careful and valid is False:
                repository.usable = False
                return Outcome(False)
            self._send(announcement, held_back, relay.BytesSource(b"".join(last)))
        except BaseException:
            # What was announced cannot be completed, and must not look as if it had been.
            repository.usable = False
            raise
        if repository.rules.validity:
            # "Unknown" is told as INVALID: the peer then checks the content, and stores it if it is good.
            repository.send(m.Valid() if valid else m.Invalid())
        return repository.outcome("PUT", repository.receive())

    def _peer_can_reject(self) -> bool:
        """Whether the peer does not store content that it is told to be invalid, other than the key's."""
        return self._repository.rules.validity and backends.find(self._key.variety) is not backends.UNVERIFIABLE

    def _send(self, announcement: m.Data | None, length: int, source: Source) -> None:
        repository = self._repository
        try:
            if announcement is not None:
                self._connection.announce(announcement)
            self._connection.send_bytes(length, source)
        except BrokenPipeError as reason:
            # Of a pipe that is read from there is no such error, so this is about the peer.
            raise RemoteUnavailable(f"lost the connection to {repository.name} while sending content") from reason
        except TimedOut as reason:
            raise repository.lost(reason) from reason

    def check_stored(self) -> Outcome:
        if not self._repository.rules.data_present:
            return Outcome(False)
        self._begun = True
        return self._repository.outcome("PUT", self._repository.ask(m.DataPresent()))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._begun and self._repository.usable:
            if kind is not None or not self._peer_can_reject():
                self._repository.usable = False
                return
            # The peer waits for DATA. None at all, and invalid, leaves what it has for the next attempt.
            self.receive(0, relay.BytesSource(b""), lambda: False)


def _quoted(line: bytes) -> str:
    return repr(line[:100].decode("utf-8", "backslashreplace"))
