"""The fake server is itself held against the recordings: what recorded clients said gets what they were answered."""

from __future__ import annotations

import os

import pytest

from tests import vectors
from tests.p2p.scripted import ScriptedServer

REACTIONS = vectors.load("protocol-client-reactions")
UUID = b"00000000-1111-2222-3333-444444444444"
FILES = {"{K1}": b"hello world\n", "{K2}": b"two\n"}
PLACEHOLDERS = {"SERVERUUID": UUID, "K1": b"SHA256E-s12--one", "K2": b"SHA256E-s4--two"}


def fill(line):
    for name, value in PLACEHOLDERS.items():
        line = line.replace("{" + name + "}", value.decode())
    return line.encode()


@pytest.mark.parametrize("case", REACTIONS["cases"], ids=lambda case: f"{case['client'][3:7]} {case['title']}")
def test_says_what_was_recorded(case):
    for steps in case["connections"]:
        with ScriptedServer(case["server_rules"], PLACEHOLDERS) as server, os.fdopen(server.reader, "rb") as replies:
            for kind, line, *payload in steps:
                if (kind, line) == ("c", None):
                    os.close(server.writer)
                elif kind == "c":
                    data = b"?" * payload[0]["len"] if payload else b""
                    os.write(server.writer, fill(line) + b"\n" + data)
                elif line is None:
                    assert replies.read() == (b"hello" if payload else b""), "cut off after that"
                else:
                    assert replies.readline() == fill(line) + b"\n"
                    if payload:
                        length = payload[0]["len"]
                        assert len(replies.read(length)) <= length
