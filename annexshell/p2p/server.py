"""A conversation served against a Repository, wherever that is (spec: protocol §4-§7).

Each request has one handler, found in a table; a handler returns when the next line is again a request. What ends the
session is an exception: Over for an orderly end, ProtocolError and Hangup for the others.

Where the protocol's own program would end without a word, this one answers, as long as the connection is in step:
the client is told what is wrong and can go on (spec: protocol §11).
"""

from __future__ import annotations

from annexshell import log, relay
from annexshell.access import REMOVAL_DENIED, WRITE_DENIED
from annexshell.errors import (
    AnnexshellError,
    Hangup,
    NotLocked,
    NotPresent,
    PeerError,
    ProtocolError,
    RemoteUnavailable,
)
from annexshell.p2p import messages as m
from annexshell.p2p.versions import HIGHEST, VERSIONS
from annexshell.repository import AlreadyHave

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeAlias

    from annexshell.access import Access
    from annexshell.key import Key
    from annexshell.p2p.wire import Connection, Payload
    from annexshell.repository import Content, Outcome, Repository, Timestamp, Upload

    # Runs a git service over the connection until either end is done; gives its exit status.
    GitService: TypeAlias = Callable[[Connection, bytes], None]

# Content up to this size goes out in one write with the messages around it.
_SMALL = 1 << 16


class Over(Exception):
    """The session has come to an orderly end."""


