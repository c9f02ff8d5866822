"""Whatever clients and nodes do, or do not do any more, the others are served, and nothing is left behind."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NoReturn

import pytest
import uvloop

from annexshell.annex.repository import LocalRepository
from annexshell.http import connections, door, download
from annexshell.http.server import Limits
from annexshell.key import Key
from annexshell.repository import ContentLock
from annexshell.uuid import UUID
from tests.http.doors import ABSENT, CLIENT, HELLO, SERVED, Door, Place, key_of, quoted, target, wait_until
from tests.proxying import NODE, OTHER, Link, Nodes, Proxy, RealNode, nodes

__all__ = ["nodes"]

SMALL = os.urandom(60_000)  # sent in one piece
MEDIUM = os.urandom(600_000)  # more than is read of it ahead, and less than what is on its way is kept of
LARGE = os.urandom(3_000_000)
HUGE = Key(b"WORM-s33554432--more-than-fits-into-the-buffers-of-a-connection")
SOON = 3.0  # seconds in which a client gets an answer, on a busy machine
TRANSFERS = 16


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def post(action: str, *headers: str, uuid: bytes = SERVED, **query: object) -> bytes:
    return head("POST", target(action, 4, uuid, **query), *(headers or ("Content-Length: 0",)))


def get(key: Key, uuid: bytes = SERVED, method: str = "GET") -> bytes:
    return head(method, f"/git-annex/{uuid}/v4/key/{quoted(key)}?clientuuid={CLIENT}")


def put(key: Key, content: bytes, announced: int | None = None, *, uuid: bytes = SERVED) -> bytes:
    length = len(content) if announced is None else announced
    headers = (f"Content-Length: {length}", f"X-git-annex-data-length: {length}")
    return post("put", *headers, uuid=uuid, key=key) + content


def chunked(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


def put_chunked(key: Key, *pieces: bytes) -> bytes:
    length = f"X-git-annex-data-length: {sum(map(len, pieces))}"
    return post("put", "Transfer-Encoding: chunked", length, key=key) + chunked(*pieces, b"")


def keeplocked(lockid: str, *values: bytes) -> bytes:
    return post("keeplocked", "Transfer-Encoding: chunked", lockid=lockid) + chunked(*values)


REQUESTS = {
    "checkpresent": post("checkpresent", key=HELLO),
    "get": get(HELLO),
    "get small": get(key_of(SMALL)),
    "get huge": get(HUGE),
    "head": get(HUGE, method="HEAD"),
    "put": put(key_of(b"abc"), b"abc"),
    "put large": put(key_of(LARGE), LARGE),
    "put in chunks": put_chunked(key_of(b"abcdef"), b"abc", b"def"),
    "put what is there": put(key_of(SMALL), SMALL),
    "putoffset": post("putoffset", key=key_of(b"xyz")),
    "remove": post("remove", key=ABSENT),
    "remove-before": post("remove-before", key=ABSENT, timestamp=1),
    "gettimestamp": post("gettimestamp"),
    "keeplocked": keeplocked(
        "0b1f0c20-58a2-4430-bb53-655bdf39e0af", b'{"unlock":false}\n', b'{"unlock":true}\n', b""
    ),
    "pipelined": post("checkpresent", key=HELLO) + get(HELLO) + get(key_of(SMALL)) + post("remove", key=ABSENT),
}


@contextmanager
def connected(port: int, *, window: int | None = None) -> Iterator[socket.socket]:
    """A client's socket, which holds as little as possible with a small WINDOW."""
    with socket.socket() as client:
        if window is not None:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, window)
        client.settimeout(SOON)
        client.connect(("127.0.0.1", port))
        yield client


