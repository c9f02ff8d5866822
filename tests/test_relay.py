"""Moving content: between files, pipes and buffers, with ends that stop too early."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator

import pytest

from annexshell import relay
from annexshell.errors import Hangup
from annexshell.process import Pipe

DATA = bytes(i % 251 for i in range(3 * relay.BUFFER_SIZE + 77))


class PieceSource(relay.Source):
    """Gives its data in small pieces of different sizes, as a pipe does."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._turn = 0

    def readinto(self, view: memoryview) -> int:
        self._turn += 1
        count = min(len(view), len(self._data), self._turn * 37 % 4096 + 1)
        view[:count] = self._data[:count]
        self._data = self._data[count:]
        return count


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "content"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def out(tmp_path):
    fd = os.open(tmp_path / "out", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def collected(source: relay.Source, length: int) -> bytes:
    parts: list[bytes] = []
    relay.to_callable(source, length, lambda view: parts.append(bytes(view)))
    return b"".join(parts)


def content(fd: int) -> bytes:
    return os.pread(fd, len(DATA) + 100, 0)


def sources(fd: int, offset: int):
    return [
        relay.FileSource(fd, offset, frozen=True),
        relay.FileSource(fd, offset, frozen=False),
        relay.BytesSource(DATA[offset:]),
        PieceSource(DATA[offset:]),
    ]


@pytest.mark.parametrize("offset", [0, 1, 5000, len(DATA) - 1, len(DATA)])
@pytest.mark.parametrize("kind", range(4))
def test_exactly_the_bytes_asked_for_arrive(kind, offset, file, out):
    rest = len(DATA) - offset
    for length in sorted({0, min(1, rest), rest // 2, rest}):
        assert collected(sources(file, offset)[kind], length) == DATA[offset : offset + length]
        os.ftruncate(out, 0)
        os.lseek(out, 0, os.SEEK_SET)
        relay.to_descriptor(sources(file, offset)[kind], length, out)
        assert content(out) == DATA[offset : offset + length]


@pytest.mark.parametrize("kind", range(4))
def test_a_source_that_ends_early_is_told_after_what_it_had(kind, file, out):
    offset = len(DATA) - 1000
    with pytest.raises(relay.ShortSource):
        relay.to_descriptor(sources(file, offset)[kind], 1001, out)
    assert content(out) == DATA[offset:]
    parts: list[bytes] = []
    with pytest.raises(Hangup):
        relay.to_callable(sources(file, offset)[kind], 1001, lambda view: parts.append(bytes(view)))
    assert b"".join(parts) == DATA[offset:]


def test_a_source_past_its_end_has_nothing(file):
    with pytest.raises(relay.ShortSource):
        relay.to_descriptor(relay.FileSource(file, len(DATA) + 5, frozen=True), 1, 1)


def test_more_bytes_than_asked_for_stay_in_the_source():
    source = relay.BytesSource(b"abcdef")
    assert collected(source, 2) == b"ab"
    assert collected(source, 4) == b"cdef"


def test_the_buffer_is_small_for_little_content_and_reused_for_much():
    seen = set()
    sizes = []

    def consume(view: memoryview) -> None:
        seen.add(id(view.obj))
        sizes.append(len(view.obj))

    relay.to_callable(relay.BytesSource(DATA), len(DATA), consume)
    assert (len(seen), max(sizes)) == (1, relay.BUFFER_SIZE)
    sizes.clear()
    relay.to_callable(relay.BytesSource(b"abc"), 3, consume)
    assert sizes == [3]


def test_only_a_frozen_file_is_handed_to_the_kernel(file):
    assert relay.FileSource(file, 7, frozen=True).file() == (file, 7)
    assert relay.FileSource(file, 7, frozen=False).file() is None
    assert relay.BytesSource(b"").file() is None


def test_reading_a_file_leaves_its_position_alone(file):
    source = relay.FileSource(file, 10, frozen=False)
    assert collected(source, 5) == DATA[10:15]
    assert collected(source, 5) == DATA[15:20]
    assert os.lseek(file, 0, os.SEEK_CUR) == 0


def test_a_frozen_file_goes_by_sendfile(file, out, monkeypatch):
    calls = []
    sendfile = os.sendfile

    def recorded(out: int, fd: int, offset: int, count: int) -> int:
        calls.append((offset, count))
        return sendfile(out, fd, offset, min(count, 100_000))

    monkeypatch.setattr(os, "sendfile", recorded)
    monkeypatch.setattr(os, "preadv", None)
    relay.to_descriptor(relay.FileSource(file, 3, frozen=True), 250_000, out)
    assert content(out) == DATA[3:250_003]
    assert calls == [(3, 250_000), (100_003, 150_000), (200_003, 50_000)]


@pytest.mark.parametrize("kind", range(4))
def test_content_goes_through_a_pipe(kind, file):
    with Pipe() as pipe:
        parts: list[bytes] = []

        def read() -> None:
            while part := os.read(pipe.read_fd, 65536):
                parts.append(part)

        reader = threading.Thread(target=read)
        reader.start()
        relay.to_descriptor(sources(file, 5)[kind], len(DATA) - 5, pipe.write_fd)
        pipe.close_write()
        reader.join()
    assert b"".join(parts) == DATA[5:]


@pytest.mark.parametrize("kind", range(4))
def test_what_comes_next_is_what_was_not_sent_yet(kind, file, out):
    source = sources(file, 5)[kind]
    relay.to_descriptor(source, 1000, out)
    relay.to_descriptor(source, 500, out)
    assert collected(source, 10) == DATA[1505:1515]
    assert content(out) == DATA[5:1505]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_descriptor_that_appends_is_written_to(frozen, file, tmp_path):
    path = tmp_path / "appended"
    path.write_bytes(b"before")
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    relay.to_descriptor(relay.FileSource(file, 0, frozen=frozen), len(DATA), fd)
    os.close(fd)
    assert path.read_bytes() == b"before" + DATA


@pytest.mark.parametrize("kind", range(4))
def test_a_reader_that_goes_away_is_an_error(kind, file):
    with Pipe() as pipe:
        pipe.close_read()
        with pytest.raises(BrokenPipeError):
            relay.to_descriptor(sources(file, 0)[kind], len(DATA), pipe.write_fd)


def test_a_reader_that_goes_away_in_the_middle_is_an_error(file):
    with Pipe() as pipe:

        def leave() -> None:
            os.read(pipe.read_fd, 100)
            pipe.close_read()

        reader = threading.Thread(target=leave)
        reader.start()
        with pytest.raises(BrokenPipeError):
            relay.to_descriptor(relay.FileSource(file, 0, frozen=True), len(DATA), pipe.write_fd)
        reader.join()


def test_a_full_disk_is_an_error(file):
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        for frozen in (True, False):
            with pytest.raises(OSError, match="No space left"):
                relay.to_descriptor(relay.FileSource(file, 0, frozen=frozen), 10, full)
    finally:
        os.close(full)


def test_a_closed_descriptor_is_an_error(file, tmp_path):
    fd = os.open(tmp_path / "gone", os.O_WRONLY | os.O_CREAT)
    os.close(fd)
    for source in sources(file, 0):
        with pytest.raises(OSError):
            relay.to_descriptor(source, 10, fd)
    with pytest.raises(OSError):
        relay.to_callable(relay.FileSource(fd, 0, frozen=True), 1, print)


@pytest.mark.parametrize("frozen", [True, False])
def test_a_file_that_shrinks_while_it_is_sent(frozen, tmp_path):
    path = tmp_path / "shrinking"
    path.write_bytes(DATA)
    fd = os.open(path, os.O_RDONLY)
    sent = 0
    with Pipe() as pipe:

        def read_and_shrink() -> None:
            nonlocal sent
            os.truncate(path, 300_000)
            while part := os.read(pipe.read_fd, 4096):
                sent += len(part)

        reader = threading.Thread(target=read_and_shrink)
        reader.start()
        with pytest.raises(relay.ShortSource):
            relay.to_descriptor(relay.FileSource(fd, 0, frozen=frozen), len(DATA), pipe.write_fd)
        pipe.close_write()
        reader.join()
    os.close(fd)
    assert 0 < sent < len(DATA)


def test_what_the_consumer_raises_comes_through():
    def refuse(view: memoryview) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        relay.to_callable(relay.BytesSource(b"abc"), 3, refuse)


def test_writing_goes_on_after_a_short_write():
    left, right = socket.socketpair()
    with left, right:
        left.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        received = bytearray()

        def read() -> None:
            while len(received) < len(DATA):
                received.extend(right.recv(1000))

        reader = threading.Thread(target=read)
        reader.start()
        relay.write_all(left.fileno(), DATA)
        relay.write_all(left.fileno(), memoryview(b""))
        reader.join()
    assert received == DATA


# Content that the kernel moves from one pipe or socket to another.


class PipeSource(relay.Source):
    """A descriptor that is read from, of which some was read ahead; as a conversation is a source of its content."""

    def __init__(self, fd: int, ahead: bytes = b"", *, can_splice: bool = True) -> None:
        self._fd = fd
        self._ahead = ahead
        self._can_splice = can_splice
        self.spliced = 0

    def readinto(self, view: memoryview) -> int:
        if not self._ahead:
            return os.readv(self._fd, [view])
        count = min(len(view), len(self._ahead))
        view[:count] = self._ahead[:count]
        self._ahead = self._ahead[count:]
        return count

    def splice(self, out: int, count: int) -> int | None:
        moved = None if self._ahead or not self._can_splice else relay.splice(self._fd, out, count)
        self.spliced += moved or 0
        return moved


@contextlib.contextmanager
def two_ends(kind: str):
    """A descriptor to read from, and one to write to that feeds it."""
    if kind == "pipe":
        with Pipe() as pipe:
            yield pipe.read_fd, pipe.write_fd, pipe.close_write
    else:
        left, right = socket.socketpair()
        with left, right:
            yield left.fileno(), right.fileno(), right.close


@contextlib.contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[None]:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield
    thread.join()
    assert failures == []


@pytest.mark.parametrize("nonblocking", [False, True])
@pytest.mark.parametrize("ahead", [0, 1, 5000])
@pytest.mark.parametrize("target", ["pipe", "socket"])
@pytest.mark.parametrize("origin", ["pipe", "socket"])
def test_content_goes_from_one_to_another(origin, target, ahead, nonblocking):
    """And no byte of what follows it goes with it."""
    with two_ends(origin) as (source_fd, feed, _), two_ends(target) as (sink, out, end):
        source = PipeSource(source_fd, DATA[:ahead])
        received = bytearray()

        def read() -> None:
            while piece := os.read(sink, 4096):
                received.extend(piece)

        def wait() -> None:
            select.select([source_fd], [], [])
            select.select([], [out], [])

        if nonblocking:
            os.set_blocking(out, False)
        with in_thread(lambda: relay.write_all(feed, DATA[ahead:] + b"what follows")), in_thread(read):
            relay.to_descriptor(source, len(DATA), out, wait)
            end()
        assert bytes(received) == DATA
        assert os.read(source_fd, 100) == b"what follows"
        # Between two sockets there is no such call.
        assert source.spliced == (0 if origin == target == "socket" else len(DATA) - ahead)


@pytest.mark.parametrize("can_splice", [True, False])
def test_an_end_that_comes_too_early_after_it_began(can_splice):
    with Pipe() as fed, Pipe() as pipe:
        os.write(fed.write_fd, b"abc")
        fed.close_write()
        with pytest.raises(relay.ShortSource, match="2 bytes are missing"):
            relay.to_descriptor(PipeSource(fed.read_fd, b"", can_splice=can_splice), 5, pipe.write_fd)
        assert os.read(pipe.read_fd, 10) == b"abc"


@pytest.mark.parametrize("can_splice", [True, False])
def test_who_is_spliced_to_may_go_away(can_splice):
    with Pipe() as fed, Pipe() as pipe:
        os.write(fed.write_fd, b"abc")
        pipe.close_read()
        with pytest.raises(BrokenPipeError):
            relay.to_descriptor(PipeSource(fed.read_fd, b"", can_splice=can_splice), 3, pipe.write_fd)


def test_a_full_pipe_is_waited_for_and_not_written_to_meanwhile():
    waited = 0
    with Pipe() as fed, Pipe() as pipe:
        os.set_blocking(pipe.write_fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe.write_fd, bytes(4096))
        os.write(fed.write_fd, b"abc")

        def wait() -> None:
            nonlocal waited
            waited += 1
            os.read(pipe.read_fd, 1 << 20)

        relay.to_descriptor(PipeSource(fed.read_fd), 3, pipe.write_fd, wait)
        assert (waited, os.read(pipe.read_fd, 10)) == (1, b"abc")


def test_not_everything_can_be_spliced(file, tmp_path):
    fd = os.open(tmp_path / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    with Pipe() as pipe:
        os.write(pipe.write_fd, b"abc")
        assert relay.splice(pipe.read_fd, fd, 3) is None
        assert relay.splice(file, fd, 3) is None
        relay.to_descriptor(PipeSource(pipe.read_fd), 3, fd)
    os.close(fd)
    assert (tmp_path / "appended").read_bytes() == b"abc"


@pytest.mark.parametrize(("number", "given"), [(errno.ENOSYS, True), (errno.EINVAL, True), (errno.EIO, False)])
def test_a_kernel_that_does_not_splice(number, given, monkeypatch):
    def refuse(*arguments: object) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "splice", refuse, raising=False)
    if given:
        assert relay.splice(0, 1, 10) is None
    else:
        with pytest.raises(OSError):
            relay.splice(0, 1, 10)


def test_a_system_without_splice(monkeypatch):
    monkeypatch.setattr(relay, "_HAS_SPLICE", False)
    with Pipe() as fed, Pipe() as pipe:
        os.write(fed.write_fd, b"abc")
        source = PipeSource(fed.read_fd)
        relay.to_descriptor(source, 3, pipe.write_fd)
        assert (os.read(pipe.read_fd, 10), source.spliced) == (b"abc", 0)


def test_pipes_are_widened_and_nothing_else():
    with Pipe() as pipe:
        relay.widen_pipe(pipe.write_fd)
        assert fcntl.fcntl(pipe.read_fd, fcntl.F_GETPIPE_SZ) == 1 << 18
    left, right = socket.socketpair()
    with left, right:
        relay.widen_pipe(left.fileno())
