"""A repository behind the HTTP API, used as a Repository (spec: http §9; what it answers: §5-§7).

Every request stands for itself, so nothing that one of them meets with makes the next impossible.
"""

from __future__ import annotations

import time

from annexshell import relay
from annexshell.errors import NotLocked, NotPresent, PeerError, RemoteUnavailable, TransferRefused
from annexshell.http import urls
from annexshell.http.answers import Answer
from annexshell.http.lock import RemoteLock
from annexshell.http.session import NotFound, Request
from annexshell.key import Key
from annexshell.p2p.versions import VERSIONS
from annexshell.repository import AlreadyHave, Content, Outcome, Repository, Upload

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from annexshell.http.connection import Connection, Reply
    from annexshell.http.session import Session
    from annexshell.relay import Source
    from annexshell.repository import AssociatedFile, ContentLock, Timestamp
    from annexshell.uuid import UUID

# Asked for to get to know a server: a key that it can look for at little cost, as it need not have it.
_SOME_KEY = Key(b"SHA256-s0--e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")
# Actions that older versions of the API do not have (spec: http §3.1). It does no harm to ask for them at a higher
# version than the one that was agreed on.
_FIRST_VERSIONS = {"putoffset": 1, "remove-before": 3, "gettimestamp": 3}
_DATA_PRESENT_VERSION = 4
_LENGTH = "X-git-annex-data-length"
_LENGTH_DIGITS = 18
_END_TIME = 5.0  # seconds
_FOR_JSON = {"Accept": "application/json;charset=utf-8,application/json", "Accept-Encoding": "gzip"}
_FOR_CONTENT = {"Accept": "application/octet-stream", "Accept-Encoding": "identity"}


class HttpRepository(Repository):
    """The repository TARGET, one of those that a server has, as CLIENT."""

    def __init__(self, session: Session, target: UUID, client: UUID, highest: int) -> None:
        """Find the highest version, up to HIGHEST, that the server knows. Raises RemoteUnavailable.

        The session is ours to close from now on.
        """
        self._session = session
        self._client = client
        self._bypassed: list[tuple[str, bytes]] = []  # parameters of every request
        self.uuid = target
        try:
            self.protocol_version = self._find_version(highest)
        except PeerError as reason:
            session.close()
            raise RemoteUnavailable(f"cannot use {session.base}: {reason}") from reason
        except BaseException:
            session.close()
            raise
        session.opened()

    def _find_version(self, highest: int) -> int:
        for version in range(highest, -1, -1):
            self.protocol_version = version
            try:
                self.checkpresent(_SOME_KEY)
            except NotFound:
                continue
            return version
        raise RemoteUnavailable(f"{self._session.base} does not serve repository {self.uuid}")

    # How things are asked.

    def request(
        self,
        action: str,
        *parameters: tuple[str, bytes | int],
        headers: dict[str, str] | None = None,
        body: bytes = b"",
    ) -> Request:
        """A POST for ACTION."""
        query = urls.query((*parameters, ("clientuuid", self._client), *self._bypassed))
        return Request(
            action, "POST", f"{self._place(action)}/{action}?{query}", {**_FOR_JSON, **(headers or {})}, body
        )

    def _place(self, action: str) -> str:
        version = max(self.protocol_version, _FIRST_VERSIONS.get(action, 0))
        return f"/git-annex/{urls.encode_value(self.uuid)}/v{version}"

    def ask(self, request: Request) -> Answer:
        """The answer in JSON. Raises PeerError, RemoteUnavailable."""
        return self.understand(self._session.ask(request), request.action)

    def understand(self, reply: Reply, action: str) -> Answer:
        try:
            return Answer(reply, action)
        finally:
            self._session.done(reply)

    def _ask_about(self, action: str, key: Key, *parameters: tuple[str, bytes | int]) -> Answer:
        return self.ask(self.request(action, ("key", key.serialized), *parameters))

    # What a Repository does.

    def bypass(self, uuids: Sequence[UUID]) -> None:
        if VERSIONS[self.protocol_version].plus:
            self._bypassed = [("bypass", uuid) for uuid in sorted(set(uuids))]

    def checkpresent(self, key: Key) -> bool:
        return self._ask_about("checkpresent", key).flag("present")

    def lockcontent(self, key: Key) -> ContentLock:
        try:
            answer = self._ask_about("lockcontent", key)
        except PeerError as reason:
            # Such as not being allowed to: clients then do with less than a lock (spec: http §8.5).
            raise NotLocked(f"cannot lock {key}: {reason}") from reason
        if not answer.flag("locked"):
            raise NotLocked(f"{self._session.base} could not lock {key}")
        return RemoteLock(self, self._session, key, answer.text("lockid"))

    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        if before is None:
            answer = self._ask_about("remove", key)
        else:
            # No falling back to removing it whatever the time is.
            answer = self._ask_about("remove-before", key, ("timestamp", before))
        return Outcome(answer.flag("removed"), answer.uuids())

    def gettimestamp(self) -> Timestamp:
        return self.ask(self.request("gettimestamp")).number("timestamp")

    def get(self, key: Key, offset: int, file: AssociatedFile) -> Content:
        content = self._get(key, offset, file)
        if content.length:
            return content
        # git-annex's server says of content that it does not have that it is empty (spec: http §5.3).
        content.__exit__(None, None, None)
        if not self.checkpresent(key):
            raise NotPresent(f"{self._session.base} does not have {key}")
        return self._get(key, offset, file)  # since it may have come after the first answer

    def _get(self, key: Key, offset: int, file: AssociatedFile) -> _Download:
        parameters: list[tuple[str, bytes | int]] = [("clientuuid", self._client), *self._bypassed]
        if file is not None:
            parameters.append(("associatedfile", file))
        if offset:
            parameters.append(("offset", offset))
        path = f"{self._place('key')}/key/{urls.encode_value(key.serialized)}"
        request = Request("get", "GET", f"{path}?{urls.query(parameters)}", _FOR_CONTENT)
        try:
            reply = self._session.ask(request)
        except NotFound as reason:
            raise NotPresent(f"{self._session.base} does not have {key}") from reason
        try:
            return _Download(self._session, reply)
        except BaseException:
            reply.connection.close()
            raise

    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        try:
            answer = self._ask_about("putoffset", key)
        except NotFound:
            return _RemoteUpload(self, self._session, key, file, 0)
        except PeerError as reason:
            # Sending all of it would end in the same way.
            raise TransferRefused(f"{reason.who} refuses the upload: {reason}") from reason
        if "alreadyhave" in answer and answer.flag("alreadyhave"):
            return AlreadyHave(answer.uuids())
        upload = _RemoteUpload(self, self._session, key, file, answer.number("offset"))
        if key.size is not None and upload.offset > key.size:
            # It is not the start of the content, and git-annex's server keeps it for ever (spec: http §6.1) unless it
            # finds that it is not all of the content either.
            upload.finish_with_nothing()
            upload.offset = 0
        return upload

    def close(self) -> None:
        self.usable = False
        self._session.close()