def reset(client: socket.socket) -> None:
    """Close it so that the other side gets RST."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def say_no_more(client: socket.socket) -> None:
    try:
        client.shutdown(socket.SHUT_WR)
    except OSError:
        pass  # it was told the same
    client.close()


def send_some(client: socket.socket, data: bytes) -> None:
    """What is taken of it, where the other side may have had enough."""
    client.settimeout(0.2)
    try:
        client.sendall(data)
    except (TimeoutError, ConnectionError):
        pass


def rest_of(client: socket.socket, timeout: float = SOON) -> bytes:
    """Everything up to the end, however it comes."""
    client.settimeout(timeout)
    received = b""
    try:
        while piece := client.recv(1 << 16):
            received += piece
    except ConnectionError:
        pass
    return received


def answers(data: bytes) -> list[int]:
    """The status of each answer among DATA, of those that are not content."""
    return [int(status) for status in re.findall(rb"^HTTP/1.[01] (\d+)", data, re.MULTILINE)]


class Watched:
    """A server, and what is open and running when nobody uses it."""

    def __init__(self, running: Door, uuid: UUID = SERVED) -> None:
        self.door = running
        self.uuid = uuid  # of a repository here
        self.port = running.port
        self.check_serves()
        self._descriptors = self._threads = 1000
        self.remember()

    def remember(self) -> None:
        """What there is now is what is to be left."""
        wait_until(lambda: not self.busy())
        time.sleep(0.05)  # what was asked last may still be closed
        self._descriptors, self._threads = self._now()

    @staticmethod
    def busy() -> list[str]:
        """The threads that work for one request, or close what one used."""
        names = ("transfer", "remote", "aside", "close connection")
        return [thread.name for thread in threading.enumerate() if thread.name in names]

    @staticmethod
    def _now() -> tuple[int, int]:
        # Threads that wait for work come and go by rules of their own.
        threads = [thread for thread in threading.enumerate() if "_" not in thread.name]
        # Pipes to git are kept while a repository is in use.
        kept = {_open_files(pid).get(fd, "") for pid in _children() for fd in "01"}
        return len([what for what in _open_files().values() if what not in kept]), len(threads)

    def _is_settled(self, clients: int) -> bool:
        descriptors, threads = self._now()
        return not self.busy() and descriptors <= self._descriptors + clients and threads <= self._threads

    def check_settled(self, timeout: float = 10.0, *, clients: int = 0) -> None:
        """Nothing is left, but for sockets of CLIENTS of the test's that it has not closed yet."""
        end = time.monotonic() + timeout
        while not self._is_settled(clients):
            if time.monotonic() > end:
                before = self._descriptors + clients, self._threads
                raise AssertionError(f"{self._now()} > {before}: {self.busy()} {_open_files()}")
            time.sleep(0.01)
        self.check_serves()

    def check_serves(self) -> None:
        """Others are served."""
        began = time.monotonic()
        assert self.door.get(HELLO, uuid=self.uuid).body == b"hello\n"
        assert self.door.post("checkpresent", uuid=self.uuid, key=ABSENT).json == {"present": False}
        assert time.monotonic() - began < SOON

    def check_serves_everything(self, name: str = "") -> None:
        content = name.encode() + LARGE
        began = time.monotonic()
        assert self.door.put(key_of(content), content, uuid=self.uuid).json == {"plusuuids": [], "stored": True}
        assert self.door.get(key_of(content), uuid=self.uuid).body == content
        lockid = self.door.post("lockcontent", uuid=self.uuid, key=key_of(content)).json["lockid"]
        unlock = {"Content-Type": "application/json"}
        path = target("keeplocked", uuid=self.uuid, lockid=lockid)
        assert self.door.ask("POST", path, unlock, [b'{"unlock":true}\n']).json == {"locked": False}
        assert self.door.post("remove", uuid=self.uuid, key=key_of(content)).json == {
            "plusuuids": [],
            "removed": True,
        }
        self.check_serves()
        assert time.monotonic() - began < 3 * SOON


def _children() -> list[str]:
    found = []
    for path in Path("/proc/self/task").glob("*/children"):
        try:
            found += path.read_text().split()
        except OSError:
            pass  # the thread has ended
    return found


def _open_files(pid: str = "self") -> dict[str, str]:
    """What each descriptor of a process is."""
    found = {}
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            try:
                found[fd] = os.readlink(f"/proc/{pid}/fd/{fd}")
            except OSError:
                pass  # it is closed already, as is the one to list them
    except OSError:
        pass  # the process has ended
    return found


