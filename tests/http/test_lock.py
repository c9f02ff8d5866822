"""Locks behind the HTTP API: that they last, and that they end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from annexshell.errors import NotLocked, RemoteUnavailable
from annexshell.http import lock
from annexshell.http.client import HttpRepository
from annexshell.key import Key
from annexshell.remotes.patience import Patience
from tests.http.scripted import Gateway, Request, Server, ok, status

KEY = Key(b"SHA256-s5--key")
LOCKED = ok(locked=True, lockid="the id")


class Held:
    """A server that writes down what it reads in keeplocked requests."""

    def __init__(self, gateway: Gateway, patience: Patience | None = None) -> None:
        self.streams: list[list[bytes]] = []
        self.ended = threading.Event()
        self.server = Server(lockcontent=LOCKED, keeplocked=self._keeplocked)
        self.server.__enter__()
        self.remote: HttpRepository = gateway.open(self.server, patience=patience or Patience(5, 5))

    def _keeplocked(self, request: Request) -> bytes:
        assert request.query["lockid"] == "the id"
        self.streams.append([])
        if request.headers.get("transfer-encoding") != "chunked":
            self.streams[-1].append(request.body)
        else:
            for chunk in request.chunks():
                self.streams[-1].append(chunk)
        self.ended.set()
        return ok(locked=False)


@pytest.fixture
def held(gateway: Gateway) -> Iterator[Held]:
    one = Held(gateway)
    yield one
    one.remote.close()
    one.server.stop()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_unlocked_at_the_end(held: Held) -> None:
    with held.remote.lockcontent(KEY):
        assert held.streams == []
    assert held.streams == [[b'{"unlock":true}\n']]
    assert held.server.connections == 1


@pytest.mark.parametrize("how", ["kept", "process is gone"])
def test_running_out_by_itself(held: Held, how: str) -> None:
    """Which is what a server does of whom nothing is asked."""
    taken = held.remote.lockcontent(KEY)
    if how == "kept":
        with taken:
            taken.keep()
    held.remote.close()
    assert held.server.actions == ["checkpresent", "lockcontent"]
    taken.keep()
    taken.__exit__(None, None, None)
    assert held.streams == []


def test_a_lock_that_is_needed_for_long(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_EXTENDED_AFTER", 0.05)
    with held.remote.lockcontent(KEY):
        wait_for(lambda: held.streams == [[b'{"unlock":false}\n']])
        time.sleep(0.1)
        assert not held.ended.is_set()
    assert held.streams == [[b'{"unlock":false}\n', b'{"unlock":true}\n']]
    with held.remote.lockcontent(KEY) as taken:
        wait_for(lambda: held.streams[1:] == [[b'{"unlock":false}\n']])
        held.ended.clear()
        taken.keep()
    assert held.streams[1] == [b'{"unlock":false}\n']


def test_a_lock_that_cannot_be_extended(
    held: Held, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, seconds in (("_EXTENDED_AFTER", 0.05), ("_TRIED_AGAIN_AFTER", 0.05), ("_LOCKED_FOR", 0.2)):
        monkeypatch.setattr(lock, name, seconds)
    held.server.answers["keeplocked"] = b""
    held.server.answers["lockcontent"] = LOCKED
    taken = held.remote.lockcontent(KEY)
    time.sleep(0.3)
    held.server.stop()
    time.sleep(0.3)
    taken.__exit__(None, None, None)
    assert "cannot unlock SHA256-s5--key, it stays locked for up to ten minutes" in capfd.readouterr().err


def test_extending_is_tried_again(held: Held, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "_EXTENDED_AFTER", 0.05)
    monkeypatch.setattr(lock, "_TRIED_AGAIN_AFTER", 0.05)
    begin, failures = held.remote._session.begin, [RemoteUnavailable("no"), RemoteUnavailable("no")]

    def fail_twice(request: Any) -> Any:
        if failures:
            raise failures.pop()
        return begin(request)

    monkeypatch.setattr(held.remote._session, "begin", fail_twice)
    with held.remote.lockcontent(KEY):
        wait_for(lambda: held.streams == [[b'{"unlock":false}\n']])


@pytest.mark.parametrize("answer", [status(500), status(404), b"", None, ok(locked=1)])
def test_unlocking_that_fails_is_not_the_end_of_the_world(
    gateway: Gateway, answer: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    held = Held(gateway, Patience(5, 0.3))
    held.server.answers["keeplocked"] = answer
    with held.remote.lockcontent(KEY):
        pass
    said = capfd.readouterr().err
    assert ("it stays locked for up to ten minutes" in said) == (answer != ok(locked=1))
    assert held.remote.checkpresent(KEY)
    held.remote.close()
    held.server.stop()


@pytest.mark.parametrize(
    "answer", [ok(locked=False), status(403), status(401), status(500, "limit"), ok(locked=True)]
)
def test_what_is_no_lock(held: Held, answer: bytes) -> None:
    held.server.answers["lockcontent"] = answer
    kind: type[Exception] = Exception if answer == ok(locked=True) else NotLocked
    with pytest.raises(kind):
        held.remote.lockcontent(KEY)
    assert threading.active_count() < 50


def test_no_thread_stays_behind(held: Held) -> None:
    for _ in range(3):
        with held.remote.lockcontent(KEY):
            pass
    wait_for(lambda: not [thread for thread in threading.enumerate() if thread.name == "keeplocked"])
