"""What is answered has the very bytes of what git-annex answered."""

from __future__ import annotations

import json
from typing import Any

import pytest

from annexshell.http import replies
from annexshell.repository import Outcome
from annexshell.uuid import UUID
from tests import vectors

# By the field that only the answers of one kind have.
SAID = {
    "present": lambda version, fields: replies.present(fields["present"]),
    "stored": lambda version, fields: replies.stored(version, outcome(fields, "stored")),
    "removed": lambda version, fields: replies.removed(version, outcome(fields, "removed")),
    "offset": lambda version, fields: replies.offset(fields["offset"]),
    "alreadyhave": lambda version, fields: replies.already_have(version, uuids(fields)),
    "timestamp": lambda version, fields: replies.timestamp(fields["timestamp"]),
    "locked": lambda version, fields: replies.locked(fields["lockid"].encode() if fields["locked"] else None),
}


def uuids(fields: dict[str, Any]) -> tuple[UUID, ...]:
    return tuple(UUID(uuid.encode()) for uuid in fields.get("plusuuids", ()))


def outcome(fields: dict[str, Any], name: str) -> Outcome:
    return Outcome(fields[name], uuids(fields))


def recorded() -> set[tuple[int, str]]:
    """The version and body of every JSON answer."""
    found = [
        (case["request"]["path"], case.get("recommended", {}).get("body", case["response"]["body"]))
        for case in vectors.load("http-requests")["cases"]
        if case.get("recommended", case["response"]).get("status", 200) == 200
    ]
    for scenario in vectors.load("http-client")["scenarios"]:
        for exchange in scenario["exchanges"]:
            response = exchange.get("response")
            if response and response["status"] == 200 and "json" in response["headers"].get("Content-Type", ""):
                found.append((exchange["path"], response["body"]))
    found += [(path.split()[1], body) for path, _, _, _, _, body in vectors.load("http-testremote")["exchanges"]]
    return {
        (int(path.split("/")[3][1:]), body.replace("$NOW", "1394"))
        for path, body in found
        if isinstance(body, str) and body.startswith("{")
    }


def test_all_recorded_answers() -> None:
    answers = recorded()
    assert len(answers) > 30
    kinds = set()
    for version, body in answers:
        fields = json.loads(body)
        kind = next(name for name in SAID if name in fields)
        assert SAID[kind](version, fields) == body.encode()
        kinds.add(kind)
    assert kinds == set(SAID)


@pytest.mark.parametrize("version", range(5))
def test_each_version(version: int) -> None:
    has_plus = version >= 2
    plus = b'"plusuuids":[],' if has_plus else b""
    assert replies.stored(version, Outcome(False)) == b"{" + plus + b'"stored":false}'
    assert replies.removed(version, Outcome(True)) == b"{" + plus + b'"removed":true}'
    others = (UUID(b"a"), UUID(b"b"))
    plus = b'"plusuuids":["a","b"],' if has_plus else b""
    assert replies.stored(version, Outcome(True, others)) == b"{" + plus + b'"stored":true}'
    assert replies.removed(version, Outcome(False, others)) == b"{" + plus + b'"removed":false}'
    plus = b',"plusuuids":["a","b"]' if has_plus else b""
    assert replies.already_have(version, others) == b'{"alreadyhave":true' + plus + b"}"


def test_uuids_that_are_no_text() -> None:
    odd = (UUID(b"\xff"), UUID("\u00e9".encode()), UUID(b"[x]"), UUID(b'"'))
    assert replies.already_have(4, odd) == (
        '{"alreadyhave":true,"plusuuids":["[_w==]","\u00e9","[W3hd]","\\""]}'.encode()
    )


def test_content_type() -> None:
    recorded_types = {
        case["response"]["headers"].get("Content-Type")
        for case in vectors.load("http-requests")["cases"]
        if case["response"]["body"].startswith("{")
    }
    assert recorded_types == {replies.CONTENT_TYPE}
