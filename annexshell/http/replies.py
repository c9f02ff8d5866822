"""The bodies of answers that succeeded, byte by byte as git-annex's server says them (spec: http §4.3)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from annexshell.http.values import wrapped

if TYPE_CHECKING:
    from collections.abc import Iterable

    from annexshell.repository import Outcome
    from annexshell.uuid import UUID

CONTENT_TYPE = "application/json;charset=utf-8"
_PLUS_SINCE = 2  # the version that has uuids in answers; clients of it need them, be they none


def present(yes: bool) -> bytes:
    """To checkpresent."""
    return _PRESENT[yes]


def stored(version: int, outcome: Outcome) -> bytes:
    """To put."""
    return _json({"stored": outcome.done} | _plus(version, outcome.uuids))


def removed(version: int, outcome: Outcome) -> bytes:
    """To remove and remove-before."""
    return _json({"removed": outcome.done} | _plus(version, outcome.uuids))


def offset(start: int) -> bytes:
    """To putoffset, when there is something to be put."""
    return _json({"offset": start})


def already_have(version: int, uuids: Iterable[UUID]) -> bytes:
    """To putoffset, when there is nothing to be put."""
    return _json({"alreadyhave": True} | _plus(version, uuids))


def timestamp(seconds: int) -> bytes:
    """To gettimestamp."""
    return _json({"timestamp": seconds})


def locked(lockid: bytes | None) -> bytes:
    """To lockcontent; with None, that it is not locked, which is all that keeplocked is ever told."""
    return _json({"locked": False} if lockid is None else {"locked": True, "lockid": wrapped(lockid)})


def _plus(version: int, uuids: Iterable[UUID]) -> dict[str, object]:
    return {"plusuuids": [wrapped(uuid) for uuid in uuids]} if version >= _PLUS_SINCE else {}


def _json(fields: dict[str, object]) -> bytes:
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


_PRESENT = {yes: _json({"present": yes}) for yes in (True, False)}
