"""The client against servers that say anything, and do worse."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell.errors import (
    AnnexshellError,
    Hangup,
    NotLocked,
    NotPresent,
    PeerError,
    RemoteUnavailable,
    TransferRefused,
)
from annexshell.http.client import HttpRepository
from annexshell.key import Key
from annexshell.relay import BytesSource, ShortSource, Source, to_callable
from annexshell.remotes.patience import Patience
from annexshell.repository import AlreadyHave, Outcome
from annexshell.termination import Terminated, Termination
from annexshell.uuid import UUID
from tests.http import scripted
from tests.http.scripted import OWN, TARGET, Gateway, Request, Server, as_json, chunked, content, ok, status, zipped

KEY = Key(b"SHA256-s5--key")
WORM = Key(b"WORM--some/key+&")
OTHER = UUID(b"33333333-3333-4333-8333-333333333333")


@pytest.fixture
def opened(gateway: Gateway) -> Iterator[Callable[..., tuple[HttpRepository, Server]]]:
    """Opens the repository of a server with these answers."""
    everything: list[Any] = []

    def open_it(highest: int = 4, patience: Patience | None = None, **answers: Any) -> tuple[HttpRepository, Server]:
        server = Server(**answers)
        server.__enter__()
        everything.append(server)
        remote = gateway.open(server, highest, patience)
        everything.append(remote)
        server.requests.clear()
        return remote, server

    yield open_it
    for one in reversed(everything):
        one.close() if isinstance(one, HttpRepository) else one.stop()


Open = Callable[..., tuple[HttpRepository, Server]]


def read(remote: HttpRepository, offset: int = 0, key: Key = KEY) -> bytes:
    data = bytearray()
    with remote.get(key, offset, None) as content:
        to_callable(content.source, content.length, data.extend)
        assert content.still_valid()
    return bytes(data)


def put(remote: HttpRepository, data: bytes = b"hello", validity: bool | None = True) -> Outcome:
    with remote.put(KEY, b"a file") as upload:
        assert not isinstance(upload, AlreadyHave)
        return upload.receive(len(data), BytesSource(data), lambda: validity)


def lock(remote: HttpRepository) -> None:
    with remote.lockcontent(KEY):
        pass


# Opening.


def test_requests_are_written_as_git_annex_writes_them(opened: Open) -> None:
    remote, server = opened(
        key=content(b"hello"),
        putoffset=ok(offset=0, plusuuids=[]),
        put=ok(stored=True, plusuuids=[]),
        lockcontent=ok(locked=True, lockid="some id"),
        keeplocked=ok(locked=False),
        remove=ok(removed=True, plusuuids=[]),
        gettimestamp=ok(timestamp=1394),
        **{"remove-before": ok(removed=False, plusuuids=[])},
    )
    assert (remote.uuid, remote.protocol_version, remote.usable) == (TARGET, 4, True)
    assert remote.checkpresent(WORM)
    assert read(remote, 2, WORM) == b"hello"
    assert put(remote)
    lock(remote)
    assert remote.remove(KEY)
    assert not remote.remove(KEY, before=1400)
    assert remote.gettimestamp() == 1394
    base = f"/git-annex/{TARGET}/v4"
    me = f"clientuuid={OWN}"
    assert [(request.method, request.target) for request in server.requests] == [
        ("POST", f"{base}/checkpresent?key=WORM--some%2Fkey%2B%26&{me}"),
        ("GET", f"{base}/key/WORM--some%2Fkey%2B%26?{me}&offset=2"),
        ("POST", f"{base}/putoffset?key={KEY}&{me}"),
        ("POST", f"{base}/put?key={KEY}&offset=0&associatedfile=a%20file&{me}"),
        ("POST", f"{base}/lockcontent?key={KEY}&{me}"),
        ("POST", f"{base}/keeplocked?lockid=some%20id&{me}"),
        ("POST", f"{base}/remove?key={KEY}&{me}"),
        ("POST", f"{base}/remove-before?key={KEY}&timestamp=1400&{me}"),
        ("POST", f"{base}/gettimestamp?{me}"),
    ]
    assert server.requests[3].headers["x-git-annex-data-length"] == "5"
    assert server.requests[3].body == b"hello"
    assert {request.headers["host"] for request in server.requests} == {f"localhost:{server.port}"}
    assert all("authorization" not in request.headers for request in server.requests)
    # All of that over the connection with which it was opened.
    assert server.connections == 1


@pytest.mark.parametrize("knows", range(5))
@pytest.mark.parametrize(
    "refusal", [status(404), status(400, "bad version"), status(404, "<p>", "Content-Type: text/html")]
)
def test_the_version_that_both_know(opened: Open, knows: int, refusal: bytes) -> None:
    def answer(request: Request) -> bytes:
        return ok(present=False) if request.version in [f"v{n}" for n in range(knows + 1)] else refusal

    remote, _ = opened(checkpresent=answer)
    assert remote.protocol_version == knows
    remote, server = opened(3, checkpresent=answer)
    assert remote.protocol_version == min(3, knows)
    remote.checkpresent(KEY)
    assert [request.version for request in server.requests] == [f"v{min(3, knows)}"]


@pytest.mark.parametrize(
    "answer, complaint",
    [
        (status(404), f"does not serve repository {TARGET}"),
        (status(400, "Query parameter key is required"), "HTTP status 400: Query parameter key is required"),
        (status(403), "HTTP status 403"),
        (status(500, "\nno disk\x1b\nmore"), r"HTTP status 500: no disk\?$"),
        (status(503, "x" * 5000), "HTTP status 503$"),
        (scripted.raw(502, b"<html>no", "Content-Type: text/html"), "HTTP status 502$"),
        (status(201), "HTTP status 201"),
        (scripted.raw(200, b"<html>", "Content-Type: text/html"), "something else than git-annex's HTTP server"),
        (scripted.raw(200, b'{"present":true}'), "not JSON"),
        (as_json(b'{"present":tru'), "not JSON"),
        (as_json(b"\xff\xfe\xff"), "not JSON"),
        (as_json(b"[" * 100000), "not JSON"),
        (as_json(b"[]"), "not a JSON object"),
        (as_json(b"{}"), "without a usable 'present'"),
        (ok(present=1), "without a usable 'present'"),
        (as_json(b" " * 300000), "too long"),
        (as_json(b"not gzip", "Content-Encoding: gzip"), "not gzip"),
        (as_json(b"{}", "Content-Encoding: br"), "encoding that was not asked for"),
        (b"", "lost the connection"),
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP"),
        (b"HTTP/1.1 abc\r\n\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n"
         b"Content-Type: application/json\r\n\r\n{", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
         b"Content-Type: application/json\r\n\r\nzz\r\n", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", "not HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100000 + b"\r\n\r\n", "not HTTP"),
        (status(301, "", "Location: ftp://h/"), "redirects checkpresent to a wrong place"),
        (status(302), "redirects checkpresent to a wrong place"),
        (lambda request: status(307, "", f"Location: {request.target}"), "redirects checkpresent too often"),
    ],
)  # fmt: skip
def test_what_is_no_server_for_us(opened: Open, answer: Any, complaint: str) -> None:
    with pytest.raises(RemoteUnavailable, match=complaint):
        opened(checkpresent=answer)


def test_nobody_listens(gateway: Gateway) -> None:
    with Server() as server:
        pass
    with pytest.raises(RemoteUnavailable, match=rf"cannot connect to annex\+http://localhost:{server.port}/: "):
        gateway.open(server, user="me:secret@")
    with pytest.raises(RemoteUnavailable, match="cannot connect to"):
        gateway.open(server, url=b"annex+http://nosuchhost.invalid/")
    with pytest.raises(RemoteUnavailable, match="not a url of the form"):
        gateway.open(server, url=b"annex+http://a:secret@/")


def test_opening_takes_no_longer_than_there_is_patience(gateway: Gateway) -> None:
    def slowly(request: Request) -> bytes:
        time.sleep(0.2)
        return status(404)

    for answer in (None, slowly):
        with Server(checkpresent=answer) as server:
            begun = time.monotonic()
            with pytest.raises(RemoteUnavailable, match="it did not answer in time"):
                gateway.open(server, patience=Patience(0.5, None))
            assert 0.4 < time.monotonic() - begun < 5


def test_an_answer_that_comes_bit_by_bit_is_not_waited_for_longer(gateway: Gateway) -> None:
    listener = socket.create_server(("127.0.0.1", 0))

    def drip() -> None:
        client, _ = listener.accept()
        with client:
            try:
                for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 50:
                    client.send(bytes([byte]))
                    time.sleep(0.1)
            except OSError:
                pass

    thread = threading.Thread(target=drip)
    thread.start()
    with listener, Server() as server:
        begun = time.monotonic()
        with pytest.raises(RemoteUnavailable, match="it did not answer in time"):
            gateway.open(
                server, url=b"annex+http://127.0.0.1:%d/" % listener.getsockname()[1], patience=Patience(0.5)
            )
        assert time.monotonic() - begun < 5
    thread.join()


# Small requests.


def test_answers(opened: Open) -> None:
    plus = [str(OTHER), "[_w]"]
    remote, _server = opened(
        remove=ok(removed=True, plusuuids=plus),
        putoffset=zipped(alreadyhave=True, plusuuids=plus),
        gettimestamp=ok(timestamp=2**62, extra=[1]),
        **{"remove-before": ok(removed=False)},
    )
    outcome = remote.remove(KEY)
    assert (outcome.done, outcome.uuids) == (True, (OTHER, b"\xff"))
    outcome = remote.remove(KEY, before=0)
    assert (outcome.done, outcome.uuids) == (False, ())
    there = remote.put(KEY, None)
    assert isinstance(there, AlreadyHave) and there.uuids == (OTHER, b"\xff")
    assert remote.gettimestamp() == 2**62


@pytest.mark.parametrize(
    "plusuuids", ["x", [1], ["a b"], ["a\nSUCCESS"], [""], ["a\0b"], ["[!]"], {"a": 1}, [["a"]], None, 7]
)
def test_uuids_that_are_none(opened: Open, plusuuids: Any) -> None:
    remote, _ = opened(remove=ok(removed=True, plusuuids=plusuuids))
    if plusuuids in ("x", {"a": 1}):
        remote.remove(KEY)  # "x" is as good as ["x"]
    else:
        with pytest.raises(PeerError, match="without usable 'plusuuids'"):
            remote.remove(KEY)


@pytest.mark.parametrize("timestamp", [-1, 1.5, "5", True, None, 2**63])
def test_timestamps_that_are_none(opened: Open, timestamp: Any) -> None:
    remote, _ = opened(gettimestamp=ok(timestamp=timestamp))
    with pytest.raises(PeerError, match="without a usable 'timestamp'"):
        remote.gettimestamp()


FIELDS = ["present", "removed", "stored", "offset", "alreadyhave", "plusuuids", "locked", "lockid", "timestamp"]
ASKING = {
    "checkpresent": lambda remote: remote.checkpresent(KEY),
    "remove": lambda remote: remote.remove(KEY),
    "remove-before": lambda remote: remote.remove(KEY, before=5),
    "gettimestamp": lambda remote: remote.gettimestamp(),
    "putoffset": lambda remote: remote.put(KEY, None),
    "put": put,
    "key": read,
    "lockcontent": lock,
}
GOOD = {
    "checkpresent": ok(present=True),
    "remove": ok(removed=True),
    "remove-before": ok(removed=True),
    "gettimestamp": ok(timestamp=1),
    "putoffset": ok(offset=0),
    "put": ok(stored=True),
    "key": content(b"hello"),
    "lockcontent": ok(locked=True, lockid="id"),
    "keeplocked": ok(locked=False),
}


@pytest.mark.parametrize("action", ASKING)
@pytest.mark.parametrize("failure", ["status", "hangs", "hangs up", "nonsense", "half"])
def test_a_request_that_fails_does_not_harm_the_next(opened: Open, action: str, failure: str) -> None:
    headers = "Content-Type: application/json", "X-git-annex-data-length: 50", "Connection: close"
    half = scripted.raw(200, b"{" + b" " * 49, *headers)[:-40]
    answer, expected = {
        "status": (status(500, "Something went wrong"), "HTTP status 500: Something went wrong"),
        "hangs": (None, "did not answer in time"),
        "hangs up": (b"", "lost the connection"),
        "nonsense": (b"\0" * 100 + b"\r\n", "not HTTP"),
        "half": (half, "in the middle of its answer"),
    }[failure]
    remote, server = opened(patience=Patience(5, 0.5), **GOOD)
    server.answers[action] = answer
    kinds = (PeerError, RemoteUnavailable, TransferRefused, NotLocked)
    with pytest.raises(kinds, match=expected) as caught:
        ASKING[action](remote)
    if failure in ("hangs", "hangs up"):
        assert isinstance(caught.value, RemoteUnavailable)
    server.answers[action] = GOOD[action]
    assert remote.usable
    ASKING[action](remote)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    action=st.sampled_from(sorted(GOOD)),
    answer=st.one_of(
        st.binary(),
        st.builds(as_json, st.binary(max_size=50)),
        st.builds(lambda body, length: content(body, length), st.binary(max_size=9), st.integers(-1, 9)),
        st.builds(lambda fields: ok(**fields), st.dictionaries(
            st.sampled_from(FIELDS),
            st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s, max_size=2)),
        )),
    ),
)  # fmt: skip
def test_anything_can_be_answered(opened: Open, action: str, answer: bytes) -> None:
    remote, server = opened(patience=Patience(5, 0.3), **GOOD)
    server.answers[action] = lambda request: request.body[:0] + answer + b"\r\nConnection: close"
    for ask in ASKING.values():
        try:
            ask(remote)
        except (AnnexshellError, AssertionError):
            pass


def test_an_idle_connection_that_was_closed(opened: Open) -> None:
    remote, server = opened(**GOOD)
    for ask in (put, read, lock, lambda remote: remote.checkpresent(KEY)):
        server.hang_up()
        time.sleep(0.02)
        ask(remote)
    # One that is closed only when the request arrives.
    tries = []

    def hang_up_once(request: Request) -> bytes:
        tries.append(request)
        return b"" if len(tries) == 1 else ok(present=True)

    server.answers["checkpresent"] = hang_up_once
    assert remote.checkpresent(KEY)
    assert len(tries) == 2


@pytest.mark.parametrize("extra", [ok(present=False), b"\0", b"x" * 100_000])
def test_what_a_server_says_unasked_is_not_taken_for_an_answer(opened: Open, extra: bytes) -> None:
    remote, _server = opened(checkpresent=ok(present=True) + extra)
    for _ in range(3):
        assert remote.checkpresent(KEY)
        time.sleep(0.02)


def test_redirects_are_followed_and_remembered_for_what_cannot_be_sent_twice(gateway: Gateway) -> None:
    with Server(**GOOD) as there:

        def redirect(request: Request) -> bytes:
            return status(301, "", f"Location: http://localhost:{there.port}/below{request.target}")

        with Server(checkpresent=redirect) as here:
            remote = gateway.open(here)
            assert put(remote) and read(remote) == b"hello"
            assert here.actions == ["checkpresent"]
            assert there.requests[-1].path.startswith("/below/git-annex/")
            remote.close()


def test_a_redirect_of_one_request_only(opened: Open) -> None:
    def answer(request: Request) -> bytes:
        return ok(present=True) if request.path == "/else/where" else status(307, "", "Location: /else/where?x=%2F")

    remote, server = opened()
    server.answers.update(checkpresent=answer, where=answer)
    assert remote.checkpresent(KEY)
    assert server.requests[-1].target == "/else/where?x=%2F"
    assert server.requests[-1].method == "POST"
    server.answers["checkpresent"] = ok(present=False)
    assert not remote.checkpresent(KEY)


def test_closed(opened: Open) -> None:
    remote, _server = opened()
    remote.close()
    remote.close()
    assert not remote.usable
    with pytest.raises(RemoteUnavailable, match="was closed"):
        remote.checkpresent(KEY)


# Content from there.


@pytest.mark.parametrize("size", [1, 5, 100_000, 3_000_000])
@pytest.mark.parametrize("framing", ["length", "chunks", "close"])
def test_content(opened: Open, size: int, framing: str) -> None:
    data = os.urandom(size)
    length = f"X-git-annex-data-length: {size}"
    pieces = [data[i : i + 32752] for i in range(0, size, 32752)]
    answer = {
        "length": content(data),
        "chunks": chunked(*pieces, headers=(length,)),
        "close": f"HTTP/1.0 200 OK\r\n{length}\r\nConnection: close\r\n\r\n".encode() + data,
    }[framing]
    remote, server = opened(key=answer)
    assert read(remote) == data
    assert read(remote) == data
    assert server.connections == (2 if framing == "close" else 1)


@pytest.mark.parametrize("version", [0, 4])
@pytest.mark.parametrize(
    "answer",
    [
        content(b"hell", 5),
        content(b"hell", 5, "Connection: close"),
        chunked(b"hell", headers=("X-git-annex-data-length: 5",)),
        chunked(b"he", b"ll", headers=("X-git-annex-data-length: 5", "Connection: close"), end=b""),
        b"HTTP/1.0 200 OK\r\nX-git-annex-data-length: 5\r\nConnection: close\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-git-annex-data-length: 5\r\nConnection: close\r\n\r\nhell",
    ],
)
def test_content_that_is_cut_short(opened: Open, answer: bytes, version: int) -> None:
    """That is how a server says that it changed."""
    remote, _server = opened(version, key=answer)
    with remote.get(KEY, 0, None) as short:
        assert short.length == 5
        with pytest.raises(RemoteUnavailable):
            to_callable(short.source, 5, lambda view: None)
        assert not short.still_valid()
    assert remote.checkpresent(KEY)


@pytest.mark.parametrize(
    "answer",
    [
        content(b"hello!!!", 5),
        chunked(b"hello", b"!!!", headers=("X-git-annex-data-length: 5",)),
        chunked(b"hello!!!", headers=("X-git-annex-data-length: 5",)),
    ],
)
def test_more_content_than_announced(opened: Open, answer: bytes) -> None:
    remote, server = opened(key=answer)
    with remote.get(KEY, 0, None) as long:
        data = bytearray()
        to_callable(long.source, 5, data.extend)
        assert data == b"hello"
        assert not long.still_valid()
    connections = server.connections
    assert remote.checkpresent(KEY)
    assert server.connections == connections + 1  # not over the rest of the content


def test_content_whose_end_does_not_come(opened: Open) -> None:
    answer = chunked(b"hello", headers=("X-git-annex-data-length: 5",), end=b"")
    remote, _ = opened(patience=Patience(5, 0.3), key=answer)
    with remote.get(KEY, 0, None) as endless:
        to_callable(endless.source, 5, lambda view: None)
        with pytest.raises(RemoteUnavailable, match="in time"):
            endless.still_valid()


def test_content_that_stops_coming(opened: Open) -> None:
    answer = chunked(b"he", headers=("X-git-annex-data-length: 5",), end=b"")
    remote, _ = opened(patience=Patience(5, 0.3), key=answer)
    with remote.get(KEY, 0, None) as stalled, pytest.raises(RemoteUnavailable, match="in time"):
        to_callable(stalled.source, 5, lambda view: None)


def test_content_that_is_not_read_to_its_end(opened: Open) -> None:
    remote, server = opened(key=content(b"hello" * 100_000))
    for _ in range(3):
        with remote.get(KEY, 0, None) as content_:
            content_.source.readinto(memoryview(bytearray(10)))
    assert remote.checkpresent(KEY)
    assert server.connections == 4


def test_absent_content(opened: Open) -> None:
    remote, server = opened(key=status(404))
    with pytest.raises(NotPresent):
        remote.get(KEY, 0, None)
    # As git-annex's server says it.
    server.answers.update(key=content(b""), checkpresent=ok(present=False))
    with pytest.raises(NotPresent):
        remote.get(WORM, 0, None)
    with pytest.raises(NotPresent):
        remote.get(KEY, 5, None)
    assert server.actions == ["key", "key", "checkpresent", "key", "checkpresent"]
    server.answers["checkpresent"] = status(500)
    with pytest.raises(PeerError):
        remote.get(WORM, 0, None)


def test_empty_content(opened: Open) -> None:
    remote, server = opened(key=content(b""))
    assert read(remote, 0, WORM) == b""
    answers = iter([content(b""), content(b"hello")])
    server.answers["key"] = lambda request: next(answers)
    assert read(remote, 0, WORM) == b"hello"  # it has just come
    assert server.connections == 1


@pytest.mark.parametrize("length", ["", "-1", "x", "1.5", "+5", "\u0665", "9" * 19, "5, 5"])
def test_content_without_a_length(opened: Open, length: str) -> None:
    answer = scripted.raw(200, b"hello", f"X-git-annex-data-length: {length}")
    remote, _ = opened(key=answer)
    with pytest.raises(PeerError, match="does not tell its length"):
        remote.get(KEY, 0, None)


def test_zipped_content_is_not_taken_for_content(opened: Open) -> None:
    remote, _ = opened(key=content(b"hello", 5, "Content-Encoding: gzip"))
    with pytest.raises(PeerError, match="encoding"):
        remote.get(KEY, 0, None)


# Content to there.


class Slow(Source):
    """Bytes of which a test is asked for each piece."""

    def __init__(self, *pieces: bytes | Callable[[], bytes]) -> None:
        self._pieces = list(pieces)
        self.left = b""

    def readinto(self, view: memoryview) -> int:
        if not self.left and self._pieces:
            piece = self._pieces.pop(0)
            self.left = piece() if callable(piece) else piece
        count = min(len(self.left), len(view))
        view[:count] = self.left[:count]
        self.left = self.left[count:]
        return count


def test_the_offset_is_the_servers(opened: Open) -> None:
    remote, server = opened(putoffset=ok(offset=3), put=ok(stored=True, plusuuids=[str(OTHER)]))
    with remote.put(KEY, None) as upload:
        assert upload.offset == 3
        outcome = upload.receive(2, BytesSource(b"lo"), lambda: None)
    assert (outcome.done, outcome.uuids) == (True, (OTHER,))
    assert server.requests[-1].query["offset"] == "3"
    assert server.requests[-1].headers["x-git-annex-data-length"] == "2"
    assert server.requests[-1].body == b"lo"


@pytest.mark.parametrize("version", range(5))
def test_a_server_without_putoffset(opened: Open, version: int) -> None:
    remote, server = opened(version, putoffset=status(404), put=ok(stored=False))
    assert not put(remote)
    assert server.requests[-1].version == f"v{version}"
    assert server.requests[-1].body == b"hello"


def test_an_upload_that_is_refused(opened: Open) -> None:
    remote, _ = opened(putoffset=status(500, "transfer already in progress"))
    with pytest.raises(TransferRefused, match="transfer already in progress"):
        remote.put(KEY, None)


def test_a_partial_upload_larger_than_the_content_is_got_rid_of(opened: Open) -> None:
    remote, server = opened(putoffset=ok(offset=6), put=ok(stored=False))
    assert not put(remote)
    assert [(r.action, r.query.get("offset"), r.body) for r in server.requests] == [
        ("putoffset", None, b""),
        ("put", "6", b""),
        ("put", "0", b"hello"),
    ]


@pytest.mark.parametrize("size", [1, 5, 1_000_000])
def test_invalid_content_lacks_its_last_byte(opened: Open, size: int) -> None:
    got: list[bytes] = []
    ended = threading.Event()

    def take(request: Request) -> bytes:
        got.append(request.body)
        ended.set()
        return b""

    remote, _server = opened(putoffset=ok(offset=0), put=take)
    assert not put(remote, b"x" * size, False)
    assert ended.wait(5)
    assert len(got[0]) == size - 1


def test_nothing_at_all_and_that_invalid_is_not_told(opened: Open) -> None:
    remote, server = opened(putoffset=ok(offset=0))
    assert not put(remote, b"", False)
    assert server.actions == ["putoffset"]
    server.answers["put"] = ok(stored=True)
    assert put(remote, b"", True)
    assert server.requests[-1].headers["content-length"] == "0"


def test_validity_is_asked_after_the_last_byte_and_before_it_is_sent(opened: Open) -> None:
    got: list[bytes] = []

    def take(request: Request) -> bytes:
        got.append(request._stream.read(4))
        asked.wait(5)
        got.append(request._stream.read(1))
        return ok(stored=True)

    asked = threading.Event()
    source = Slow(b"he", b"llo")

    def validity() -> bool:
        deadline = time.monotonic() + 5
        while got != [b"hell"] and time.monotonic() < deadline:
            time.sleep(0.01)
        assert (source.left, got) == (b"", [b"hell"])
        asked.set()
        return True

    remote, _ = opened(putoffset=ok(offset=0), put=take)
    with remote.put(KEY, None) as upload:
        assert upload.receive(5, source, validity)
    assert got == [b"hell", b"o"]


@pytest.mark.parametrize("source", [b"", b"hell"])
def test_a_sender_who_hangs_up(opened: Open, source: bytes) -> None:
    got: list[bytes] = []
    remote, _server = opened(putoffset=ok(offset=0), put=lambda request: got.append(request.body) or b"")
    with remote.put(KEY, None) as upload, pytest.raises(ShortSource):
        upload.receive(5, BytesSource(source), lambda: pytest.fail("asked for validity"))
    assert remote.checkpresent(KEY)
    assert got in ([source], [])


def test_an_upload_that_is_not_begun(opened: Open) -> None:
    remote, server = opened(putoffset=ok(offset=0))
    with remote.put(KEY, None):
        pass
    assert server.actions == ["putoffset"]


BIG = 20_000_000  # more than the buffers in between hold


@pytest.mark.parametrize("closing", ["", "Connection: close"])
@pytest.mark.parametrize("validity", [True, False])
def test_a_server_that_has_it_and_reads_no_more(opened: Open, closing: str, validity: bool) -> None:
    """git-annex's does so, and its own client then fails."""
    answer = as_json(b'{"stored":true}', *([closing] if closing else []))
    remote, server = opened(putoffset=ok(offset=0))
    server.answers["put"] = lambda request: answer
    source = BytesSource(bytes(BIG))
    with remote.put(Key(b"WORM-s20000000--x"), None) as upload:
        assert upload.receive(BIG, source, lambda: validity).done == validity
    assert source.readinto(memoryview(bytearray(1))) == 0  # the sender was heard to the end
    assert remote.checkpresent(KEY)


