"""Sessions of a proxy: as they were recorded, and with nodes and clients that fail at every point."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from pathlib import Path
from typing import Any

import pytest

from annexshell.key import Key
from annexshell.uuid import UUID
from tests import vectors
from tests.leftovers import left_open
from tests.proxying import (
    Client,
    Link,
    Nodes,
    OnDisk,
    RealNode,
    nodes,
    set_config,
    write_branch,
)
from tests.shell import Result, Shell, make_annex

__all__ = ["nodes"]

SCENARIOS = vectors.load("proxy-scenarios")
UUIDS = {name: UUID(uuid.encode()) for name, uuid in SCENARIOS["uuids"].items()}
SINGLE = [scenario for scenario in SCENARIOS["scenarios"] if scenario["name"].startswith("single-")]
PIECE = re.compile(r"\[(\d+) bytes(?:, (\d+) missing)?\]")


# Replaying ------------------------------------------------

END = ["> <EOF>", "< <EOF>"]
GOES_ON = ["> CHECKPRESENT KEY", "< FAILURE", *END]
TELLS = "a node that dies or talks nonsense gives the client an ERROR that names it, and the session goes on"
# Where we differ on purpose: what the client gets in place of the last that it got, the exit status, and why.
BETTER = {
    "single-put-node-error-first": (["< ERROR no", *END], 0, "a node's reason to refuse is passed on"),
    "single-put-node-unparsable": (["< ERROR remote a1 sent what is no message: 'JUNK'", *GOES_ON], 0, TELLS),
    "single-put-node-dies-first": (["< ERROR lost the connection to remote a1", *GOES_ON], 0, TELLS),
    "single-put-node-dies-data": (["< ERROR lost the connection to remote a1", *GOES_ON], 0, TELLS),
    "single-get-node-failure": (["< ERROR remote a1 answered GET with Failure()", *GOES_ON], 0, TELLS),
    "single-get-node-dies": (["< ERROR lost the connection to remote a1", *GOES_ON], 0, TELLS),
    "single-get-node-short": (
        ["< ERROR lost the connection to remote a1 while it sent content", *GOES_ON],
        0,
        "small content is not begun to be sent before all of it is there",
    ),
    "single-checkpresent-node-dies": (["< ERROR lost the connection to remote a1", *GOES_ON], 0, TELLS),
}
# The same for what the node hears.
HEARD = {
    # The client gets the same answer from the proxy itself. The node is told that nothing comes.
    "single-put-data-present-v3": ["> VERSION 3", "> PUT foo KEY", "> DATA 0", "> INVALID"],
}


def with_better(scenario: dict[str, Any]) -> tuple[list[str], int]:
    """What the client says and gets, and the exit status."""
    messages, status = scenario["links"][0]["messages"], scenario["exit"]
    if scenario["name"] not in BETTER:
        return messages, status
    better, status, _ = BETTER[scenario["name"]]
    last_request = max(n for n, message in enumerate(messages) if message.startswith("> ") and "EOF" not in message)
    return messages[: last_request + 1] + better, status


class Replay:
    """One scenario: what is said by either end of a link, and what is to be heard there."""

    def __init__(self, scenario: dict[str, Any]) -> None:
        name, size = scenario["name"], scenario["data_size"]
        unit = name.encode() + b"\n"
        self.content = (unit * (size // len(unit) + 1))[:size]
        self.key = Key(scenario["key"].encode())
        assert self.key.name == hashlib.sha256(self.content).hexdigest().encode()

    def encode(self, message: str) -> bytes:
        """A line, with its end."""
        text = message.encode().replace(b"KEY", self.key.serialized)
        for name, uuid in UUIDS.items():
            text = re.sub(rb"\$%s\b" % name.encode(), uuid, text)
        return text + b"\n"

    def play_client(self, client: Client, messages: list[str]) -> None:
        position = 0  # in the content
        for message in messages:
            direction, text = message[0], message[2:]
            piece = PIECE.fullmatch(text)
            if text.startswith(("PUT-FROM ", "GET ")):
                position = int(text.split(" ")[1])
            if direction == ">" and text == "<EOF>":
                client.say_no_more()
            elif direction == ">" and piece:
                client.say(self.content[position:][: int(piece[1])])
            elif direction == ">":
                client.say(self.encode(text))
            elif text == "<EOF>":
                assert client.line() is None
            elif piece:
                assert client.content(int(piece[1])) == self.content[position:][: int(piece[1])]
            else:
                line = client.line()
                assert line is not None and line + b"\n" == self.encode(text), (message, line)

    def heard(self, messages: list[str]) -> list[bytes]:
        """What a node is to have heard when these were said."""
        found, position = [], 0
        for message in messages:
            direction, text = message[0], message[2:]
            piece = PIECE.fullmatch(text)
            if text.startswith("PUT-FROM "):
                position = int(text.split(" ")[1])
            if direction == ">" and text != "<EOF>":
                found.append(self.content[position:][: int(piece[1])] if piece else self.encode(text)[:-1])
        return found

    def node(self, messages: list[str]) -> Any:
        """A script that says what the node said, and expects what it heard."""

        def play(link: Link) -> None:
            position = 0
            for message in messages:
                direction, text = message[0], message[2:]
                piece = PIECE.fullmatch(text)
                if text.startswith(("PUT-FROM ", "GET ")):
                    position = int(text.split(" ")[1])
                if direction == "<" and text == "<EOF>":
                    return
                if direction == "<":
                    rest = self.content[position:]
                    link.say(rest[: int(piece[1])] if piece else self.encode(text))
                elif text == "<EOF>":
                    assert link.line() is None
                elif piece:
                    assert link.content(int(piece[1])) == self.content[position:][: int(piece[1])]
                else:
                    line = link.line()
                    assert line is not None and line + b"\n" == self.encode(text), (message, line)

        return play


class Gateway(OnDisk):
    """The gateway of the scenarios, with the nodes a1 and a2 behind ssh, served in the test's own process."""

    def __init__(self, directory: Path, shell: Shell) -> None:
        self.directory = make_annex(directory, UUIDS["gw"].decode())
        self.shell = shell
        settings = {"annex.sshcaching": "false"}
        entries = []
        for name in ("a1", "a2"):
            uuid = UUIDS[name].decode()
            settings |= {
                f"remote.{name}.url": f"ssh://{name}/x",
                f"remote.{name}.annex-uuid": uuid,
                f"remote.{name}.annex-proxy": "true",
            }
            entries.append(f"{uuid}:{name}")
        set_config(self.directory, settings)
        write_branch(self.directory, {"proxy.log": f"1s {UUIDS['gw'].decode()} {' '.join(entries)}\n"})

    def hold(self, target: UUID, play: Any, **environment: str) -> Result:
        """Run ``p2pstdio`` while PLAY, a function of the client's end, runs in a thread."""
        client, server_read, server_write = Client.over_pipes()
        failures: list[BaseException] = []

        def run() -> None:
            try:
                play(client)
            except BaseException as error:
                failures.append(error)
            finally:
                client.say_no_more()

        saved = [os.dup(0), os.dup(1)]
        os.dup2(server_read, 0)
        os.dup2(server_write, 1)
        os.close(server_read)
        os.close(server_write)
        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        try:
            words = ["p2pstdio", str(self.directory), UUIDS["client"], "--uuid", target]
            result = self.shell(*words, **environment)
        finally:
            for fd, old in enumerate(saved):
                os.dup2(old, fd)
                os.close(old)
        thread.join(10)
        client.close()
        assert failures == [], result.stderr
        return result


