"""Keys: their grammar, canonical form, and the file names made of them (spec: objects §1, §2.1).

A key reaches the file system only through :attr:`Key.filename`, which never contains ``/``.
"""

from __future__ import annotations

_FIELDS = (b"s", b"m", b"S", b"C")
_DIGITS = b"0123456789"
_MAX_EXTENSION = 64
# Varieties whose last letter happens to be E but that have no file extension.
_WITHOUT_EXTENSION = frozenset((b"WORM", b"URL", b"VURL", b"GITBUNDLE", b"GITMANIFEST"))
_MIXED_ALPHABET = b"0123456789zqjxkmvwgpfZQJXKMVWGPF"
_UNESCAPED = {b"a": b"&", b"s": b"%", b"c": b":"}


class BadKey(ValueError):
    """Bytes that are not a key."""


def number(digits: bytes) -> int:
    """int() without its limit on the number of digits, which keys do not have."""
    if len(digits) < 4000:
        return int(digits)
    value = 0
    for start in range(0, len(digits), 4000):
        part = digits[start : start + 4000]
        value = value * 10 ** len(part) + int(part)
    return value


class Key:
    """A key in canonical form. Two keys are equal when their parsed fields are."""

    __slots__ = ("_digest", "chunknum", "chunksize", "mtime", "name", "serialized", "size", "variety")

    serialized: bytes
    variety: bytes
    size: int | None
    mtime: int | None
    chunksize: int | None
    chunknum: int | None
    name: bytes
    _digest: bytes | None

    def __init__(self, text: bytes) -> None:
        """Parse a serialized key; raises BadKey."""
        position = text.find(b"-")
        if position < 1:
            raise BadKey("a key starts with a backend name and a dash")
        if b"\0" in text:
            raise BadKey("a key cannot contain a NUL byte, as no file name can")
        self.variety = variety = text[:position]
        found: dict[bytes, bytes] = {}
        for field in _FIELDS:
            start = position + 2
            if text[position:start] != b"-" + field:
                continue
            digits = text[start:]
            digits = digits[: len(digits) - len(digits.lstrip(_DIGITS))]
            if not digits:
                break
            found[field] = digits.lstrip(b"0") or b"0"
            position = start + len(digits)
        if text[position : position + 2] != b"--":
            raise BadKey("expected '--' before the key's name")
        self.name = name = text[position + 2 :]
        if variety[-1:] == b"E" and variety not in _WITHOUT_EXTENSION:
            dot = name.find(b".")
            if dot >= 0 and len(name) - dot > _MAX_EXTENSION:
                raise BadKey("the key's file extension is too long")
        if b"m" in found:
            mtime = number(found[b"m"]) & 0xFFFFFFFFFFFFFFFF
            found[b"m"] = b"%d" % (mtime - (1 << 64) if mtime >> 63 else mtime)
        self.size = _number_or_none(found.get(b"s"))
        self.mtime = _number_or_none(found.get(b"m"))
        self.chunksize = _number_or_none(found.get(b"S"))
        self.chunknum = _number_or_none(found.get(b"C"))
        self.serialized = variety
        for field, digits in found.items():  # which are in this order
            self.serialized += b"-" + field + digits
        self.serialized += b"--" + name
        self._digest = None

    @classmethod
    def from_filename(cls, filename: bytes) -> Key:
        """The key that :attr:`filename` was made of; raises BadKey (spec: objects §1.6)."""
        pieces = filename.split(b"%")
        return cls(b"/".join(map(_unescape, pieces)))

    @property
    def filename(self) -> bytes:
        """The key as a file name, never containing a slash (spec: objects §1.5)."""
        return self.serialized.replace(b"&", b"&a").replace(b"%", b"&s").replace(b":", b"&c").replace(b"/", b"%")

    @property
    def digest(self) -> bytes:
        """MD5 of the key without its chunk fields: what hash directories are made of."""
        if self._digest is None:
            self._digest = _md5(self.without_chunk)
        return self._digest

    @property
    def without_chunk(self) -> bytes:
        """The serialized key that all chunks of one object share."""
        if self.chunksize is None and self.chunknum is None:
            return self.serialized
        # Cut out, not written anew: %d has a limit on the number of digits.
        end = len(self.serialized) - len(self.name) - 2
        field = b"-S" if self.chunksize is not None else b"-C"
        start = self.serialized.index(field, len(self.variety), end)
        return self.serialized[:start] + self.serialized[end:]

    def hashdirs_lower(self, levels: int = 2) -> bytes:
        """``f87/4d5``, or only the first of the two."""
        text = self.digest[:3].hex().encode()
        return text[:3] + b"/" + text[3:] if levels == 2 else text[:3]

    def hashdirs_mixed(self, levels: int = 2) -> bytes:
        """``zK/02``, or only the first of the two."""
        word = int.from_bytes(self.digest[:4], "little")
        c = [_MIXED_ALPHABET[(word >> 6 * i) & 31] for i in range(4)]
        first = bytes((c[1], c[0]))
        return first + b"/" + bytes((c[3], c[2])) if levels == 2 else first

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Key) and self.serialized == other.serialized

    def __hash__(self) -> int:
        return hash(self.serialized)

    def __repr__(self) -> str:
        return f"Key({self.serialized!r})"

    def __str__(self) -> str:
        return self.serialized.decode("utf-8", "backslashreplace")


def _number_or_none(digits: bytes | None) -> int | None:
    if digits is None:
        return None
    return -number(digits[1:]) if digits[:1] == b"-" else number(digits)


def _unescape(piece: bytes) -> bytes:
    first, *rest = piece.split(b"&")
    return first + b"".join(_UNESCAPED.get(part[:1], part[:1]) + part[1:] for part in rest)


def _md5(data: bytes) -> bytes:
    # The interpreter's own MD5: hashlib would load OpenSSL, which takes longer than answering a CHECKPRESENT.
    try:
        from _md5 import md5
    except ImportError:
        from hashlib import md5
    return bytes(md5(data, usedforsecurity=False).digest())