@pytest.fixture(autouse=True)
def no_failures(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    """What clients and nodes do is not told as if something was wrong with us."""
    yield
    said = capfd.readouterr().err
    for sign in ("internal error", "Traceback", "never retrieved", "never awaited"):
        assert sign not in said, said


@pytest.fixture
def limits() -> Limits:
    return Limits(jobs=2, transfers=TRANSFERS, grace=1.0)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "served", bare=True)
    place.store(HELLO, b"hello\n")
    place.store(key_of(SMALL), SMALL)
    place.store(HUGE, bytes(1 << 25))
    return place


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def watched(request: pytest.FixtureRequest, open_door: Callable[..., Door], limits: Limits) -> Watched:
    return Watched(open_door(limits=limits, loop=request.param))


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients have half a second for everything."""
    monkeypatch.setattr(connections, "PERIOD", 0.1)
    for module, name in (
        (connections, "HEADER_TIMEOUT"),
        (connections, "TAKE_TIMEOUT"),
        (door, "BODY_TIMEOUT"),
        (download, "STALL_TIMEOUT"),
    ):
        monkeypatch.setattr(module, name, 0.5)


# Clients that go --------------------------------------------


def prefixes(request: bytes) -> list[int]:
    """Where to cut: everywhere in the beginning of a header, at its end, and here and there in a body."""
    end = request.index(b"\r\n\r\n") + 4
    places = {*range(4), *range(4, end, 23), *range(end - 4, end + 4), len(request) - 1, len(request)}
    places |= {end + (len(request) - end) * part // 5 for part in range(5)}
    return sorted(place for place in places if place <= len(request))


@pytest.mark.parametrize("go", [say_no_more, reset, socket.socket.close])
@pytest.mark.parametrize("name", REQUESTS)
def test_clients_that_go_while_they_ask(watched: Watched, name: str, go: Callable[[socket.socket], None]) -> None:
    request = REQUESTS[name]
    for end in prefixes(request):
        with connected(watched.port) as client:
            send_some(client, request[:end])
            go(client)
    watched.check_settled()
    watched.check_serves_everything(name)


@pytest.mark.parametrize("go", [say_no_more, reset])
@pytest.mark.parametrize("name", ["get small", "get huge", "pipelined", "put large", "checkpresent"])
def test_clients_that_go_while_they_are_answered(
    watched: Watched, name: str, go: Callable[[socket.socket], None]
) -> None:
    for count in (1, 20, 300, 70_000, 1_000_000):
        with connected(watched.port, window=4096) as client:
            send_some(client, REQUESTS[name])
            client.settimeout(0.2)
            try:
                while count > 0 and (piece := client.recv(min(count, 1 << 16))):
                    count -= len(piece)
            except TimeoutError:
                pass  # that was all
            go(client)
    watched.check_settled()


@pytest.mark.parametrize("name", REQUESTS)
def test_clients_that_fall_silent(watched: Watched, impatient: None, name: str) -> None:
    """They stay, and neither say nor take anything any more."""
    with ExitStack() as clients:
        for end in prefixes(REQUESTS[name])[:-1]:
            client = clients.enter_context(connected(watched.port, window=4096))
            send_some(client, REQUESTS[name][:end])
        watched.check_serves_everything(name)
        wait_until(lambda: not watched.busy())
    watched.check_settled()


def test_a_client_that_goes_while_a_lock_is_taken_for_it_has_none(
    watched: Watched, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    lockcontent, begun = LocalRepository.lockcontent, threading.Semaphore(0)

    def slowly(self: LocalRepository, key: Key) -> ContentLock:
        begun.release()
        time.sleep(0.1)
        return lockcontent(self, key)

    monkeypatch.setattr(LocalRepository, "lockcontent", slowly)
    for go in (reset, say_no_more) * 5:
        with connected(watched.port) as client:
            client.sendall(post("lockcontent", key=HELLO))
            assert begun.acquire(timeout=SOON)
            go(client)
    watched.check_settled()
    assert watched.door.post("remove", key=HELLO).json == {"plusuuids": [], "removed": True}
    place.store(HELLO, b"hello\n")


def test_an_answer_that_goes_out_in_pieces_ends_when_its_client_goes(watched: Watched) -> None:
    with connected(watched.port, window=4096) as client:
        client.sendall(get(HUGE))
        assert client.recv(100)
        wait_until(lambda: watched.busy() == ["transfer"])
    watched.check_settled(2.0)


def test_content_that_cannot_be_sent_is_not_promised(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is one answer, even if no descriptor or thread is left to send the content with."""
    with monkeypatch.context() as patched:
        patched.setattr(download.os, "dup", failing(OSError(errno.EMFILE, "Too many open files")))
        with connected(watched.port) as client:
            client.sendall(get(HUGE))
            assert answers(client.recv(1 << 16)) == [500]
    watched.check_settled()


