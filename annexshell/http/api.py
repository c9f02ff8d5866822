"""What can be asked of the HTTP API, and how it refuses (spec: http §3, §4)."""

from __future__ import annotations

from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.http.asker import Asker
    from annexshell.key import Key
    from annexshell.uuid import UUID

PREFIX = "/git-annex/"
HIGHEST = 4


class Kind(Enum):
    """What a request does, as far as permissions are concerned (spec: http §8.3)."""

    READ = "read"
    WRITE = "write"
    REMOVE = "remove"
    LOCK = "lock"


class Action:
    """One thing that can be asked, and what has to come with it."""

    __slots__ = ("first_version", "kind", "methods", "name", "required")

    def __init__(
        self,
        name: str,
        kind: Kind,
        *required: str,
        first_version: int = 0,
        methods: tuple[str, ...] = ("POST",),
    ) -> None:
        self.name = name
        self.kind = kind
        self.required = required  # query parameters
        self.first_version = first_version  # of the API; all later ones have it
        self.methods = methods


GET = Action("key", Kind.READ, "clientuuid", methods=("GET", "HEAD"))
CHECKPRESENT = Action("checkpresent", Kind.READ, "key", "clientuuid", methods=("POST", "GET"))
LOCKCONTENT = Action("lockcontent", Kind.LOCK, "key", "clientuuid")
KEEPLOCKED = Action("keeplocked", Kind.LOCK, "lockid")
REMOVE = Action("remove", Kind.REMOVE, "key", "clientuuid")
REMOVE_BEFORE = Action("remove-before", Kind.REMOVE, "key", "clientuuid", "timestamp", first_version=3)
GETTIMESTAMP = Action("gettimestamp", Kind.READ, "clientuuid", first_version=3, methods=("POST", "GET"))
PUT = Action("put", Kind.WRITE, "key", "clientuuid")
PUTOFFSET = Action("putoffset", Kind.WRITE, "key", "clientuuid", first_version=1)

ACTIONS = {
    action.name: action
    for action in (
        GET,
        CHECKPRESENT,
        LOCKCONTENT,
        KEEPLOCKED,
        REMOVE,
        REMOVE_BEFORE,
        GETTIMESTAMP,
        PUT,
        PUTOFFSET,
    )
}


class ApiRequest:
    """A request that makes sense. What was not given is None, or empty."""

    __slots__ = (
        "action",
        "asker",
        "bypass",
        "client",
        "data_length",
        "data_present",
        "file",
        "key",
        "lockid",
        "offset",
        "timestamp",
        "uuid",
        "version",
    )

    action: Action
    asker: Asker
    version: int | None  # of the API; None for the download without one, which people and browsers use
    uuid: UUID  # of the repository that is asked
    client: UUID  # empty if it may be missing, and is
    bypass: tuple[UUID, ...]
    key: Key | None
    file: bytes | None
    offset: int
    timestamp: int | None
    lockid: bytes | None
    data_length: int | None  # X-git-annex-data-length
    data_present: bool

    @property
    def the_key(self) -> Key:
        """Of a request that has to have one."""
        assert self.key is not None
        return self.key

    @property
    def the_version(self) -> int:
        """Of the protocol: the download without a version is one of version 0 (spec: proxy §11.2)."""
        return self.version or 0


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(f"{status} {text}")
        self.status = status
        self.text = text  # the body; often empty
        self.headers = dict(headers or {})
