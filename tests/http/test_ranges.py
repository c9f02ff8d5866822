from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.http import ranges
from annexshell.http.api import Refusal

ETAG = '"KEY"'


def wanted(text: str, total: int = 10, **headers: str) -> tuple[int, int] | None:
    return ranges.wanted(
        {"Range": text, **{name.replace("_", "-"): value for name, value in headers.items()}}, total, ETAG
    )


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=2-3", (2, 2)),
        ("bytes=2-", (2, 8)),
        ("bytes=9-9", (9, 1)),
        ("bytes=0-9", (0, 10)),
        ("bytes=0-10", (0, 10)),
        ("bytes=5-999999999999999999", (5, 5)),
        ("bytes=-3", (7, 3)),
        ("bytes=-10", (0, 10)),
        ("bytes=-11", (0, 10)),
        ("Bytes = 2 - 3", (2, 2)),
    ],
)
def test_one_part(text: str, part: tuple[int, int]) -> None:
    assert wanted(text) == part


@pytest.mark.parametrize("text", ["bytes=10-", "bytes=10-11", "bytes=-0", "bytes=999999999999999999-"])
def test_a_part_beyond_the_end(text: str) -> None:
    with pytest.raises(Refusal) as refusal:
        wanted(text)
    assert (refusal.value.status, refusal.value.headers) == (416, {"Content-Range": "bytes */10"})


@pytest.mark.parametrize(
    "text",
    [
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=3",
        "bytes=3-2",
        "bytes=1-2,4-5",
        "bytes=a-b",
        "bytes=1-b",
        "bytes=+1-2",
        "bytes=--2",
        "bytes=\u0661-2",
        "items=1-2",
        f"bytes={'9' * 5000}-",
        f"bytes=-{'9' * 5000}",
    ],
)
def test_what_is_answered_with_everything(text: str) -> None:
    assert wanted(text) is None


def test_of_nothing_there_is_no_part() -> None:
    for text in ("bytes=0-", "bytes=-1"):
        with pytest.raises(Refusal):
            wanted(text, 0)


def test_if_range() -> None:
    assert wanted("bytes=2-3", If_Range=ETAG) == (2, 2)
    for other in ('"OTHER"', 'W/"KEY"', "Sun, 22 Nov 2026 15:48:03 GMT"):
        assert wanted("bytes=2-3", If_Range=other) is None


@given(st.text(alphabet="bytes=-0123456789, ", max_size=20), st.integers(0, 30))
def test_a_part_is_within_the_content(text: str, total: int) -> None:
    try:
        part = wanted("bytes=" + text, total)
    except Refusal as refusal:
        assert refusal.status == 416
        return
    if part is not None:
        start, length = part
        assert 0 <= start < start + length <= total


@pytest.mark.parametrize(
    ("header", "yes"),
    [
        ("", False),
        ('"OTHER"', False),
        ('"KEY"', True),
        ('W/"KEY"', True),
        ('"OTHER", "KEY"', True),
        ("*", True),
        ("KEY", False),
    ],
)
def test_if_none_match(header: str, yes: bool) -> None:
    assert ranges.is_among(ETAG, header) is yes
