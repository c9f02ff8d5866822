"""Whatever a client sends, it gets an answer that is one, or is cut off; and what is refused changes nothing."""

from __future__ import annotations

import base64
import json
import os
import select
import socket
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote_from_bytes

import h11
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from annexshell.annex.config import Config
from annexshell.http.api import ACTIONS
from annexshell.http.server import Limits
from annexshell.key import Key
from annexshell.relay import BytesSource, to_callable
from annexshell.remotes.http import open_http
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import AnnexHttp, Remote
from annexshell.repository import AlreadyHave, Upload
from tests.http.doors import ABSENT, CLIENT, DEADLINE, EMPTY, HELLO, SERVED, Door, Place, key_of, target
from tests.http.scripted import Gateway

# Those that there are (spec: http §4.1), but for 500, which would be our fault, and 502, that of a node.
STATUSES = {200, 206, 400, 401, 403, 404, 405, 416, 503}
USERS = {
    b"GIT_ANNEX_P2PHTTP_PASSWORD_alice": b"se:cr\xc3\xa9t~?>",
    b"GIT_ANNEX_P2PHTTP_PASSWORD_bob": b"",
    b"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob": b"readonly",
}
BOB = base64.b64encode(b"bob:")  # may do no more than anybody


class Asked(NamedTuple):
    """A request that ends where it says that it ends."""

    method: bytes
    target: bytes
    headers: list[tuple[bytes, bytes]]
    body: bytes | list[bytes] | None  # a list is sent in chunks

    @property
    def head(self) -> bytes:
        framing: list[tuple[bytes, bytes]] = []
        if isinstance(self.body, bytes):
            framing = [(b"Content-Length", b"%d" % len(self.body))]
        elif self.body is not None:
            framing = [(b"Transfer-Encoding", b"chunked")]
        lines = [b"%s: %s" % header for header in [(b"Host", b"localhost"), *self.headers, *framing]]
        return b"\r\n".join([b"%s %s HTTP/1.1" % (self.method, self.target), *lines, b"", b""])

    @property
    def raw(self) -> bytes:
        if not isinstance(self.body, list):
            return self.head + (self.body or b"")
        return self.head + b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*self.body, b""])


class Answer(NamedTuple):
    status: int
    headers: dict[bytes, bytes]
    body: bytes


# What clients say --------------------------------------------

