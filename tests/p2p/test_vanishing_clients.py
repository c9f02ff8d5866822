"""What becomes of a real node when the proxy's client vanishes, or declares what it sent to be invalid.

Nothing that was cut short or is not valid may become content there; what arrived is there for the next attempt; and
who vanished while holding a lock has not unlocked.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annexshell.errors import Hangup, ProtocolError
from annexshell.key import Key
from tests.leftovers import left_open
from tests.proxying import NODE, Client, Link, Nodes, Proxy, RealNode, Session, nodes, proxy, proxy_template

__all__ = ["nodes", "proxy", "proxy_template"]

CONTENT = bytes(range(256)) * 10
LARGE = b"0123456789abcdef" * (200 << 6)  # 200 KiB
OTHER_CONTENT = CONTENT[::-1]


def hashed(content: bytes) -> Key:
    return Key(b"SHA256E-s%d--%s.dat" % (len(content), hashlib.sha256(content).hexdigest().encode()))


HASHED = hashed(CONTENT)
UNSIZED_HASHED = Key(b"SHA256--" + hashlib.sha256(CONTENT).hexdigest().encode())
SIZED = Key(b"WORM-s%d-m1--sized" % len(CONTENT))
UNSIZED = Key(b"WORM-m1--unsized")
KEYS = [HASHED, UNSIZED_HASHED, SIZED, UNSIZED]
VERSIONS = [0, 1, 4]


@pytest.fixture
def node(tmp_path: Path, nodes: Nodes) -> RealNode:
    node = RealNode(tmp_path / "node")
    nodes.scripts = [node]
    return node


@pytest.fixture
def start(proxy: Proxy, nodes: Nodes) -> Any:
    """Start a session; afterwards nothing is left open."""
    before = left_open()
    yield lambda **options: Session.start(proxy.target(), **options)
    assert left_open() <= before


# Ways to go. ------------------------------------------------


def hang_up(client: Client) -> None:
    client.close()


def say_no_more(client: Client) -> None:
    client.say_no_more()
    client.rest()


def listen_no_more(client: Client) -> None:
    """The answer cannot be sent any more. What was said stays said, so the rest is an end as well."""
    client.listen_no_more()
    client.say_no_more()


WAYS: list[Callable[[Client], None]] = [hang_up, say_no_more, listen_no_more]


# What clients say after PUT-FROM before they vanish, by name: made of the rest of the content that was asked for.
CUT_SHORT: dict[str, Callable[[bytes], bytes]] = {
    "no DATA": lambda rest: b"",
    "half a DATA line": lambda rest: b"DATA %d" % len(rest),
    "no content": lambda rest: b"DATA %d\n" % len(rest),
    "one byte": lambda rest: b"DATA %d\n" % len(rest) + rest[:1],
    "half": lambda rest: b"DATA %d\n" % len(rest) + rest[: len(rest) // 2],
    "all but one byte": lambda rest: b"DATA %d\n" % len(rest) + rest[:-1],
}
WITHOUT_VALIDITY: dict[str, Callable[[bytes], bytes]] = {
    "no validity": lambda rest: b"DATA %d\n" % len(rest) + rest,
    "half a validity line": lambda rest: b"DATA %d\n" % len(rest) + rest + b"VALI",
}


def begin_put(session: Session, key: Key) -> bytes:
    """The rest of the content that the node wants."""
    answer = session.ask(b"PUT foo " + key.serialized)
    assert answer is not None and answer.startswith(b"PUT-FROM "), answer
    return CONTENT[int(answer[9:]) :]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("key", KEYS, ids=str)
@pytest.mark.parametrize("version", VERSIONS)
def test_content_cut_short(
    version: int, key: Key, way: Callable[[Client], None], start: Any, node: RealNode, proxy: Proxy
) -> None:
    verifiable = key in (HASHED, UNSIZED_HASHED)
    for point, said in (CUT_SHORT | (WITHOUT_VALIDITY if version else {})).items():
        # What arrived before is built upon if the whole can be checked in the end.
        partial = node.partial(key) or b""
        assert CONTENT.startswith(partial), point
        with start() as session:
            session.open(version)
            rest = begin_put(session, key)
            assert rest == (CONTENT[len(partial) :] if verifiable else CONTENT), point
            session.say(said(rest))
            way(session)
            session.join()
            assert session.error is None or isinstance(session.error, Hangup | BrokenPipeError), session.error
        if node.content(key) is not None:
            # Complete, and found to be right by the node itself, which nobody told that it was not.
            assert verifiable and point in WITHOUT_VALIDITY and node.content(key) == CONTENT
            return
    if verifiable:
        assert node.partial(key), "something to resume"
    with start() as session:
        session.open(version)
        rest = begin_put(session, key)
        session.say(b"DATA %d\n" % len(rest) + rest + (b"VALID\n" if version else b""))
        assert session.line() == b"SUCCESS"
        assert session.finish() == b""
    assert node.content(key) == CONTENT


# What is declared to be invalid.


@pytest.mark.parametrize("node_version", [1, 4])
@pytest.mark.parametrize("length", [0, 1, len(CONTENT)])
@pytest.mark.parametrize("key", KEYS, ids=str)
def test_invalid_content(key: Key, length: int, node_version: int, start: Any, node: RealNode, proxy: Proxy) -> None:
    node.version = node_version
    with start() as session:
        assert session.ask(b"VERSION 4") == b"VERSION %d" % node_version
        begin_put(session, key)
        session.say(b"DATA %d\n" % length + OTHER_CONTENT[:length] + b"INVALID\n")
        assert session.line() == b"FAILURE"
        assert session.ask(b"CHECKPRESENT " + key.serialized) == b"FAILURE"
        assert session.finish() == b""
    assert node.content(key) is None
    assert NODE not in proxy.logged(key)


@pytest.mark.parametrize("key", [HASHED, UNSIZED_HASHED], ids=str)
def test_content_that_is_right_after_all(key: Key, start: Any, node: RealNode) -> None:
    with start() as session:
        session.open(4)
        begin_put(session, key)
        session.say(b"DATA %d\n" % len(CONTENT) + CONTENT + b"INVALID\n")
        assert session.line() == b"SUCCESS"
    assert node.content(key) == CONTENT


@pytest.mark.parametrize("version", [1, 4])
@pytest.mark.parametrize("key", [SIZED, UNSIZED], ids=str)
def test_nobody_vouches_for_content_that_cannot_be_checked(
    key: Key, version: int, start: Any, node: RealNode, proxy: Proxy
) -> None:
    """Right or not: INVALID means that the client saw it change, and the node could not tell."""
    with start() as session:
        session.open(version)
        begin_put(session, key)
        session.say(b"DATA %d\n" % len(CONTENT) + CONTENT + b"INVALID\n")
        assert session.line() == b"FAILURE"
    assert node.content(key) is None
    assert proxy.logged(key) == {}


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_a_node_of_version_0_behind_a_newer_client(key: Key, start: Any, node: RealNode) -> None:
    node.version = 0
    for said in CUT_SHORT.values():
        with start() as session:
            assert session.ask(b"VERSION 4") == b"VERSION 0"
            session.say(said(begin_put(session, key)))
            session.close()
            session.join()
        assert node.content(key) is None
    with start() as session:
        assert session.ask(b"VERSION 4") == b"VERSION 0"
        rest = begin_put(session, key)
        session.say(b"DATA %d\n" % len(rest) + rest)
        assert session.line() == b"SUCCESS"
    assert node.content(key) == CONTENT


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_what_the_client_says_in_place_of_data(key: Key, start: Any, node: RealNode) -> None:
    for version, said in [
        (4, b"ERROR no\n"),
        (0, b"ERROR no\n"),
        (4, b"???\n"),
        (0, b"VALID\n"),
        (0, b"DATA-PRESENT\n"),
    ]:
        with start() as session:
            session.open(version)
            begin_put(session, key)
            session.say(said)
            expected = b"ERROR expected DATA" if said.startswith(b"DATA") else b"ERROR protocol error"
            assert session.line() == expected
            assert session.finish() == b""
            assert (session.error is None) == said.startswith(b"DATA")
        assert node.content(key) is None


def test_what_the_client_says_in_place_of_validity(start: Any, node: RealNode) -> None:
    for said, error in [(b"SUCCESS\n", ProtocolError), (b"FOO\n", type(None))]:
        with start() as session:
            session.open(4)
            begin_put(session, UNSIZED)
            session.say(b"DATA %d\n" % len(CONTENT) + CONTENT + said)
            session.finish()
            assert isinstance(session.error, error)
        assert node.content(UNSIZED) is None


# Vanishing elsewhere.


def test_content_that_was_acknowledged_to_nobody(start: Any, node: RealNode, proxy: Proxy) -> None:
    """It is there, and recorded, though the client did not get to know it."""
    content = b"acknowledged to nobody"
    key = hashed(content)
    with start() as session:
        session.open(4)
        assert session.ask(b"PUT foo " + key.serialized) == b"PUT-FROM 0"
        session.say(b"DATA %d\n" % len(content) + content)
        session.listen_no_more()
        session.say(b"VALID\n")
        session.say_no_more()
        session.join()
    # Unless the node was no longer waited for, because nobody would have heard.
    stored = node.content(key)
    assert stored == content or stored is None
    if proxy.logged(key):
        assert proxy.logged(key, committed=True) == {NODE: b"1"} and stored == content


@pytest.mark.parametrize("way", WAYS)
def test_who_vanishes_with_a_lock_has_not_unlocked(
    way: Callable[[Client], None], start: Any, node: RealNode, nodes: Nodes
) -> None:
    node.store(HASHED, CONTENT)
    with start() as session:
        session.open(4)
        assert session.ask(b"LOCKCONTENT " + HASHED.serialized) == b"SUCCESS"
        way(session)
        session.join()
    assert nodes.links[0].heard[-1] == b"LOCKCONTENT " + HASHED.serialized
    # The node keeps it from being removed for the rest of the lock's time.
    with start() as session:
        session.open(4)
        assert session.ask(b"REMOVE " + HASHED.serialized) == b"FAILURE"
        assert session.finish() == b""
    assert node.content(HASHED) == CONTENT


def test_a_lock_that_nobody_heard_of(start: Any, node: RealNode, nodes: Nodes) -> None:
    node.store(HASHED, CONTENT)
    with start() as session:
        session.open(4)
        session.listen_no_more()
        session.say(b"LOCKCONTENT %s\n" % HASHED.serialized)
        session.join()
    assert b"UNLOCKCONTENT" not in nodes.heard


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("taken", [0, 100])
@pytest.mark.parametrize("version", [0, 4])
def test_vanishing_while_content_is_sent(
    version: int, taken: int, way: Callable[[Client], None], start: Any, node: RealNode
) -> None:
    key = hashed(LARGE)
    node.store(key, LARGE)
    with start() as session:
        session.open(version)
        assert session.ask(b"GET 0 foo " + key.serialized) == b"DATA %d" % len(LARGE)
        assert session.content(taken) == LARGE[:taken]
        way(session)
        session.join()
        assert session.error is None or isinstance(session.error, Hangup | BrokenPipeError)


@pytest.mark.parametrize("answer", [b"", b"SUCC", b"FOO\n", b"VERSION 4\n", b"ERROR no\n"])
def test_content_that_is_not_acknowledged(answer: bytes, start: Any, node: RealNode, nodes: Nodes) -> None:
    node.store(HASHED, CONTENT)
    with start() as session:
        session.open(4)
        assert session.ask(b"GET 0 foo " + HASHED.serialized) == b"DATA %d" % len(CONTENT)
        assert session.content(len(CONTENT)) == CONTENT
        assert session.line() == b"VALID"
        session.say(answer)
        if answer.endswith(b"\n"):
            if not answer.startswith(b"ERROR"):
                assert (session.line() or b"").startswith(b"ERROR expected SUCCESS")
            assert session.ask(b"CHECKPRESENT " + HASHED.serialized) == b"SUCCESS"
        assert session.finish() == b""
        assert session.error is None
    assert b"SUCCESS" not in nodes.heard
    assert len(nodes.links) == 1


def test_vanishing_before_anything_was_asked(start: Any, node: RealNode, nodes: Nodes) -> None:
    for said in (b"", b"VERS", b"FOO\n", b"VERSION\n"):
        with start() as session:
            session.say(said)
            assert session.finish() == b""
            assert session.error is None
    assert nodes.links == []


def test_over_a_socket(start: Any, node: RealNode) -> None:
    """As sshd has it: one descriptor for both directions, of which one may be shut."""
    with start(over_socket=True) as session:
        session.open(4)
        rest = begin_put(session, HASHED)
        session.say(b"DATA %d\n" % len(rest) + rest + b"VALID\n")
        session.say_no_more()
        assert session.rest() == b"SUCCESS\n"
        session.join()
        assert session.error is None
    assert node.content(HASHED) == CONTENT
    with start(over_socket=True) as session:
        session.open(4)
        session.say(b"LOCKCONTENT %s\n" % HASHED.serialized)
        session.close()
        session.join()
        assert session.error is None or isinstance(session.error, Hangup | OSError)


def test_a_client_that_is_gone_is_not_waited_for_a_node(start: Any, nodes: Nodes) -> None:
    def silent(link: Link) -> None:
        link.greet()
        link.wait_for_end()

    nodes.scripts = [silent]
    for over_socket in (False, True):
        with start(over_socket=over_socket) as session:
            session.open(4)
            session.say(b"CHECKPRESENT %s\n" % HASHED.serialized)
            time.sleep(0.05)
            session.close()
            began = time.monotonic()
            session.join()
            assert time.monotonic() - began < 4
