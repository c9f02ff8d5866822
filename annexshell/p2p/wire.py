"""Messages and content over a pair of descriptors (spec: protocol §2.1, §2.2).

Reading is buffered across exchanges, since clients send ahead what needs no reply. Writing is not: every message is
on its way when send() returns, because the peer waits for it.
"""

from __future__ import annotations

import os
import select

from annexshell import log, relay
from annexshell.errors import Hangup, ProtocolError
from annexshell.p2p.messages import MAX_LINE, Data, Message, encode, parse
from annexshell.termination import Termination

_READ_SIZE = 1 << 16
# What this process may use, which is less than the machine has where it is confined to some.
_PROCESSORS = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_LOOKS = 40 if _PROCESSORS > 1 else 0  # a few dozen microseconds
_LARGE = 1 << 20  # content for which a wider pipe pays


class LineTooLong(ProtocolError):
    """No LF among the first 32768 bytes: what follows cannot be made sense of."""


class Connection:
    """One end of a conversation. The descriptors are the caller's to close."""

    __slots__ = ("_buffer", "_poll", "_start", "_termination", "read_fd", "write_fd")

    def __init__(self, read_fd: int, write_fd: int, termination: Termination | None = None) -> None:
        """With TERMINATION, a signal interrupts waiting for the peer."""
        self._termination = termination or Termination()
        self.read_fd = read_fd
        self._poll: select.poll | None = None
        self.write_fd = write_fd
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

    @property
    def has_read_ahead(self) -> bool:
        """Whether there is input that poll() does not know of."""
        return self._start < len(self._buffer)

    def readinto(self, view: memoryview) -> int:
        """Content bytes that follow a DATA message: those read ahead first. 0 at end of file."""
        ahead = len(self._buffer) - self._start
        if ahead:
            count = min(ahead, len(view))
            view[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            return count
        return self._termination.readinto(self.read_fd, view)

    def payload(self, length: int) -> Payload:
        """The LENGTH content bytes that come next."""
        if length >= _LARGE:
            relay.widen_pipe(self.read_fd)
        return Payload(self, length)

    def send(self, *messages: Message) -> None:
        """Send messages in one write."""
        if log.debugging():
            for message in messages:
                log.debug(f"P2P > {message!r}")
        self._write(b"".join(map(encode, messages)))

    def _write(self, data: bytes) -> None:
        # A peer that does not read is waited for like one that does not write.
        self._termination.waiting = True
        try:
            relay.write_all(self.write_fd, data)
        finally:
            self._termination.waiting = False

    def send_content(self, length: int, source: relay.Source) -> None:
        """Send a DATA message and its bytes. Raises relay.ShortSource, after which the connection is unusable."""
        if length >= _LARGE:
            relay.widen_pipe(self.write_fd)
        self.send(Data(length))
        self._termination.waiting = True
        try:
            relay.to_descriptor(source, length, self.write_fd)
        finally:
            self._termination.waiting = False

    def send_small_content(self, data: bytes, *then: Message) -> None:
        """The same for content in memory and the messages that follow, all in one write."""
        self._write(b"".join((encode(Data(len(data))), data, *map(encode, then))))


class Payload(relay.Source):
    """The bytes after a DATA message, neither more nor less; they have to be consumed before the next message."""

    __slots__ = ("_connection", "remaining")

    def __init__(self, connection: Connection, length: int) -> None:
        self._connection = connection
        self.remaining = length

    def readinto(self, view: memoryview) -> int:
        count = self._connection.readinto(view[: self.remaining])
        self.remaining -= count
        return count

    def drain(self) -> None:
        """Consume what is left. Raises Hangup."""
        try:
            relay.to_callable(self, self.remaining, lambda view: None)
        except relay.ShortSource as reason:
            raise Hangup("the peer hung up while sending content") from reason