CONTENTS = (b"hello\n", b"", b"abc", b"x" * 100_000)
KEYS = [
    *map(bytes, (HELLO.serialized, EMPTY.serialized, ABSENT.serialized)),
    *(key_of(content, backend).serialized for content in CONTENTS[2:] for backend in ("SHA256E", "SHA1", "X")),
    b"WORM-s3-m1394--a/b c\xff+&",
    b"WORM--" + b"\xe4\xb8\xad" * 100,
    b"WORM--" + b"w" * 300,
    b"WORM--" + b"w" * 5000,
    b"WORM-s99999999999999999999--x",
    b"WORM-s999999999999999--x",
    b"SHA256-s1-S1-C1--x",
    b"SHA256E-s3--" + b"0" * 64 + b".\xff%n",
    b"MD5--",
    b"..--..",
    b"-",
    b"a/../../b",
]
NAMES = [
    *(name.encode() for name in (CLIENT, str(SERVED), "c", "..", ".", "lck", "../../x", "a b", "")),
    b"\xff\xfe",
    b"a\0b",
    b"a\nREMOVE b",
    b"x" * 255,
    b"x" * 256,
    "\u00e9".encode(),
]
NUMBERS = [b"0", b"3", b"7", b"-1", b"+3", b"1.5", b"0x3", b"9" * 40, b"1" * 5000, b"", " \u0663".encode()]
FILES = [b"a/b", b"/etc/passwd", b"../../x", b"\xff", b"a\0b", b"a\nb", b"", b"f" * 5000]
PARAMETERS = {
    "key": KEYS,
    "clientuuid": NAMES,
    "lockid": NAMES,
    "bypass": NAMES,
    "bypass[]": NAMES,
    "associatedfile": FILES,
    "offset": NUMBERS,
    "timestamp": NUMBERS,
    "data-present": [b"true", b"TRUE", b"false", b"1", b""],
    "other": FILES,
}
METHODS = [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE", b"get", b"PROPFIND", b"X"]

anything = st.binary(max_size=40)


def escaped(value: bytes) -> str:
    """Nothing of it ends the line that it is in."""
    return quote_from_bytes(value, safe="/&;=+%[]?#:@!$,~")


def in_brackets(inside: bytes) -> bytes:
    return b"[" + inside + b"]"


@st.composite
def spelled(draw: DrawFn, value: bytes) -> str:
    """One of the ways to write a value, not all of which make sense."""
    coded = base64.urlsafe_b64encode(value)
    how = draw(st.integers(0, 11))
    match how:
        case 0:
            return escaped(in_brackets(coded))
        case 1:
            return quote_from_bytes(in_brackets(coded.rstrip(b"=")), safe="")
        case 2:
            return escaped(in_brackets(base64.b64encode(value)))
        case 3:
            return escaped(
                in_brackets(coded + draw(st.sampled_from([b"=", b"====", b"=A", b"A", b" ", b"\n", b"\xff"])))
            )
        case 4:
            return escaped(in_brackets(draw(anything)))
        case 5:
            return escaped(value) + draw(
                st.sampled_from(["%", "%z", "%zz", "%f", "%ff", "%00", "%0a", "%2", "+", "[]"])
            )
        case 6:
            return "".join(f"%{byte:02x}" for byte in value)
        case 7:
            at = draw(st.integers(0, len(value)))
            return quote_from_bytes(value[:at] + draw(anything) + value[at:], safe="")
        case _:
            return quote_from_bytes(value, safe="")


def a_value(values: list[bytes]) -> st.SearchStrategy[str]:
    return (st.sampled_from(values) | st.just(values[0]) | anything).flatmap(spelled)


@st.composite
def queries(draw: DrawFn, names: tuple[str, ...]) -> str:
    """Mostly with what is needed, and sometimes not."""
    wanted = [name for name in names if draw(st.integers(0, 9))]
    wanted += draw(st.lists(st.sampled_from(list(PARAMETERS)), max_size=3))
    wanted = draw(st.permutations(wanted)) if draw(st.booleans()) else wanted
    pieces = []
    for name in wanted:
        equals = draw(st.sampled_from(["="] * 20 + ["", "==", "%3d"]))
        pieces.append(f"{name}{equals}{draw(a_value(PARAMETERS[name]))}")
    separator = draw(st.sampled_from(["&", "&", "&", ";", "&&", "&;="]))
    return separator.join(pieces)


@st.composite
def targets(draw: DrawFn, action: str) -> bytes:
    uuid = str(SERVED) if draw(st.integers(0, 9)) else draw(a_value(NAMES))
    version = f"/v{draw(st.sampled_from([*range(5), 4, 4, 4]))}"
    rest = f"/{action}"
    if action == "key":
        version = draw(st.sampled_from([version, version, ""]))
        rest += "/" + draw(a_value(KEYS)).replace("/", "%2F")
    path = f"/git-annex/{uuid}{version}{rest}?{draw(queries(ACTIONS[action].required))}"
    if not draw(st.integers(0, 4)):
        at = draw(st.integers(0, len(path)))
        to = draw(st.integers(at, min(len(path), at + 10)))
        path = path[:at] + escaped(draw(anything)) + path[to:]
    return path.encode()[:60_000] or b"/"


numbers = st.sampled_from(["", "0", "2", "3", "9", "9" * 100, "a", " 1", "-1"])
ranges = st.one_of(
    st.tuples(numbers, numbers).map(lambda ends: f"bytes={ends[0]}-{ends[1]}"),
    st.sampled_from(["bytes=0-0,2-3", "lines=1-2", "bytes", "bytes=-", "", "bytes = 1 - 2"]),
).map(str.encode)
logins = st.one_of(
    st.sampled_from(
        [b"Basic", b"basic ", b"Bearer x", b"Digest a=b", b"Basic " + BOB, b"BASIC\t" + BOB, b"Basic Og==", b""]
    ),
    st.binary(max_size=30).map(lambda secret: b"Basic " + base64.b64encode(secret)),
    st.binary(max_size=30).map(lambda secret: b"Basic " + base64.urlsafe_b64encode(secret).rstrip(b"=")),
    st.binary(max_size=30).map(lambda secret: b"Bearer " + secret),
    anything,
)
more_headers = st.one_of(
    st.tuples(st.just(b"Range"), ranges),
    st.tuples(st.just(b"If-Range"), st.sampled_from([b'"x"', b"Sun, 22 Nov 2026 17:00:00 GMT"])),
    st.tuples(st.just(b"Authorization"), logins),
    st.tuples(st.just(b"Content-Type"), st.sampled_from([b"application/json", b"multipart/form-data", b"/", b""])),
    st.tuples(st.just(b"Content-Encoding"), st.sampled_from([b"gzip", b"br", b"deflate", b"identity", b"x"])),
    st.tuples(st.just(b"Accept"), st.sampled_from([b"text/html", b"*/*;q=0", b""])),
    st.tuples(st.just(b"X-Forwarded-For"), anything),
    st.tuples(st.just(b"Connection"), st.sampled_from([b"close", b"keep-alive", b"Upgrade", b"x"])),
    st.tuples(st.just(b"Upgrade"), st.sampled_from([b"websocket", b"h2c", b"TLS/1.2"])),
    st.tuples(st.just(b"Host"), anything),
    st.tuples(st.sampled_from([b"X", b"Cookie", b"User-Agent", b"X-Annexshell-Scheme"]), anything),
    st.tuples(st.just(b"X-Long"), st.integers(0, 9000).map(lambda size: b"x" * size)),
).map(lambda header: (header[0], header[1].translate(None, b"\r\n\0")))


@st.composite
def requests(draw: DrawFn) -> Asked:
    action = draw(st.sampled_from([*ACTIONS, "put", "key"]))
    method = ACTIONS[action].methods[0].encode()
    if not draw(st.integers(0, 5)):
        method = draw(st.sampled_from(METHODS))
    content = draw(st.sampled_from(CONTENTS) | anything | st.just(b'{"unlock":true}\n'))
    headers = draw(st.lists(more_headers, max_size=3))
    if action == "put" and draw(st.integers(0, 9)):
        length = b"%d" % len(content) if draw(st.booleans()) else draw(st.sampled_from(NUMBERS))
        headers.append((b"X-git-annex-data-length", length))
    body: bytes | list[bytes] | None = content
    match draw(st.integers(0, 5)):
        case 0 | 1:
            at = draw(st.integers(0, len(content)))
            body = [piece for piece in (content[:at], content[at:]) if piece]
        case 2:
            body = None
    if not draw(st.integers(0, 9)):
        headers.append((b"Expect", draw(st.sampled_from([b"100-continue", b"x"]))))
    return Asked(method, draw(targets(action)), headers, body)


# What becomes of it --------------------------------------------


def next_answer(connection: socket.socket, parser: h11.Connection) -> Answer | None:
    """None: it was closed instead. Raises h11.RemoteProtocolError for what is no answer."""
    status, headers, body = 0, {}, b""
    while True:
        match parser.next_event():
            case h11.NEED_DATA:
                try:
                    parser.receive_data(connection.recv(1 << 16))
                except ConnectionResetError:
                    parser.receive_data(b"")  # it did not take what it does not need
            case h11.Response() as response:
                status, headers = response.status_code, dict(response.headers)
            case h11.Data() as data:
                body += data.data
            case h11.EndOfMessage():
                return Answer(status, headers, body)
            case h11.ConnectionClosed():
                return None


def parser_for(method: bytes, *, is_last: bool = False) -> h11.Connection:
    """One that expects the answer to such a request."""
    parser = h11.Connection(h11.CLIENT)
    headers = [("Host", "x"), *([("Connection", "close")] if is_last else [])]
    parser.send(h11.Request(method="HEAD" if method == b"HEAD" else "GET", target="/", headers=headers))
    parser.send(h11.EndOfMessage())
    return parser


def check_answer(answer: Answer) -> None:
    assert answer.status in STATUSES or (answer.status == 500 and answer.body.startswith(b"not enough free space")), (
        answer
    )
    headers = answer.headers
    if answer.status == 405:
        assert headers[b"allow"]
    if answer.status == 401:
        assert headers[b"www-authenticate"] == b'Basic realm="git-annex", charset="UTF-8"'
    if answer.status == 416:
        assert headers[b"content-range"].startswith(b"bytes */")
    if headers.get(b"content-type", b"").startswith(b"application/json"):
        assert answer.status == 200
        assert not answer.body or isinstance(json.loads(answer.body), dict)
    elif answer.status >= 400:
        assert b"Traceback" not in answer.body and b"\n" not in answer.body.rstrip(b"\n")


def files(*directories: Path) -> dict[Path, tuple[int, int, int, int]]:
    """Everything in and below them."""
    found = {}
    for top in directories:
        for where, names, others in os.walk(top):
            for name in (*names, *others):
                path = Path(where, name)
                state = path.lstat()
                found[path] = state.st_ino, state.st_mode, state.st_size, state.st_mtime_ns
    return found


def check_said(errors: str) -> None:
    """Nothing but warnings, as of content that could not be verified."""
    assert all(line.startswith("  ") for line in errors.splitlines()), errors


class Tried:
    """A server to try requests on."""

    def __init__(self, door: Door, place: Place, *, may_change: bool) -> None:
        self.door = door
        self.place = place
        self.may_change = may_change

    def state(self) -> dict[Path, tuple[int, int, int, int]]:
        """What a request could change; where that happens, leaving out what is committed some time later."""
        place = self.place
        if not self.may_change:
            return files(place.directory.parent)
        annex = place.git_dir / "annex"
        return files(annex / "objects", annex / "tmp", annex / "transfer") | {
            path: state
            for path, state in files(place.directory.parent).items()
            if place.git_dir not in path.parents and path != place.git_dir
        }

    def ask(self, asked: Asked) -> None:
        if self.may_change and self.place.object(HELLO) is None:
            self.place.store(HELLO, b"hello\n")
        before = self.state()
        with self.door.socket() as connection:
            try:
                connection.sendall(asked.raw)
            except ConnectionError:
                pass  # it has been refused, and the answer may be lost with the rest
            parser = parser_for(asked.method)
            answer = next_answer(connection, parser)
            if answer is None:
                assert len(asked.raw) > 50_000
                return
            check_answer(answer)
            if answer.status >= 400 or not self.may_change:
                assert self.state() == before, answer
            if parser.their_state is h11.DONE and parser.our_state is h11.DONE and not self._is_closed(connection):
                connection.sendall(Asked(b"POST", target("gettimestamp").encode(), [], b"").raw)
                after = next_answer(connection, parser_for(b"POST"))
                assert after is None or after.status in (200, 401), after
                assert after is not None or b"connection" in answer.headers or len(asked.raw) > 50_000

    @staticmethod
    def _is_closed(connection: socket.socket) -> bool:
        return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(1, socket.MSG_PEEK)


@pytest.fixture(scope="module", params=["wideopen", "readonly"])
def tried(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tried]:
    place = Place(tmp_path_factory.mktemp(request.param) / "served", bare=request.param == "readonly")
    place.store(HELLO, b"hello\n")
    place.store(EMPTY, b"")
    options: dict[str, Any] = {"wideopen": True}
    if request.param == "readonly":
        options = {"unauth_readonly": True, "unauth_nolocking": True, "authenv_http": True, "environ": USERS}
    with Door(place, limits=Limits(grace=1.0, lockedfiles=20), **options) as door:
        door.get(HELLO)
        yield Tried(door, place, may_change=request.param == "wideopen")


def tries(pytestconfig: pytest.Config, factor: int) -> settings:
    suppressed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    number = factor * pytestconfig.getoption("--fuzz")
    return settings(max_examples=number, deadline=None, suppress_health_check=suppressed)


def test_requests_that_are_well_formed(
    tried: Tried, capfd: pytest.CaptureFixture[str], pytestconfig: pytest.Config
) -> None:
    @tries(pytestconfig, 5)
    @given(requests())
    def check(asked: Asked) -> None:
        note(repr(asked.raw))
        tried.ask(asked)
        check_said(capfd.readouterr().err)

    check()


@st.composite
def mutilated(draw: DrawFn) -> list[bytes]:
    """What was a request, in the pieces that it is sent in."""
    data = draw(requests()).raw[:3000]
    if draw(st.booleans()):
        data += draw(requests()).raw[:3000]
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, min(len(data), 400)))
        cut = draw(st.sampled_from([0, 0, 1, 2, 10, 100]))
        new = draw(
            anything
            | st.sampled_from(
                [b"\r\n", b"\n", b"\r\n\r\n", b"\0", b" ", b":", b"0\r\n\r\n", b"\r\nContent-Length: 3"]
            )
            | st.sampled_from([b"\r\nTransfer-Encoding: chunked", b"\r\n Folded: x", b"HTTP/0.9", b"\xff" * 9000])
        )
        data = data[:at] + new + data[at + cut :]
    at = draw(st.integers(0, len(data)))
    return [data[:at], data[at:]]


