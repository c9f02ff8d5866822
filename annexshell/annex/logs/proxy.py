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
        UUID(name): tuple(entry for entry in proxied if is_legal_name(entry[1]))
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
    for word in value.removesuffix(b" ").split(b" ") if value else []:
        # Two spaces in a row make the next uuid start with a space, so that it matches nothing: leave it out.
        if not word:
            continue
        uuid, colon, name = word.partition(b":")
        if not colon or not name:
            return None
        found.append((UUID(uuid), name))
    return tuple(found)
