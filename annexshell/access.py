"""What a client may do: full access, adding only, or reading only (spec: shell §4.1, protocol §6)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


class Access:
    """One of READ_WRITE, APPEND_ONLY and READ_ONLY."""

    __slots__ = ("may_remove", "may_write", "name")

    def __init__(self, name: str, *, may_write: bool, may_remove: bool) -> None:
        self.name = name
        self.may_write = may_write
        self.may_remove = may_remove

    def __repr__(self) -> str:
        return f"<{self.name}>"


READ_WRITE = Access("read-write", may_write=True, may_remove=True)
APPEND_ONLY = Access("append-only", may_write=True, may_remove=False)
READ_ONLY = Access("read-only", may_write=False, may_remove=False)

WRITE_DENIED = b"this repository is read-only; write access denied"
REMOVAL_DENIED = b"this repository is append-only; removal denied"


def from_environment(environ: Mapping[str, str] = os.environ) -> Access:
    """What GIT_ANNEX_SHELL_READONLY and GIT_ANNEX_SHELL_APPENDONLY leave; any non-empty value counts as set."""
    if environ.get("GIT_ANNEX_SHELL_READONLY"):
        return READ_ONLY
    if environ.get("GIT_ANNEX_SHELL_APPENDONLY"):
        return APPEND_ONLY
    return READ_WRITE