def test_what_may_be_no_request(tried: Tried, capfd: pytest.CaptureFixture[str], pytestconfig: pytest.Config) -> None:
    @tries(pytestconfig, 2)
    @given(mutilated())
    def check(pieces: list[bytes]) -> None:
        note(repr(pieces))
        before = {} if tried.may_change else tried.state()
        for answer in answers_to(tried.door, pieces):
            assert answer.status in STATUSES | {100}, answer
        assert tried.may_change or tried.state() == before
        check_said(capfd.readouterr().err)

    check()
    assert tried.door.post("gettimestamp").status == 200


def answers_to(door: Door, pieces: list[bytes]) -> list[Answer]:
    """Those that are there in a moment; what is not complete is not waited for."""
    received = b""
    with door.socket() as connection:
        try:
            for piece in pieces:
                connection.sendall(piece)
            while select.select([connection], [], [], 0.02)[0] and (piece := connection.recv(1 << 16)):
                received += piece
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(DEADLINE)
            while piece := connection.recv(1 << 16):
                received += piece
        except OSError as reason:
            assert not isinstance(reason, TimeoutError)
    return parse(received)


def parse(received: bytes) -> list[Answer]:
    """The answers, to requests of which nobody knows what they were, so that bodies may be missing."""
    found = []
    while received:
        head, end, rest = received.partition(b"\r\n\r\n")
        assert end, received
        parser = parser_for(b"HEAD")
        parser.receive_data(head + end)
        event = parser.next_event()
        if isinstance(event, h11.InformationalResponse):
            found.append(Answer(event.status_code, {}, b""))
            received = rest
            continue
        assert isinstance(event, h11.Response)
        headers = dict(event.headers)
        length = int(headers.get(b"content-length", b"0"))
        found.append(Answer(event.status_code, headers, rest[:length]))
        received = rest if rest.startswith(b"HTTP/1.") else rest[length:]
    return found


