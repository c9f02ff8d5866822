"""Sessions of a proxy: as they were recorded, and with nodes and clients that fail at every point."""

from __future__ import annotations

import hashlib
import os
import re
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from annexshell.access import APPEND_ONLY, READ_ONLY, REMOVAL_DENIED, WRITE_DENIED, Access
from annexshell.key import Key
from annexshell.uuid import UUID
from tests import vectors
from tests.leftovers import left_open
from tests.proxying import (
    CLUSTER,
    NODE,
    OTHER,
    OWN,
    Client,
    Link,
    Nodes,
    OnDisk,
    Proxy,
    RealNode,
    Session,
    nodes,
    proxy,
    proxy_template,
    set_config,
    write_branch,
)
from tests.shell import Result, Shell, make_annex

__all__ = ["nodes", "proxy", "proxy_template"]

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


# What becomes known of content ------------------------------------------------

CONTENT = b"content"
KEY = Key(b"WORM-s7-m1--x")
PUT = [b"PUT foo KEY", b"DATA 7\ncontentVALID"]
DATA_PRESENT = [b"PUT foo KEY", b"DATA-PRESENT"]
REMOVE = [b"REMOVE KEY"]
PUT_FROM = b"PUT-FROM 0"
THERE, GONE = {NODE: b"1"}, {NODE: b"0"}

# What the client says, what the node answers to each, what the client gets last, and the location log then.
OUTCOMES: list[tuple[list[bytes], list[bytes], bytes, dict[UUID, bytes]]] = [
    (PUT, [PUT_FROM, b"SUCCESS"], b"SUCCESS", THERE),
    (PUT, [PUT_FROM, b"SUCCESS-PLUS OTHER"], b"SUCCESS-PLUS OTHER", THERE | {OTHER: b"1"}),
    (PUT, [PUT_FROM, b"SUCCESS-PLUS CLUSTER OTHER"], b"SUCCESS-PLUS CLUSTER OTHER", THERE | {OTHER: b"1"}),
    (PUT, [PUT_FROM, b"SUCCESS-PLUS"], b"SUCCESS", THERE),
    (PUT, [PUT_FROM, b"SUCCESS-PLUS OWN"], b"SUCCESS-PLUS OWN", THERE),
    (PUT, [PUT_FROM, b"FAILURE"], b"FAILURE", {}),
    (PUT, [PUT_FROM, b"FAILURE-PLUS OTHER"], b"FAILURE-PLUS OTHER", {}),
    (PUT, [PUT_FROM, b"ERROR no"], b"ERROR no", {}),
    (PUT[:1], [b"ALREADY-HAVE"], b"ALREADY-HAVE", {}),
    (PUT[:1], [b"ALREADY-HAVE-PLUS OTHER"], b"ALREADY-HAVE-PLUS OTHER", {}),
    (PUT[:1], [b"ERROR no"], b"ERROR no", {}),
    (PUT[:1], [b"FAILURE"], b"ERROR remote b refused the upload without saying why", {}),
    (DATA_PRESENT, [PUT_FROM, b"SUCCESS"], b"SUCCESS", THERE),
    (DATA_PRESENT, [PUT_FROM, b"SUCCESS-PLUS OTHER"], b"SUCCESS-PLUS OTHER", THERE | {OTHER: b"1"}),
    (DATA_PRESENT, [PUT_FROM, b"FAILURE"], b"FAILURE", {}),
    (REMOVE, [b"SUCCESS"], b"SUCCESS", GONE),
    (REMOVE, [b"SUCCESS-PLUS OTHER"], b"SUCCESS-PLUS NODE OTHER", GONE | {OTHER: b"0"}),
    (REMOVE, [b"SUCCESS-PLUS CLUSTER"], b"SUCCESS-PLUS NODE CLUSTER", GONE),
    (REMOVE, [b"FAILURE"], b"FAILURE", {}),
    (REMOVE, [b"FAILURE-PLUS OTHER"], b"FAILURE-PLUS OTHER", {OTHER: b"0"}),
    (REMOVE, [b"FAILURE-PLUS CLUSTER"], b"FAILURE-PLUS CLUSTER", {}),
    (REMOVE, [b"ERROR no"], b"ERROR no", {}),
    ([b"REMOVE-BEFORE 9 KEY"], [b"SUCCESS"], b"SUCCESS", GONE),
    ([b"CHECKPRESENT KEY"], [b"SUCCESS"], b"SUCCESS", {}),
    ([b"CHECKPRESENT KEY"], [b"FAILURE"], b"FAILURE", {}),
    ([b"LOCKCONTENT KEY"], [b"FAILURE"], b"FAILURE", {}),
    ([b"GETTIMESTAMP"], [b"TIMESTAMP 5"], b"TIMESTAMP 5", {}),
    ([b"GETTIMESTAMP"], [b"ERROR no"], b"ERROR no", {}),
]


