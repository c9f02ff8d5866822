"""One connection to an HTTP server, used by one request after the other.

http.client knows how requests and answers are written. Waiting, and closing, is done here: it has to end when time is
up, when a signal comes, and when nobody is interested in the answer any more.
"""

from __future__ import annotations

import http.client
import io
import select
import socket
import ssl
import threading
import time

from annexshell import log
from annexshell.errors import Hangup, PeerError, RemoteUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType
    from typing import Any

    from annexshell.http.urls import Base
    from annexshell.remotes.patience import Patience

_READ_AHEAD = 1 << 16
_ERROR_TIME = 5.0  # seconds for the explanation that comes with an error
_ERROR_SIZE = 1 << 12
_ERROR_SHOWN = 200


class _Waiting:
    """While this ``with`` lasts, a signal ends the waiting; if it is the main thread's, the only one to get any."""

    __slots__ = ("_before", "_termination")

    def __init__(self, patience: Patience) -> None:
        is_main = threading.current_thread() is threading.main_thread()
        self._termination = patience.termination if is_main else None

    def __enter__(self) -> None:
        if self._termination is not None:
            self._before = self._termination.begin_waiting()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._termination is not None:
            self._termination.waiting = self._before


class _Wire:
    """What http.client takes for a socket. Only its owner closes it, and it raises TimeoutError at the deadline."""

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self._socket = sock
        self._patience = patience
        self._ahead = b""  # what was read while there was still something to be sent
        self.deadline: float | None = None  # on the monotonic clock

    # As http.client calls it.

    def makefile(self, mode: str) -> io.BufferedReader:
        return io.BufferedReader(_Reader(self))

    def sendall(self, data: bytes | memoryview) -> None:
        with _Waiting(self._patience):
            self._wait(select.POLLOUT)
            self._socket.sendall(data)

    def close(self) -> None:
        """Done when the answer, which is read after this, has been read."""

    # As we do.

    def receive_into(self, buffer: memoryview) -> int:
        if self._ahead:
            count = min(len(buffer), len(self._ahead))
            buffer[:count] = self._ahead[:count]
            self._ahead = self._ahead[count:]
            return count
        with _Waiting(self._patience):
            if not (isinstance(self._socket, ssl.SSLSocket) and self._socket.pending()):
                self._wait(select.POLLIN)
            return self._socket.recv_into(buffer)

    def send_unless_answered(self, view: memoryview) -> bool:
        """Send all of VIEW; false if the server has answered, or hung up, before it had all of it."""
        with _Waiting(self._patience):
            while view:
                if self._wait(select.POLLIN | select.POLLOUT) & ~select.POLLOUT and self._is_answered():
                    return False
                self._wait(select.POLLOUT)
                try:
                    # Piece by piece, so that the answer is noticed of a server that reads no further.
                    view = view[self._socket.send(view[:_READ_AHEAD]) :]
                except ConnectionError:
                    if self._is_answered():
                        return False  # since we looked
                    raise
        return True

    def _is_answered(self) -> bool:
        """Whether there is an answer to be read; TLS also has messages of its own."""
        self._socket.settimeout(0)
        try:
            data = self._socket.recv(_READ_AHEAD)
        except (BlockingIOError, ssl.SSLWantReadError):
            return False
        self._ahead += data
        return True

    def _wait(self, events: int) -> int:
        """Return when the socket is ready. Raises TimeoutError, Hangup."""
        poll = select.poll()
        poll.register(self._socket, events)
        watched = self._patience.for_whom
        if watched is not None:
            poll.register(watched, 0)  # errors are always told
        left = _seconds_left(self.deadline)
        ready = dict(poll.poll(None if left is None else left * 1000))
        mine = ready.pop(self._socket.fileno(), 0)
        if not mine:
            if ready:
                raise Hangup("the client is gone")
            raise TimeoutError
        # For what the kernel's readiness does not promise: all of a TLS record.
        self._socket.settimeout(_seconds_left(self.deadline))
        return mine

    @property
    def is_quiet(self) -> bool:
        try:
            return not self._ahead and not self._is_answered()
        except OSError:
            return False

    def shut(self) -> None:
        self._socket.close()


class _Reader(io.RawIOBase):
    def __init__(self, wire: _Wire) -> None:
        self._wire = wire

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        return self._wire.receive_into(memoryview(buffer))


