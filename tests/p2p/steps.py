"""Playing the recorded conversations of protocol-*.json against a server (spec: protocol §12)."""

from __future__ import annotations

import hashlib
import re
import time
from typing import Any

from tests import vectors
from tests.p2p.driver import QUIET, Server

TIMESTAMP = re.compile(rb"TIMESTAMP ([0-9]+)")


class Player:
    """Plays steps; PLACEHOLDERS fill what stands in braces, CONTENTS are the payloads."""

    def __init__(self, server: Server, placeholders: dict[str, bytes], contents: dict[str, bytes]) -> None:
        self.server = server
        self.placeholders = placeholders
        self.contents = contents

    def fill(self, text: str) -> bytes:
        def replace(match: re.Match[str]) -> str:
            name = match[1]
            relative = re.fullmatch(r"NOW([+-][0-9]+)", name)
            if relative:
                return str(int(time.clock_gettime(time.CLOCK_BOOTTIME)) + int(relative[1]))
            return self.placeholders[name].decode("utf-8", "surrogateescape")

        return vectors.to_bytes(re.sub(r"\{([^{}]+)\}", replace, text))

    def play(self, steps: list[list[Any]]) -> None:
        closed = False
        for number, step in enumerate(steps):
            try:
                if step[0] == "c-eof" or step == ["c", None]:
                    self.server.close()
                    closed = True
                else:
                    self.step(*step)
            except AssertionError as error:
                raise AssertionError(f"step {number}, {step}: {error}") from None
        if not closed:
            self.server.close()
        rest = self.server.read_all()
        assert not rest, f"sent unasked: {rest[-500:]!r}"

    def step(self, kind: str, what: Any = None, payload: dict[str, Any] | None = None) -> None:
        server = self.server
        if kind == "c":
            server.line(self.fill(what))
            if payload:
                server.send(self.payload(payload))
        elif kind == "c-raw":
            server.send(vectors.to_bytes(what))
        elif kind == "c-data":
            server.send(self.payload(what))
        elif kind == "s":
            self.expect(what)
            if payload:
                self.expect_data(payload)
        elif kind == "s-data":
            self.expect_data(what)
        elif kind == "s-eof":
            assert server.read_all() == b""
        elif kind == "s-nothing":
            server.expect_nothing(QUIET)
        else:
            raise AssertionError(f"no such kind of step: {kind}")

    def expect(self, line: str | None) -> None:
        if line is None:
            assert self.server.read_all() == b""
        elif line == "TIMESTAMP {T}":
            got = self.server.read_line() or b""
            match = TIMESTAMP.fullmatch(got)
            assert match, got
            assert abs(int(match[1]) - time.clock_gettime(time.CLOCK_BOOTTIME)) < 5
        else:
            self.server.expect(self.fill(line))

    def expect_data(self, payload: dict[str, Any]) -> None:
        got = self.server.read(payload["len"])
        assert len(got) == payload["len"]
        assert hashlib.sha256(got).hexdigest() == payload["sha256"]

    def payload(self, payload: dict[str, Any]) -> bytes:
        if "content" in payload:
            start = payload["from"]
            return self.contents[payload["content"]][start : start + payload["len"]]
        return self.contents[payload["sha256"]]