def filled(text: bytes) -> bytes:
    names = {b"KEY": KEY.serialized, b"NODE": NODE, b"OTHER": OTHER, b"CLUSTER": CLUSTER, b"OWN": OWN}
    return re.sub(rb"KEY|NODE|OTHER|CLUSTER|OWN", lambda found: names[found[0]], text)


def answering(*answers: bytes) -> Any:
    """A node that gives these answers to the requests that it hears."""

    def play(link: Link) -> None:
        link.greet()
        for answer in answers:
            announced = link.line()
            if announced is not None and announced.startswith(b"DATA "):
                link.content(int(announced[5:]))
                link.line()
            link.say(filled(answer) + b"\n")
        link.wait_for_end()

    return play


@pytest.mark.parametrize(
    ("said", "answers", "last", "logged"),
    OUTCOMES,
    ids=lambda value: str(value[-1]) if isinstance(value, list) else None,
)
def test_what_is_recorded(
    said: list[bytes], answers: list[bytes], last: bytes, logged: dict[UUID, bytes], proxy: Proxy, nodes: Nodes
) -> None:
    nodes.scripts = [answering(*answers)]
    with Session.start(proxy.target()) as session:
        session.open(4)
        *_, answer = [session.ask(filled(line)) for line in said]
        assert answer == filled(last)
        # By the time that the client has its answer.
        assert proxy.logged(KEY) == logged
        assert session.finish() == b""
        assert session.error is None
    assert proxy.logged(KEY, committed=True) == logged
    assert not logged or os.listdir(proxy.git_dir / "annex" / "journal") == []


def test_what_is_recorded_below_version_2(proxy: Proxy, nodes: Nodes) -> None:
    """A client that cannot be told of others does not keep us from knowing of them."""
    nodes.scripts = [answering(b"PUT-FROM 0", b"SUCCESS-PLUS OTHER", b"SUCCESS-PLUS OTHER", b"FAILURE-PLUS OTHER")]
    with Session.start(proxy.target()) as session:
        session.open(1)
        assert [session.ask(filled(line)) for line in PUT] == [b"PUT-FROM 0", b"SUCCESS"]
        assert proxy.logged(KEY) == {NODE: b"1", OTHER: b"1"}
        assert session.ask(filled(REMOVE[0])) == b"SUCCESS"
        assert proxy.logged(KEY) == {NODE: b"0", OTHER: b"0"}
        assert session.ask(filled(REMOVE[0])) == b"FAILURE"


def test_what_is_known_already_is_not_recorded_again(proxy: Proxy, nodes: Nodes) -> None:
    nodes.scripts = [answering(b"SUCCESS", b"SUCCESS")]
    with Session.start(proxy.target()) as session:
        session.open(4)
        assert session.ask(filled(REMOVE[0])) == b"SUCCESS"
        (entry,) = (proxy.git_dir / "annex" / "journal").iterdir()
        before = entry.read_bytes()
        assert session.ask(filled(REMOVE[0])) == b"SUCCESS"
        assert entry.read_bytes() == before