class Connection:
    """A connection to BASE; to be closed unless an answer says that it can be used again."""

    def __init__(self, base: Base, patience: Patience, deadline: float | None, tls: ssl.SSLContext | None) -> None:
        """Raises RemoteUnavailable."""
        self.base = base
        self._is_in_step = True
        try:
            with _Waiting(patience):
                sock = _connect(base, deadline, tls)
        except (OSError, ValueError) as reason:
            raise RemoteUnavailable(f"cannot connect to {base}: {_explain(reason)}") from reason
        self._wire = _Wire(sock, patience)
        self._http = http.client.HTTPConnection(base.host, base.port)
        self._http.auto_open = 0
        self._http.sock = self._wire

    def begin(self, method: str, target: str, headers: Mapping[str, str], deadline: float | None) -> None:
        """Send the head of a request. Raises OSError."""
        self._wire.deadline = deadline
        self._http.putrequest(method, self.base.path + target, skip_host=True, skip_accept_encoding=True)
        self._http.putheader("Host", self.base.netloc)
        for name, value in headers.items():
            self._http.putheader(name, value)
        self._http.endheaders()

    def send(self, data: bytes | memoryview, deadline: float | None) -> bool:
        """Send a part of the body; false if the server wants no more of it. Raises OSError."""
        self._wire.deadline = deadline
        self._is_in_step = False
        self._is_in_step = self._wire.send_unless_answered(memoryview(data))
        return self._is_in_step

    def answer(self, deadline: float | None) -> Reply:
        """The head of the answer. Raises OSError, http.client.HTTPException."""
        self._wire.deadline = deadline
        return Reply(self, self._http.getresponse())

    def set_deadline(self, deadline: float | None) -> None:
        self._wire.deadline = deadline

    @property
    def is_in_step(self) -> bool:
        """Whether the server does not wait for more of a body."""
        return self._is_in_step

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came, not even the end, while nothing was asked."""
        return self._wire.is_quiet

    def close(self) -> None:
        self._wire.shut()


class Reply:
    """An answer, whose body is still to be read. Not reusing its connection is what happens unless it is read."""

    def __init__(self, connection: Connection, response: http.client.HTTPResponse) -> None:
        self.connection = connection
        self._response = response
        self.status = response.status
        self._is_complete = False

    def header(self, name: str) -> str | None:
        return self._response.getheader(name)

    def headers(self, name: str) -> list[str]:
        return self._response.msg.get_all(name) or []

    def read(self, size: int) -> bytes:
        """Up to SIZE > 0 bytes of the body, none at its end. Raises RemoteUnavailable."""
        if self._is_complete:
            return b""
        with Translated(self.connection.base):
            data = self._response.read1(size)
            if not data:
                if self._response.length:
                    raise http.client.IncompleteRead(b"", self._response.length)
                self._is_complete = True
                self._response.close()  # or http.client would not take the next request
            return data

    def read_all(self, limit: int) -> bytes:
        """All of the body. Raises PeerError if it is larger than LIMIT, RemoteUnavailable."""
        body = b""
        while part := self.read(limit + 1):
            body += part
            if len(body) > limit:
                raise PeerError("its answer is too long", str(self.connection.base))
        return body

    def explanation(self) -> str:
        """What the server says about an error, on one line; empty if it says nothing for people."""
        self.connection.set_deadline(time.monotonic() + _ERROR_TIME)
        try:
            body = self.read_all(_ERROR_SIZE)
        except (PeerError, RemoteUnavailable):
            return ""
        if not (self.header("Content-Type") or "text/plain").startswith("text/plain"):
            return ""
        return log.printable(body.strip().partition(b"\n")[0])[:_ERROR_SHOWN]

    @property
    def is_reusable(self) -> bool:
        """Whether the connection can take the next request; after an error of git-annex's server it is dead."""
        is_in_step = self._is_complete and self.connection.is_in_step
        return is_in_step and not self._response.will_close and self.status < 500


class Translated:
    """A ``with`` in which what goes wrong with a connection becomes one of our own errors."""

    __slots__ = ("_base",)

    def __init__(self, base: Base) -> None:
        self._base = base

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, OSError):
            raise RemoteUnavailable(f"lost the connection to {self._base}: {_explain(error)}") from error
        if isinstance(error, http.client.IncompleteRead):
            raise RemoteUnavailable(f"{self._base} hung up in the middle of its answer") from error
        if isinstance(error, http.client.HTTPException | ValueError):
            raise RemoteUnavailable(f"{self._base} answered with what is not HTTP") from error


def _connect(base: Base, deadline: float | None, tls: ssl.SSLContext | None) -> socket.socket:
    sock = socket.create_connection((base.host, base.port), _seconds_left(deadline))
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        # A lock may be held for hours without a word. This notices that the other side is gone.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        return sock if tls is None else tls.wrap_socket(sock, server_hostname=base.host)
    except BaseException:
        sock.close()
        raise


def _seconds_left(deadline: float | None) -> float | None:
    # Never 0, which stands for something else than very little time.
    return None if deadline is None else max(0.001, deadline - time.monotonic())


def _explain(reason: Exception) -> str:
    if isinstance(reason, TimeoutError):
        return "it did not answer in time"
    if isinstance(reason, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {reason.verify_message}"
    if isinstance(reason, ssl.SSLError):
        return f"TLS failed: {reason.reason or reason}"
    if isinstance(reason, OSError) and reason.strerror:
        return reason.strerror
    return "it hung up" if isinstance(reason, ConnectionError) else str(reason)
