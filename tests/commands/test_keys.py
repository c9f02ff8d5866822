from __future__ import annotations

import pytest

from annexshell import log
from annexshell.commands import keys
from annexshell.errors import Refused
from annexshell.key import Key
from annexshell.termination import Terminated


def test_keys_of_clients() -> None:
    assert keys.parse(b"WORM-s003-m1--x").serialized == b"WORM-s3-m1--x"
    for word in (b"", b"x", b"--x", b"A-s--x", b"A--x\0"):
        with pytest.raises(Refused, match="bad key: "):
            keys.parse(word)


class Audit:
    def __init__(self) -> None:
        self.told: list[tuple[str, ...]] = []

    def event(self, action: str, outcome: str, **facts: object) -> None:
        self.told.append((action, outcome))

    def event_by(self, action: str, error: BaseException, **facts: object) -> None:
        self.told.append((action, type(error).__name__))

    def end_by(self, error: BaseException) -> None:
        self.told.append(("end", type(error).__name__))


def test_what_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    key = Key(b"A--x")
    with keys.Story("send", key) as story:
        assert (story.done(3), story.failed("x"), story.cut_short("y")) == (0, 1, 1)  # without anybody to tell
    audit = Audit()
    monkeypatch.setattr(log, "audit", audit)
    with keys.Story("send", key) as story:
        assert (story.done(3), story.failed("x"), story.cut_short("y")) == (0, 1, 1)
    with pytest.raises(Refused), keys.Story("store", key):
        raise Refused("no")
    with pytest.raises(Terminated), keys.Story("store", key):
        raise Terminated
    assert audit.told == [
        ("send", "ok"),
        ("send", "failed"),
        ("send", "incomplete"),
        ("store", "Refused"),
        ("store", "Terminated"),
        ("end", "Terminated"),
    ]