def failing(reason: BaseException) -> Callable[..., NoReturn]:
    def fail(*_: object) -> NoReturn:
        raise reason

    return fail


# Clients that stay --------------------------------------------


@pytest.mark.parametrize("shape", ["plain", "tls"])
def test_slow_clients_are_in_nobodys_way(open_door: Callable[..., Door], place: Place, shape: str) -> None:
    """More of them than four times the jobs, in both directions, some of which go on at a byte a time."""
    running = open_door(shape, limits=Limits(jobs=2, transfers=64, grace=1.0))
    watched = Watched(running)
    over = threading.Event()
    with ExitStack() as clients:
        slow = []
        for number in range(9):
            reader, writer = (clients.enter_context(running.socket()) for _ in range(2))
            reader.sendall(get(HUGE))
            content = b"%d" % number + LARGE
            writer.sendall(put(key_of(content), content[:1000], len(content)))
            slow += [(reader, writer, content)]

        def creep() -> None:
            for at in range(1000, 2000):
                for reader, writer, content in slow[::2]:
                    reader.recv(1)
                    writer.sendall(content[at : at + 1])
                if over.wait(0.02):
                    return

        creeping = threading.Thread(target=creep)
        creeping.start()
        try:
            wait_until(lambda: len(watched.busy()) >= 18)
            for number in range(3):
                watched.check_serves_everything(f"others {number}")
        finally:
            over.set()
            creeping.join()
    watched.check_settled()


def test_who_does_not_read_does_not_make_us_read(watched: Watched, impatient: None) -> None:
    """Answers to requests that come one after the other are not piled up."""
    with connected(watched.port, window=4096) as client:
        client.settimeout(0.5)
        sent = 0
        request = get(key_of(SMALL)) * 100
        with pytest.raises((TimeoutError, ConnectionError)):
            while sent < 1 << 27:
                sent += client.send(request)
        watched.check_serves()
        # In the end it is cut off.
        wait_until(lambda: select.select([], [client], [], 0)[1] and _is_cut(client))
    watched.check_settled()


def _is_cut(client: socket.socket) -> bool:
    try:
        client.send(b"x")
    except TimeoutError:
        return False
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("data", [b"", b"G", b"GET / HTTP/1.1\r\nHos", b"\r\n\r\n", REQUESTS["checkpresent"][:-2]])
def test_who_does_not_ask_anything_is_cut_off(watched: Watched, impatient: None, data: bytes) -> None:
    with connected(watched.port) as client:
        client.sendall(data)
        assert rest_of(client) == b""
    # So is who asked something before, and who sends a byte now and then.
    with connected(watched.port) as client:
        client.sendall(REQUESTS["checkpresent"])
        assert client.recv(1000)
        began = time.monotonic()
        with pytest.raises(ConnectionError):
            while time.monotonic() < began + SOON:
                client.sendall(b"P")
                time.sleep(0.05)
    watched.check_settled()


def test_an_idle_connection_stays(watched: Watched, impatient: None) -> None:
    with connected(watched.port) as client:
        for _ in range(2):
            client.sendall(REQUESTS["checkpresent"])
            assert b"present" in client.recv(1000)
            time.sleep(1.2)
        client.sendall(REQUESTS["checkpresent"])
        assert b"present" in client.recv(1000)


def test_who_sends_no_more_of_a_body_is_cut_off(watched: Watched, impatient: None, place: Place) -> None:
    key = key_of(LARGE)
    with connected(watched.port) as client:
        client.sendall(put(key, LARGE[:100_000], len(LARGE)))
        assert rest_of(client) == b""
    watched.check_settled()
    assert place.partial(key) == LARGE[:100_000]


def test_who_takes_no_more_of_content_is_cut_off(watched: Watched, impatient: None) -> None:
    with connected(watched.port, window=4096) as client:
        client.sendall(get(HUGE))
        wait_until(lambda: watched.busy() == ["transfer"])
        wait_until(lambda: not watched.busy())
        assert len(rest_of(client)) < 1 << 25
    watched.check_settled()


