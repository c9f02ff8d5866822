"""Everything that can be asked of the HTTP server, with repositories on disk."""

from __future__ import annotations

import base64
import os
import re
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex.repository import LocalRepository
from annexshell.errors import ContentLocked, NotPresent, RepositoryError
from annexshell.http import committer, locks, repositories
from annexshell.http.api import ACTIONS
from annexshell.http.server import Limits
from annexshell.key import Key
from annexshell.uuid import UUID
from tests import vectors
from tests.http.doors import (
    ABSENT,
    CLIENT,
    HELLO,
    SERVED,
    Answer,
    Connection,
    Door,
    Place,
    key_of,
    quoted,
    target,
    wait_until,
)

# What was recorded of git-annex --------------------------------------------

REQUESTS = vectors.load("http-requests")
# What was stored before the requests that remove it.
REMOVED = [b"content %04d 0123456789" % number for number in range(28, 34)]


def of_no_number(name: str) -> dict[str, Any]:
    return {"status": 400, "body": f"Error parsing query parameter {name} failed: {name} parse error"}


WITHOUT_SIDE_EFFECTS = {"after": {"present": False, "tmp_size": None}}

# What is answered otherwise than recorded, besides what is recommended there, and why.
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "get offset 0x3": (of_no_number("offset"), "a number has digits only"),
    "get offset %203": (of_no_number("offset"), "a number has digits only"),
    "get offset (3)": (of_no_number("offset"), "a number has digits only"),
    "get range ignored": ({"status": 206, "body": "ll"}, "parts can be asked for"),
    "route GET /git-annex/$U/v4/checkpresent": (
        {"status": 200, "body": '{"present":true}'},
        "HTTP proxies let readers GET only",
    ),
    "checkpresent clientuuid unpadded base64": ({"status": 200, "body": '{"present":true}'}, "others leave it out"),
    **{
        f"putoffset v{version} nothing": (WITHOUT_SIDE_EFFECTS, "asking is not the beginning of an upload")
        for version in range(1, 5)
    },
}


