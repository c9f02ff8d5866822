"""Maps with the time last: lines ``UUID VALUE timestamp=TIME`` (spec: branch §9.2).

A uuid's newest line counts, the last of those with the same time; a line without a time is older than all
others.
"""

from __future__ import annotations

from annexshell.annex.logs import clock
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeVar

    T = TypeVar("T")

UUIDS = b"uuid.log"
TRUST = b"trust.log"
GROUP = b"group.log"
PREFERRED_CONTENT = b"preferred-content.log"
REQUIRED_CONTENT = b"required-content.log"

TRUSTED = b"1"
UNTRUSTED = b"0"
SEMITRUSTED = b"?"
DEAD = b"X"
_STAMP = b"timestamp="


def any_value(value: bytes) -> bytes | None:
    """For files whose values may be anything."""
    return value


def parse(content: bytes, read: Callable[[bytes], T | None]) -> dict[bytes, tuple[int | None, T]]:
    """The time (None if unknown) and value of every uuid; READ gives a value's meaning, None where it has none."""
    newest: dict[bytes, tuple[int | None, T]] = {}
    for line in content.splitlines():
        uuid, _, rest = line.partition(b" ")
        if not uuid:
            continue
        time, text = _split_stamp(rest)
        value = read(text)
        if value is None:
            continue
        known = newest.get(uuid)
        if known is None or clock.not_older(time, known[0]):
            newest[uuid] = time, value
    return newest


def values(content: bytes) -> dict[UUID, bytes]:
    """The value of every uuid as it is written; for uuid.log, the descriptions."""
    return {UUID(uuid): value for uuid, (_, value) in parse(content, any_value).items()}


def trust_levels(content: bytes) -> dict[UUID, bytes]:
    """trust.log: TRUSTED, UNTRUSTED, SEMITRUSTED or DEAD by uuid."""
    return {UUID(uuid): level for uuid, (_, level) in parse(content, _trust_level).items()}


def groups(content: bytes) -> dict[UUID, frozenset[bytes]]:
    """group.log: the groups that each uuid is in."""
    return {uuid: frozenset(filter(None, value.split(b" "))) for uuid, value in values(content).items()}


def with_value(
    content: bytes, uuid: bytes, value: bytes, candidate: int, read: Callable[[bytes], object | None] = any_value
) -> bytes:
    """The log after setting the value of UUID, sorted by uuid."""
    entries = parse(content, lambda text: text if read(text) is not None else None)
    known = entries.get(uuid)
    entries[uuid] = clock.advance(candidate, [known[0]] if known is not None else []), value
    return b"".join(_line(key, time, text) for key, (time, text) in sorted(entries.items()))


def with_description(content: bytes, uuid: bytes, description: bytes, candidate: int) -> bytes:
    """uuid.log after describing UUID. Line ends in it are written as ``\\n``, and never turned back."""
    return with_value(content, uuid, description.replace(b"\n", b"\\n"), candidate)


def with_trust(content: bytes, uuid: bytes, level: bytes, candidate: int) -> bytes:
    """trust.log after setting the level of UUID."""
    return with_value(content, uuid, level, candidate, _trust_level)


def with_groups(content: bytes, uuid: bytes, names: Iterable[bytes], candidate: int) -> bytes:
    """group.log after putting UUID in exactly these groups."""
    return with_value(content, uuid, b" ".join(sorted(set(names))), candidate)


def _split_stamp(rest: bytes) -> tuple[int | None, bytes]:
    value, _, last_word = rest.rpartition(b" ")
    if last_word.startswith(_STAMP):
        time = clock.parse(last_word[len(_STAMP) :])
        if time is not None:
            return time, value
    return None, rest


def _line(uuid: bytes, time: int | None, value: bytes) -> bytes:
    if time is None:
        return b"%s %s\n" % (uuid, value)
    return b"%s %s %s%s\n" % (uuid, value, _STAMP, clock.render(time))


def _trust_level(value: bytes) -> bytes | None:
    # Longer values are invalid; "1" may be left out, and what a newer version may write is not trusted.
    if not value:
        return TRUSTED
    if len(value) > 1:
        return None
    return value if value in (TRUSTED, UNTRUSTED, DEAD) else SEMITRUSTED