@pytest.fixture
def gateway(tmp_path: Path, shell: Shell) -> Gateway:
    return Gateway(tmp_path / "gw", shell)


@pytest.mark.parametrize("scenario", SINGLE, ids=lambda scenario: scenario["name"])
def test_scenario(scenario: dict[str, Any], gateway: Gateway, nodes: Nodes, tmp_path: Path) -> None:
    replay = Replay(scenario)
    target = scenario["target"].removeprefix("$")
    links = [link["messages"] for link in scenario["links"][1:]]
    node = RealNode(tmp_path / "node", UUIDS[target])
    if scenario["nodes"][target] == "real":
        nodes.scripts = [node] if links else [lambda link: None]
    else:
        # What is asked after it has failed is asked on a new connection.
        nodes.scripts = [*map(replay.node, links), node]
    said, status = with_better(scenario)
    before = left_open()
    result = gateway.hold(UUIDS[target], lambda end: replay.play_client(end, said), **scenario["env"])
    assert left_open() <= before
    assert result.status == status, result.stderr
    if result.status == 1:
        assert result.complaint and (links or result.complaint.startswith(f"Unable to connect to remote {target}: "))
    for link, messages in zip(nodes.links, links, strict=scenario["name"] not in BETTER and bool(links)):
        assert link.heard == replay.heard(HEARD.get(scenario["name"], messages))
    assert gateway.logged(replay.key) == {
        UUIDS[name.removeprefix("$")]: status.encode() for name, status in scenario["log_after"].items()
    }


def test_no_difference_is_out_of_date() -> None:
    assert BETTER.keys() | HEARD.keys() <= {scenario["name"] for scenario in SINGLE}
