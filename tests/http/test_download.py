"""Content on its way to HTTP clients."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell.annex.send import LocalContent
from annexshell.http.server import Limits
from annexshell.key import Key
from tests.http.doors import (
    ABSENT,
    CLIENT,
    EMPTY,
    HELLO,
    SERVED,
    Door,
    Place,
    key_of,
    quoted,
    received,
    target,
    wait_until,
)

LARGE = os.urandom(12_000_001)  # much more than sockets hold
SOME = LARGE[:200_000]  # too much to be sent with the headers
VERSIONS = ["", "v0/", "v1/", "v2/", "v3/", "v4/"]


def transfers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "transfer"]


@pytest.fixture
def large(place: Place) -> Key:
    return place.store(key_of(LARGE), LARGE)


@pytest.mark.parametrize("version", VERSIONS)
def test_every_version_sends_the_content_and_its_length(either_door: Door, place: Place, version: str) -> None:
    some = place.store(key_of(SOME), SOME)
    for key, content in ((HELLO, b"hello\n"), (EMPTY, b""), (some, SOME)):
        answer = either_door.get(key, version)
        assert (answer.status, answer.data_length, answer.complete) == (200, len(content), True)
        assert answer.body == content
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["content-length"] == str(len(content))
        head = either_door.get(key, version, method="HEAD")
        assert (head.status, head.data_length, head.body) == (200, len(content), b"")
        assert head.headers["content-length"] == str(len(content))
    for method in ("GET", "HEAD"):
        assert either_door.get(ABSENT, version, method=method).status == 404
    assert place.running() == []


def test_large_content(either_door: Door, large: Key) -> None:
    assert either_door.get(large).body == LARGE
    assert either_door.get(large, query="&offset=11999990").body == LARGE[11_999_990:]
    assert not transfers()


def test_offsets(door: Door, place: Place) -> None:
    key = place.store(key_of(SOME), SOME)
    for offset in (0, 1, 100_000, 199_999, 200_000, 200_001, 10**30):
        answer = door.get(key, query=f"&offset={offset}")
        assert (answer.status, answer.data_length, answer.body) == (200, len(SOME[offset:]), SOME[offset:])


def test_http_1_0_ends_with_the_connection(either_door: Door, place: Place) -> None:
    key = place.store(key_of(SOME), SOME)
    for one, content in ((key, SOME), (HELLO, b"hello\n")):
        answer = either_door.exchange(f"GET /git-annex/{SERVED}/key/{quoted(one)} HTTP/1.0\r\n\r\n".encode())
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.split()[:2] == [b"HTTP/1.0", b"200"]
        assert b"chunked" not in head
        assert body == content


def test_requests_without_waiting_for_answers(either_door: Door, place: Place) -> None:
    key = place.store(key_of(SOME), SOME)
    asked = [key, HELLO, key, key, EMPTY, ABSENT, key]
    requests = [f"GET /git-annex/{SERVED}/key/{quoted(one)} HTTP/1.1\r\nHost: x\r\n" for one in asked]
    requests[-1] += "Connection: close\r\n"
    answers = either_door.exchange("".join(request + "\r\n" for request in requests).encode())
    for one in asked:
        head, _, answers = answers.partition(b"\r\n\r\n")
        content = place.content(one) or b""
        assert head.split()[1] == (b"404" if one == ABSENT else b"200")
        assert answers.startswith(content)
        answers = answers[len(content) :]
    assert answers == b""


def test_a_connection_is_used_again(either_door: Door, place: Place) -> None:
    key = place.store(key_of(SOME), SOME)
    connection = either_door.connect()
    path = f"/git-annex/{SERVED}/v4/key/{quoted(key)}?clientuuid={CLIENT}"
    for _ in range(3):
        assert connection.ask("GET", path).body == SOME
        assert connection.ask("GET", path + "x&offset=-1").status == 400
        assert connection.ask("HEAD", path).data_length == len(SOME)
    connection.close()


def test_who_gets_what_is_told_to_others(door: Door, place: Place, large: Key) -> None:
    """As with any other way to get it; but not for what is over before anybody could look."""
    assert door.get(HELLO).body == b"hello\n"
    assert not (place.git_dir / "annex" / "transfer" / "upload").exists()
    for path in (f"v4/key/{large}?clientuuid={CLIENT}", f"key/{large}"):
        with door.socket() as connection:
            connection.sendall(f"GET /git-annex/{SERVED}/{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert connection.recv(10)
            who = CLIENT if "clientuuid" in path else SERVED
            wait_until(
                lambda who=who: place.running() == [f"upload/{who}/{name}" for name in (large, f"lck.{large}")]
            )
        wait_until(lambda: place.running() == [])


class TimeMachine(asyncio.SelectorEventLoop):
    """A loop on which time can be made to pass, from any thread."""

    ahead = 0.0

    def time(self) -> float:
        return super().time() + self.ahead

    def travel(self, seconds: float) -> None:
        self.ahead += seconds
        self.call_soon_threadsafe(lambda: None)


@pytest.mark.parametrize("shape", ["plain", "tls"])
def test_an_idle_connection_stays_for_minutes(open_door: Callable[..., Door], shape: str) -> None:
    """Clients use one again after half a minute, and an upload over one that has been closed cannot be repeated."""
    loops: list[TimeMachine] = []

    def make() -> TimeMachine:
        loops.append(TimeMachine())
        return loops[-1]

    door = open_door(shape, loop=make)
    connection = door.connect()
    for idle in (1, 60, 250):
        headers = {"X-git-annex-data-length": "3"}
        answer = connection.ask("POST", target("put", key=key_of(b"abc")), headers, [b"abc"])
        assert answer.json == {"plusuuids": [], "stored": True}
        loops[0].travel(idle)
        time.sleep(0.05)
    assert connection.ask("POST", target("remove", key=key_of(b"abc"))).json["removed"] is True
    connection.sock.settimeout(0.1)

    def is_closed() -> bool:
        loops[0].travel(1000)  # again and again, as it may not have been idle yet
        try:
            return connection.sock.recv(1) == b""
        except TimeoutError:
            return False

    wait_until(is_closed)
    connection.close()


class TestParts:
    @pytest.mark.parametrize("content", [SOME, SOME[:1000]], ids=["large", "small"])
    def test_a_part(self, either_door: Door, place: Place, content: bytes) -> None:
        key = place.store(key_of(content), content)
        total = len(content)
        for text, start, end in (
            ("100-", 100, total),
            ("-900", total - 900, total),
            ("5-9", 5, 10),
            ("0-", 0, total),
        ):
            answer = either_door.get(key, "", headers={"Range": f"bytes={text}"})
            assert answer.status == 206
            assert answer.body == content[start:end]
            assert answer.data_length == end - start
            assert answer.headers["content-range"] == f"bytes {start}-{end - 1}/{total}"

    def test_what_is_not_there(self, door: Door) -> None:
        answer = door.get(HELLO, headers={"Range": "bytes=6-"})
        assert (answer.status, answer.headers["content-range"], answer.body) == (416, "bytes */6", b"")

    @pytest.mark.parametrize("header", ["bytes=0-1,3-4", "lines=1-2", "bytes=x"])
    def test_everything_for_what_is_not_one_part(self, door: Door, header: str) -> None:
        answer = door.get(HELLO, headers={"Range": header})
        assert (answer.status, answer.body) == (200, b"hello\n")
        assert answer.headers["accept-ranges"] == "bytes"

    def test_a_part_of_what_one_has_already(self, door: Door) -> None:
        etag = door.get(HELLO).headers["etag"]
        assert door.get(HELLO, headers={"Range": "bytes=2-", "If-Range": etag}).status == 206
        assert door.get(HELLO, headers={"Range": "bytes=2-", "If-Range": '"other"'}).status == 200

    def test_head_is_about_all_of_it(self, door: Door) -> None:
        answer = door.get(HELLO, method="HEAD", headers={"Range": "bytes=2-"})
        assert (answer.status, answer.data_length) == (200, 6)

    def test_not_together_with_an_offset(self, door: Door) -> None:
        answer = door.get(HELLO, query="&offset=2", headers={"Range": "bytes=1-2"})
        assert (answer.status, answer.body) == (200, b"llo\n")
        assert "etag" not in answer.headers

    def test_what_one_has_is_not_sent_again(self, door: Door, place: Place) -> None:
        key = place.store(key_of(SOME), SOME)
        etag = door.get(key).headers["etag"]
        for method in ("GET", "HEAD"):
            answer = door.get(key, method=method, headers={"If-None-Match": f'"x", W/{etag}'})
            assert (answer.status, answer.headers["etag"], answer.body) == (304, etag, b"")
            assert "content-length" not in answer.headers
        assert door.get(ABSENT, headers={"If-None-Match": "*"}).status == 404
        assert place.running() == []

    def test_odd_keys_have_names_too(self, door: Door, place: Place) -> None:
        key = place.store(Key('WORM--a"b, c\x7fé/%&+='.encode()), b"odd")
        etag = door.get(key).headers["etag"]
        assert etag.isascii() and etag.isprintable() and " " not in etag
        assert door.get(key, headers={"If-None-Match": etag}).status == 304


class TestContentThatChanges:
    """An unlocked thin file is its object."""

    @pytest.fixture
    def thin(self, large: Key, place: Place) -> Path:
        path = place.object(large)
        assert path is not None
        path.parent.chmod(0o755)
        path.chmod(0o644)
        return path

    @pytest.mark.parametrize("version", ["", "v0/", "v4/"])
    def test_while_it_is_sent(self, either_door: Door, large: Key, thin: Path, version: str) -> None:
        with self.begun(either_door, large, version) as connection:
            with open(thin, "r+b") as file:
                file.seek(11_000_000)
                file.write(b"changed")
            body = received(connection).partition(b"\r\n\r\n")[2]
        assert len(body) == len(LARGE) - 1

    def test_it_becomes_shorter(self, either_door: Door, large: Key, thin: Path) -> None:
        with self.begun(either_door, large) as connection:
            os.truncate(thin, 6_000_000)
            body = received(connection).partition(b"\r\n\r\n")[2]
        assert len(body) <= 6_000_000

    def test_it_becomes_longer(self, door: Door, large: Key, thin: Path) -> None:
        with self.begun(door, large) as connection:
            with open(thin, "ab") as file:
                file.write(b"more")
            body = received(connection).partition(b"\r\n\r\n")[2]
        assert len(body) == len(LARGE) - 1

    def test_it_is_removed(self, door: Door, large: Key, place: Place) -> None:
        path = place.object(large)
        assert path is not None
        with self.begun(door, large) as connection:
            path.parent.chmod(0o755)
            path.unlink()
            body = received(connection).partition(b"\r\n\r\n")[2]
        assert LARGE.startswith(body) and len(body) >= len(LARGE) - 1

    def test_small_content(self, either_door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalContent, "still_valid", lambda self: False)
        for version in VERSIONS:
            answer = either_door.get(HELLO, version)
            assert (answer.status, answer.data_length, answer.body) == (200, 6, b"hello")
            assert not answer.complete

    def test_a_part_of_it(self, door: Door, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(LocalContent, "still_valid", lambda self: False)
        key = place.store(key_of(SOME), SOME)
        for last in (10, 150_000):
            answer = door.get(key, headers={"Range": f"bytes=1-{last}"})
            assert (answer.status, answer.body, answer.complete) == (206, SOME[1:last], False)

    @staticmethod
    def begun(door: Door, key: Key, version: str = "v4/") -> socket.socket:
        connection = door.socket()
        path = f"/git-annex/{SERVED}/{version}key/{quoted(key)}?clientuuid={CLIENT}"
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert select.select([connection], [], [], 10)[0]
        wait_until(transfers)
        time.sleep(0.1)  # as much is on its way as can be
        return connection


class TestClientsThatGo:
    def test_in_the_middle(self, either_door: Door, large: Key, place: Place) -> None:
        for _ in range(3):
            with TestContentThatChanges.begun(either_door, large):
                pass
        wait_until(lambda: not transfers())
        wait_until(lambda: place.running() == [])
        assert either_door.get(large).body == LARGE

    def test_too_many_at_once_are_told_to_come_back(self, open_door: Callable[..., Door], large: Key) -> None:
        door = open_door(limits=Limits(transfers=1, grace=1.0))
        with TestContentThatChanges.begun(door, large):
            answer = door.get(large)
            assert answer.status == 503 and int(answer.headers["retry-after"])
            # Whatever is small is in nobody's way.
            assert door.get(HELLO).body == b"hello\n"
            assert door.post("checkpresent", key=HELLO).json == {"present": True}
        wait_until(lambda: not transfers())
        assert door.get(large).body == LARGE
