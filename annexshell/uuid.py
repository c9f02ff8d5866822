"""The uuid that names a git-annex repository."""

from __future__ import annotations


class UUID(bytes):
    """A repository's uuid: any bytes without white space, compared exactly (spec: protocol §2.6)."""

    __slots__ = ()

    def __str__(self) -> str:
        return self.decode("utf-8", "backslashreplace")


NO_UUID = UUID(b"")
