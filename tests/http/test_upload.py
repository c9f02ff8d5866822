"""Content on its way from HTTP clients."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from annexshell.annex.receive import LocalUpload
from annexshell.key import Key
from tests.http.doors import CLIENT, HELLO, SERVED, Door, Place, key_of, target, wait_until
from tests.leftovers import descriptors, descriptors_before
from tests.shell import git

CONTENT = os.urandom(3_000_000)
KEY = key_of(CONTENT)
STORED = {"plusuuids": [], "stored": True}
NOT_STORED = {"plusuuids": [], "stored": False}


def chunks(data: bytes, size: int = 32752) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def transfers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "transfer"]


@pytest.mark.parametrize("version", range(5))
@pytest.mark.parametrize("framing", [bytes, chunks])
def test_every_version_stores(either_door: Door, place: Place, version: int, framing: Callable[[bytes], Any]) -> None:
    answer = either_door.put(KEY, framing(CONTENT), len(CONTENT), version=version, associatedfile="a/file")
    assert answer.json == (STORED if version >= 2 else {"stored": True})
    assert place.content(KEY) == CONTENT
    assert place.partial(KEY) is None
    assert place.running() == []
    assert f" 1 {SERVED}\n".encode() in place.logged(KEY)


class TestWhatDoesNotFit:
    @pytest.fixture
    def resumed(self, door: Door, place: Place) -> bytes:
        """What is there when the first million bytes have come, and no more."""
        assert door.put(KEY, CONTENT[:1_000_000], len(CONTENT)).json == NOT_STORED
        assert door.offset(KEY) == {"offset": 1_000_000}
        assert place.partial(KEY) == CONTENT[:1_000_000]
        return CONTENT[:1_000_000]

    def test_the_rest(self, door: Door, place: Place, resumed: bytes) -> None:
        assert door.put(KEY, CONTENT[1_000_000:], offset=1_000_000).json == STORED
        assert place.content(KEY) == CONTENT

    @pytest.mark.parametrize("offset", [0, 1, 32752, 999_999])
    def test_more_than_the_rest(self, door: Door, place: Place, resumed: bytes, offset: int) -> None:
        assert door.put(KEY, chunks(CONTENT[offset:]), len(CONTENT) - offset, offset=offset).json == STORED
        assert place.content(KEY) == CONTENT

    def test_less_than_what_is_there(self, door: Door, place: Place, resumed: bytes) -> None:
        assert door.put(KEY, CONTENT[10:500_000], offset=10).json == NOT_STORED
        assert place.object(KEY) is None

    @pytest.mark.parametrize("offset", [1_000_001, 2_999_999, 3_000_000, 10**30])
    def test_a_gap(self, door: Door, place: Place, resumed: bytes, offset: int) -> None:
        assert door.put(KEY, CONTENT[offset:], offset=offset).json == NOT_STORED
        assert place.partial(KEY) == resumed

    def test_the_rest_of_something_else(self, door: Door, place: Place, resumed: bytes) -> None:
        assert door.put(KEY, b"x" * 2_000_000, offset=1_000_000).json == NOT_STORED
        assert place.partial(KEY) is None
        assert door.put(KEY, CONTENT).json == STORED

    @pytest.mark.parametrize("version", [0, 4])
    def test_something_else(self, door: Door, place: Place, version: int) -> None:
        other = bytes([CONTENT[0] ^ 1]) + CONTENT[1:]
        assert not door.put(KEY, other, version=version).json["stored"]
        assert (place.object(KEY), place.partial(KEY)) == (None, None)
        assert door.put(KEY, CONTENT, version=version).json["stored"]
        assert place.content(KEY) == CONTENT

    @pytest.mark.parametrize("more", [b"x", b"x" * 1_000_000])
    def test_more_than_announced(self, door: Door, place: Place, more: bytes) -> None:
        for body in (CONTENT + more, chunks(CONTENT + more), [CONTENT, more]):
            assert door.put(KEY, body, len(CONTENT)).json == NOT_STORED
            assert place.object(KEY) is None
            assert (place.partial(KEY) or b"") == CONTENT[: door.offset(KEY)["offset"]]
        assert door.put(KEY, CONTENT).json == STORED

    def test_more_than_the_key_has(self, door: Door, place: Place) -> None:
        assert door.put(KEY, CONTENT + b"x").json == NOT_STORED
        assert place.object(KEY) is None
        assert door.put(KEY, CONTENT).json == STORED

    def test_what_is_too_large_to_be_resumed(self, door: Door, place: Place) -> None:
        place.temporary(KEY).parent.mkdir(parents=True, exist_ok=True)
        place.temporary(KEY).write_bytes(CONTENT + b"x")
        assert door.offset(KEY) == {"offset": 0}
        assert door.put(KEY, CONTENT, offset=0).json == STORED
        assert place.content(KEY) == CONTENT

    @pytest.mark.parametrize("backend", ["WORM", "URL"])
    def test_without_a_hash_everything_is_right(self, door: Door, place: Place, backend: str) -> None:
        key = Key(f"{backend}--x".encode())
        assert door.put(key, b"abc", 5).json == NOT_STORED
        assert door.offset(key) == {"offset": 0}  # nothing would notice that the start is of something else
        assert door.put(key, b"abcde").json == STORED
        assert place.content(key) == b"abcde"

    def test_empty_content(self, door: Door, place: Place) -> None:
        key = key_of(b"", "SHA256")
        assert door.put(key, b"x").json == NOT_STORED
        assert door.put(key, b"").json == STORED
        assert place.content(key) == b""


class TestWhatIsThere:
    @pytest.mark.parametrize("version", range(5))
    @pytest.mark.parametrize("framing", [bytes, chunks])
    def test_the_body_is_taken_all_the_same(
        self, either_door: Door, place: Place, version: int, framing: Callable[[bytes], Any]
    ) -> None:
        logged = place.logged(HELLO)
        large = CONTENT * 5
        connection = either_door.connect()
        headers = {"X-git-annex-data-length": str(len(large))}
        for _ in range(2):  # over the same connection
            answer = connection.ask("POST", target("put", version, key=HELLO), headers, framing(large))
            assert answer.json["stored"] is True
        connection.close()
        assert place.content(HELLO) == b"hello\n"
        assert place.logged(HELLO) == logged

    def test_data_present(self, door: Door, place: Place) -> None:
        assert door.put(KEY, b"", 0, data_present="true").json == NOT_STORED
        assert door.put(HELLO, b"", 0, data_present="true").json == STORED
        # By other means than us, which then know nothing of it.
        path = os.fsdecode(place.open().objects.locate(KEY))
        os.makedirs(os.path.dirname(path))
        with open(path, "wb") as file:
            file.write(CONTENT)
        assert door.put(KEY, b"", len(CONTENT), data_present="TRUE").json == STORED

    def test_the_old_versions_know_no_data_present(self, door: Door, place: Place) -> None:
        for version in range(4):
            key = key_of(b"%d" % version)
            assert door.put(key, b"", 1, version=version, data_present="true").json["stored"] is False
            assert door.put(key, b"%d" % version, version=version, data_present="true").json["stored"] is True
        assert door.put(KEY, CONTENT, data_present="false").json == STORED


def begun(door: Door, key: Key, length: int, data: bytes) -> socket.socket:
    """An upload of LENGTH bytes of which DATA has been sent."""
    connection = door.socket()
    head = f"POST {target('put', key=key)} HTTP/1.1\r\nHost: x\r\nX-git-annex-data-length: {length}\r\n"
    connection.sendall(f"{head}Content-Length: {length}\r\n\r\n".encode() + data)
    return connection


class TestMeanwhile:
    def test_an_offset_can_be_asked_for(self, door: Door, place: Place) -> None:
        assert door.offset(KEY) == {"offset": 0}
        assert (place.partial(KEY), place.running()) == (None, [])
        with begun(door, KEY, len(CONTENT), CONTENT[:1_000_000]):
            wait_until(lambda: len(place.partial(KEY) or b"") == 1_000_000)
            for version in range(1, 5):
                assert door.offset(KEY, version) == {"offset": 1_000_000}

    def test_another_upload_of_it_is_refused_at_once(self, door: Door, place: Place) -> None:
        with begun(door, KEY, len(CONTENT), CONTENT[:1_000_000]) as first:
            wait_until(lambda: len(place.partial(KEY) or b"") == 1_000_000)
            start = time.monotonic()
            answer = door.put(KEY, CONTENT[:1000], len(CONTENT))
            assert (answer.status, b"already in progress" in answer.body) == (500, True)
            assert time.monotonic() - start < 8
            first.sendall(CONTENT[1_000_000:])
            assert first.recv(1 << 16).startswith(b"HTTP/1.1 200 OK")
        assert place.content(KEY) == CONTENT

    def test_others_are_not_disturbed(self, door: Door, place: Place) -> None:
        with begun(door, KEY, len(CONTENT), CONTENT[:1_000_000]):
            wait_until(transfers)
            other = key_of(CONTENT[5:])
            assert door.put(other, CONTENT[5:]).json == STORED
            assert door.post("checkpresent", key=KEY).json == {"present": False}


class TestClientsThatGo:
    @pytest.mark.parametrize("sent", [0, 1_000_000, 2_999_999])
    def test_what_came_is_kept(self, either_door: Door, place: Place, sent: int) -> None:
        connection = begun(either_door, KEY, len(CONTENT), CONTENT[:sent])
        wait_until(lambda: len(place.partial(KEY) or b"") == sent and place.temporary(KEY).exists())
        connection.close()
        wait_until(lambda: not transfers(), 1)
        assert place.partial(KEY) == CONTENT[:sent]
        assert place.running() == []
        assert either_door.offset(KEY) == {"offset": sent}
        assert either_door.put(KEY, CONTENT[sent:], offset=sent).json == STORED

    def test_a_body_that_makes_no_sense(self, door: Door, place: Place) -> None:
        head = f"POST {target('put', key=KEY)} HTTP/1.1\r\nHost: x\r\nX-git-annex-data-length: 3000000\r\n"
        for body in (b"xyz\r\n", b"5\r\nabcde\r\nxyz\r\n", b"-5\r\nabcde\r\n"):
            answer = door.exchange(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + body)
            assert answer == b"" or answer.split()[1] == b"400", answer
            wait_until(lambda: not transfers(), 1)
            place.temporary(KEY).unlink(missing_ok=True)
        assert door.put(KEY, CONTENT).json == STORED


class TestExpect:
    def test_the_body_is_asked_for_when_it_is_wanted(self, either_door: Door, place: Place) -> None:
        for key, content in ((KEY, CONTENT), (HELLO, b"x" * 100_000)):
            with either_door.socket() as connection:
                connection.sendall(self.head(key, len(content)))
                assert connection.recv(1 << 16) == b"HTTP/1.1 100 Continue\r\n\r\n"
                connection.sendall(content)
                answer = connection.recv(1 << 16)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b'{"plusuuids":[],"stored":true}')

    def test_it_is_not_asked_for_when_it_is_refused(self, open_door: Callable[..., Door]) -> None:
        door = open_door(unauth_readonly=True)
        with door.socket() as connection:
            connection.sendall(self.head(KEY, len(CONTENT)))
            assert connection.recv(1 << 16).startswith(b"HTTP/1.1 403 ")

    def test_old_clients_cannot_have_meant_it(self, door: Door) -> None:
        request = self.head(HELLO, 3).replace(b"HTTP/1.1", b"HTTP/1.0") + b"abc"
        assert door.exchange(request).startswith(b"HTTP/1.0 200 OK")

    @staticmethod
    def head(key: Key, length: int) -> bytes:
        headers = f"Host: x\r\nX-git-annex-data-length: {length}\r\nContent-Length: {length}\r\nExpect: 100-Continue"
        return f"POST {target('put', key=key)} HTTP/1.1\r\n{headers}\r\n\r\n".encode()


class TestOurTrouble:
    def test_no_space(self, door: Door, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is said at once, while the client still sends."""

        def write(fd: int, data: bytes) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("annexshell.annex.receive.relay.write_all", write)
            with begun(door, KEY, len(CONTENT), CONTENT[:2_000_000]) as connection:
                answer = connection.recv(1 << 16)
        assert answer.startswith(b"HTTP/1.1 500 ") and answer.endswith(b"No space left on device")
        assert place.object(KEY) is None
        assert door.put(KEY, CONTENT).json == STORED

    def test_no_directory(self, door: Door, place: Place) -> None:
        """As with one that may not be written to."""
        (place.git_dir / "annex" / "tmp").rmdir()
        (place.git_dir / "annex" / "tmp").write_bytes(b"")
        answer = door.put(KEY, CONTENT)
        assert (answer.status, answer.headers["content-type"]) == (500, "text/plain;charset=utf-8")
        assert b"\n" not in answer.body and answer.body
        (place.git_dir / "annex" / "tmp").unlink()
        assert door.put(KEY, CONTENT).json == STORED

    def test_what_settings_refuse(self, place: Place, open_door: Callable[..., Door]) -> None:
        git(place.directory, "config", "annex.securehashesonly", "true")
        door = open_door()
        start = time.monotonic()
        answer = door.put(Key(b"WORM-s3--abc"), b"abc")
        assert (answer.status, answer.body) == (500, b"annex.securehashesonly blocked transfer of WORM key")
        git(place.directory, "config", "annex.diskreserve", "1000 petabytes")
        answer = door.put(KEY, CONTENT)
        assert answer.status == 500 and b"space" in answer.body
        assert time.monotonic() - start < 8
        assert place.running() == []
        assert (place.object(KEY), place.object(Key(b"WORM-s3--abc"))) == (None, None)

    def test_a_bug(self, door: Door, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(LocalUpload, "receive", None)
            assert door.put(KEY, CONTENT).status == 500
        wait_until(lambda: not transfers(), 1)
        assert door.put(KEY, CONTENT).json == STORED

    def test_no_descriptors_are_left_behind(self, door: Door, place: Place) -> None:
        def use() -> None:
            assert door.put(KEY, CONTENT[:5], len(CONTENT)).json == NOT_STORED
            assert door.put(HELLO, CONTENT).json == STORED
            assert door.put(KEY, b"", offset=5000).json == NOT_STORED
            with begun(door, KEY, len(CONTENT), CONTENT[:100]):
                wait_until(transfers)
            wait_until(lambda: not transfers())

        use()
        before = len(descriptors_before())
        for _ in range(5):
            use()
        wait_until(lambda: len(descriptors()) <= before)


@pytest.mark.parametrize("client", ["..", ".", "lck", "a/b", "%00", "x" * 256, "a%0ab", "%0a", "a%20b", "[Li4=]"])
def test_a_client_is_no_path(door: Door, place: Place, client: str) -> None:
    path = target("put", key=KEY).replace(CLIENT, client)
    answer = door.ask("POST", path, {"X-git-annex-data-length": str(len(CONTENT))}, CONTENT)
    assert answer.status == 400
    assert place.object(KEY) is None and place.running() == []


@pytest.mark.parametrize("length", [240, 250, 255, 300, 5000])
def test_a_name_that_could_not_be_recorded_is_the_clients_fault(door: Door, length: int) -> None:
    key = Key(b"WORM-s3--" + b"w" * length)
    for answer in (door.put(key, b"abc"), door.post("putoffset", key=key)):
        assert (answer.status, answer.body[:27]) == (400, b"the key's name is too long ")
    assert door.post("checkpresent", key=key).json == {"present": False}
    assert door.post("remove", key=key).json["removed"] is True


def test_a_client_that_no_directory_can_be_named_after(door: Door) -> None:
    path = target("put", key=KEY).replace(CLIENT, "%ff")
    answer = door.ask("POST", path, {"X-git-annex-data-length": "3"}, b"abc")
    assert (answer.status, answer.body[-30:]) == (400, b"the client did not give a uuid")