class Recorded:
    """The recorded cases, with what is filled in as it becomes known."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.known = {"$U": SERVED.decode(), "$C": CLIENT}

    def filled(self, text: str) -> str:
        text = re.sub(r"\$NOW([+-]\d+)", lambda match: str(int(self.known["$NOW"]) + int(match[1])), text)
        for name, value in self.known.items():
            text = text.replace(name, value)
        return text

    def ask(self, request: dict[str, Any]) -> Answer:
        body: Any = None
        if "body_chunks" in request:
            body = [chunk.encode() for chunk in request["body_chunks"]]
        elif request.get("body") is not None:
            body = request["body"].encode()
        return self.door.ask(request["method"], self.filled(request["path"]), request.get("headers"), body)

    def learn(self, pattern: str, body: bytes) -> None:
        """Take the lock id, or the time, out of an answer."""
        for name in ("$LOCKID", "$NOW"):
            if name in pattern:
                found = re.fullmatch(re.escape(pattern).replace(re.escape(name), "([0-9a-f-]+)"), body.decode())
                assert found, (pattern, body)
                self.known[name] = found[1]


def test_what_was_recorded(place: Place, door: Door) -> None:
    for content in REMOVED:
        place.store(key_of(content), content)
    recorded = Recorded(door)
    failures = []
    for case in REQUESTS["cases"]:
        problem = difference(recorded, place, case)
        if problem:
            failures.append(f"{case['name']}: {problem}")
    assert not failures, "\n".join(failures)


def difference(recorded: Recorded, place: Place, case: dict[str, Any]) -> str:
    answer = recorded.ask(case["request"])
    expected = {**case["response"], "after": case.get("after"), **case.get("recommended", {})}
    expected |= OTHERWISE.get(case["name"], ({}, ""))[0]
    if expected["after"] == "not stored":
        expected["after"] = {"present": False}
    if answer.status != expected["status"]:
        return f"status {answer}"
    has_length = "content-length" in answer.headers or case["request"]["method"] == "HEAD"
    if not has_length or "transfer-encoding" in answer.headers:
        return f"no length {answer}"
    if expected["status"] == case["response"]["status"] or expected["body"] != case["response"]["body"]:
        recorded.learn(expected["body"], answer.body)
        if answer.body.decode() != recorded.filled(expected["body"]):
            return f"body {answer}"
    if expected["status"] == case["response"]["status"]:
        for name, value in expected["headers"].items():
            if answer.headers.get(name.lower()) != value:
                return f"header {name} {answer}"
    if expected["after"] is not None:
        key = re.search(r"key=([^&]*)", case["request"]["path"])
        assert key is not None
        now = state(place, Key(key[1].encode()))
        if {name: now[name] for name in expected["after"]} != expected["after"]:
            return f"after {now} instead of {expected['after']}"
    return ""


def test_nothing_is_otherwise_that_was_not_recorded() -> None:
    assert OTHERWISE.keys() <= {case["name"] for case in REQUESTS["cases"]}


def state(place: Place, key: Key) -> dict[str, Any]:
    partial = place.partial(key)
    return {"present": place.object(key) is not None, "tmp_size": None if partial is None else len(partial)}


# What is asked ------------------------------------------------------------------


@pytest.mark.parametrize("version", [*range(5), 5, 10])
@pytest.mark.parametrize("action", [*ACTIONS, "nosuch"])
def test_which_version_has_what(door: Door, version: int, action: str) -> None:
    """Only 404 makes a client try a lower one."""
    known = action in ACTIONS and ACTIONS[action].first_version <= version <= 4
    answer = door.ask("POST", f"/git-annex/{SERVED}/v{version}/{action}" + (f"/{HELLO}" if action == "key" else ""))
    expected = 404 if not known else 405 if action == "key" else 400
    assert answer.status == expected
    if expected == 404:
        assert (answer.body, "content-type" in answer.headers) == (b"", False)
    elif expected == 405:
        assert answer.headers["allow"] == "GET, HEAD"
    else:
        assert re.fullmatch(rb"Query parameter [a-z]+ is required", answer.body)


def test_what_is_not_served_is_not_found_before_anybody_is_asked_for_a_password(
    open_door: Callable[..., Door],
) -> None:
    door = open_door(authenv_http=True)
    assert door.get(HELLO, uuid=UUID(CLIENT.encode())).status == 404
    assert door.get(HELLO).status == 401
    assert door.ask("GET", f"/git-annex/{SERVED}/v4/key/x?clientuuid=c").status == 400
    assert door.ask("GET", f"/git-annex/{SERVED}/v9/key/x?clientuuid=c").status == 404


@pytest.mark.parametrize(
    "name",
    [
        b"WORM--x.a b",
        b"WORM--a/b",
        b"WORM--a+b&c=d;e%2Ff?g#h",
        b"WORM--[x]",
        "WORM--\u00e9\u4e2d".encode(),
        b"WORM--\xff\x80",
        b"URL--http&c%%example.com%x",
    ],
)
@pytest.mark.parametrize("wrap", [False, True])
def test_odd_keys(door: Door, place: Place, name: bytes, wrap: bool) -> None:
    key = Key(name)
    text = "[" + base64.urlsafe_b64encode(key.serialized).decode() + "]" if wrap else quoted(key)
    length = {"X-git-annex-data-length": "3"}
    put = f"/git-annex/{SERVED}/v4/put?key={text}&clientuuid={CLIENT}&associatedfile={text}"
    assert door.ask("POST", put, length, b"odd").json == {"plusuuids": [], "stored": True}
    assert place.content(key) == b"odd"
    for path in (f"v4/key/{text}?clientuuid={CLIENT}", f"key/{text}"):
        assert door.ask("GET", f"/git-annex/{SERVED}/{path}").body == b"odd"
    assert door.ask("GET", f"/git-annex/{SERVED}/v4/checkpresent?key={text}&clientuuid=x").json == {"present": True}


def test_what_comes_with_a_request_that_takes_nothing_is_ignored(door: Door) -> None:
    path = target("checkpresent", key=HELLO)
    connection = door.connect()
    for body in (b"x" * 100_000, [b"some", b"chunks"]):
        assert connection.ask("POST", path, None, body).json == {"present": True}
    connection.close()
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n"
    assert b'{"present":true}' in door.exchange(head.encode() + b"3\r\nabc\r\n0\r\n\r\n")


def test_what_changes_nothing_can_be_asked_by_get(door: Door) -> None:
    """As proxies in front of us may let readers do nothing else."""
    for version in range(5):
        answer = door.ask("GET", target("checkpresent", version, key=HELLO))
        assert (answer.status, answer.body) == (200, b'{"present":true}')
    for version in (3, 4):
        answer = door.ask("GET", target("gettimestamp", version))
        assert abs(answer.json["timestamp"] - int(float(uptime()))) <= 1
        assert door.post("gettimestamp", version).headers["content-type"] == answer.headers["content-type"]
    for action in ACTIONS.keys() - {"checkpresent", "gettimestamp", "key"}:
        answer = door.ask("GET", target(action, key=HELLO))
        assert (answer.status, answer.headers["allow"]) == (405, "POST")


def test_old_clients_name_no_host(door: Door) -> None:
    request = f"POST {target('checkpresent', key=HELLO)} HTTP/1.0\r\n\r\n"
    assert b'{"present":true}' in door.exchange(request.encode())


def test_whatever_goes_wrong_inside_is_told_in_one_line(
    door: Door, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    for reason, status, text in (
        (RepositoryError("cannot\nlook"), 500, b"cannot look"),
        (OSError(5, "Input/output error"), 500, b"Input/output error"),
        (OSError(), 500, b"OSError"),
        (NotPresent("it is not there"), 404, b""),
        (ValueError("a bug"), 500, None),
    ):

        def fail(self: LocalRepository, key: Key, reason: Exception = reason) -> bool:
            raise reason

        with monkeypatch.context() as patch:
            patch.setattr(LocalRepository, "checkpresent", fail)
            answer = door.post("checkpresent", key=HELLO)
        assert answer.status == status
        assert b"a bug" not in answer.body and text in (None, answer.body)
        if text:
            assert answer.headers["content-type"].startswith("text/plain")
    assert door.post("checkpresent", key=HELLO).json == {"present": True}


def test_a_repository_that_comes_later(open_door: Callable[..., Door], tmp_path: Path) -> None:
    directory = tmp_path / "all"
    (directory / "deep").mkdir(parents=True)
    with Door(below=[directory]) as door:
        uuid = UUID(b"33333333-3333-4333-8333-333333333333")
        assert door.get(HELLO, uuid=uuid).status == 404
        place = Place(directory / "deep" / "one.git", uuid, bare=True)
        place.store(HELLO, b"hello\n")
        wait_until(lambda: door.get(HELLO, uuid=uuid).status == 200)
        shutil.rmtree(place.directory)
        wait_until(lambda: door.get(HELLO, uuid=uuid).status == 404)


def test_a_client_that_tries_older_versions_has_us_look_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That is what it does whenever a repository is not there any more."""
    looks = []
    search = repositories.find_repositories

    def note(*arguments: Any) -> Any:
        looks.append(time.monotonic())
        return search(*arguments)

    monkeypatch.setattr(repositories, "find_repositories", note)
    with Door(below=[tmp_path]) as door:
        del looks[:]
        connection = door.connect()
        for version in range(4, -1, -1):
            assert connection.ask("POST", target("checkpresent", version, key=HELLO)).status == 404
        connection.close()
    assert len(looks) == 1


