"""CONNECT: git's own protocol inside ours (spec: protocol §5.8)."""

from __future__ import annotations

import os
import select

from annexshell import process
from annexshell.errors import Hangup, ProtocolError
from annexshell.p2p import messages as m

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.p2p.wire import Connection, Payload

_READ_SIZE = 1 << 16


class GitServices:
    """``git upload-pack`` and ``git receive-pack`` for one directory."""

    __slots__ = ("_directory",)

    def __init__(self, directory: bytes) -> None:
        self._directory = directory

    def __call__(self, connection: Connection, service: bytes) -> None:
        """Relay between the client and the service until one of them is done."""
        # Without the dot, git would also try the directory with .git behind it, which is another one.
        argv = [b"git", service.removeprefix(b"git-"), self._directory + b"/."]
        with _Service(argv) as running:
            status = _relay(connection, running)
        # Twice: once for the end of the service, once in answer to the client's own, which may cross it.
        connection.send(m.ConnectDone(status), m.ConnectDone(status))


class _Service:
    """A git process with pipes to its stdin and from its stdout."""

    __slots__ = ("_pid", "input", "output", "status")

    def __init__(self, argv: list[bytes]) -> None:
        self.status: int | None = None
        self.input = process.Pipe()
        self.output = process.Pipe()
        try:
            self._pid = process.spawn(argv, stdin=self.input.read_fd, stdout=self.output.write_fd)
        except BaseException:
            self._close()
            raise
        self.input.close_read()
        self.output.close_write()

    def wait(self) -> int:
        if self.status is None:
            self.status = process.wait(self._pid)
        # A signal has no place in the protocol; 128 + its number is what a shell would say.
        return self.status if self.status >= 0 else 128 - self.status

    def _close(self) -> None:
        self.input.__exit__(None, None, None)
        self.output.__exit__(None, None, None)

    def __enter__(self) -> _Service:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # With both pipes closed git has nothing left to do but to end.
        self._close()
        self.wait()


def _relay(connection: Connection, service: _Service) -> int:
    """Move bytes in both directions, waiting for neither while the other could go on."""
    output, input = service.output.read_fd, service.input.write_fd
    os.set_blocking(input, False)
    payload: Payload | None = None
    pending = b""
    while True:
        poll = select.poll()
        poll.register(output, select.POLLIN)
        if pending:
            poll.register(input, select.POLLOUT)
        elif not connection.has_read_ahead:
            poll.register(connection.read_fd, select.POLLIN)
        # What was read ahead does not show in poll, so do not wait then.
        ready = {fd for fd, _ in poll.poll(0 if connection.has_read_ahead and not pending else None)}
        if output in ready:
            data = os.read(output, _READ_SIZE)
            if not data:
                return service.wait()
            connection.send_small_content(data)
        if pending:
            if input in ready:
                pending = _write_some(input, pending)
        elif connection.has_read_ahead or connection.read_fd in ready:
            if payload is None:
                message = _receive(connection)
                if isinstance(message, m.Data):
                    payload = connection.payload(message.length)
                else:
                    return _end(connection, message)
            else:
                pending = _read_some(payload)
        if payload is not None and payload.remaining == 0:
            payload = None


def _receive(connection: Connection) -> m.Message | None:
    try:
        return connection.receive()
    except m.Unparsable:
        return m.Failure()  # as good as any other message that does not belong here


def _end(connection: Connection, message: m.Message | None) -> int:
    """The status with which a client's message, not being DATA, ends the exchange."""
    if message is None:
        raise ProtocolError("the client hung up during CONNECT")
    if isinstance(message, m.ConnectDone):
        return message.status
    connection.send(m.Error(b"expected DATA or CONNECTDONE"))
    return 1


def _read_some(payload: Payload) -> bytes:
    buffer = bytearray(min(payload.remaining, _READ_SIZE))
    count = payload.readinto(memoryview(buffer))
    if count == 0:
        raise Hangup("the client hung up during CONNECT")
    return bytes(buffer[:count])


def _write_some(input: int, data: bytes) -> bytes:
    """Write what the service takes; gives the rest."""
    try:
        return data[os.write(input, data) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return b""  # git is done reading; what it writes says why
