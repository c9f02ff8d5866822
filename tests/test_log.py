"""Messages for people: one line each, on stderr, harmless to a terminal."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import log


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(log, "_debugging", False)


def test_each_kind_of_message(capfd, quiet):
    log.warn("a warning")
    log.error("an error")
    log.error("an error", "git-annex-shell")
    log.debug("not asked for")
    assert capfd.readouterr() == ("", "  a warning\nannexshell: an error\ngit-annex-shell: an error\n")


def test_debugging_is_for_those_who_ask(capfd, quiet):
    assert not log.debugging()
    log.enable_debug()
    assert log.debugging()
    log.debug("what is going on")
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] what is going on\n", err)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain", "plain"),
        ("é 日本", "é 日本"),
        ("é".encode(), "é"),
        (b"\xff\xfe", "\\xff\\xfe"),
        ("a\nb\tc\rd", "a b c d"),
        ("\x1b[31mred\x07", "?[31mred?"),
        (b"\x1b]0;title\x07\0", "?]0;title??"),
        ("\x9b31m", "?31m"),
        ("\u202eright to left", "?right to left"),
        ("line\u2028separator", "line?separator"),
        ("\udcff", "?"),
        ("", ""),
    ],
)
def test_what_is_shown_of_a_text(text, shown):
    assert log.printable(text) == shown


@given(st.text() | st.binary())
def test_anything_becomes_one_printable_line(text):
    shown = log.printable(text)
    assert shown.isprintable()
    shown.encode()


def test_a_message_is_one_write(monkeypatch):
    writes = []
    monkeypatch.setattr(os, "write", lambda fd, data: writes.append((fd, data)))
    log.warn(b"a\nb\xff")
    assert writes == [(2, b"  a b\\xff\n")]


@pytest.mark.parametrize("reason", [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left on device")])
def test_nobody_listening_is_no_reason_to_stop(monkeypatch, reason):
    def fail(fd: int, data: bytes) -> int:
        raise reason

    monkeypatch.setattr(os, "write", fail)
    log.warn("still here")
    log.error("still here")
