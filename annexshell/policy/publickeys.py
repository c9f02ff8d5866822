"""ssh public keys, one to a line as in ``id_ed25519.pub``: nothing else may get into an authorized_keys file."""

from __future__ import annotations

import binascii

# Type -> how many fields follow it in the key's binary form.
_TYPES = {
    "ssh-ed25519": 1,
    "ssh-rsa": 2,
    "ecdsa-sha2-nistp256": 2,
    "ecdsa-sha2-nistp384": 2,
    "ecdsa-sha2-nistp521": 2,
    "sk-ssh-ed25519@openssh.com": 2,
    "sk-ecdsa-sha2-nistp256@openssh.com": 3,
}


class Malformed(ValueError):
    """What is wrong with a key, without the key."""


class PublicKey:
    """``TYPE BASE64 COMMENT``; equal to any other with the same key, whatever the comment."""

    __slots__ = ("blob", "comment", "kind")

    def __init__(self, kind: str, blob: bytes, comment: str) -> None:
        self.kind = kind
        self.blob = blob
        self.comment = comment

    @classmethod
    def parse(cls, line: str) -> PublicKey:
        """Raises Malformed."""
        if not line.isprintable():
            # A line end would start another line of authorized_keys, without any restriction.
            raise Malformed("it has control characters or line ends in it")
        words = line.split(" ", 2)
        if words[0] not in _TYPES:
            raise Malformed(
                "it does not begin with a known type of key, like ssh-ed25519; options are not for this file"
            )
        if len(words) < 2:
            raise Malformed("there is nothing behind the type")
        blob = _blob(words[1])
        fields = _fields(blob)
        if fields[0] != words[0].encode() or len(fields) != 1 + _TYPES[words[0]]:
            raise Malformed("its base64 part is not a key of its type")
        return cls(words[0], blob, words[2].strip() if len(words) > 2 else "")

    @property
    def line(self) -> str:
        return " ".join(filter(None, (self.kind, _text(self.blob), self.comment)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.blob == other.blob

    def __hash__(self) -> int:
        return hash(self.blob)


def _text(blob: bytes) -> str:
    return binascii.b2a_base64(blob, newline=False).decode()


def _blob(text: str) -> bytes:
    try:
        blob = binascii.a2b_base64(text)
    except ValueError:
        blob = b""
    # Decoding skips what is not base64, so only what encodes to the same again was that alone.
    if not blob or _text(blob) != text:
        raise Malformed("its second word is not base64")
    return blob


def _fields(blob: bytes) -> list[bytes]:
    """What is in a key's binary form: strings behind their lengths, each of four bytes."""
    fields = []
    while blob:
        end = 4 + int.from_bytes(blob[:4], "big")
        if len(blob) < max(end, 5):
            raise Malformed("its base64 part is cut off")
        fields.append(blob[4:end])
        blob = blob[end:]
    return fields
