"""Clients that are still agreeing on TLS, or never do."""

from __future__ import annotations

import asyncio
import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack

import pytest
import uvloop

from annexshell.http import connections, handshakes
from annexshell.http.connections import Server
from annexshell.http.server import Limits
from tests.http.doors import HELLO, Door, received, target, wait_until
from tests.leftovers import descriptors, descriptors_before

OpenDoor = Callable[..., Door]
HELLO_OF_TLS = bytes.fromhex("16030100c8010000c40303") + bytes(50)  # the beginning of what a client says


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def open_tls(request: pytest.FixtureRequest, open_door: OpenDoor) -> OpenDoor:
    return lambda grace=1.0: open_door("tls", loop=request.param, limits=Limits(grace=grace))


@pytest.fixture
def at_most(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the number of connections that servers take."""

    def limit(number: int) -> None:
        begin = Server.__init__

        def begin_with_less(self: Server, *arguments: object, **options: object) -> None:
            begin(self, *arguments, **{**options, "most": number})  # type: ignore[arg-type]

        monkeypatch.setattr(Server, "__init__", begin_with_less)

    return limit


def silent(door: Door, said: bytes = b"") -> socket.socket:
    """A client that says that, and then nothing."""
    client = socket.create_connection(("127.0.0.1", door.port), timeout=10)
    client.sendall(said)
    return client


def is_open(client: socket.socket) -> bool:
    return not select.select([client], [], [], 0)[0]


@pytest.mark.parametrize("said", [b"", HELLO_OF_TLS])
def test_they_count_as_connections(open_tls: OpenDoor, at_most: Callable[[int], None], said: bytes) -> None:
    at_most(10)
    door = open_tls()
    with ExitStack() as parts:
        old = [parts.enter_context(silent(door, said)) for _ in range(20)]
        wait_until(lambda: sum(map(is_open, old)) <= 10)
        time.sleep(0.05)
        new = [parts.enter_context(silent(door, said)) for _ in range(7)]
        wait_until(lambda: sum(map(is_open, old)) <= 3)
        assert all(map(is_open, new)), "not the oldest were closed"
        for _ in range(5):
            assert door.post("checkpresent", key=HELLO).json == {"present": True}


def test_those_that_ask_are_not_closed_for_them(open_tls: OpenDoor, at_most: Callable[[int], None]) -> None:
    at_most(5)
    door = open_tls()
    lockid = door.post("lockcontent", key=HELLO).json["lockid"]
    with ExitStack() as parts:
        keeper = door.connect()
        parts.callback(keeper.close)
        keeper.send_head("POST", target("keeplocked", lockid=lockid), {}, [])
        keeper.send_chunk(b'{"unlock":false}\n')
        for _ in range(20):
            parts.enter_context(silent(door))
        time.sleep(0.1)
        keeper.send_chunk(b'{"unlock":true}\n')
        assert keeper.answer().json == {"locked": False}


def test_they_have_time_but_not_for_ever(open_tls: OpenDoor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 0.5)
    door = open_tls()
    door.get(HELLO)
    before = len(descriptors_before())
    with ExitStack() as parts:
        began = time.monotonic()
        clients = [parts.enter_context(silent(door, said)) for said in (b"", HELLO_OF_TLS) * 5]
        time.sleep(0.2)
        assert all(map(is_open, clients))
        for client in clients:
            _drain(client)
        assert 0.4 < time.monotonic() - began < 5
        wait_until(lambda: len(descriptors()) <= before + len(clients))
    assert door.post("checkpresent", key=HELLO).json == {"present": True}


def _drain(client: socket.socket) -> bytes:
    try:
        return received(client)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize(
    "said", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\0" * 100, b"SSH-2.0-x\r\n", b"\x16\x03\x01"]
)
def test_what_is_no_tls_ends(
    open_tls: OpenDoor, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, said: bytes
) -> None:
    monkeypatch.setattr(connections, "HEADER_TIMEOUT", 1.0)
    door = open_tls()
    door.get(HELLO)
    before = len(descriptors_before())
    with silent(door, said) as client:
        # At the most the way in which TLS itself says no.
        assert not (answer := _drain(client)) or answer[:1] == b"\x15"
    wait_until(lambda: len(descriptors()) <= before)
    assert door.post("checkpresent", key=HELLO).json == {"present": True}
    assert capfd.readouterr().err == ""


def test_they_do_not_delay_the_end(open_tls: OpenDoor) -> None:
    door = open_tls(20.0)
    with silent(door), silent(door, HELLO_OF_TLS):
        time.sleep(0.1)
        began = time.monotonic()
        door.stop()
        assert time.monotonic() - began < 10  # which is less than the time for requests


def test_when_nothing_more_can_be_opened_it_goes_on_later(
    open_door: OpenDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handshakes, "_PAUSE", 0.05)
    new_loop, fails = asyncio.new_event_loop, [3]

    def loop_that_fails() -> asyncio.AbstractEventLoop:
        loop = new_loop()
        accept = loop.sock_accept

        async def fail(listener: socket.socket) -> tuple[socket.socket, object]:
            if fails[0] > 0:
                fails[0] -= 1
                raise OSError(24, "Too many open files")
            return await accept(listener)

        loop.sock_accept = fail  # type: ignore[method-assign]
        return loop

    door = open_door("tls", loop=loop_that_fails)
    assert door.post("checkpresent", key=HELLO).json == {"present": True}
    assert fails == [0]