class Server:
    """One client's session."""

    __slots__ = ("_access", "_agreed", "_connect", "_connection", "_in_error", "_repository", "rules")

    handlers: dict[type[m.Message], Callable[[Any, Any], None]]  # by request; the first argument is the server
    answers_hangups = True  # with FAILURE, to a client that hung up while it sent content

    def __init__(
        self,
        repository: Repository,
        connection: Connection,
        access: Access,
        connect: GitService | None = None,
    ) -> None:
        self._repository = repository
        self._connection = connection
        self._access = access
        self._connect = connect
        self._agreed = False  # on a version
        self._in_error = False  # the last thing sent was an ERROR
        self.rules = VERSIONS[0]

    def run(self) -> None:
        """Serve until the client is done. Raises Hangup, ProtocolError or OSError when it ends otherwise."""
        try:
            while True:
                self._serve_one()
        except Over:
            pass

    def _serve_one(self) -> None:
        try:
            message = self._receive()
        except m.Unparsable:
            self._unparsable()
            return
        if isinstance(message, m.Error):
            # Clients answer some of our ERRORs with one of their own, and then go on as if it had not been.
            if not self._in_error:
                self._client_error(message)
            self._in_error = False
            return
        self._in_error = False
        if not self._agreed and not isinstance(message, m.Version):
            self._agree(0)
        handler = self.handlers.get(type(message))
        if handler is None:
            self._unexpected(message)
        else:
            handler(self, message)

    def _agree(self, highest: int) -> None:
        self.rules = VERSIONS[self._repository.agree(highest)]
        self._agreed = True

    # What a client says that is no request, or not one that can be served.

    def _unparsable(self) -> None:
        self._error(b"unknown command")

    def _unexpected(self, message: m.Message) -> None:
        self._error(b"unexpected command")

    def _client_error(self, message: m.Error) -> None:
        raise Over

    def _not_data(self, message: m.Message | None) -> None:
        """What the client sent where DATA has to be."""
        if not isinstance(message, m.Error):
            self._error(b"expected DATA")

    # How messages are had and sent.

    def _receive(self) -> m.Message:
        message = self._connection.receive()
        if message is None:
            raise Over
        return message

    def _receive_reply(self) -> m.Message | None:
        """The line that an exchange needs next; None for one that says nothing that is known."""
        try:
            return self._receive()
        except m.Unparsable:
            return None

    def _tell(self, what: str, reason: AnnexshellError) -> None:
        """Why it cannot be done, on both ways by which a client's user may get to hear of it."""
        says = f"{reason.who} says: " if isinstance(reason, PeerError) else ""
        log.warn(f"{what}: {says}{reason}")
        self._error(str(reason))

    def _error(self, text: bytes | str) -> None:
        if isinstance(text, str):
            text = text.encode("utf-8", "backslashreplace")
        self._connection.send(m.Error(text))
        self._in_error = True

    def _deny(self, action: str, why: bytes, key: Key | None = None) -> None:
        """What the client may not do. The repository is not even asked."""
        if log.audit is not None:
            log.audit.refuse(action, why, key)
        self._error(why)

    # Small requests.

    def _version(self, request: m.Version) -> None:
        self._agree(min(request.number, HIGHEST))
        self._connection.send(m.Version(self.rules.number))

    def _bypass(self, request: m.Bypass) -> None:
        pass  # concerns gateways of clusters; has no reply

    def _checkpresent(self, request: m.CheckPresent) -> None:
        try:
            present = self._repository.checkpresent(request.key)
        except AnnexshellError as reason:
            if not self.rules.plus:
                # An old client takes anything but SUCCESS for "absent", and would record that.
                raise ProtocolError(f"cannot check whether {request.key} is present: {reason}") from reason
            self._error(str(reason))
            return
        self._connection.send(_SUCCESS if present else _FAILURE)

    def _gettimestamp(self, request: m.GetTimestamp) -> None:
        try:
            time = self._repository.gettimestamp()
        except AnnexshellError as reason:
            self._error(str(reason))
            return
        self._connection.send(m.TimestampIs(time))

    def _lockcontent(self, request: m.LockContent) -> None:
        try:
            lock = self._repository.lockcontent(request.key)
        except (NotLocked, NotPresent) as reason:
            log.debug(f"LOCKCONTENT {request.key}: {reason}")
            self._connection.send(_FAILURE)
            return
        except (PeerError, RemoteUnavailable) as reason:
            self._tell(f"cannot lock {request.key}", reason)
            return
        with lock:
            try:
                self._connection.send(_SUCCESS)
                answer = self._receive_reply()
            except BaseException:
                # Gone without unlocking. The client may count on the lock for the rest of its ten minutes.
                lock.keep()
                raise
            if not isinstance(answer, m.UnlockContent):
                self._error(b"expected UNLOCKCONTENT")

    def _remove(self, request: m.Remove) -> None:
        self._do_remove(request.key, None)

    def _remove_before(self, request: m.RemoveBefore) -> None:
        self._do_remove(request.key, request.time)

    def _do_remove(self, key: Key, before: Timestamp | None) -> None:
        if not self._access.may_remove:
            self._deny("remove", REMOVAL_DENIED if self._access.may_write else WRITE_DENIED, key)
            return
        try:
            outcome = self._repository.remove(key, before)
        except NotLocked as reason:
            log.warn(f"cannot remove {key}: {reason}")
            self._connection.send(_FAILURE)
        except PeerError as reason:
            self._tell(f"cannot remove {key}", reason)
        except (AnnexshellError, OSError) as reason:
            log.warn(f"cannot remove {key}: {reason}")
            self._error(f"removal failed: {_explain(reason)}")
        else:
            self._send_outcome(outcome)

    def _send_outcome(self, outcome: Outcome) -> None:
        if outcome.uuids and self.rules.plus:
            plus = m.SuccessPlus if outcome.done else m.FailurePlus
            self._connection.send(plus(outcome.uuids))
        else:
            self._connection.send(_SUCCESS if outcome.done else _FAILURE)

    # Sending content.

    def _get(self, request: m.Get) -> None:
        try:
            content = self._repository.get(request.key, request.offset, request.file)
        except NotPresent as reason:
            log.debug(f"GET {request.key}: {reason}")
            content = None
        except (PeerError, RemoteUnavailable) as reason:
            self._tell(f"cannot send {request.key}", reason)
            return
        except (AnnexshellError, OSError) as reason:
            log.warn(f"cannot send {request.key}: {_explain(reason)}")
            content = None
        if content is None:
            self._connection.send(m.Data(0), *(_INVALID if self.rules.validity else ()))
            self._receive_acknowledgement()
            return
        with content:
            if content.length <= _SMALL:
                if not self._send_small_content(request.key, content):
                    return
            else:
                self._connection.send_content(content.length, content.source)
                self._connection.send(*self._validity(content))
            received = self._receive_acknowledgement()
            if received is not None:
                content.acknowledge(received)

    def _send_small_content(self, key: Key, content: Content) -> bool:
        """Send content in one write; false if it could not be had, which can still be told then."""
        pieces: list[bytes] = []
        try:
            relay.to_callable(content.source, content.length, lambda view: pieces.append(bytes(view)))
        except RemoteUnavailable as reason:
            self._tell(f"cannot send {key}", reason)
            return False
        self._connection.send_small_content(b"".join(pieces), *self._validity(content))
        return True

    def _validity(self, content: Content) -> tuple[m.Message, ...]:
        if not self.rules.validity:
            return ()
        try:
            return _VALID if content.still_valid() else _INVALID
        except RemoteUnavailable as reason:
            log.warn(str(reason))
            return _INVALID  # nobody vouches for it

    def _receive_acknowledgement(self) -> bool | None:
        answer = self._receive_reply()
        if isinstance(answer, m.Success) or (self.rules.plus and isinstance(answer, m.SuccessPlus)):
            return True
        if isinstance(answer, m.Failure) or (self.rules.plus and isinstance(answer, m.FailurePlus)):
            return False
        if not isinstance(answer, m.Error):
            self._error(b"expected " + _ACKNOWLEDGEMENTS[self.rules.plus])
        return None

    # Receiving content.

    def _put(self, request: m.Put) -> None:
        if not self._access.may_write:
            self._deny("store", WRITE_DENIED, request.key)
            return
        try:
            upload = self._repository.put(request.key, request.file)
        except (AnnexshellError, OSError) as reason:
            # Before PUT-FROM, so that the client sends nothing and does not try a second time.
            self._refuse_content(request.key, reason)
            return
        with upload:
            if isinstance(upload, AlreadyHave):
                plus = upload.uuids and self.rules.plus
                self._connection.send(m.AlreadyHavePlus(upload.uuids) if plus else m.AlreadyHave())
                return
            self._connection.send(m.PutFrom(upload.offset))
            answer = self._receive_reply()
            if isinstance(answer, m.Data):
                self._receive_content(upload, request.key, self._connection.payload(answer.length))
            elif isinstance(answer, m.DataPresent) and self.rules.data_present:
                self._check_stored(upload, request.key)
            else:
                self._not_data(answer)

    def _refuse_content(self, key: Key, reason: Exception) -> None:
        log.warn(f"cannot receive {key}: {_explain(reason)}")
        self._error(_explain(reason))

    def _check_stored(self, upload: Upload, key: Key) -> None:
        try:
            outcome = upload.check_stored()
        except (AnnexshellError, OSError) as reason:
            self._refuse_content(key, reason)
        else:
            self._send_outcome(outcome)

    def _receive_content(self, upload: Upload, key: Key, payload: Payload) -> None:
        validity = _Validity(self, payload)
        try:
            outcome = upload.receive(payload.remaining, payload, validity)
        except Hangup:
            if self.answers_hangups:
                self._connection.send(_FAILURE)
            raise
        except ProtocolError:
            raise  # there is no telling where the next message begins
        except (AnnexshellError, OSError) as reason:
            log.warn(f"cannot store {key}: {_explain(reason)}")
            # The client reads nothing before it has sent all of it.
            payload.drain()
            if not validity.asked:
                validity()
            if isinstance(reason, PeerError | RemoteUnavailable):
                self._error(str(reason))
                return
            self._connection.send(_FAILURE)
        else:
            self._send_outcome(outcome)
        self._in_error = False  # what was said about the validity line is no longer the last word

    def receive_validity(self) -> bool | None:
        """What the sender says of the content that it sent: valid, invalid, or nothing (spec: protocol §5.6)."""
        if not self.rules.validity:
            return None
        try:
            answer = self._connection.receive()
        except m.Unparsable:
            answer = m.Failure()  # as good as any other message that does not belong here
        if isinstance(answer, m.Valid | m.Invalid):
            return isinstance(answer, m.Valid)
        if answer is not None:
            self._error(b"expected VALID or INVALID")
        return None

    # Other things than content.

    def _connect_git(self, request: m.Connect) -> None:
        if request.service == b"git-receive-pack" and not self._access.may_remove:
            self._deny(request.service.decode(), WRITE_DENIED)
            raise Over
        if request.service not in self._access.services:
            service = request.service
            self._deny(service.decode(), b"the policy of this server does not allow %s here" % service)
            raise Over
        if self._connect is None:
            raise ProtocolError("git services are not available over this connection")
        self._connect(self._connection, request.service)
        raise Over

    def _notifychange(self, request: m.NotifyChange) -> None:
        raise ProtocolError("change notification not available; use git-annex-shell notifychanges")


