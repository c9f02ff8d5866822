"""proxy.log: which of its remotes a repository offers to stand for (spec: branch §9.5)."""

from __future__ import annotations

from annexshell.annex.logs import newmap
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    # A remote's uuid, and its name in the repository that proxies for it.
    Proxied: TypeAlias = tuple[UUID, bytes]

FILE = b"proxy.log"


def parse(content: bytes) -> dict[UUID, tuple[Proxied, ...]]:
    """The remotes that each repository proxies for, those with illegal names left out."""
    entries = newmap.parse(content, _parse_proxied)
    return {
        UUID(name): tuple(entry for entry in proxied if is_legal_name(entry[1]) and entry[0][:1] != b" ")
        for name, (_, proxied) in entries.items()
    }


def with_proxied(content: bytes, uuid: UUID, proxied: Iterable[Proxied], candidate: int) -> bytes:
    """The log after UUID's list was replaced."""
    value = b" ".join(remote + b":" + name for remote, name in sorted(set(proxied)))
    return newmap.with_value(content, uuid, value, candidate, _parse_proxied)


def is_legal_name(name: bytes) -> bool:
    """Whether NAME may be a remote's: letters, digits, ``_``, ``-`` and ``.``, not starting with the last two."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return bool(text) and text[0] not in "-." and all(c.isalnum() or c in "_-." for c in text)


def _parse_proxied(value: bytes) -> tuple[Proxied, ...] | None:
    found = []
    blank = b""
    for word in value.removesuffix(b" ").split(b" ") if value else []:
        if not word:
            blank = b" "  # two spaces in a row: the second one is part of the uuid, which then matches nothing
            continue
        uuid, colon, name = word.partition(b":")
        if not colon or not name:
            return None
        found.append((UUID(blank + uuid), name))
        blank = b""
    return tuple(found)
