"""Parts of a content, as HTTP asks for them (spec: http §5.5, RFC 9110 §14)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from annexshell.http.api import Refusal

if TYPE_CHECKING:
    from collections.abc import Mapping


_MOST_DIGITS = 18  # of a position; more is not a size of anything


def is_among(etag: str, header: str) -> bool:
    """Whether the header If-None-Match names what is there."""
    return any(tag.strip().removeprefix("W/") in (etag, "*") for tag in header.split(","))


def wanted(headers: Mapping[str, str], total: int, etag: str) -> tuple[int, int] | None:
    """Start and length of the part of TOTAL bytes that is asked for; None if it is all of them.

    What is more than one range, or none that makes sense, is not answered with a part. Raises Refusal (416).
    """
    unit, equals, text = headers.get("Range", "").partition("=")
    if unit.strip().lower() != "bytes" or not equals or headers.get("If-Range", etag) != etag:
        return None
    first, dash, last = (part.strip() for part in text.partition("-"))
    if not dash or not (first + last) or not all(map(_is_position, (first, last))):
        return None
    if not first:
        start, end = max(0, total - int(last)), total
        satisfiable = int(last) > 0 and total > 0
    else:
        start, end = int(first), min(total, int(last) + 1) if last else total
        if last and int(last) < start:
            return None
        satisfiable = start < total
    if not satisfiable:
        raise Refusal(416, headers={"Content-Range": f"bytes */{total}"})
    return start, end - start


def _is_position(text: str) -> bool:
    return not text or (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS)
