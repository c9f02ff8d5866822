"""The lines of the audit log: what is in them, whatever anybody says."""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import audit, log
from annexshell.audit import Audit, quoted
from annexshell.audited import AuditedRepository
from annexshell.errors import Hangup, NotLocked, Refused, RepositoryError, TemporaryFailure, TransferRefused
from annexshell.key import Key
from annexshell.repository import Repository
from annexshell.termination import Terminated

KEY = Key(b"WORM-s5-m1--name")


class Lines:
    """A log in memory, which can be full."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self.notable: list[bool] = []
        self.is_full = False

    def write(self, line: bytes, is_notable: bool) -> None:
        if self.is_full:
            raise OSError(28, "No space left on device")
        self.lines.append(line)
        self.notable.append(is_notable)

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.lines]


@pytest.fixture
def lines() -> Lines:
    return Lines()


@pytest.fixture(autouse=True)
def no_log_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(log, "audit", None)
    yield


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in ("time", "session", "seconds")}


# What is in a line.


def test_who_and_what(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", "2001:db8::7 50022 2001:db8::1 22")
    one = Audit(lines, b"alice")
    one.describe(command=b"p2pstdio", directory=b"~/annex", client=b"c", repository=b"r")
    one.describe(directory=b"/home/a/annex")
    one.event("store", "ok", key=KEY, count=5, offset=2, since=0.0, reason="because")
    assert without_time(lines.records[0]) == {
        "action": "store",
        "outcome": "ok",
        "key": "WORM-s5-m1--name",
        "bytes": 5,
        "offset": 2,
        "reason": "because",
        "user": "alice",
        "account": pwd.getpwuid(os.geteuid()).pw_name,
        "address": "2001:db8::7",
        "port": 50022,
        "command": "p2pstdio",
        "directory": "/home/a/annex",
        "client": "c",
        "repository": "r",
    }
    assert lines.records[0]["seconds"] > 0


def test_the_time_is_that_of_the_world(lines: Lines) -> None:
    Audit(lines).event("store", "ok")
    text = lines.records[0]["time"]
    assert text.endswith("Z") and len(text) == len("2026-01-02T03:04:05.678Z")
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    assert abs(datetime.now(timezone.utc) - moment) < timedelta(seconds=60)


def test_what_is_not_known_is_left_out(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSH_CONNECTION", raising=False)
    Audit(lines).event("session", "ok")
    assert set(lines.records[0]) == {"time", "session", "account", "action", "outcome"}


@pytest.mark.parametrize("value", ["", "1.2.3.4", "a b c d", "1.2.3.4 " + "9" * 5000 + " 5.6.7.8 22", "\xff\n 1 2 3"])
def test_a_connection_that_sshd_did_not_make(value: str, lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSH_CONNECTION", value)
    Audit(lines).event("session", "ok")
    assert len(lines.records) == 1


def test_an_account_that_has_no_name(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4_000_000)
    Audit(lines).event("session", "ok")
    assert lines.records[0]["account"] == "4000000"


def test_all_lines_of_a_session_and_of_no_other_have_its_id(lines: Lines) -> None:
    for _ in range(3):
        one = Audit(lines)
        one.begin()
        one.end()
    sessions = [record["session"] for record in lines.records]
    assert len(set(sessions)) == 3
    assert sessions[::2] == sessions[1::2]


# What anybody may say.


@given(st.binary(max_size=3000) | st.text(st.characters(), max_size=3000))
def test_any_text_is_one_json_string_of_plain_characters(text: bytes | str) -> None:
    result = quoted(text)
    assert all(0x20 <= byte < 0x7F for byte in result)
    value = json.loads(result)
    assert isinstance(value, str) and len(value) <= 512
    value.encode()  # what cannot be encoded again stops many readers
    plain = text if isinstance(text, str) else text.decode("utf-8", "replace")
    if len(plain) <= 512 and "�" not in plain and not any("\ud800" <= letter <= "\udfff" for letter in plain):
        assert value == plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (b'a"},{"action":"x\r\n{"', 'a"},{"action":"x\r\n{"'),
        (b"\x00\x1b[2J\x7f", "\x00\x1b[2J\x7f"),
        ("\u2028\u2029\x85\u202e", "\u2028\u2029\x85\u202e"),
        (b"caf\xc3\xa9 \xff", "café \\xff"),
        (os.fsdecode(b"\xff"), "\\udcff"),
        ("x" * 513, "x" * 511 + "…"),
        ("😀" * 513, "😀" * 511 + "…"),
    ],
)
def test_hostile_text(text: bytes | str, shown: str) -> None:
    assert json.loads(quoted(text)) == shown


@given(
    st.binary(max_size=600),
    st.text(st.characters(), max_size=600),
    st.integers(min_value=0, max_value=10**5000),
)
def test_any_line_is_one_object(name: bytes, reason: str, offset: int) -> None:
    lines = Lines()
    one = Audit(lines, name)
    one.describe(command=name, directory=name, client=name, repository=name)
    one.event("send", "failed", key=Key(b"X--" + name.replace(b"\0", b"")), offset=offset, count=0, reason=reason)
    assert b"\n" not in lines.lines[0]
    assert lines.records[0]["action"] == "send"
    assert lines.records[0].get("offset", 0) <= offset


# The session.


def test_a_session_ends_once(lines: Lines) -> None:
    one = Audit(lines)
    one.begin()
    one.end_by(Hangup("the client hung up"))
    one.end_with(0)
    one.end_by(RepositoryError("another"))
    assert [(record["outcome"], record.get("reason")) for record in lines.records] == [
        ("begun", None),
        ("incomplete", "the client hung up"),
    ]


@pytest.mark.parametrize(
    ("status", "outcome", "reason"),
    [(0, "ok", None), (1, "failed", "exit status 1"), (100, "failed", "exit status 100")],
)
def test_a_session_with_an_exit_status(status: int, outcome: str, reason: str | None, lines: Lines) -> None:
    Audit(lines).end_with(status)
    assert (lines.records[0]["outcome"], lines.records[0].get("reason")) == (outcome, reason)


@pytest.mark.parametrize(
    ("error", "outcome", "reason"),
    [
        (Refused("no"), "refused", "no"),
        (TransferRefused("in progress"), "refused", "in progress"),
        (NotLocked("locked"), "failed", "locked"),
        (Hangup("5 bytes are missing"), "incomplete", "5 bytes are missing"),
        (BrokenPipeError(32, "Broken pipe"), "incomplete", "the client closed its end"),
        (Terminated(), "incomplete", "a signal ended the session"),
        (PermissionError(13, "Permission denied", "/secret/path"), "failed", "Permission denied"),
        (OSError("odd"), "failed", "odd"),
        (KeyError("x"), "failed", "internal error: KeyError: 'x'"),
    ],
)
def test_what_errors_mean(error: BaseException, outcome: str, reason: str, lines: Lines) -> None:
    Audit(lines).event_by("store", error, key=KEY)
    assert (lines.records[0]["outcome"], lines.records[0]["reason"]) == (outcome, reason)


def test_what_is_out_of_the_ordinary_is_notable(lines: Lines) -> None:
    one = Audit(lines)
    for outcome in ("ok", "begun", "handed-over", "present", "refused", "failed", "incomplete"):
        one.event("store", outcome)
    assert lines.notable == [False] * 4 + [True] * 3


# A log that cannot be written.


def test_nothing_is_begun_without_a_log(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    one = Audit(lines)
    lines.is_full = True
    with pytest.raises(TemporaryFailure, match=r"cannot be written \(No space left on device\)"):
        one.begin()
    one.end_by(TemporaryFailure("it"))
    assert capfd.readouterr().err == ""


def test_what_was_begun_goes_on_and_the_gap_is_told(lines: Lines, capfd: pytest.CaptureFixture[str]) -> None:
    one = Audit(lines)
    one.begin()
    lines.is_full = True
    for _ in range(3):
        one.event("store", "ok", key=KEY)
    assert capfd.readouterr().err == (
        "  the audit log of this server cannot be written any more: No space left on device\n"
    )
    lines.is_full = False
    one.event("send", "ok", key=KEY)
    one.end()
    assert [record.get("lost") for record in lines.records] == [None, 3, None]


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("x"), os.mkfifo])
def test_a_log_that_cannot_be_opened(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "log")
    with pytest.raises(TemporaryFailure, match="the audit log of this server cannot be opened") as raised:
        audit.start(bytes(tmp_path / "log"))
    assert str(tmp_path) not in str(raised.value)
    assert log.audit is None


def test_starting(tmp_path: Path) -> None:
    one = audit.start(bytes(tmp_path / "log"), b"bob")
    assert log.audit is one
    one.begin()
    assert json.loads((tmp_path / "log").read_text())["user"] == "bob"


def test_all_that_a_repository_is_asked_is_passed_on() -> None:
    """What has an answer in the base class would otherwise be answered there."""
    asked = {name for name, value in vars(Repository).items() if callable(value) and not name.startswith("_")}
    assert asked <= vars(AuditedRepository).keys()
