"""Requests to one server: with credentials once it wants them, where it redirects to, over connections that are kept.

Every request but an upload may be sent a second time: doing it twice has the effect of doing it once, but for a lock,
of which a second one runs out by itself.
"""

from __future__ import annotations

import threading
import time

from annexshell import __version__
from annexshell.errors import PeerError, RemoteUnavailable
from annexshell.http import urls
from annexshell.http.connection import Connection, Reply, Translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    from annexshell.http.credentials import Credential, Credentials
    from annexshell.http.tls import Trust
    from annexshell.http.urls import Base
    from annexshell.remotes.patience import Patience

    _T = TypeVar("_T")

_MOST_REDIRECTS = 10
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
_MOST_IDLE = 8


class NotFound(PeerError):
    """The server does not know the repository, or the version of the API, or the key."""


class Request:
    """What is asked, below the base of the API. The body is sent whole, if there is one."""

    __slots__ = ("action", "body", "headers", "method", "target")

    def __init__(self, action: str, method: str, target: str, headers: Mapping[str, str], body: bytes = b"") -> None:
        self.action = action  # for people
        self.method = method
        self.target = target  # path and query
        self.headers = headers
        self.body = body


class Session:
    """Can be used by several threads at once."""

    def __init__(self, base: Base, credentials: Credentials, patience: Patience, trust: Trust) -> None:
        self.base = base
        self._credentials = credentials
        self._patience = patience
        self._trust = trust
        self._idle: list[Connection] = []
        self._mutex = threading.Lock()
        self._closed = False
        # Until the server is known to be one, all that it says together has to come in this time.
        self._opening_deadline = _deadline(patience.connect)

    def opened(self) -> None:
        """The server is known: from now on each answer has a time of its own."""
        self._opening_deadline = None

    @property
    def deadline(self) -> float | None:
        """By when something that is waited for from now on has to come."""
        opening = self._opening_deadline
        return opening if opening is not None else _deadline(self._patience.reply)

    # Requests.

    def ask(self, request: Request) -> Reply:
        """The 200 answer to REQUEST; who has read its body gives it to :meth:`done`.

        Raises NotFound, PeerError for every other answer, and RemoteUnavailable.
        """
        base = self.base
        target = request.target
        for _ in range(_MOST_REDIRECTS + 1):
            reply = self._ask_with_credentials(base, target, request)
            if reply.status not in _REDIRECTS:
                return self.succeeded(reply, request.action)
            base, target = self._redirected(reply, request, target)
        raise PeerError(f"it redirects {request.action} too often", str(self.base))

    def _redirected(self, reply: Reply, request: Request, target: str) -> tuple[Base, str]:
        location = reply.header("Location") or ""
        base = reply.connection.base
        try:
            new, target = urls.redirected(base, location, target)
        except ValueError as reason:
            raise PeerError(f"it redirects {request.action} to a wrong place", str(base)) from reason
        finally:
            self._conclude(reply)
        if target == request.target:
            self.base = new  # so that an upload, which cannot be sent twice, goes there at once
        return new, target

    def _ask_with_credentials(self, base: Base, target: str, request: Request) -> Reply:
        while True:
            credential = self._credentials.get(base)
            reply = self._exchange(base, target, request, credential)
            if reply.status != 401:
                if reply.status == 200:
                    self._credentials.accepted(credential)
                return reply
            challenges = reply.headers("WWW-Authenticate")
            self._conclude(reply)
            self._credentials.refused(credential, base, challenges)

    def _exchange(self, base: Base, target: str, request: Request, credential: Credential | None) -> Reply:
        headers = _headers(request.headers, credential)
        if request.method != "GET":
            headers["Content-Length"] = str(len(request.body))

        def ask_over(connection: Connection) -> Reply:
            deadline = self.deadline
            try:
                connection.begin(request.method, target, headers, deadline)
                connection.send(request.body, deadline)
                return connection.answer(deadline)
            except BaseException:
                connection.close()
                raise

        return self._over_any_connection(base, ask_over)

    def begin(self, request: Request) -> Connection:
        """Send the head of a request whose body the caller sends, and on whose connection he gets the answer.

        That cannot be repeated when the server wants credentials. Raises RemoteUnavailable.
        """
        base = self.base
        headers = _headers(request.headers, self._credentials.get(base))

        def begin_over(connection: Connection) -> Connection:
            try:
                connection.begin(request.method, request.target, headers, self.deadline)
            except BaseException:
                connection.close()
                raise
            return connection

        return self._over_any_connection(base, begin_over)

    def _over_any_connection(self, base: Base, use: Callable[[Connection], _T]) -> _T:
        """What USE gives, which is called again if a connection was closed for having been idle for long."""
        with Translated(base):
            idle = self._take_idle(base)
            if idle is not None:
                try:
                    return use(idle)
                except ConnectionError:
                    pass
            return use(self.connect(base))

    def send(self, connection: Connection, data: bytes | memoryview) -> bool:
        """A part of the body; false if the server has answered already. Raises RemoteUnavailable."""
        with Translated(connection.base):
            return connection.send(data, self.deadline)

    def answer(self, connection: Connection, action: str) -> Reply:
        """The 200 answer on a connection that :meth:`begin` gave. Raises as :meth:`ask`."""
        try:
            with Translated(connection.base):
                reply = connection.answer(self.deadline)
        except BaseException:
            connection.close()
            raise
        return self.succeeded(reply, action)

    def succeeded(self, reply: Reply, action: str) -> Reply:
        """REPLY, if it is 200. Raises NotFound, PeerError."""
        if reply.status == 200:
            return reply
        said = self._conclude(reply)
        # git-annex's server says 400 where its documentation says 404 (spec: http §4.1).
        missing = reply.status == 404 or (reply.status == 400 and said == "bad version")
        text = f"{action} failed with HTTP status {reply.status}" + (f": {said}" if said else "")
        raise (NotFound if missing else PeerError)(text, str(reply.connection.base))

    def _conclude(self, reply: Reply) -> str:
        """What the server says of an answer other than 200."""
        try:
            return reply.explanation()
        finally:
            self.done(reply)

    # Connections.

    def connect(self, base: Base) -> Connection:
        """A new connection. Raises RemoteUnavailable."""
        if self._closed:
            raise RemoteUnavailable(f"the connection to {base} was closed")
        deadline = self._opening_deadline
        if deadline is None:
            deadline = _deadline(self._patience.connect)
        return Connection(base, self._patience, deadline, self._trust.context(base) if base.tls else None)

    def _take_idle(self, base: Base) -> Connection | None:
        while True:
            with self._mutex:
                fitting = [connection for connection in self._idle if connection.base.origin == base.origin]
                if not fitting:
                    return None
                connection = fitting[-1]
                self._idle.remove(connection)
            if connection.is_quiet:
                connection.base = base
                return connection
            connection.close()

    def done(self, reply: Reply) -> None:
        """Nothing more is wanted of REPLY: keep its connection for the next request if it is fit for that."""
        connection = reply.connection
        if reply.is_reusable:
            with self._mutex:
                if not self._closed and len(self._idle) < _MOST_IDLE:
                    self._idle.append(connection)
                    return
        connection.close()

    def close(self) -> None:
        with self._mutex:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()


def _headers(headers: Mapping[str, str], credential: Credential | None) -> dict[str, str]:
    complete = {"User-Agent": f"annexshell/{__version__}", **headers}
    if credential is not None:
        complete["Authorization"] = credential.authorization
    return complete


def _deadline(seconds: float | None) -> float | None:
    return None if seconds is None else time.monotonic() + seconds