@pytest.mark.parametrize("request_lines", [PUT, DATA_PRESENT, REMOVE])
def test_a_proxy_that_cannot_record_tells_the_truth(
    request_lines: list[bytes], proxy: Proxy, nodes: Nodes, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    target = proxy.target()
    (proxy.git_dir / "annex").mkdir(exist_ok=True)
    (proxy.git_dir / "annex" / "journal").write_text("in the way")
    nodes.scripts = [answering(*[b"PUT-FROM 0"][: len(request_lines) - 1], b"SUCCESS", b"FAILURE")]
    with Session.start(target) as session:
        session.open(4)
        assert [session.ask(filled(line)) for line in request_lines][-1] == b"SUCCESS"
        assert session.ask(filled(REMOVE[0])) == b"FAILURE"
        assert session.finish() == b""
    assert b"cannot record where the content of WORM-s7-m1--x is: " in capfdbinary.readouterr().err


# What clients may do ------------------------------------------------


@pytest.mark.parametrize("version", [None, 0, 1, 4])
@pytest.mark.parametrize(
    ("access", "refusals"),
    [
        (
            READ_ONLY,
            {b"PUT foo KEY": WRITE_DENIED, b"REMOVE KEY": WRITE_DENIED, b"REMOVE-BEFORE 1 KEY": WRITE_DENIED},
        ),
        (APPEND_ONLY, {b"REMOVE KEY": REMOVAL_DENIED, b"REMOVE-BEFORE 1 KEY": REMOVAL_DENIED}),
    ],
)
def test_what_is_refused_does_not_reach_the_node(
    access: Access, refusals: dict[bytes, bytes], version: int | None, proxy: Proxy, nodes: Nodes
) -> None:
    nodes.scripts = [answering(b"SUCCESS", b"SUCCESS", b"FAILURE")]
    with Session.start(proxy.target(), access=access) as session:
        session.open(version)
        for line, reason in {**refusals, b"CONNECT git-receive-pack": WRITE_DENIED}.items():
            assert session.ask(filled(line)) == b"ERROR " + reason
            # A client may answer that it expected something else.
            session.say(b"ERROR expected PUT_FROM or ALREADY_HAVE\n")
        assert session.ask(filled(b"CHECKPRESENT KEY")) == b"SUCCESS"
        assert session.ask(filled(b"LOCKCONTENT KEY")) == b"SUCCESS"
        session.say(b"UNLOCKCONTENT\n")
        assert session.finish() == b""
        assert session.error is None
    asked = b"VERSION %d" % (version or 0)
    assert nodes.heard == [asked, *map(filled, (b"CHECKPRESENT KEY", b"LOCKCONTENT KEY", b"UNLOCKCONTENT"))]
    assert proxy.logged(KEY) == {}


@pytest.mark.parametrize("access", [READ_ONLY, APPEND_ONLY])
def test_git_is_not_relayed_to(access: Access, proxy: Proxy, nodes: Nodes) -> None:
    nodes.scripts = [answering()]
    with Session.start(proxy.target(), access=access) as session:
        session.open(4)
        session.say(b"CONNECT git-upload-pack\n")
        assert session.rest() == b""
        session.join()
        assert str(session.error) == "relaying to git not supported on this connection"
    assert nodes.heard == [b"VERSION 4"]


@pytest.mark.parametrize("version", [None, 0, 4])
@pytest.mark.parametrize(
    ("said", "heard", "error"),
    [
        (b"VERSION 4\n", b"ERROR protocol error\n", "where that makes no sense"),
        (b"NOTIFYCHANGE\n", b"ERROR protocol error\n", "where that makes no sense"),
        (b"UNLOCKCONTENT\n", b"ERROR protocol error\n", "where that makes no sense"),
        (b"SUCCESS\n", b"ERROR protocol error\n", "where that makes no sense"),
        (b"DATA 5\nhello", b"ERROR protocol error\n", "where that makes no sense"),
        (b"AUTH a b\n", b"ERROR protocol error\n", "where that makes no sense"),
        (b"ERROR oops\n", b"", "client error: oops"),
        (b"FOO\n", b"", None),
        (b"\n", b"", None),
        (b"CHECKPRESENT\n", b"", None),
        (b"CHECKPRESENT not a key\n", b"", None),
        (b"X" * 40000 + b"\n", b"", "overlong line"),
        (b"BYPASS x\nBYPASS\n", b"", None),
        (b"", b"", None),
    ],
)
def test_what_makes_no_sense_ends_the_session(
    said: bytes, heard: bytes, error: str | None, version: int | None, proxy: Proxy, nodes: Nodes
) -> None:
    if said.startswith(b"VERSION") and version is None:
        return  # that is the beginning of a session
    nodes.scripts = [answering()]
    with Session.start(proxy.target()) as session:
        session.open(version)
        with suppress(BrokenPipeError):  # it may have had enough before the end of an overlong line
            session.say(said)
        session.say_no_more()
        assert session.rest() == heard
        session.join()
        assert (session.error is None) == (error is None)
        assert error is None or error in str(session.error)
    assert [line for line in nodes.heard if not line.startswith(b"VERSION")] == []
