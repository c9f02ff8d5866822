"""numcopies.log and mincopies.log: one number for everybody, lines ``TIME NUMBER`` (spec: branch §9.4)."""

from __future__ import annotations

from annexshell.annex.logs import clock

NUMCOPIES = b"numcopies.log"
MINCOPIES = b"mincopies.log"
_DIGITS = b"0123456789"
_BASES = {b"0x": (16, b"0123456789abcdef"), b"0o": (8, b"01234567"), b"0b": (2, b"01")}


def parse(content: bytes) -> list[tuple[int, int]]:
    """Time and number of every line that has them."""
    found = []
    for line in content.splitlines():
        time_text, _, rest = line.partition(b" ")
        time, number = clock.parse(time_text), _number(rest)
        if time is not None and number is not None:
            found.append((time, number))
    return found


def value(content: bytes) -> int | None:
    """The number that counts: the newest, the larger of two of the same time, at least 1; None if never set."""
    entries = parse(content)
    return max(1, max(entries)[1]) if entries else None


def with_value(content: bytes, number: int, candidate: int) -> bytes | None:
    """The log after setting the number; None when it has that value."""
    entries = parse(content)
    if entries and max(entries)[1] == number:
        return None
    time = clock.advance(candidate, (time for time, _ in entries))
    return b"%s %d\n" % (clock.render(time), number)


def _number(text: bytes) -> int | None:
    """The integer that TEXT starts with, blanks and parentheses around it; other text may follow after a blank."""
    depth = 0
    text = text.lstrip(b" \t")
    while text[:1] == b"(":
        depth += 1
        text = text[1:].lstrip(b" \t")
    sign = -1 if text[:1] == b"-" else 1
    text = text[1:].lstrip(b" \t") if sign < 0 else text
    base, digits = _BASES.get(text[:2].lower(), (10, _DIGITS))
    if base != 10:
        text = text[2:]
    end = 0
    while end < len(text) and text[end : end + 1].lower() in digits:
        end += 1
    rest = text[end:].lstrip(b" \t")
    if (
        end == 0
        or not rest.startswith(b")" * depth)
        or (depth == 0 and text[end : end + 1] not in (b"", b" ", b"\t"))
    ):
        return None
    try:
        return sign * int(text[:end], base)
    except ValueError:  # thousands of digits
        return None
