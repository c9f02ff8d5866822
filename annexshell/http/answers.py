"""What a server says in JSON (spec: http §4.3)."""

from __future__ import annotations

import json
import zlib

from annexshell.errors import PeerError
from annexshell.http.urls import decode_value
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.http.connection import Reply

_LIMIT = 1 << 18
_GZIP = 31  # zlib's name for it


class Answer:
    """The fields of an answer. Asking for one that is not there or not of its type raises PeerError."""

    def __init__(self, reply: Reply, action: str) -> None:
        """Raises PeerError, RemoteUnavailable."""
        self._action = action
        self._who = str(reply.connection.base)
        content_type = reply.header("Content-Type") or ""
        if content_type.partition(";")[0].strip().lower() != "application/json":
            raise self._wrong("which is not JSON; is there something else than git-annex's HTTP server?")
        body = reply.read_all(_LIMIT)
        try:
            fields = json.loads(self._decoded(body, (reply.header("Content-Encoding") or "").strip().lower()))
        except (ValueError, RecursionError) as reason:
            raise self._wrong("which is not JSON") from reason
        if not isinstance(fields, dict):
            raise self._wrong("which is not a JSON object")
        self._fields = fields

    def _decoded(self, body: bytes, encoding: str) -> bytes:
        if encoding in ("", "identity"):
            return body
        if encoding not in ("gzip", "x-gzip"):
            raise self._wrong("in an encoding that was not asked for")
        try:
            return zlib.decompressobj(_GZIP).decompress(body, _LIMIT)
        except zlib.error as reason:
            raise self._wrong("which is not gzip") from reason

    def _wrong(self, how: str) -> PeerError:
        return PeerError(f"{self._action} got an answer {how}", self._who)

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def flag(self, name: str) -> bool:
        value = self._fields.get(name)
        if not isinstance(value, bool):
            raise self._wrong(f"without a usable {name!r}")
        return value

    def number(self, name: str) -> int:
        value = self._fields.get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 63:
            raise self._wrong(f"without a usable {name!r}")
        return value

    def text(self, name: str) -> bytes:
        value = self._fields.get(name)
        try:
            if isinstance(value, str) and value:
                return decode_value(value)
        except ValueError:
            pass
        raise self._wrong(f"without a usable {name!r}")

    def uuids(self) -> tuple[UUID, ...]:
        """``plusuuids``, which the first versions do not have."""
        values = self._fields.get("plusuuids", [])
        try:
            uuids = tuple(UUID(decode_value(value)) for value in values)
        except (TypeError, AttributeError, ValueError) as reason:
            raise self._wrong("without usable 'plusuuids'") from reason
        # They become words of other messages, and of logs.
        if any(uuid.split() != [uuid] or 0 in uuid for uuid in uuids):
            raise self._wrong("without usable 'plusuuids'")
        return uuids