class _Download(Content):
    def __init__(self, session: Session, reply: Reply) -> None:
        """Raises PeerError."""
        who = str(reply.connection.base)
        length = reply.header(_LENGTH) or ""
        if not (length.isascii() and length.isdecimal() and len(length) <= _LENGTH_DIGITS):
            raise PeerError(f"the answer to get does not tell its length in {_LENGTH}", who)
        if (reply.header("Content-Encoding") or "identity").lower() != "identity":
            raise PeerError("the answer to get is in an encoding that was not asked for", who)
        self._session = session
        self._reply = reply
        self._end_was_read = False
        self.length = int(length)
        self.source = self._body = _Body(session, reply, self.length)

    def still_valid(self) -> bool:
        """A server withholds the last byte of content that has changed, or sends more (spec: http §5.2)."""
        self._end_was_read = True
        self._reply.connection.set_deadline(self._session.deadline)
        return not self._body.remaining and not self._reply.read(1)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._body.remaining and not self._end_was_read:
                # It does not come with the last byte, and not every caller has a use for it.
                self._reply.connection.set_deadline(time.monotonic() + _END_TIME)
                self._reply.read(1)
        except RemoteUnavailable:
            pass  # it is not fit for the next request, that is all
        finally:
            self._session.done(self._reply)


class _Body(relay.Source):
    """The content in an answer."""

    __slots__ = ("_reply", "_session", "remaining")

    def __init__(self, session: Session, reply: Reply, length: int) -> None:
        self._session = session
        self._reply = reply
        self.remaining = length

    def readinto(self, view: memoryview) -> int:
        wanted = min(len(view), self.remaining)
        if not wanted:
            return 0
        # A time for every piece, since nobody can tell how long all of it takes.
        self._reply.connection.set_deadline(self._session.deadline)
        data = self._reply.read(wanted)
        if not data:
            raise RemoteUnavailable(
                f"{self._reply.connection.base} sent {self.remaining} bytes less of the content than it announced; "
                "the content has changed meanwhile, or the server was interrupted"
            )
        view[: len(data)] = data
        self.remaining -= len(data)
        return len(data)


class _RemoteUpload(Upload):
    def __init__(
        self, repository: HttpRepository, session: Session, key: Key, file: AssociatedFile, offset: int
    ) -> None:
        self._repository = repository
        self._session = session
        self._key = key
        self._file = file
        self.offset = offset

    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        if length == 0 and validity() is False:
            return Outcome(False)  # the sender does not have it after all
        request = self._request(length, ("offset", self.offset))
        connection = self._session.begin(request)
        try:
            is_complete = self._send(connection, length, source, validity) if length else True
        except BaseException:
            connection.close()  # with fewer bytes than announced, which the server keeps for another attempt
            raise
        if not is_complete:
            connection.close()
            return Outcome(False)
        answer = self._repository.understand(self._session.answer(connection, request.action), request.action)
        return Outcome(answer.flag("stored"), answer.uuids())

    def _send(self, connection: Connection, length: int, source: Source, validity: Callable[[], bool | None]) -> bool:
        """Send the content, all of it only if the sender says that it is valid, and whether he does.

        A server that answers early gets no more, but the sender is heard to the end, as he expects.
        """
        wanted = True

        def send(view: memoryview) -> None:
            nonlocal wanted
            if wanted:
                wanted = self._session.send(connection, view)

        relay.to_callable(source, length - 1, send)
        last = bytearray(1)
        relay.to_callable(source, 1, lambda view: last.__setitem__(0, view[0]))
        if validity() is False:
            return False
        send(memoryview(last))
        return True

    def finish_with_nothing(self) -> None:
        """Say that all of the content is there already."""
        self._repository.ask(self._request(0, ("offset", self.offset)))

    def check_stored(self) -> Outcome:
        if self._repository.protocol_version < _DATA_PRESENT_VERSION:
            return Outcome(False)
        answer = self._repository.ask(self._request(0, ("data-present", b"true")))
        return Outcome(answer.flag("stored"), answer.uuids())

    def _request(self, length: int, *parameters: tuple[str, bytes | int]) -> Request:
        if self._file is not None:
            parameters = (*parameters, ("associatedfile", self._file))
        headers = {_LENGTH: str(length), "Content-Type": "application/octet-stream", "Content-Length": str(length)}
        return self._repository.request("put", ("key", self._key.serialized), *parameters, headers=headers)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass  # the server was asked where to start, and nothing else
