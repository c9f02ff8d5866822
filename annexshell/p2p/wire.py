"""Messages and content over a pair of descriptors (spec: protocol §2.1, §2.2).

Reading is buffered across exchanges, since clients send ahead what needs no reply. Writing is not: every message is
on its way when send() returns, because the peer waits for it.
"""

from __future__ import annotations

import os
import select

from annexshell import log, relay
from annexshell.errors import Hangup, ProtocolError, RemoteUnavailable
from annexshell.p2p.messages import MAX_LINE, Data, Message, encode, parse
from annexshell.termination import Termination

_READ_SIZE = 1 << 16
# What this process may use, which is less than the machine has where it is confined to some.
_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_LOOKS = 40 if _PROCESSORS > 1 else 0  # a few dozen microseconds
_LARGE = 1 << 20  # content for which a wider pipe pays


class LineTooLong(ProtocolError):
    """No LF among the first 32768 bytes: what follows cannot be made sense of."""


class TimedOut(RemoteUnavailable):
    """The peer has let us wait for too long. Who that is, the owner of the connection knows."""


class Connection:
    """One end of a conversation. The descriptors are the caller's to close."""

    __slots__ = ("_buffer", "_poll", "_start", "_termination", "_watched", "read_fd", "timeout", "write_fd")

    def __init__(
        self,
        read_fd: int,
        write_fd: int,
        termination: Termination | None = None,
        *,
        timeout: float | None = None,
        watched: int | None = None,
    ) -> None:
        """With TERMINATION, a signal interrupts waiting for the peer.

        With TIMEOUT, waiting for one thing that the peer is to say or take lasts so many seconds at the most, and
        raises TimedOut then. WATCHED is a descriptor on which somebody else is to get what this peer says:
        when nobody reads there any more, waiting ends with Hangup.
        """
        self._termination = termination or Termination()
        self.read_fd = read_fd
        self._poll: select.poll | None = None
        self.write_fd = write_fd
        self.timeout = timeout
        self._watched = watched
        if self._is_impatient:
            # Or a write could wait for ever where nobody looks at the time.
            os.set_blocking(write_fd, False)
        self._buffer = b""
        self._start = 0  # where the unread part of the buffer begins

    def receive(self) -> Message | None:
        """The next message, None at end of file. Raises Unparsable (the line is gone), LineTooLong, OSError."""
        line = self.read_line()
        return None if line is None else parse(line)

    def read_line(self) -> bytes | None:
        """The next line without its LF; None at end of file, where a line without LF does not count."""
        end = self._buffer.find(b"\n", self._start)
        while end < 0:
            if len(self._buffer) - self._start >= MAX_LINE:
                raise LineTooLong("the peer sent an overlong line")
            self._expect_input()
            more = self._termination.read(self.read_fd, _READ_SIZE)
            if not more:
                return None
            searched = len(self._buffer) - self._start
            self._buffer = self._buffer[self._start :] + more
            self._start = 0
            end = self._buffer.find(b"\n", searched)
        if end - self._start >= MAX_LINE:
            raise LineTooLong("the peer sent an overlong line")
        line = self._buffer[self._start : end]
        self._start = end + 1
        if log.debugging():
            log.debug(f"P2P < {line[:200]!r}")
        return line

    def _expect_input(self) -> None:
        """Stay awake for a moment, in which the peer often has its next request ready.

        To be put to sleep and woken up again takes longer than most requests. With a single processor the peer could
        not go on meanwhile.
        """
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(self.read_fd, select.POLLIN)
        for _ in range(_LOOKS):
            if self._poll.poll(0):
                return
        if self._is_impatient:
            self._wait_for(self.read_fd, select.POLLIN)

    @property
    def _is_impatient(self) -> bool:
        return self.timeout is not None or self._watched is not None

    def _wait_for(self, fd: int, event: int) -> None:
        """Return when FD is ready. Raises TimedOut and Hangup as described above."""
        poll = select.poll()
        poll.register(fd, event)
        if self._watched is not None:
            poll.register(self._watched, 0)  # errors are always told
        before = self._termination.begin_waiting()
        try:
            ready = {fd for fd, _ in poll.poll(None if self.timeout is None else self.timeout * 1000)}
        finally:
            self._termination.waiting = before
        if self._watched in ready:
            raise Hangup("the client is gone")
        if not ready:
            does = "said" if event == select.POLLIN else "taken"
            raise TimedOut(f"it has {does} nothing for {self.timeout:g} seconds")

    def _wait_to_write(self) -> None:
        self._wait_for(self.write_fd, select.POLLOUT)

    @property
    def has_read_ahead(self) -> bool:
        """Whether there is input that poll() does not know of."""
        return self._start < len(self._buffer)

    @property
    def is_quiet(self) -> bool:
        """Whether nothing came, not even the end, that was not read yet."""
        poll = select.poll()
        poll.register(self.write_fd, 0)  # whether the peer still reads from a pipe is told at the other
        poll.register(self.read_fd, select.POLLIN)  # in this order: they can be the same
        return not self.has_read_ahead and not poll.poll(0)

    def readinto(self, view: memoryview) -> int:
        """Content bytes that follow a DATA message: those read ahead first. 0 at end of file."""
        ahead = len(self._buffer) - self._start
        if ahead:
            count = min(ahead, len(view))
            view[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            return count
        if self._is_impatient:
            self._wait_for(self.read_fd, select.POLLIN)
        return self._termination.readinto(self.read_fd, view)

    def splice(self, out: int, count: int) -> int | None:
        """The same, moved to the descriptor OUT by the kernel; None where :meth:`readinto` has to be used."""
        if self.has_read_ahead:
            return None
        if self._is_impatient:
            self._wait_for(self.read_fd, select.POLLIN)
        before = self._termination.begin_waiting_for_input()
        try:
            return relay.splice(self.read_fd, out, count)
        except BlockingIOError:
            # Because of OUT, but then it is not told which of the two is not ready. This one first: it may take long.
            self._wait_for(self.read_fd, select.POLLIN)
            raise
        finally:
            self._termination.waiting = before

    def payload(self, length: int) -> Payload:
        """The LENGTH content bytes that come next."""
        return Payload(self, length)

    def send(self, *messages: Message) -> None:
        """Send messages in one write."""
        if log.debugging():
            for message in messages:
                log.debug(f"P2P > {message!r}")
        self._write(b"".join(map(encode, messages)))

    def _write(self, data: bytes) -> None:
        # A peer that does not read is waited for like one that does not write.
        before = self._termination.begin_waiting()
        try:
            relay.write_all(self.write_fd, data, self._wait_to_write)
        finally:
            self._termination.waiting = before

    def send_content(self, length: int, source: relay.Source) -> None:
        """Send a DATA message and its bytes. Raises relay.ShortSource, after which the connection is unusable."""
        self.announce(Data(length))
        self.send_bytes(length, source)

    def announce(self, data: Data) -> None:
        """Send a DATA message whose bytes follow by :meth:`send_bytes`, in as many pieces as it takes."""
        if data.length >= _LARGE:
            relay.widen_pipe(self.write_fd)
        self.send(data)

    def send_bytes(self, length: int, source: relay.Source) -> None:
        """Send LENGTH bytes of the content that was announced."""
        before = self._termination.begin_waiting()
        try:
            relay.to_descriptor(source, length, self.write_fd, self._wait_to_write)
        finally:
            self._termination.waiting = before

    def send_small_content(self, data: bytes, *then: Message) -> None:
        """The same for content in memory and the messages that follow, all in one write."""
        self._write(b"".join((encode(Data(len(data))), data, *map(encode, then))))


class Payload(relay.Source):
    """The bytes after a DATA message, neither more nor less; they have to be consumed before the next message."""

    __slots__ = ("_connection", "_spliceable", "remaining")

    def __init__(self, connection: Connection, length: int) -> None:
        self._connection = connection
        self._spliceable = True
        self.remaining = length
        if length >= _LARGE:
            relay.widen_pipe(connection.read_fd)

    def readinto(self, view: memoryview) -> int:
        count = self._connection.readinto(view[: self.remaining])
        self.remaining -= count
        return count

    def splice(self, out: int, count: int) -> int | None:
        if not self._spliceable:
            return None
        moved = self._connection.splice(out, min(count, self.remaining))
        if moved is None:
            # What was read ahead has to go first, which is no reason to give up.
            self._spliceable = self._connection.has_read_ahead
            return None
        self.remaining -= moved
        return moved

    def drain(self) -> None:
        """Consume what is left. Raises Hangup."""
        try:
            relay.to_callable(self, self.remaining, lambda view: None)
        except relay.ShortSource as reason:
            raise Hangup("the peer hung up while sending content") from reason