def test_everything_that_is_below_a_directory(tmp_path: Path) -> None:
    def uuid_of(number: int) -> UUID:
        return UUID(b"%08d-3333-4333-8333-333333333333" % number)

    top = tmp_path / "top"
    places = [
        Place(top / "here", uuid_of(0)),
        Place(top / "a" / "b" / "c" / "deep", uuid_of(1)),
        Place(top / "bare.git", uuid_of(2), bare=True),
        Place(top / ".hidden" / ".too", uuid_of(3)),
        Place(tmp_path / "elsewhere", uuid_of(4)),
    ]
    (top / "link").symlink_to(tmp_path / "elsewhere")
    inner = Place(top / "here" / "inner", uuid_of(5))
    (tmp_path / "far").mkdir()
    unlinked = Place(tmp_path / "far" / "away", uuid_of(6))
    (top / "to-no-repository").symlink_to(tmp_path / "far")
    for number, place in enumerate(places):
        place.store(key_of(b"%d" % number), b"%d" % number)
    with Door(below=[top]) as door:
        for number, place in enumerate(places):
            assert door.get(key_of(b"%d" % number), uuid=place.uuid).body == b"%d" % number
            assert door.get(key_of(b"%d" % number), uuid=places[number - 1].uuid).status == 404
        for place in (inner, unlinked):
            assert door.post("checkpresent", uuid=place.uuid, key=HELLO).status == 404
        new = Place(top / "a" / "new", uuid_of(7))
        assert door.post("checkpresent", uuid=new.uuid, key=HELLO).json == {"present": False}
        shutil.rmtree(new.directory)
        assert door.post("checkpresent", uuid=new.uuid, key=HELLO).status == 404
        shutil.rmtree(places[1].directory)
        assert door.get(key_of(b"1"), uuid=places[1].uuid).status == 404
        assert door.get(key_of(b"0"), uuid=places[0].uuid).body == b"0"


