"""What a client may do: full access, adding only, or reading only (spec: shell §4.1, protocol §6)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


# Git's own services that can run inside the P2P protocol; what they need besides is the protocol's affair.
GIT_SERVICES = (b"git-upload-pack", b"git-receive-pack")


class Access:
    """READ_WRITE, APPEND_ONLY or READ_ONLY, or one of these as a policy gives it."""

    __slots__ = ("blocked", "may_remove", "may_write", "name", "services")

    def __init__(
        self,
        name: str,
        *,
        may_write: bool,
        may_remove: bool,
        blocked: str = "",
        services: tuple[bytes, ...] = GIT_SERVICES,
    ) -> None:
        self.name = name
        self.may_write = may_write
        self.may_remove = may_remove
        self.blocked = blocked  # what to say of anything that is not allowed
        self.services = services  # of git, that are allowed over the same connection

    def __repr__(self) -> str:
        return f"<{self.name}>"


READ_WRITE = Access("read-write", may_write=True, may_remove=True)
APPEND_ONLY = Access(
    "append-only", may_write=True, may_remove=False, blocked="Action blocked by GIT_ANNEX_SHELL_APPENDONLY"
)
READ_ONLY = Access(
    "read-only", may_write=False, may_remove=False, blocked="Action blocked by GIT_ANNEX_SHELL_READONLY"
)

WRITE_DENIED = b"this repository is read-only; write access denied"
REMOVAL_DENIED = b"this repository is append-only; removal denied"


def from_environment(environ: Mapping[str, str] = os.environ) -> Access:
    """What GIT_ANNEX_SHELL_READONLY and GIT_ANNEX_SHELL_APPENDONLY leave; any non-empty value counts as set."""
    if environ.get("GIT_ANNEX_SHELL_READONLY"):
        return READ_ONLY
    if environ.get("GIT_ANNEX_SHELL_APPENDONLY"):
        return APPEND_ONLY
    return READ_WRITE


def narrower(*modes: Access) -> Access:
    """What all of MODES allow, each of which is one of the three."""
    return min(modes, key=(READ_ONLY, APPEND_ONLY, READ_WRITE).index)