# Our own client --------------------------------------------


names = st.binary(min_size=1, max_size=30).filter(lambda name: not set(name) & set(b"\0\n") and name[-1:] != b"\r")


@st.composite
def keys_with_content(draw: DrawFn) -> tuple[Key, bytes]:
    content = draw(st.binary(max_size=50))
    if draw(st.booleans()):
        return key_of(content, draw(st.sampled_from(["SHA256", "X"]))), content
    size = f"-s{len(content)}" if draw(st.booleans()) else ""
    return Key(f"{draw(st.sampled_from(['WORM', 'URL']))}{size}--".encode() + draw(names)), content


@pytest.mark.parametrize("version", range(5))
def test_our_own_client_is_understood(
    gateway: Gateway, door: Door, place: Place, version: int, pytestconfig: pytest.Config
) -> None:
    location = AnnexHttp(door.url.encode())
    remote = Remote(Config({}), b"node", location, 100.0, read_uuid=lambda: SERVED)
    client = open_http(gateway.repo, remote, SERVED, version, Patience(10, 10))
    assert client.protocol_version == version

    def read(key: Key, offset: int, file: bytes | None) -> bytes:
        pieces: list[bytes] = []
        with client.get(key, offset, file) as found:
            to_callable(found.source, found.length, lambda view: pieces.append(bytes(view)))
            assert found.still_valid()
        return b"".join(pieces)

    @tries(pytestconfig, 1)
    @given(keys_with_content(), st.none() | names, st.integers(0, 60))
    def check(stored: tuple[Key, bytes], file: bytes | None, offset: int) -> None:
        key, content = stored
        assert not client.checkpresent(key)
        with client.put(key, file) as upload:
            assert isinstance(upload, Upload)
            assert upload.receive(len(content), BytesSource(content), lambda: True)
        assert place.content(key) == content
        assert client.checkpresent(key)
        assert isinstance(client.put(key, file), AlreadyHave)
        assert read(key, offset, file) == content[offset:]
        with client.lockcontent(key):
            assert not client.remove(key)
        if version >= 3:
            assert not client.remove(key, 0)
            assert client.remove(key, client.gettimestamp() + 100)
        else:
            assert client.remove(key)
        assert place.object(key) is None

    with closing(client):
        check()
