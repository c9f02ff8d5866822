"""Lines and payloads over descriptors, split at any byte."""

from __future__ import annotations

import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annexshell import relay
from annexshell.errors import Hangup
from annexshell.p2p import messages as m
from annexshell.p2p.wire import Connection, LineTooLong


class Feed:
    """A connection whose input comes in the given pieces, each of its own read."""

    def __init__(self, *pieces: bytes) -> None:
        self.waiting = False
        self.read_fd, write_fd = os.pipe()
        self.connection = Connection(self.read_fd, -1)
        self._pieces = list(pieces)
        os.close(write_fd)
        self.connection._termination = self  # its two reading methods are all that a connection needs

    def read(self, fd: int, size: int) -> bytes:
        return self._pieces.pop(0) if self._pieces else b""

    def readinto(self, fd: int, view: memoryview) -> int:
        if not self._pieces:
            return 0
        piece = self._pieces.pop(0)
        count = min(len(piece), len(view))
        view[:count] = piece[:count]
        if count < len(piece):
            self._pieces.insert(0, piece[count:])
        return count

    def __enter__(self) -> Connection:
        return self.connection

    def __exit__(self, *exc: object) -> None:
        os.close(self.read_fd)


def test_lines_may_be_32767_bytes_long_and_no_more():
    with Feed(b"x" * 32767 + b"\n") as connection:
        line = connection.read_line()
    assert line is not None and len(line) == 32767
    with Feed(b"x" * 32768 + b"\n") as connection, pytest.raises(LineTooLong):
        connection.read_line()


def test_an_endless_line_is_given_up_early():
    with Feed(*[b"x" * 10000] * 1000) as connection, pytest.raises(LineTooLong):
        connection.read_line()


def test_a_line_without_its_end_does_not_count():
    with Feed(b"CHECKPRESENT SHA256-s1--x") as connection:
        assert connection.receive() is None


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_splits_do_not_matter(data):
    payload = data.draw(st.binary(max_size=50))
    stream = b"PUT  SHA256-s1--x\r\nDATA %d\n%sVALID\nGETTIMESTAMP\n" % (len(payload), payload)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=12)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True) if a < b]
    with Feed(*pieces) as connection:
        assert isinstance(connection.receive(), m.Put)
        announced = connection.receive()
        assert announced == m.Data(len(payload))
        got = bytearray()
        relay.to_callable(connection.payload(len(payload)), len(payload), got.extend)
        assert got == payload
        assert connection.receive() == m.Valid()
        assert connection.receive() == m.GetTimestamp()
        assert connection.receive() is None


def test_draining_takes_the_payload_and_nothing_else():
    with Feed(b"0123", b"456789VALID\n") as connection:
        payload = connection.payload(10)
        payload.drain()
        assert payload.remaining == 0
        assert connection.receive() == m.Valid()


def test_draining_a_payload_that_ends_early():
    with Feed(b"0123") as connection, pytest.raises(Hangup):
        connection.payload(10).drain()


def test_a_huge_announced_length_costs_no_memory():
    with Feed(b"0123") as connection, pytest.raises(Hangup):
        connection.payload(10**30).drain()


def test_content_goes_out_whole_through_a_pipe_that_is_read_slowly(tmp_path):
    content = os.urandom(300_000)
    path = tmp_path / "content"
    path.write_bytes(content)
    read_fd, write_fd = os.pipe()
    got = bytearray()

    def read() -> None:
        while piece := os.read(read_fd, 1000):
            got.extend(piece)

    reader = threading.Thread(target=read)
    reader.start()
    for frozen in (True, False):
        fd = os.open(path, os.O_RDONLY)
        source = relay.FileSource(fd, 100, frozen=frozen)
        Connection(-1, write_fd).send_content(len(content) - 100, source)
        os.close(fd)
    os.close(write_fd)
    reader.join()
    os.close(read_fd)
    assert bytes(got) == (b"DATA 299900\n" + content[100:]) * 2


def test_a_pipe_holds_more_once_large_content_comes():
    import fcntl

    read_fd, write_fd = os.pipe()
    connection = Connection(read_fd, write_fd)
    connection.payload(1000)
    before = fcntl.fcntl(read_fd, fcntl.F_GETPIPE_SZ)
    connection.payload(10_000_000)
    assert fcntl.fcntl(read_fd, fcntl.F_GETPIPE_SZ) > before
    os.close(read_fd)
    os.close(write_fd)
    connection.payload(10_000_000)  # and what is no pipe any more is left alone
