"""A conversation served for a repository that we stand in front of (spec: proxy §6.1, §7).

A proxy does not explain to a client what is wrong with what it says, as our server does for its own repository: what
makes no sense ends the session.
"""

from __future__ import annotations

from annexshell.access import WRITE_DENIED
from annexshell.errors import Hangup, ProtocolError
from annexshell.p2p import messages as m
from annexshell.p2p.server import Over, Server

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


class ProxySession(Server):
    """One client's session."""

    __slots__ = ()

    answers_hangups = False

    def _unparsable(self) -> None:
        raise Over

    def _unexpected(self, message: m.Message | None) -> NoReturn:
        self._error(b"protocol error")
        raise ProtocolError(f"the client said {message!r} where that makes no sense")

    def _client_error(self, message: m.Error) -> NoReturn:
        raise ProtocolError(f"client error: {message.text.decode('utf-8', 'backslashreplace')}")

    def _not_data(self, message: m.Message | None) -> None:
        if not isinstance(message, m.DataPresent):
            self._unexpected(message)
        super()._not_data(message)  # as the repository itself would, not knowing it at this version

    def _version(self, request: m.Version) -> None:
        if self._agreed:
            self._unexpected(request)
        super()._version(request)

    def receive_validity(self) -> bool | None:
        if not self.rules.validity:
            return None
        try:
            answer = self._connection.receive()
        except m.Unparsable as reason:
            raise Over from reason
        if answer is None:
            raise Hangup("the client hung up before it said whether the content is valid")
        if not isinstance(answer, m.Valid | m.Invalid):
            self._unexpected(answer)
        return isinstance(answer, m.Valid)

    def _connect_git(self, request: m.Connect) -> None:
        if request.service == b"git-receive-pack" and not self._access.may_remove:
            self._deny(request.service.decode(), WRITE_DENIED)
            return
        raise ProtocolError("relaying to git not supported on this connection")


ProxySession.handlers = {
    **Server.handlers,
    m.Version: ProxySession._version,
    m.Connect: ProxySession._connect_git,
    m.NotifyChange: ProxySession._unexpected,
}