def test_a_lock_may_be_kept_in_silence(watched: Watched, impatient: None) -> None:
    lockid = watched.door.post("lockcontent", key=HELLO).json["lockid"]
    with connected(watched.port) as client:
        client.sendall(keeplocked(lockid, b'{"unlock":false}\n'))
        time.sleep(1.5)
        client.sendall(chunked(b'{"unlock":true}\n', b""))
        assert b'{"locked":false}' in client.recv(1000)
    watched.check_settled()


def test_nobody_keeps_a_connection_for_a_lock_that_is_none(watched: Watched, impatient: None) -> None:
    with connected(watched.port) as client:
        client.sendall(keeplocked("nonsense", b'{"unlock":false}\n'))
        assert rest_of(client) == b""
    watched.check_settled()


def test_what_is_said_of_a_lock_is_read_once(watched: Watched) -> None:
    """Or a client could have us read the same again and again, while nobody else is served."""
    lockid = watched.door.post("lockcontent", key=HELLO).json["lockid"]
    for nonsense in (b"1 " * 500_000, b"[" * 1_000_000, b"\n" * 500_000, b'"unlock' * 100_000, b"9" * 1_000_000):
        with connected(watched.port) as client:
            client.sendall(keeplocked(lockid, nonsense))
            watched.check_serves()
            client.sendall(chunked(b'\n{"unlock":true}', b""))
            assert b'{"locked":false}' in client.recv(1000)
    watched.check_settled()


def test_half_of_what_can_be_opened_is_not_for_connections(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections.resource, "getrlimit", lambda _: (40, 40))
    running = open_door()
    with ExitStack() as clients:
        used = clients.enter_context(connected(running.port, window=4096))
        used.sendall(get(HUGE))
        received = len(used.recv(1000))  # from now on it is not one that nobody needs
        idle = [clients.enter_context(connected(running.port)) for _ in range(60)]
        assert running.get(HELLO).body == b"hello\n"
        assert rest_of(idle[0]) == b""  # the first to go is who has said nothing for the longest time
        idle[-1].sendall(REQUESTS["checkpresent"])
        assert idle[-1].recv(1000)
        while received < 1 << 25:
            received += len(used.recv(1 << 20))


# Clients that make no sense --------------------------------------------


def with_header(line: str) -> bytes:
    return post("checkpresent", line, "Content-Length: 0", key=HELLO)


ODD_REQUESTS = {
    "a long path": (head("GET", "/" + "x" * 100_000), {400, 404, 414}),
    "a long value": (post("checkpresent", key="SHA256-s1--" + "x" * 60_000), {200, 400, 414}),
    "a longer value": (post("checkpresent", key="SHA256-s1--" + "x" * 100_000), {400, 414}),
    "a long header": (with_header("X: " + "x" * 100_000), {400, 431}),
    "many headers": (with_header("\r\n".join(f"X{n}: x" for n in range(10_000))), {400, 431}),
    "many parameters": (head("POST", target("checkpresent", key=HELLO) + "&bypass=x" * 7000), {200, 400, 411}),
    "a percent": (head("POST", "/git-annex/%/v4/checkpresent?key=%zz&clientuuid=%"), {400, 404}),
    "binary": (b"\0\xff\x80\r\n\r\n", {400}),
    "no version": (b"GET /\r\n\r\n", {400}),
    "another version": (b"GET / HTTP/3.7\r\n\r\n", {400, 404, 505}),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", {400, 404, 405, 505}),
    "TLS": (bytes.fromhex("16030100c8010000c40303") + bytes(194), {400, 426}),
    "lines": (b"x\r\n" * 1000, {400}),
    "a space before the colon": (with_header("Content-Length : 3"), {400}),
    "a folded header": (with_header("X: a\r\n b"), {200, 400}),
    "websocket": (with_header("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13"), {200}),
    "h2c": (with_header("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAAA"), {200}),
    "CONNECT": (b"CONNECT localhost:22 HTTP/1.1\r\nHost: x\r\n\r\nSSH-2.0-x\r\n", {400, 404, 405}),
    "OPTIONS": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", {400, 404, 405}),
}


@pytest.mark.parametrize("name", ODD_REQUESTS)
def test_an_odd_request_is_answered(watched: Watched, name: str) -> None:
    data, statuses = ODD_REQUESTS[name]
    with connected(watched.port) as client:
        send_some(client, data)
        client.settimeout(SOON)
        assert set(answers(client.recv(1 << 16))) <= statuses
    watched.check_settled()