@pytest.mark.parametrize("code", [401, 403, 404, 500, 307])
def test_a_server_that_refuses_while_content_is_sent(opened: Open, code: int) -> None:
    remote, server = opened(putoffset=ok(offset=0))
    server.answers["put"] = lambda request: status(code, "no more", "Connection: close")
    with remote.put(KEY, None) as upload, pytest.raises(PeerError, match=f"put failed with HTTP status {code}"):
        upload.receive(BIG, BytesSource(bytes(BIG)), lambda: True)
    assert remote.checkpresent(KEY)


def test_a_server_that_hangs_up_while_content_is_sent(opened: Open) -> None:
    remote, _server = opened(putoffset=ok(offset=0), put=b"")
    with remote.put(KEY, None) as upload, pytest.raises(RemoteUnavailable, match="lost the connection"):
        upload.receive(BIG, BytesSource(bytes(BIG)), lambda: True)


def test_a_server_that_reads_nothing(opened: Open) -> None:
    remote, _server = opened(patience=Patience(5, 0.3), putoffset=ok(offset=0), put=None)
    with remote.put(KEY, None) as upload, pytest.raises(RemoteUnavailable, match="in time"):
        upload.receive(BIG, BytesSource(bytes(BIG)), lambda: True)


def test_data_present(opened: Open) -> None:
    remote, server = opened(putoffset=ok(offset=0), put=ok(stored=True))
    with remote.put(KEY, b"a file") as upload:
        assert upload.check_stored()
    assert server.requests[-1].query["data-present"] == "true"
    assert server.requests[-1].headers["x-git-annex-data-length"] == "0"
    assert server.requests[-1].body == b""
    remote, server = opened(3, putoffset=ok(offset=0), put=ok(stored=True))
    with remote.put(KEY, None) as upload:
        assert not upload.check_stored()
    assert server.actions == ["putoffset"]