class _Validity:
    """Asks the sender for the validity of content, and knows whether it was asked."""

    __slots__ = ("_payload", "_server", "asked")

    def __init__(self, server: Server, payload: Payload) -> None:
        self._server = server
        self._payload = payload
        self.asked = False

    def __call__(self) -> bool | None:
        self.asked = True
        return self._server.receive_validity()


def _explain(reason: BaseException) -> str:
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror  # without the path, which is the server's own affair
    return str(reason)


_ACKNOWLEDGEMENTS = {
    False: b"SUCCESS or FAILURE",
    True: b"SUCCESS or SUCCESS-PLUS or FAILURE or FAILURE-PLUS",
}
_SUCCESS, _FAILURE = m.Success(), m.Failure()
_VALID, _INVALID = (m.Valid(),), (m.Invalid(),)

Server.handlers = {
    m.Version: Server._version,
    m.Bypass: Server._bypass,
    m.CheckPresent: Server._checkpresent,
    m.LockContent: Server._lockcontent,
    m.Remove: Server._remove,
    m.RemoveBefore: Server._remove_before,
    m.GetTimestamp: Server._gettimestamp,
    m.Get: Server._get,
    m.Put: Server._put,
    m.Connect: Server._connect_git,
    m.NotifyChange: Server._notifychange,
}
