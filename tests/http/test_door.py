"""Everything that can be asked of the HTTP server, with repositories on disk."""

from __future__ import annotations

import re
from typing import Any

from annexshell.key import Key
from tests import vectors
from tests.http.doors import CLIENT, SERVED, Answer, Door, Place, key_of

# What was recorded of git-annex --------------------------------------------

REQUESTS = vectors.load("http-requests")
# What was stored before the requests that remove it.
REMOVED = [b"content %04d 0123456789" % number for number in range(28, 34)]


def of_no_number(name: str) -> dict[str, Any]:
    return {"status": 400, "body": f"Error parsing query parameter {name} failed: {name} parse error"}


WITHOUT_SIDE_EFFECTS = {"after": {"present": False, "tmp_size": None}}

# What is answered otherwise than recorded, besides what is recommended there, and why.
OTHERWISE: dict[str, tuple[dict[str, Any], str]] = {
    "get offset 0x3": (of_no_number("offset"), "a number has digits only"),
    "get offset %203": (of_no_number("offset"), "a number has digits only"),
    "get offset (3)": (of_no_number("offset"), "a number has digits only"),
    "get range ignored": ({"status": 206, "body": "ll"}, "parts can be asked for"),
    "route GET /git-annex/$U/v4/checkpresent": (
        {"status": 200, "body": '{"present":true}'},
        "HTTP proxies let readers GET only",
    ),
    "checkpresent clientuuid unpadded base64": ({"status": 200, "body": '{"present":true}'}, "others leave it out"),
    **{
        f"putoffset v{version} nothing": (WITHOUT_SIDE_EFFECTS, "asking is not the beginning of an upload")
        for version in range(1, 5)
    },
}


class Recorded:
    """The recorded cases, with what is filled in as it becomes known."""

    def __init__(self, door: Door) -> None:
        self.door = door
        self.known = {"$U": SERVED.decode(), "$C": CLIENT}

    def filled(self, text: str) -> str:
        text = re.sub(r"\$NOW([+-]\d+)", lambda match: str(int(self.known["$NOW"]) + int(match[1])), text)
        for name, value in self.known.items():
            text = text.replace(name, value)
        return text

    def ask(self, request: dict[str, Any]) -> Answer:
        body: Any = None
        if "body_chunks" in request:
            body = [chunk.encode() for chunk in request["body_chunks"]]
        elif request.get("body") is not None:
            body = request["body"].encode()
        return self.door.ask(request["method"], self.filled(request["path"]), request.get("headers"), body)

    def learn(self, pattern: str, body: bytes) -> None:
        """Take the lock id, or the time, out of an answer."""
        for name in ("$LOCKID", "$NOW"):
            if name in pattern:
                found = re.fullmatch(re.escape(pattern).replace(re.escape(name), "([0-9a-f-]+)"), body.decode())
                assert found, (pattern, body)
                self.known[name] = found[1]


def test_what_was_recorded(place: Place, door: Door) -> None:
    for content in REMOVED:
        place.store(key_of(content), content)
    recorded = Recorded(door)
    failures = []
    for case in REQUESTS["cases"]:
        problem = difference(recorded, place, case)
        if problem:
            failures.append(f"{case['name']}: {problem}")
    assert not failures, "\n".join(failures)


def difference(recorded: Recorded, place: Place, case: dict[str, Any]) -> str:
    answer = recorded.ask(case["request"])
    expected = {**case["response"], "after": case.get("after"), **case.get("recommended", {})}
    expected |= OTHERWISE.get(case["name"], ({}, ""))[0]
    if expected["after"] == "not stored":
        expected["after"] = {"present": False}
    if answer.status != expected["status"]:
        return f"status {answer}"
    if expected["status"] == case["response"]["status"] or expected["body"] != case["response"]["body"]:
        recorded.learn(expected["body"], answer.body)
        if answer.body.decode() != recorded.filled(expected["body"]):
            return f"body {answer}"
    if expected["status"] == case["response"]["status"]:
        for name, value in expected["headers"].items():
            if answer.headers.get(name.lower()) != value:
                return f"header {name} {answer}"
    if expected["after"] is not None:
        key = re.search(r"key=([^&]*)", case["request"]["path"])
        assert key is not None
        now = state(place, Key(key[1].encode()))
        if {name: now[name] for name in expected["after"]} != expected["after"]:
            return f"after {now} instead of {expected['after']}"
    return ""


def test_nothing_is_otherwise_that_was_not_recorded() -> None:
    assert OTHERWISE.keys() <= {case["name"] for case in REQUESTS["cases"]}


def state(place: Place, key: Key) -> dict[str, Any]:
    partial = place.partial(key)
    return {"present": place.object(key) is not None, "tmp_size": None if partial is None else len(partial)}