# Waiting.


@pytest.mark.parametrize("action", ASKING)
def test_nobody_waits_for_a_client_that_is_gone(opened: Open, action: str) -> None:
    ours, theirs = os.pipe()
    remote, server = opened(patience=Patience(5, None, for_whom=theirs), **GOOD)
    server.answers[action] = None
    timer = threading.Timer(0.2, os.close, [ours])
    timer.start()
    with pytest.raises(Hangup, match="the client is gone"):
        ASKING[action](remote)
    timer.join()
    os.close(theirs)


def test_a_signal_ends_the_waiting(opened: Open) -> None:
    termination = Termination()

    def handle(*_: object) -> None:
        if termination.waiting:
            raise Terminated

    before = signal.signal(signal.SIGUSR1, handle)
    remote, server = opened(patience=Patience(5, None, termination=termination), **GOOD)
    server.answers["checkpresent"] = None
    timer = threading.Timer(0.2, os.kill, [os.getpid(), signal.SIGUSR1])
    timer.start()
    try:
        with pytest.raises(Terminated):
            remote.checkpresent(KEY)
    finally:
        signal.signal(signal.SIGUSR1, before)
    timer.join()
    assert not termination.waiting
    assert remote.gettimestamp() == 1


def test_threads(opened: Open) -> None:
    """Each has a connection of its own while it needs one."""
    remote, server = opened(key=content(b"hello" * 100_000))
    failures: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(5):
                assert read(remote) == b"hello" * 100_000
                assert remote.checkpresent(KEY)
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert server.connections <= 5


@pytest.mark.parametrize("highest", [1, 2, 4])
def test_gateways_that_are_not_to_be_asked_again(opened: Open, highest: int) -> None:
    """They are named in all requests, as these have nothing else to do with each other."""
    remote, server = opened(
        highest, key=content(b"12345"), put=ok(stored=True), putoffset=ok(offset=0), remove=ok(removed=True)
    )
    remote.bypass([OTHER, UUID(b"a"), OTHER])
    remote.checkpresent(KEY)
    remote.remove(KEY)
    with remote.get(KEY, 0, None):
        pass
    with remote.put(KEY, None) as upload:
        upload.receive(5, BytesSource(b"12345"), lambda: True)  # type: ignore[union-attr]
    assert [request.action for request in server.requests] == ["checkpresent", "remove", "key", "putoffset", "put"]
    named = "&bypass=33333333-3333-4333-8333-333333333333&bypass=a"
    for request in server.requests:
        assert (named in request.target) is (highest >= 2)
        assert ("bypass" in request.target) is (highest >= 2)
