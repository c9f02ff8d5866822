"""What a trace tells of a conversation, and that the conversation is the same with it."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell import relay
from annexshell.p2p import messages as m
from annexshell.p2p import trace as tracing
from annexshell.p2p.trace import CLIENT, PROXY, REMOTE, Trace
from annexshell.p2p.wire import Connection
from annexshell.relay import BytesSource, FileSource

LARGE = 3 << 20


class Link:
    """A traced connection to the client, and what is at its other end."""

    def __init__(self, trace: Trace) -> None:
        self.read_fd, self.peer_write = os.pipe()
        self.peer_read, self.write_fd = os.pipe()
        self.connection = trace.connections_to(CLIENT)(self.read_fd, self.write_fd)
        self.taken = bytearray()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while piece := os.read(self.peer_read, 1 << 16):
            self.taken += piece

    def says(self, data: bytes) -> None:
        """The peer says all of DATA while others read, and nothing more."""

        def write() -> None:
            with open(self.peer_write, "wb") as pipe:
                pipe.write(data)

        self._writer = threading.Thread(target=write, daemon=True)
        self._writer.start()

    def took(self) -> bytes:
        """All that was sent to the peer."""
        os.close(self.write_fd)
        self._reader.join(10)
        os.close(self.peer_read)
        os.close(self.read_fd)
        return bytes(self.taken)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[dict[str, Any]]]:
    """The events, without their times, as they are told."""
    events: list[dict[str, Any]] = []

    def tell(self: Trace, event: dict[str, Any]) -> None:
        events.append(dict(event))

    monkeypatch.setattr(Trace, "_tell", tell)
    yield events


def came(**what: Any) -> dict[str, Any]:
    return {"from": CLIENT, "to": PROXY, **what}


def went(**what: Any) -> dict[str, Any]:
    return {"from": PROXY, "to": CLIENT, **what}


def hashed(data: bytes, **more: int) -> dict[str, Any]:
    return {"length": len(data), "sha256": hashlib.sha256(data).hexdigest(), **more}


def pattern(length: int) -> bytes:
    return (bytes(range(251)) * (length // 251 + 1))[:length]


@pytest.mark.parametrize("length", [0, 1, 5, 1 << 16, LARGE])
def test_what_comes(length: int, told: list[dict[str, Any]]) -> None:
    data = pattern(length)
    with Trace() as trace:
        link = Link(trace)
        link.says(b"PUT  WORM--x\nDATA %d\n%sVALID\n" % (length, data))
        got = bytearray()
        assert link.connection.receive() == m.parse(b"PUT  WORM--x")
        announced = link.connection.receive()
        assert isinstance(announced, m.Data)
        relay.to_callable(link.connection.payload(announced.length), announced.length, got.extend)
        assert link.connection.receive() == m.Valid()
        assert link.connection.receive() is None
        link.took()
    assert got == data
    assert told == [
        came(message="PUT  WORM--x"),
        came(message=f"DATA {length}"),
        came(content=hashed(data)),
        came(message="VALID"),
    ]


@pytest.mark.parametrize("length", [0, 5, LARGE])
def test_what_is_sent(length: int, told: list[dict[str, Any]], tmp_path: Path) -> None:
    data = pattern(length)
    (tmp_path / "file").write_bytes(data)
    with Trace() as trace, open(tmp_path / "file", "rb") as file:
        link = Link(trace)
        link.connection.send(m.Success(), m.Error(b"a b"))
        link.connection.send_content(length, FileSource(file.fileno(), 0, frozen=True))
        link.connection.send(m.Valid())
        link.connection.send_small_content(b"small", m.Invalid())
        os.close(link.peer_write)
        assert link.took() == b"SUCCESS\nERROR a b\nDATA %d\n%sVALID\nDATA 5\nsmallINVALID\n" % (length, data)
    assert told == [
        went(message="SUCCESS"),
        went(message="ERROR a b"),
        went(message=f"DATA {length}"),
        went(content=hashed(data)),
        went(message="VALID"),
        went(message="DATA 5"),
        went(content=hashed(b"small")),
        went(message="INVALID"),
    ]


def test_content_in_pieces_is_one_content(told: list[dict[str, Any]]) -> None:
    """As an upload is sent whose last byte is held back, and one of which there is nothing to hold back."""
    with Trace() as trace:
        link = Link(trace)
        for data, first in ((b"abc", 2), (b"", 0)):
            link.connection.announce(m.Data(len(data)))
            link.connection.send_bytes(first, BytesSource(data[:first]))
            link.connection.send_bytes(len(data) - first, BytesSource(data[first:]))
        os.close(link.peer_write)
        assert link.took() == b"DATA 3\nabcDATA 0\n"
    assert told == [
        went(message="DATA 3"),
        went(content=hashed(b"abc")),
        went(message="DATA 0"),
        went(content=hashed(b"")),
    ]


def test_what_is_missing_is_told(told: list[dict[str, Any]]) -> None:
    with Trace() as trace:
        link = Link(trace)
        link.says(b"DATA 10\nabc")
        link.connection.receive()
        with pytest.raises(relay.ShortSource):
            relay.to_callable(link.connection.payload(10), 10, lambda view: None)
        link.connection.announce(m.Data(4))
        link.connection.send_bytes(3, BytesSource(b"xyz"))
        link.took()
    assert told == [
        came(message="DATA 10"),
        came(content=hashed(b"abc", missing=7)),
        went(message="DATA 4"),
        went(content=hashed(b"xyz", missing=1)),
    ]


def test_a_new_connection_ends_what_was_said_over_the_last(told: list[dict[str, Any]]) -> None:
    with Trace() as trace:
        link = Link(trace)
        link.connection.announce(m.Data(4))
        again = Link(trace)
        for one in (link, again):
            os.close(one.peer_write)
            one.took()
    assert told == [went(message="DATA 4"), went(content=hashed(b"", missing=4))]


def test_data_where_no_content_follows(told: list[dict[str, Any]]) -> None:
    """As an answer that makes no sense; the next line is a line."""
    with Trace() as trace:
        link = Link(trace)
        link.says(b"DATA 5\nSUCCESS\nrubbish \xff\x1b\n")
        lines = [link.connection.read_line() for _ in range(4)]
        link.took()
    assert lines == [b"DATA 5", b"SUCCESS", b"rubbish \xff\x1b", None]
    assert told == [came(message="DATA 5"), came(message="SUCCESS"), came(message="rubbish \\xff\x1b")]


WORDS = st.sampled_from([b"SUCCESS", b"VERSION 4", b"rubbish", b"", b"DATA", b"DATA x", b"ERROR x y"])
STEP = st.one_of(WORDS.map(lambda line: (line, None)), st.binary(max_size=3000).map(lambda data: (None, data)))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=8), cut=st.integers(0, 40))
def test_the_same_is_received_as_without(steps: list[Any], cut: int, told: list[dict[str, Any]]) -> None:
    """Whatever comes, and wherever it ends."""
    told.clear()
    said = b"".join(line + b"\n" if data is None else b"DATA %d\n%s" % (len(data), data) for line, data in steps)
    said = said[: len(said) - cut] if cut < len(said) else said
    with Trace() as trace:
        heard = [_hear(said, make) for make in (Connection, trace.connections_to(REMOTE))]
    assert heard[0] == heard[1]
    contents = [data for data in heard[0] if isinstance(data, tuple)]
    assert [event["content"] for event in told if "content" in event] == [
        hashed(data, **({"missing": length - len(data)} if length > len(data) else {}))
        for length, data in contents
        if data or not length
    ]


def _hear(said: bytes, make: Any) -> list[Any]:
    """Lines, and content as its length and what came of it."""
    read_fd, write_fd = os.pipe()
    os.write(write_fd, said)
    os.close(write_fd)
    connection = make(read_fd, -1)
    heard: list[Any] = []
    while (line := connection.read_line()) is not None:
        heard.append(line)
        if line.startswith(b"DATA ") and line[5:].isdigit():
            got = bytearray()
            length = int(line[5:])
            try:
                relay.to_callable(connection.payload(length), length, got.extend)
            except relay.ShortSource:
                pass
            heard.append((length, bytes(got)))
    os.close(read_fd)
    return heard


# How it is written.


def test_json_lines(capfd: pytest.CaptureFixture[str]) -> None:
    with Trace() as trace:
        trace.message(CLIENT, PROXY, b"ERROR \xc3\xa9\t\xff\r")
        trace.note("so it is")
    first, second = (json.loads(line) for line in capfd.readouterr().err.splitlines())
    assert 0 <= first.pop("time") < 5
    assert first == {"from": "client", "to": "proxy", "message": "ERROR é\t\\xff\r"}
    assert second["note"] == "so it is"


def test_columns_for_people(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    show = tracing.terminal_format()
    key = "SHA256E-s3--" + "0" * 300
    content = {"length": 1234567, "sha256": "ab", "missing": 9}
    lines = [
        show({"time": 0.1234, "from": CLIENT, "to": PROXY, "message": f"PUT [bold] {key}"}),
        show({"time": 1234.5, "from": PROXY, "to": REMOTE, "message": "a\x1b[31mb\nc"}),
        show({"time": 2.0, "from": REMOTE, "to": PROXY, "content": content}),
        show({"time": 2.0, "from": PROXY, "note": "so it is"}),
    ]
    assert lines[0] == f"   0.123  client → proxy   PUT [bold] {key}"
    assert lines[1] == "1234.500   proxy → remote  a?[31mb c"
    assert lines[2] == "   2.000  remote → proxy   (1,234,567 bytes, SHA256 ab, 9 bytes are missing)"
    assert lines[3] == "   2.000   proxy           so it is"


def test_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    read_fd, write_fd = os.pipe()
    os.close(read_fd)
    monkeypatch.setattr(tracing, "_STDERR", write_fd)
    with Trace() as trace:
        trace.message(CLIENT, PROXY, b"VERSION 4")
    os.close(write_fd)