def put_with(*headers: str, body: bytes = b"") -> bytes:
    return post("put", "X-git-annex-data-length: 3", *headers, key=key_of(b"abc")) + body


ODD_BODIES = {
    "too many digits": put_with("Content-Length: " + "9" * 100),
    "a length below 0": put_with("Content-Length: -1"),
    "a length that is none": put_with("Content-Length: 0x10"),
    "two lengths": put_with("Content-Length: 3", "Content-Length: 4", body=b"abcd"),
    "a length and chunks": put_with("Content-Length: 3", "Transfer-Encoding: chunked", body=chunked(b"abc", b"")),
    "another encoding": put_with("Transfer-Encoding: gzip", body=b"abc"),
    "chunked twice": put_with("Transfer-Encoding: chunked, chunked", body=chunked(b"abc", b"")),
    "a chunk of no size": put_with("Transfer-Encoding: chunked", body=b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk of a size below 0": put_with("Transfer-Encoding: chunked", body=b"-3\r\nabc\r\n0\r\n\r\n"),
    "a chunk of a huge size": put_with("Transfer-Encoding: chunked", body=b"f" * 100 + b"\r\nabc\r\n0\r\n\r\n"),
    "a chunk that is longer": put_with("Transfer-Encoding: chunked", body=b"3\r\nabcdefg\r\n0\r\n\r\n"),
    "a long extension": put_with("Transfer-Encoding: chunked", body=b"3;" + b"x" * 1_000_000),
    "a long trailer": put_with("Transfer-Encoding: chunked", body=chunked(b"abc") + b"0\r\nX: " + b"x" * 1_000_000),
    "many trailers": put_with("Transfer-Encoding: chunked", body=chunked(b"abc") + b"0\r\n" + b"X: x\r\n" * 100_000),
}


@pytest.mark.parametrize("name", ODD_BODIES)
def test_an_odd_body_is_refused_or_cut_off(watched: Watched, impatient: None, name: str) -> None:
    with connected(watched.port) as client:
        send_some(client, ODD_BODIES[name])
        statuses = answers(rest_of(client, 12))
    assert not [status for status in statuses if status not in (200, 400, 413, 500, 501)]
    watched.check_settled()


def test_a_body_without_end_is_not_read_for_ever(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, content in ((key_of(b"abc"), b"abc"), (HELLO, b"hello\n")):
        piece = chunked(bytes(1 << 20))
        with connected(watched.port) as client:
            client.sendall(put_chunked(key, content)[:-5])
            client.settimeout(1.0)
            with pytest.raises((TimeoutError, ConnectionError)):
                for _ in range(1 << 10):
                    client.sendall(piece)
                    if select.select([client], [], [], 0)[0]:
                        assert answers(client.recv(1000)) == [200]
                        raise ConnectionError
        watched.check_serves()


@pytest.mark.parametrize(
    "hello", [b"", bytes.fromhex("16030100c8010000c40303") + bytes(50), b"GET / HTTP/1.1\r\n\r\n"]
)
def test_tls_that_is_never_agreed_on(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, hello: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.5)
    watched = Watched(open_door("tls"))
    with ExitStack() as clients:
        for _ in range(20):
            client = clients.enter_context(connected(watched.port))
            client.sendall(hello)
        watched.check_serves()
        rest_of(client)
    watched.check_settled()


# Nodes --------------------------------------------


def greet(link: Link) -> None:
    link.greet()


def say(*words: bytes) -> Callable[[Link], None]:
    def tell(link: Link) -> None:
        link.greet()
        for word in words:
            link.line()
            link.say(word)

    return tell


HANGING: dict[str, tuple[bytes, Callable[[Link], object]]] = {
    "before it greets": (post("checkpresent", uuid=NODE, key=HELLO), lambda link: None),
    "in its greeting": (get(HELLO, NODE), lambda link: link.say(b"AUTH-SUCC")),
    "before its version": (put(HELLO, b"hello\n", uuid=NODE), lambda link: link.say(b"AUTH-SUCCESS %s\n" % NODE)),
    "checkpresent": (post("checkpresent", uuid=NODE, key=HELLO), greet),
    "in an answer": (post("checkpresent", uuid=NODE, key=HELLO), say(b"SUCC")),
    "remove": (post("remove", uuid=NODE, key=HELLO), greet),
    "remove-before": (post("remove-before", uuid=NODE, key=HELLO, timestamp=1), greet),
    "gettimestamp": (post("gettimestamp", uuid=NODE), greet),
    "lockcontent": (post("lockcontent", uuid=NODE, key=HELLO), greet),
    "putoffset": (post("putoffset", uuid=NODE, key=HELLO), greet),
    "after an offset": (post("putoffset", uuid=NODE, key=HELLO), say(b"PUT-FROM 0\n")),
    "get": (get(HELLO, NODE), greet),
    "head": (get(HELLO, NODE, "HEAD"), greet),
    "in small content": (get(HELLO, NODE), say(b"DATA 6\nhel")),
    "after small content": (get(HELLO, NODE), say(b"DATA 6\nhello\n")),
    "before large content": (get(HUGE, NODE), say(b"DATA 33554432\n")),
    "in large content": (get(HUGE, NODE), say(b"DATA 33554432\n" + bytes(1_000_000))),
    "after large content": (get(HUGE, NODE), say(b"DATA 200000\n" + bytes(200_000))),
    "put": (put(key_of(MEDIUM), MEDIUM, uuid=NODE), greet),
    "in the body of a put": (put(key_of(MEDIUM), MEDIUM, uuid=NODE), say(b"PUT-FROM 0\n")),
    "after the body of a put": (put(HELLO, b"hello\n", uuid=NODE), say(b"PUT-FROM 0\n", b"", b"")),
}


class Hanging:
    """A node that says no more, and hears until it is hung up on, if it HEARS at all."""

    def __init__(self, script: Callable[[Link], object], hears: bool = True) -> None:
        self._script = script
        self._hears = hears
        self.links = 0
        self.hung_up = 0

    def __call__(self, link: Link) -> None:
        self.links += 1
        self._script(link)
        poll = select.poll()
        if self._hears:
            while link._more():
                link._ahead = b""
        else:
            poll.register(link.write_fd, 0)  # an error when nobody reads
            assert poll.poll(10_000)
        self.hung_up += 1


@pytest.fixture
def proxied(tmp_path: Path, nodes: Nodes, limits: Limits) -> Iterator[Watched]:
    """A server of one repository, and of another that stands in front of a node."""
    other = Place(tmp_path / "other", OTHER, bare=True)
    other.store(HELLO, b"hello\n")
    with Door(below=[Proxy(tmp_path / "proxy").directory, other.directory], limits=limits) as running:
        yield Watched(running, OTHER)


def serve_hello(link: Link) -> None:
    link.greet()
    while (line := link.line()) is not None:
        assert line == b"CHECKPRESENT %s" % HELLO.serialized
        link.say(b"SUCCESS\n")


@pytest.mark.parametrize("go", [say_no_more, reset])
@pytest.mark.parametrize("name", HANGING)
def test_a_client_that_goes_while_its_node_hangs(
    proxied: Watched, nodes: Nodes, name: str, go: Callable[[socket.socket], None]
) -> None:
    request, script = HANGING[name]
    node = Hanging(script)
    nodes.scripts = [node]
    with connected(proxied.port, window=4096) as client:
        send_some(client, request)
        wait_until(lambda: node.links)
        time.sleep(0.05)
        proxied.check_serves()
        go(client)
    wait_until(lambda: node.hung_up == node.links, 5)
    wait_until(lambda: nodes.open == 0, 5)
    proxied.check_settled()
    # What was interrupted is not used again.
    nodes.scripts = [serve_hello]
    assert proxied.door.post("checkpresent", uuid=NODE, key=HELLO).json == {"present": True}


@pytest.mark.parametrize("script", [say(b"PUT-FROM 0\n"), greet, lambda link: None], ids=["put", "ask", "greet"])
def test_a_client_that_goes_while_its_node_takes_nothing(
    proxied: Watched, nodes: Nodes, script: Callable[[Link], object]
) -> None:
    """There is more than fits anywhere, so that nothing is read from the client any more, not even that it goes.

    (But it has to be reset. What comes behind all that has been sent stays with the client's system, which is there
    to be asked whether the connection is still in use.)
    """
    node = Hanging(script, hears=False)
    nodes.scripts = [node]
    with connected(proxied.port) as client:
        send_some(client, put(HUGE, bytes(1 << 25), uuid=NODE))
        wait_until(lambda: node.links)
        proxied.check_serves()
        reset(client)
    wait_until(lambda: nodes.open == 0, 10)
    proxied.check_settled()


@pytest.mark.parametrize("go", [say_no_more, reset])
def test_downloads_from_a_node_that_are_interrupted_stall_nobody(
    proxied: Watched, nodes: Nodes, tmp_path: Path, go: Callable[[socket.socket], None]
) -> None:
    """The connection to the node is closed each time, and the others to it serve on (spec: proxy §15 D12)."""
    node = RealNode(tmp_path / "node")
    node.store(HELLO, b"hello\n")
    node.store(HUGE, bytes(1 << 25))
    nodes.scripts = [node]
    for taken in (0, 1, 1000, 100_000, 3_000_000) * 4:
        with connected(proxied.port, window=4096) as client:
            client.sendall(get(HUGE, NODE))
            while taken > 0:
                taken -= len(client.recv(min(taken, 1 << 16)))
            began = time.monotonic()
            assert proxied.door.get(HELLO, uuid=NODE).body == b"hello\n"
            go(client)
            assert proxied.door.post("checkpresent", uuid=NODE, key=HELLO).json == {"present": True}
            assert time.monotonic() - began < SOON
    wait_until(lambda: nodes.open == 1)  # the one that was never interrupted
    assert nodes.failures == []
    assert proxied.door.get(HUGE, uuid=NODE).body == bytes(1 << 25)


def test_what_was_interrupted_between_two_requests_is_not_used_again(proxied: Watched, nodes: Nodes) -> None:
    """The second on the same connection, for which there is a node's connection already."""
    nodes.scripts = [say(b"SUCCESS\n"), serve_hello]
    assert proxied.door.post("checkpresent", uuid=NODE, key=HELLO).json == {"present": True}
    node = nodes.links[0]
    with connected(proxied.port) as client:
        client.sendall(post("checkpresent", uuid=NODE, key=HELLO))
        time.sleep(0.1)
    assert node is nodes.links[0]
    assert proxied.door.post("checkpresent", uuid=NODE, key=HELLO).json == {"present": True}
    assert len(nodes.links) == 2


def test_a_node_that_hangs_is_only_in_its_own_way(proxied: Watched, nodes: Nodes) -> None:
    node = Hanging(greet)
    nodes.scripts = [node]
    with ExitStack() as clients:
        waiting = []
        for name in ("checkpresent", "get", "put", "remove", "lockcontent", "putoffset", "gettimestamp", "head"):
            for _ in range(3):
                client = clients.enter_context(connected(proxied.port))
                send_some(client, HANGING[name][0])
                waiting.append(client)
        # There are as many as may wait for the same, and others are told to come back.
        wait_until(lambda: node.links >= TRANSFERS // 2)
        for number in range(3):
            proxied.check_serves_everything(str(number))
        refused = [client for client in waiting if select.select([client], [], [], 0)[0]]
        assert refused and {tuple(answers(client.recv(1000))) for client in refused} == {(503,)}
    wait_until(lambda: nodes.open == 0, 10)
    proxied.check_settled()


def test_a_client_that_takes_nothing_of_what_a_node_sends(proxied: Watched, nodes: Nodes, impatient: None) -> None:
    nodes.scripts = [say(b"DATA 33554432\n" + bytes(1 << 25))]
    with connected(proxied.port, window=4096) as client:
        client.sendall(get(HUGE, NODE))
        wait_until(lambda: nodes.open == 1)
        wait_until(lambda: nodes.open == 0, 10)
        proxied.check_settled(clients=1)


def test_the_server_ends_while_everything_hangs(tmp_path: Path, nodes: Nodes, limits: Limits) -> None:
    proxy = Proxy(tmp_path / "proxy")
    nodes.scripts = [Hanging(greet)]
    with ExitStack() as clients:
        with Door(below=[proxy.directory], limits=limits) as running:
            for request, _ in HANGING.values():
                client = clients.enter_context(connected(running.port, window=4096))
                send_some(client, request)
            began = time.monotonic()
        assert time.monotonic() - began < 15
    assert not Watched.busy()
