"""The recorded conversations of the real server, held with ours: replies, exit status, files and log lines.

Where ours deliberately does better (spec: protocol §11) the deviation stands in a table here, as strict as the rest.
"""

from __future__ import annotations

import os
from typing import Any

import pytest

from tests import vectors
from tests.p2p.conftest import CONTENTS, KEYS, VECTORS
from tests.p2p.driver import file_name
from tests.p2p.steps import Player

PARSE = vectors.load("protocol-parse")
NAMES = vectors.load("protocol-associatedfile")

HELLO: list[list[Any]] = [["s", "AUTH-SUCCESS {SERVERUUID}"], ["c", "VERSION 4"], ["s", "VERSION 4"]]
NEXT: list[list[Any]] = [["c", "CHECKPRESENT {KS}"], ["s", "SUCCESS"]]  # the connection is still usable
END: list[list[Any]] = [["c-eof"]]


def refused(key: str, reply: str, *more: list[Any]) -> dict[str, Any]:
    """The steps of a PUT that is answered by REPLY, after which all is as before."""
    return {"steps": [*HELLO, ["c", f"PUT  {{{key}}}"], ["s", reply], *more, *NEXT, *END], "exit": 0, "after": {}}


def put(key: str, content: str, reply: str, offset: int = 0) -> list[list[Any]]:
    count = len(CONTENTS[content]) - offset
    return [
        ["c", f"PUT  {{{key}}}"],
        ["s", f"PUT-FROM {offset}"],
        ["c", f"DATA {count}"],
        ["c-data", {"content": content, "from": offset, "len": count}],
        ["c", "VALID"],
        ["s", reply],
    ]


# Name of the case: the rule, and what replaces the recording.
BETTER: dict[str, tuple[str, dict[str, Any]]] = {
    "get, negative offset": (
        "R5",
        {"steps": [*HELLO, ["c", "GET -3  {KS}"], ["s", "ERROR unknown command"], *NEXT, *END], "exit": 0},
    ),
    "put, negative DATA": (
        "R5",
        refused("KN", "PUT-FROM 0", ["c", "DATA -5"], ["s", "ERROR expected DATA"]),
    ),
    "put resume of an unverifiable key": (
        "R7",
        {
            "steps": [*HELLO, *put("KF", "new", "SUCCESS"), *END],
            "after": {"KF": {"object_len": 10000}},
            "location_log": {"KF": 1},
        },
    ),
    "put, empty client uuid": ("R8", refused("KN", "ERROR <reason>")),
    "put, not enough disk space": ("R8", refused("KN", "ERROR <reason>")),
    "put, annex.securehashesonly and MD5E": ("R8", refused("KMD5", "ERROR <reason>")),
    "put resume, tmp larger than key": (
        "R9",
        {
            "steps": [*HELLO, *put("KN", "new", "SUCCESS"), *END],
            "after": {"KN": {"object_len": 10000}},
            "location_log": {"KN": 1},
        },
    ),
}
# The client's ERROR after an ERROR reply does not end the session.
for _name in ("read-only", "read-only and append-only"):
    _recorded = next(case for case in VECTORS["cases"] if case["name"] == _name)["steps"]
    assert _recorded[-3:] == [["c", "ERROR x"], ["s-eof"], ["c-eof"]]
    BETTER[_name] = ("R10", {"steps": [*_recorded[:-2], *NEXT, *END]})
# The content stays locked for as long as the client was told.
_recorded = next(case for case in VECTORS["cases"] if case["name"] == "locked, then hang up")
BETTER["locked, then hang up"] = ("R4", {"steps": _recorded["steps"], "leftovers": {".lck", ".rtm", ".rtl"}})
# Nothing is announced that will not come.
BETTER["get, empty client uuid"] = (
    "R2",
    {
        "steps": [
            *HELLO,
            ["c", "GET 0  {KS}"],
            ["s", "DATA 12"],
            ["s-data", {"len": 12, "sha256": VECTORS["contents"]["small"]["sha256"]}],
            ["s", "VALID"],
            ["c", "SUCCESS"],
            *NEXT,
            *END,
        ],
        "exit": 0,
    },
)


class ReasonPlayer(Player):
    """Knows `ERROR <reason>`: any reason, as long as there is one for a person to read."""

    def expect(self, line):
        if line != "ERROR <reason>":
            return super().expect(line)
        got = self.server.read_line()
        assert got is not None and got.startswith(b"ERROR ") and len(got) > 15, got
        return None


def test_the_table_of_deviations_names_recorded_cases():
    assert set(BETTER) <= {case["name"] for case in VECTORS["cases"]}