# Removing -----------------------------------------------------------------------


class TestRemove:
    def test_what_is_locked_is_not_removed_and_that_is_said_at_once(self, door: Door, place: Place) -> None:
        lockid = door.post("lockcontent", key=HELLO).json["lockid"]
        now = door.post("gettimestamp").json["timestamp"]
        start = time.monotonic()
        for version in range(5):
            assert door.post("remove", version, key=HELLO).json["removed"] is False
        answer = door.post("remove-before", key=HELLO, timestamp=now + 100)
        assert answer.body == b'{"plusuuids":[],"removed":false}'
        assert time.monotonic() - start < 3
        assert place.content(HELLO) == b"hello\n"
        unlock(door, lockid)
        assert door.post("remove", key=HELLO).json == {"plusuuids": [], "removed": True}
        assert place.object(HELLO) is None
        assert f" 0 {SERVED}\n".encode() in place.logged(HELLO)

    def test_what_another_process_has_locked(self, door: Door, place: Place) -> None:
        with place.open().lockcontent(HELLO):
            assert door.post("remove", key=HELLO).json["removed"] is False
        assert door.post("remove", key=HELLO).json["removed"] is True

    def test_what_is_not_there_is_not_logged(self, door: Door, place: Place) -> None:
        for version in range(5):
            assert door.post("remove", version, key=ABSENT).json["removed"] is True
        assert door.post("remove-before", key=ABSENT, timestamp=0).json["removed"] is True
        assert place.logged(ABSENT) == b""

    def test_before_a_time(self, door: Door, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        assert abs(door.post("gettimestamp").json["timestamp"] - int(float(uptime()))) <= 1
        monkeypatch.setattr("annexshell.annex.repository.clock", lambda: 1000)
        monkeypatch.setattr("annexshell.annex.remove.clock", lambda: 1000, raising=False)
        assert door.post("gettimestamp", 3).json == {"timestamp": 1000}
        for time_limit in (0, 999, 1000):
            assert door.post("remove-before", 3, key=HELLO, timestamp=time_limit).json["removed"] is False
        assert door.post("remove-before", key=HELLO, timestamp=1001).json["removed"] is True
        assert place.object(HELLO) is None

    def test_changes_are_committed_when_it_is_quiet(self, door: Door, place: Place) -> None:
        assert door.post("remove", key=HELLO).json["removed"] is True
        assert committed(place, HELLO) != place.logged(HELLO)
        wait_until(lambda: committed(place, HELLO) == place.logged(HELLO), 5)

    def test_or_while_others_go_on(self, door: Door, place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
        """For as long as an upload stalls it is not quiet."""
        monkeypatch.setattr(committer, "LATEST", 0.5)
        upload = door.connect()
        length = {"X-git-annex-data-length": "6", "Transfer-Encoding": "chunked"}
        upload.send_head("POST", target("put", key=ABSENT), length)
        upload.send_chunk(b"abc")
        wait_until(lambda: place.partial(ABSENT) == b"abc")
        assert door.post("remove", key=HELLO).json["removed"] is True
        wait_until(lambda: committed(place, HELLO) == place.logged(HELLO), 5)
        assert place.partial(ABSENT) == b"abc"
        upload.close()

    def test_or_when_the_server_ends(self, door: Door, place: Place) -> None:
        assert door.post("remove", key=HELLO).json["removed"] is True
        door.stop()
        assert committed(place, HELLO) == place.logged(HELLO)


def uptime() -> str:
    return Path("/proc/uptime").read_text().split()[0]


def committed(place: Place, key: Key) -> bytes:
    name = os.fsdecode(place.open().branch.key_log(key))
    command = ["git", "-C", str(place.directory), "cat-file", "blob", f"git-annex:{name}"]
    return subprocess.run(command, capture_output=True).stdout


# Locks --------------------------------------------------------------------------


LEASE = 0.6  # seconds instead of ten minutes


def unlock(door: Door, lockid: str) -> None:
    answer = door.ask("POST", target("keeplocked", lockid=lockid), None, b'{"unlock":true}')
    assert answer.body == b'{"locked":false}'


def is_locked(place: Place) -> bool:
    """For other processes."""
    return not any(not path.exists() for path in lock_files(place))


def lock_files(place: Place) -> list[Path]:
    return [place.beside(HELLO, suffix) for suffix in (".lck", ".rtm")]


class TestLocks:
    @pytest.fixture(params=["plain", "tls"])
    def door(self, request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
        return open_door(request.param)

    @pytest.fixture
    def lockid(self, door: Door, place: Place) -> str:
        answer = door.post("lockcontent", key=HELLO).json
        assert answer == {"locked": True, "lockid": answer["lockid"]}
        assert is_locked(place)
        assert float(lock_files(place)[1].read_text().strip().rstrip("s")) > time.time() + 595
        return str(answer["lockid"])

    @pytest.mark.parametrize(
        "values",
        [
            ['{"unlock":true}'],
            ['{"unlock":true}\n'],
            ['{"unlock":false}', "\n", '{"unlock":true}', "\n"],
            ['{"unlock":false}\n{"unlock":true}\n'],
            ['{"unl', 'ock" ', ": tr", "ue}"],
            ['  {"unlock":false}\r\n\r\n[1,2]\n"x"\n{"unlock":1}\n{"unlock":true,"other":null}'],
        ],
    )
    @pytest.mark.parametrize("framing", ["chunks", "length"])
    def test_unlocking(self, door: Door, place: Place, lockid: str, values: list[str], framing: str) -> None:
        body = [value.encode() for value in values] if framing == "chunks" else "".join(values).encode()
        answer = door.ask("POST", target("keeplocked", lockid=lockid, clientuuid=None), None, body)
        assert answer.body == b'{"locked":false}'
        assert not any(path.exists() for path in lock_files(place))
        assert door.post("remove", key=HELLO).json["removed"] is True

    @pytest.mark.parametrize(
        "body",
        [b"", b'{"unlock":false}', b'{"unlock":false}\n{"unl', b"xxx\n", b"{}", b"[" * 100_000, b"\xff\xfe", b"true"],
    )
    def test_a_body_that_ends_without_unlocking(self, door: Door, place: Place, lockid: str, body: bytes) -> None:
        for one in ([body] if body else [], body):
            answer = door.ask("POST", target("keeplocked", lockid=lockid), None, one)
            assert answer.body == b'{"locked":false}'
            assert is_locked(place)
            assert door.post("remove", key=HELLO).json["removed"] is False
        unlock(door, lockid)

    def test_the_answer_comes_before_the_end_of_the_body(self, door: Door, place: Place, lockid: str) -> None:
        connection = self.begin(door, lockid)
        connection.send_chunk(b'{"unlock":false}')
        connection.send_chunk(b"\n")
        connection.sock.settimeout(0.1)
        with pytest.raises(TimeoutError):
            connection.sock.recv(1)
        connection.sock.settimeout(10)
        assert is_locked(place)
        connection.send_chunk(b'{"unlock":true}')
        assert connection.answer().body == b'{"locked":false}'
        assert not any(path.exists() for path in lock_files(place))
        connection.send_chunk(b"\n")
        connection.send_chunk(b"")
        # The connection can be used for something else.
        assert connection.ask("POST", target("checkpresent", key=HELLO)).json == {"present": True}
        connection.close()

    @pytest.mark.parametrize("reset", [False, True])
    def test_a_client_that_goes_still_counts_on_it(self, door: Door, place: Place, lockid: str, reset: bool) -> None:
        connection = self.begin(door, lockid)
        connection.send_chunk(b'{"unlock":false}\n')
        if reset:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.close()
        time.sleep(0.2)
        assert is_locked(place)
        assert door.post("remove", key=HELLO).json["removed"] is False
        unlock(door, lockid)

    @pytest.mark.parametrize("ending", ["no keeplocked", "end of the body", "connection closed", "connection reset"])
    def test_it_ends_after_ten_minutes(self, door: Door, place: Place, short_lease: None, ending: str) -> None:
        """Here within a second."""
        lockid = door.post("lockcontent", key=HELLO).json["lockid"]
        began = time.monotonic()
        if ending != "no keeplocked":
            connection = self.begin(door, lockid)
            connection.send_chunk(b'{"unlock":false}\n')
            if ending == "end of the body":
                connection.send_chunk(b"")
                assert connection.answer().body == b'{"locked":false}'
            elif ending == "connection reset":
                connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
        time.sleep(LEASE / 2)
        assert is_locked(place)
        assert door.post("remove", key=HELLO).json["removed"] is False
        # The retention time goes with the lock, as nobody counts on it any more.
        wait_until(lambda: door.post("remove", key=HELLO).json["removed"], 5)
        assert time.monotonic() - began >= LEASE

    def test_it_is_kept_for_as_long_as_a_client_keeps_it(self, door: Door, place: Place, short_lease: None) -> None:
        lockid = door.post("lockcontent", key=HELLO).json["lockid"]
        connection = self.begin(door, lockid)
        connection.send_chunk(b'{"unlock":false}\n')
        time.sleep(2 * LEASE)
        assert is_locked(place)
        assert door.post("remove", key=HELLO).json["removed"] is False
        connection.close()
        wait_until(lambda: door.post("remove", key=HELLO).json["removed"], 5)

    @pytest.fixture
    def short_lease(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(locks, "LEASE", LEASE)
        monkeypatch.setattr(locks, "PERIOD", 0.05)

    def test_a_server_that_ends_leaves_the_time(self, door: Door, place: Place, lockid: str) -> None:
        connection = self.begin(door, lockid)
        connection.send_chunk(b'{"unlock":false}\n')
        door.stop()
        connection.close()
        assert lock_files(place)[1].exists()
        with closing(place.open()) as repository, pytest.raises(ContentLocked):
            repository.remove(HELLO)

    def test_unknown_ids(self, door: Door, place: Place, lockid: str) -> None:
        for other in ("nosuch", CLIENT, lockid[:-1], lockid + "0"):
            unlock(door, other)
            assert is_locked(place)
        unlock(door, lockid)
        unlock(door, lockid)

    def test_the_id_may_be_wrapped(self, door: Door, place: Place, lockid: str) -> None:
        unlock(door, f"[{base64.urlsafe_b64encode(lockid.encode()).decode()}]")
        assert not any(path.exists() for path in lock_files(place))

    def test_two_locks(self, door: Door, place: Place, lockid: str) -> None:
        other = door.post("lockcontent", key=HELLO).json["lockid"]
        assert other != lockid
        unlock(door, lockid)
        assert door.post("remove", key=HELLO).json["removed"] is False
        unlock(door, other)
        assert door.post("remove", key=HELLO).json["removed"] is True

    def test_what_is_absent_cannot_be_locked_however_often(self, door: Door, place: Place) -> None:
        connection = door.connect()
        for _ in range(150):
            assert connection.ask("POST", target("lockcontent", key=ABSENT)).body == b'{"locked":false}'
        assert connection.ask("POST", target("lockcontent", key=HELLO)).json["locked"] is True
        connection.close()

    def test_the_client_may_ask_for_leave_to_send(self, door: Door, place: Place, lockid: str) -> None:
        connection = door.connect()
        headers = {"Expect": "100-continue", "Content-Length": "15"}
        connection.send_head("POST", target("keeplocked", lockid=lockid), headers)
        assert connection.sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.send(b'{"unlock":true}')
        assert connection.answer().body == b'{"locked":false}'
        connection.close()

    @staticmethod
    def begin(door: Door, lockid: str) -> Connection:
        connection = door.connect()
        headers = {"Transfer-Encoding": "chunked", "Content-Type": "application/json;charset=utf-8"}
        connection.send_head("POST", target("keeplocked", lockid=lockid), headers)
        return connection


def test_no_more_locks_than_allowed(open_door: Callable[..., Door], place: Place) -> None:
    door = open_door(limits=Limits(lockedfiles=2, grace=1.0))
    first, _ = (door.post("lockcontent", key=HELLO).json["lockid"] for _ in range(2))
    assert door.post("lockcontent", key=HELLO).body == b'{"locked":false}'
    unlock(door, first)
    assert door.post("lockcontent", key=HELLO).json["locked"] is True


# Who may ask --------------------------------------------------------------------

KINDS = ("checkpresent", "putoffset", "remove", "lockcontent")  # read, write, remove, lock
USERS = {
    b"GIT_ANNEX_P2PHTTP_PASSWORD_full": b"pass:word",
    b"GIT_ANNEX_P2PHTTP_PASSWORD_reader": b"\xc3\xbc?>~",
    b"GIT_ANNEX_P2PHTTP_PERMISSIONS_reader": b"readonly",
    b"GIT_ANNEX_P2PHTTP_PASSWORD_appender": b"",
    b"GIT_ANNEX_P2PHTTP_PERMISSIONS_appender": b"appendonly",
}
NOBODY = ""
FULL = "full:pass:word"
READER = "reader:\u00fc?>~"
APPENDER = "appender:"
WRONG = "full:password"


@pytest.mark.parametrize("shape", ["plain", "tls"])
@pytest.mark.parametrize(
    ("options", "statuses"),
    [
        ({}, {NOBODY: [401, 401, 401, 401], FULL: [200, 200, 200, 200], WRONG: [401, 401, 401, 401]}),
        ({}, {READER: [200, 403, 403, 403], APPENDER: [200, 200, 403, 200]}),
        ({"unauth_readonly": True}, {NOBODY: [200, 401, 401, 200], FULL: [200, 200, 200, 200]}),
        ({"unauth_readonly": True}, {WRONG: [200, 401, 401, 200], READER: [200, 403, 403, 200]}),
        ({"unauth_appendonly": True}, {NOBODY: [200, 200, 401, 200]}),
        ({"unauth_readonly": True, "unauth_nolocking": True}, {NOBODY: [200, 401, 401, 401]}),
        (
            {"wideopen": True},
            {NOBODY: [200, 200, 200, 200], WRONG: [200, 200, 200, 200], READER: [200, 403, 403, 200]},
        ),
    ],
)
def test_who_may_do_what(
    open_door: Callable[..., Door], shape: str, options: dict[str, bool], statuses: dict[str, list[int]]
) -> None:
    login = {"authenv": True} if shape == "tls" else {"authenv_http": True}
    door = open_door(shape, environ=USERS, **login, **options)
    connection = door.connect()
    for who, expected in statuses.items():
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            headers = {"Authorization": f"Basic {encode(who.encode()).decode()}"} if who else {}
            seen = []
            for action in KINDS:
                answer = connection.ask("POST", target(action, key=ABSENT), headers)
                assert (answer.status == 401) == ("www-authenticate" in answer.headers)
                assert answer.status == 200 or answer.body == b""
                seen.append(answer.status)
            assert seen == expected, who
    connection.close()


def test_passwords_only_come_over_tls(open_door: Callable[..., Door]) -> None:
    door = open_door(environ=USERS, authenv=True)
    headers = {"Authorization": f"Basic {base64.b64encode(FULL.encode()).decode()}"}
    answer = door.ask("POST", target("checkpresent", key=HELLO), headers)
    assert (answer.status, answer.headers["www-authenticate"]) == (401, 'Basic realm="git-annex", charset="UTF-8"')
    # With anything but what makes sense, it does not matter who may do what.
    assert door.ask("POST", target("checkpresent", key=HELLO), {"Authorization": "Basic !"}).status == 400


def test_an_upload_that_is_not_allowed_is_refused_before_it_is_sent(open_door: Callable[..., Door]) -> None:
    door = open_door(authenv_http=True, environ=USERS)
    with door.socket() as connection:
        head = f"POST {target('put', key=ABSENT)} HTTP/1.1\r\nHost: x\r\nX-git-annex-data-length: 10000000\r\n"
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n2\r\nab\r\n".encode())
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 401 ")
