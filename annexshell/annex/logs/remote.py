"""remote.log: the configuration of special remotes (spec: branch §9.6)."""

from __future__ import annotations

from annexshell.annex.logs import uuidmap
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

FILE = b"remote.log"
_INHERITED = (b"encryption", b"mac", b"cipher", b"cipherkeys", b"pubkeys", b"chunk", b"chunksize")


def parse(content: bytes) -> dict[UUID, dict[bytes, bytes]]:
    """The settings of every special remote, as they are recorded."""
    return {uuid: _parse_settings(value) for uuid, value in uuidmap.values(content).items()}


def effective(remotes: Mapping[UUID, Mapping[bytes, bytes]], uuid: UUID) -> tuple[UUID, dict[bytes, bytes]]:
    """The uuid that location logs use for a remote's entry, and its settings with those it shares with another's."""
    settings = dict(remotes[uuid])
    same_as = UUID(settings.get(b"sameas-uuid", b""))
    if not same_as:
        return uuid, settings
    parent = remotes.get(same_as, {})
    for name in _INHERITED:
        settings.pop(name, None)
        if name in parent:
            settings[name] = parent[name]
    return same_as, settings


def with_settings(content: bytes, uuid: UUID, settings: Mapping[bytes, bytes], candidate: int) -> bytes:
    """The log after replacing the settings of UUID."""
    value = b" ".join(name + b"=" + escape(text) for name, text in sorted(settings.items()))
    return uuidmap.with_value(content, uuid, value, candidate)


def escape(value: bytes) -> bytes:
    """VALUE with white space and ampersands as ``&N;``."""
    text = value.decode("utf-8", "surrogateescape")
    return "".join(f"&{ord(c)};" if c == "&" or c.isspace() else c for c in text).encode("utf-8", "surrogateescape")


def unescape(value: bytes) -> bytes:
    """VALUE with every ``&N;`` as the character it stands for; other ampersands stand for themselves."""
    first, *parts = value.split(b"&")
    return first + b"".join(map(_unescape_part, parts))


def _unescape_part(part: bytes) -> bytes:
    number, semicolon, rest = part.partition(b";")
    if semicolon and number.isdigit() and len(number) < 8:
        try:
            return chr(int(number)).encode("utf-8") + rest
        except ValueError:
            pass  # no such character
    return b"&" + part


def _parse_settings(value: bytes) -> dict[bytes, bytes]:
    settings = {}
    for word in filter(None, value.split(b" ")):
        name, _, text = word.partition(b"=")
        settings[name] = unescape(text)
    return settings
