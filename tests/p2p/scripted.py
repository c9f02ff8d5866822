"""A fake server that answers by the rules of protocol-client-reactions.json, for testing clients.

Rules: `start` is what it says first, or `exit_at_start` the status with which it is gone at once; every other entry
is a command word and the reply to it. A reply that ends in EXIT or EXITn is the last. VERSION is negotiated unless a
rule says otherwise; words without a rule get no reply.
"""

from __future__ import annotations

import hashlib
import os
import re
import threading
from typing import Any

EXIT = re.compile(rb"EXIT([0-9]*)$")


class ScriptedServer:
    """Used in a ``with``: `reader` and `writer` are the client's descriptors, `steps` what was said by both."""

    def __init__(self, rules: dict[str, Any], placeholders: dict[str, bytes]) -> None:
        self.rules = {word: self._fill(rule, placeholders) for word, rule in rules.items()}
        self.steps: list[list[Any]] = []
        self.exit_status = 0

    @staticmethod
    def _fill(rule: Any, placeholders: dict[str, bytes]) -> Any:
        if isinstance(rule, int):
            return rule
        return re.sub(r"\{([^{}]+)\}", lambda match: placeholders[match[1]].decode(), rule).encode()

    def __enter__(self) -> ScriptedServer:
        self._in, self.writer = os.pipe()
        self.reader, self._out = os.pipe()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Hangs up, where the client has not done that."""
        for fd in (self.writer, self.reader):
            try:
                os.close(fd)
            except OSError:
                pass
        self._thread.join(10)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with os.fdopen(self._in, "rb") as client, os.fdopen(self._out, "wb", buffering=0) as out:
            try:
                self._serve(client, out)
            except BrokenPipeError:
                pass
        self.steps.append(["s", None])

    def _serve(self, client: Any, out: Any) -> None:
        if "exit_at_start" in self.rules:
            self.exit_status = self.rules["exit_at_start"]
            return
        if not self._say(out, self.rules["start"]):
            return
        while line := client.readline():
            words = line.rstrip(b"\n").split(b" ")
            step: list[Any] = ["c", line.rstrip(b"\n").decode("utf-8", "surrogateescape")]
            if words[0] == b"DATA" and len(words) == 2 and words[1].isdigit():
                payload = client.read(int(words[1]))
                step.append({"len": len(payload), "sha256": hashlib.sha256(payload).hexdigest()})
            self.steps.append(step)
            reply = self.rules.get(words[0].decode("latin-1"))
            if reply is None and words[0] == b"VERSION":
                reply = b"VERSION %d\n" % min(int(words[1]), 4)
            if reply is not None and not self._say(out, reply):
                return
        self.steps.append(["c", None])

    def _say(self, out: Any, reply: bytes) -> bool:
        """False when that was the last."""
        last = EXIT.search(reply)
        text = reply[: last.start()] if last else reply
        self.steps.append(["s-raw", text])
        out.write(text)
        if last:
            self.exit_status = int(last[1] or 0)
        return last is None
