"""What is written in the paths, queries and headers of requests, and how it is read (spec: http §3.1-§3.4).

Readers take what is left of a value after percent-decoding, and raise ValueError with the reason that the client is
told. A request is one command of the P2P protocol, which it may have to travel on as: what could not be a part of its
lines is refused here, because a line feed in a key would make two commands of one.
"""

from __future__ import annotations

import base64
import binascii
import re
from functools import lru_cache
from urllib.parse import unquote_to_bytes

from annexshell import log
from annexshell.key import BadKey, Key
from annexshell.p2p.messages import MAX_LINE
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.repository import AssociatedFile

MAX_NUMBER = (1 << 63) - 1
_MAX_NAME = 255  # bytes of a directory's name
_NO_NAMES = (b".", b"..", b"lck")  # the last is beside those of the clients
_BASE64URL = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
_ORIGIN = re.compile(rb"https?://[^/?]*", re.IGNORECASE)
_SEPARATOR = re.compile(rb"[&;]")
_BOOLEANS = {b"true": True, b"false": False}
# The same few come with each request.
_remembered = lru_cache(256)


def split_target(target: str | bytes) -> tuple[list[bytes], bytes]:
    """The decoded segments of a request target's path, and its query as it came.

    The first segment is what is before the first slash, which is nothing. One slash at the end counts for nothing.
    """
    raw = target if isinstance(target, bytes) else target.encode("utf-8", "surrogateescape")
    if not raw.startswith(b"/"):
        origin = _ORIGIN.match(raw)  # proxies get to see it, and may pass it on
        raw = raw[origin.end() if origin else 0 :]
    path, _, query = raw.partition(b"?")
    segments = path.removesuffix(b"/").split(b"/")
    # A slash that is percent-encoded is a part of its segment.
    return [unquote_to_bytes(segment) for segment in segments] if b"%" in path else segments, query


class Query:
    """The parameters of a request."""

    def __init__(self, raw: bytes) -> None:
        self._first: dict[bytes, bytes | None] = {}
        self.bypass: list[bytes] = []
        for piece in _SEPARATOR.split(raw):
            name, equals, rest = piece.partition(b"=")
            if b"%" in piece or b"+" in piece:
                name, rest = _decoded(name), _decoded(rest)
            value = rest if equals else None
            self._first.setdefault(name, value)
            if name in (b"bypass", b"bypass[]") and value is not None:
                self.bypass.append(value)

    def get(self, name: bytes) -> bytes | None:
        """The first value of that name; None if the first has no ``=``, or there is none."""
        return self._first.get(name)


def _decoded(text: bytes) -> bytes:
    return unquote_to_bytes(text.replace(b"+", b" "))


def unwrapped(value: bytes) -> bytes:
    """The bytes that stand for themselves, or are given as ``[base64url]``, with or without its padding."""
    if len(value) < 2 or not (value.startswith(b"[") and value.endswith(b"]")):
        return value
    digits = value[1:-1].rstrip(b"=")
    try:
        if digits.translate(None, _BASE64URL):
            raise ValueError
        return base64.urlsafe_b64decode(digits + b"=" * (-len(digits) % 4))
    except (ValueError, binascii.Error):
        raise ValueError("unable to base64 decode [] wrapped value") from None


def wrapped(value: bytes) -> str:
    """The text that a client will read as those bytes."""
    if not (value.startswith(b"[") and value.endswith(b"]")):
        try:
            return value.decode()
        except UnicodeDecodeError:
            pass
    return f"[{base64.urlsafe_b64encode(value).decode()}]"


@_remembered
def read_uuid(value: bytes) -> UUID:
    """A uuid that is only going to be compared."""
    uuid = UUID(unwrapped(value))
    if not uuid:
        raise ValueError("empty UUID")
    return uuid


def read_word(value: bytes) -> UUID:
    """A uuid that may become a word of a message."""
    uuid = read_uuid(value)
    if uuid.split() != [uuid] or 0 in uuid:
        raise ValueError("white space or NUL in UUID")
    return uuid


@_remembered
def read_client(value: bytes) -> UUID:
    """A uuid that may become the name of a directory too (spec: http §3.3)."""
    uuid = read_word(value)
    if b"/" in bytes(uuid) or uuid in _NO_NAMES or len(uuid) > _MAX_NAME:
        raise ValueError("not usable as the name of a directory")
    return uuid


def read_key(value: bytes) -> Key:
    text = unwrapped(value)
    try:
        # Nor could a line be longer, or end with a carriage return, which would be taken for a part of its end.
        if b"\n" in text or text.endswith(b"\r") or len(text) > MAX_LINE:
            raise BadKey
        return Key(text)
    except BadKey:
        raise ValueError("key parse error") from None


def read_file(value: bytes) -> AssociatedFile:
    """The name of a file in the work tree; None for what cannot be one, which is no error (spec: http §15.7)."""
    name = unwrapped(value)
    return None if name.startswith(b"/") else name or None


def read_number(value: bytes, name: str) -> int:
    """A natural number. Those above MAX_NUMBER are as far beyond the end of all content and time as that one."""
    if not value.isdigit():  # for bytes these are the ASCII digits and nothing else
        raise ValueError(f"{name} parse error")
    digits = value.lstrip(b"0") or b"0"
    return min(int(digits), MAX_NUMBER) if len(digits) < 20 else MAX_NUMBER


def read_boolean(value: bytes) -> bool:
    try:
        return _BOOLEANS[value.lower()]
    except KeyError:
        raise ValueError(f"could not parse: `{log.printable(value.decode('utf-8', 'replace'))}'") from None