@pytest.mark.parametrize("case", VECTORS["cases"], ids=lambda case: case["name"])
def test_conversation(case, repository, serve, server_kind):
    if server_kind == "ours" and case["name"] in BETTER:
        case = {**case, **BETTER[case["name"]][1]}
    for name, value in case.get("config", {}).items():
        repository.set_config(name, value)
    for key, tmp in case.get("tmp", {}).items():
        repository.put_tmp(KEYS[key], CONTENTS[tmp["content"]][: tmp["len"]])
    objects_before = lengths(repository)
    logged_before = repository.locations()

    client_uuid = case.get("client_uuid", VECTORS["client_uuid"])
    with serve(client_uuid=client_uuid, env=case.get("env")) as server:
        ReasonPlayer(server, {**KEYS, "SERVERUUID": repository.uuid.encode()}, CONTENTS).play(case["steps"])
        assert server.exit_code() == case["exit"], server.errors

    changed = {}
    for key, before in objects_before.items():
        after = lengths(repository)[key]
        change = {} if after[0] == before[0] else {"object_len": after[0]}
        if after[1] is not None:
            change["tmp_len"] = after[1]
        if change:
            changed[key] = change
    assert changed == case.get("after", {})
    assert logged(repository, logged_before) == {
        file_name(KEYS[key]): value for key, value in expected_log(case).items()
    }
    assert repository.journal() == {}
    assert {os.path.splitext(name)[1] for name in repository.leftovers()} == case.get("leftovers", set())


def lengths(repository):
    """By key: lengths of object and temp file, None where there is none."""
    found = {}
    for name, key in KEYS.items():
        here = repository.object(key)
        tmp = repository.tmp(key)
        found[name] = (here.stat().st_size if here else None, tmp.stat().st_size if tmp.exists() else None)
    return found


def logged(repository, before):
    return {name: value for name, value in repository.locations().items() if before.get(name) != value}


def expected_log(case):
    return {**case.get("location_log", {}), **UNRECORDED.get(case["name"], {})}


# Log lines that the real server wrote too, for keys whose file names the recording did not look for.
UNRECORDED = {"put URL without size": {"KU": 1}, "key containing spaces": {"KSP": 0}}

# Lines that are not parsed as leniently as the real server parses them, by rule.
STRICT = {
    "VERSION\u00a01": "R1",
    "VERSION\u20031": "R1",
    "VERSION \t 1": "R5",
    "VERSION 1 ": "R5",
    "VERSION 1\r\r": "R5",
    "VERSION -1": "R5",
    "VERSION 3abc": "R5",
    "VERSION (2)": "R5",
    "VERSION 0x3": "R5",
    "VERSION 0o2": "R5",
    "VERSION 1_0": "R5",
    "GET -1  FOO--y": "R5",
    "GET 5x  FOO--y": "R5",
}


@pytest.mark.parametrize("row", PARSE["lines"], ids=lambda row: repr(row.get("line", row.get("line_repeat")))[:60])
def test_line(row, repository, serve, server_kind):
    line = vectors.to_bytes(row["line"]) if "line" in row else row["line_repeat"][0].encode() * row["line_repeat"][1]
    reply = row["reply"]
    if server_kind == "ours" and row.get("line") in STRICT:
        reply = ["ERROR unknown command"]
    with serve() as server:
        server.open(repository, version=None)
        server.line(line)
        player = Player(server, {}, {})
        if reply == ["<EOF>"]:
            assert server.read_all() == b""
            assert server.exit_code() == 1
            return
        for expected in reply:
            player.expect(expected)
        if reply and reply[0].startswith("DATA"):
            server.line("FAILURE")
        server.line("VERSION 0")
        server.expect("VERSION 0")
        assert server.finish() == 0
    assert repository.leftovers() == []


def shown(row, server_kind):
    """The name a token stands for: R1, a Unicode space does not split the line."""
    if server_kind == "ours" and "in_C_locale" in row and row["decoded"] is None:
        return row["in_C_locale"]["decoded"]
    return row["decoded"]


@pytest.mark.parametrize("row", NAMES["server_decode"], ids=lambda row: repr(row["wire"]))
def test_associated_file(row, repository, serve, server_kind):
    """The name is seen in the record of a failed transfer, the only place where it goes."""
    key = KEYS["KS"]
    name = shown(row, server_kind)
    with serve() as server:
        server.open(repository, version=None)
        server.line(b"GET 0 " + vectors.to_bytes(row["wire"]) + b" " + key)
        if name is None:
            server.expect(row["reply"])
            if row["reply"].startswith("DATA"):
                server.line("FAILURE")
            assert server.ask("VERSION 0") == b"VERSION 0"
            assert server.finish() == 0
            return
        server.expect("DATA 12")
        assert server.read(12) == CONTENTS["small"]
        server.line("FAILURE")
        assert server.ask("VERSION 0") == b"VERSION 0"
        assert server.finish() == 0
    (record,) = (repository.annex / "transfer" / "failed" / "upload").rglob(file_name(key).decode())
    assert record.read_bytes().split(b"\n", 1)[1] == vectors.to_bytes(name) + b"\n"
