"""Maps with the time first: lines ``TIME NAME VALUE`` (spec: branch §9.3).

A name's newest line counts, the last of those with the same time. A line whose value the file's format does not allow
counts as if it were not there.
"""

from __future__ import annotations

from annexshell.annex.logs import clock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

GROUP_PREFERRED_CONTENT = b"group-preferred-content.log"
CONFIG = b"config.log"
MAXSIZE = b"maxsize.log"


def any_value(value: bytes) -> bytes | None:
    """For files whose values may be anything."""
    return value


def parse(content: bytes, read: Callable[[bytes], T | None]) -> dict[bytes, tuple[int, T]]:
    """The time and value of every name; READ gives the meaning of a value, None where it has none."""
    newest: dict[bytes, tuple[int, T]] = {}
    for line in content.splitlines():
        words = line.split(b" ", 2)
        if len(words) != 3:
            continue
        time, value = clock.parse(words[0]), read(words[2])
        if time is None or value is None:
            continue
        known = newest.get(words[1])
        if known is None or time >= known[0]:
            newest[words[1]] = time, value
    return newest


def values(content: bytes) -> dict[bytes, bytes]:
    """The value of every name; an empty one means that it is not set any more."""
    return {name: value for name, (_, value) in parse(content, any_value).items()}


def with_value(
    content: bytes, name: bytes, value: bytes, candidate: int, read: Callable[[bytes], object | None] = any_value
) -> bytes:
    """The log after setting NAME, sorted by name. The other entries' values are kept as they are written."""
    entries = parse(content, lambda text: text if read(text) is not None else None)
    known = entries.get(name)
    entries[name] = clock.advance(candidate, [known[0]] if known is not None else []), value
    return b"".join(b"%s %s %s\n" % (clock.render(time), key, text) for key, (time, text) in sorted(entries.items()))


def with_config(content: bytes, name: bytes, value: bytes, candidate: int) -> bytes | None:
    """config.log after setting NAME; None when it has that value (spec: branch §9.9)."""
    if values(content).get(name) == value:
        return None
    return with_value(content, name, value, candidate)


def maxsizes(content: bytes) -> dict[bytes, int]:
    """maxsize.log: bytes by uuid."""
    return {name: size for name, (_, size) in parse(content, _decimal).items()}


def _decimal(value: bytes) -> int | None:
    digits = value.strip(b" ")
    if not digits.removeprefix(b"-").isdigit():
        return None
    try:
        return int(digits)
    except ValueError:  # thousands of digits
        return None
