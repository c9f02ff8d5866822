"""The clock of log lines."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.logs import clock


@pytest.mark.parametrize(
    ("text", "picoseconds"),
    [
        (b"1s", 10**12),
        (b"1", 10**12),
        (b"+5s", 5 * 10**12),
        (b"-5s", -5 * 10**12),
        (b"110.1234567890129s", 110123456789012),
        (b"-0.0000000000001s", -1),
        (b"120.500s", 120500000000000),
        (b"99999999999999999999s", 99999999999999999999 * 10**12),
    ],
)
def test_times_are_read_exactly(text, picoseconds):
    assert clock.parse(text) == picoseconds


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"s",
        b"5.s",
        b".5s",
        b"5.1.2s",
        b"5e3s",
        b"5ss",
        b" 5s",
        b"5s ",
        b"--5s",
        b"1_0s",
        "٣s".encode(),
        b"9" * 5000,
    ],
)
def test_what_is_no_time_is_not_read(text):
    assert clock.parse(text) is None


@given(st.integers(min_value=-(10**30), max_value=10**30))
def test_what_is_written_is_read_back(picoseconds):
    text = clock.render(picoseconds)
    assert clock.parse(text) == picoseconds
    assert not text.rstrip(b"s").endswith(b"0") or b"." not in text


@pytest.mark.parametrize(
    ("candidate", "existing", "wanted"),
    [
        (100, [], 100),
        (100, [None], 100),
        (100, [99, 50], 100),
        (100, [100], 101),
        (103, [103.5], 104.5),
        (5, [9, None], 10),
    ],
)
def test_a_new_line_is_newer_than_the_old_ones(candidate, existing, wanted):
    def seconds(n):
        return None if n is None else int(n * clock.SECOND)

    assert clock.advance(seconds(candidate), map(seconds, existing)) == seconds(wanted)


def test_an_unknown_time_is_older_than_any_known_one():
    assert clock.not_older(-5, None) and clock.not_older(None, None) and not clock.not_older(None, -5)


def test_the_vector_clock_is_used_if_it_is_a_time():
    assert clock.now({b"GIT_ANNEX_VECTOR_CLOCK": b"120.5"}) == 120500000000000
    before = int(time.time())
    for environ in ({b"GIT_ANNEX_VECTOR_CLOCK": b"bogus"}, {b"GIT_ANNEX_VECTOR_CLOCK": b""}, {}):
        now = clock.now(environ)
        assert now % clock.SECOND == 0, "whole seconds are written"
        assert before <= now // clock.SECOND <= time.time()
