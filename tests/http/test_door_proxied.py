"""Repositories that are asked over HTTP for others that they stand in front of."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from annexshell.http.server import Limits
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.http.doors import ABSENT, CLIENT, EMPTY, HELLO, Door, key_of, quoted, received, target, wait_until
from tests.proxying import NODE, OTHER, OWN, Link, Nodes, Proxy, RealNode, nodes, set_config

__all__ = ["nodes"]

LARGE = os.urandom(5_000_000)
LARGE_KEY = key_of(LARGE)
STORED = {"plusuuids": [], "stored": True}
NOT_STORED = {"plusuuids": [], "stored": False}


@pytest.fixture
def proxy(tmp_path: Path) -> Proxy:
    return Proxy(tmp_path / "proxy")


@pytest.fixture
def node(tmp_path: Path, nodes: Nodes) -> RealNode:
    node = RealNode(tmp_path / "node")
    node.store(HELLO, b"hello\n")
    node.store(EMPTY, b"")
    nodes.scripts = [node]
    return node


@pytest.fixture
def door(proxy: Proxy, nodes: Nodes) -> Iterator[Door]:
    with Door(below=[proxy.directory]) as door:
        yield door


def get(door: Door, key: Key, version: str = "v4/", **how: Any) -> Any:
    return door.get(key, version, NODE, **how)


def post(door: Door, action: str, version: int = 4, **query: object) -> Any:
    return door.post(action, version, NODE, **query)


def put(door: Door, key: Key, content: Any, length: int | None = None, **how: Any) -> Any:
    return door.put(key, content, length, uuid=NODE, **how)


@pytest.mark.parametrize("node_version", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
def test_everything(door: Door, proxy: Proxy, node: RealNode, nodes: Nodes, version: int, node_version: int) -> None:
    node.version = node_version
    plus: dict[str, Any] = {"plusuuids": []} if version >= 2 else {}
    for key, content in ((HELLO, b"hello\n"), (EMPTY, b"")):
        for offset in (0, 3, 100):
            answer = get(door, key, f"v{version}/", query=f"&offset={offset}")
            assert (answer.status, answer.body, answer.complete) == (200, content[offset:], True)
            assert answer.data_length == len(content[offset:])
        assert post(door, "checkpresent", version, key=key).json == {"present": True}
        head = get(door, key, f"v{version}/", method="HEAD")
        assert (head.status, head.data_length, head.body) == (200, len(content), b"")
    assert get(door, ABSENT, f"v{version}/").status == 404
    assert get(door, ABSENT, f"v{version}/", method="HEAD").status == 404
    assert post(door, "checkpresent", version, key=ABSENT).json == {"present": False}

    if version:
        assert post(door, "putoffset", version, key=LARGE_KEY).json == {"offset": 0}
        assert post(door, "putoffset", version, key=HELLO).json == {"alreadyhave": True} | plus
    assert put(door, LARGE_KEY, [LARGE[:10], LARGE[10:]], len(LARGE), version=version).json == {"stored": True} | plus
    assert node.content(LARGE_KEY) == LARGE
    assert proxy.logged(LARGE_KEY) == {NODE: b"1"}
    assert get(door, LARGE_KEY, f"v{version}/").body == LARGE
    assert put(door, LARGE_KEY, LARGE, version=version).json == {"stored": True} | plus

    lock = post(door, "lockcontent", version, key=HELLO).json
    assert lock["locked"] is True
    assert post(door, "remove", version, key=HELLO).json == {"removed": False} | plus
    unlock = door.ask("POST", target("keeplocked", version, NODE, lockid=lock["lockid"]), None, b'{"unlock":true}')
    assert unlock.json == {"locked": False}
    assert post(door, "lockcontent", version, key=ABSENT).json == {"locked": False}

    if version >= 3:
        assert post(door, "remove-before", version, key=HELLO, timestamp=1).json == {"removed": False} | plus
        now = post(door, "gettimestamp", version).json["timestamp"]
        assert abs(now - time.clock_gettime(time.CLOCK_BOOTTIME)) < 3
    assert post(door, "remove", version, key=LARGE_KEY).json == {"removed": True} | plus
    assert proxy.logged(LARGE_KEY) == {NODE: b"0"}
    assert post(door, "remove", version, key=ABSENT).json == {"removed": True} | plus
    # One while the lock was held, and one for everything else; in version 0, after PUT there is no way back.
    assert len(nodes.links) == 2 + (node_version == 0 and version > 0)


def test_the_generic_download(door: Door, node: RealNode) -> None:
    for key, content in ((HELLO, b"hello\n"), (EMPTY, b"")):
        assert get(door, key, "").body == content
    assert get(door, ABSENT, "").status == 404
    assert get(door, HELLO, "", headers={"Range": "bytes=1-2"}).body == b"hello\n"


def test_connections_are_used_again(door: Door, node: RealNode, nodes: Nodes) -> None:
    for client in ("one", "two"):
        for version in (3, 4):
            for bypass in ("", "&bypass=a&bypass=b", "&bypass=b&bypass=a"):
                assert post(door, "checkpresent", version, key=HELLO, clientuuid=client, also=bypass).json["present"]
    assert len(nodes.links) == 4
    threads = [threading.Thread(target=lambda: get(door, HELLO)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(nodes.links) <= 4 + 7


@pytest.mark.parametrize("version", [1, 2, 4])
@pytest.mark.parametrize("node_version", [1, 2, 4])
def test_gateways_that_are_not_to_be_asked_again(
    door: Door, node: RealNode, nodes: Nodes, version: int, node_version: int
) -> None:
    """The node is told of those that the client names, and not of us, as who is asked for itself has no way back."""
    node.version = node_version
    for _ in range(2):
        also = f"&bypass={OTHER}&bypass[]=a&bypass={OTHER}"
        assert post(door, "checkpresent", version, key=HELLO, also=also).json == {"present": True}
    told = [b"BYPASS %s a" % OTHER] if min(version, node_version) >= 2 else []
    asked = b"CHECKPRESENT %s" % HELLO.serialized
    assert nodes.heard == [b"VERSION %d" % version, *told, asked, asked]


def test_a_node_that_ends_when_it_is_told_of_gateways(door: Door, nodes: Nodes) -> None:
    def leave(link: Link) -> None:
        link.greet()
        link.line()

    nodes.scripts = [leave]
    answer = post(door, "gettimestamp", also="&bypass=a")
    assert answer.status == 502
    wait_until(lambda: nodes.open == 0, 5)


def test_no_connection_is_kept_if_none_is_to_be(proxy: Proxy, node: RealNode, nodes: Nodes) -> None:
    with Door(below=[proxy.directory], limits=Limits(proxyconnections=0, grace=1.0)) as door:
        for _ in range(3):
            assert get(door, HELLO).body == b"hello\n"
    assert len(nodes.links) == 3


class TestUploads:
    def test_a_short_body_is_kept_there(self, door: Door, node: RealNode, nodes: Nodes) -> None:
        assert put(door, LARGE_KEY, LARGE[:1_000_000], len(LARGE)).json == NOT_STORED
        offset = post(door, "putoffset", key=LARGE_KEY).json["offset"]
        assert 0 < offset <= 1_000_000
        assert len(nodes.links) == 2  # the one in the middle of something was closed
        assert put(door, LARGE_KEY, LARGE[offset:], offset=offset).json == STORED
        assert node.content(LARGE_KEY) == LARGE
        assert len(nodes.links) == 2

    def test_what_does_not_fit(self, door: Door, node: RealNode) -> None:
        for body, length, offset in ((LARGE + b"x", len(LARGE), 0), (LARGE[5:], len(LARGE) - 5, 5), (b"x", 1, 0)):
            assert put(door, LARGE_KEY, body, length, offset=offset).json == NOT_STORED
            # The node does not know that there was too much of it.
            assert node.content(LARGE_KEY) in (None, LARGE)
            with closing(node.open()) as repository:
                repository.remove(LARGE_KEY)
        assert put(door, LARGE_KEY, LARGE).json == STORED

    def test_a_client_that_goes(self, door: Door, node: RealNode, nodes: Nodes) -> None:
        path = target("put", 4, NODE, key=LARGE_KEY)
        with door.socket() as connection:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-git-annex-data-length: 5000000\r\nContent-Length: 5000000"
            connection.sendall(f"{head}\r\n\r\n".encode() + LARGE[:1_000_000])
            wait_until(lambda: node.partial(LARGE_KEY))
        wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name == "transfer"], 5)
        wait_until(lambda: nodes.open == 0, 5)
        assert put(door, LARGE_KEY, LARGE).json == STORED

    def test_data_that_is_there(self, door: Door, proxy: Proxy, node: RealNode) -> None:
        assert put(door, HELLO, b"", 6, data_present="true").json == STORED
        assert put(door, LARGE_KEY, b"", 6, data_present="true").json == NOT_STORED

    def test_a_node_that_refuses(self, door: Door, nodes: Nodes) -> None:
        def refuse(link: Link) -> None:
            link.greet()
            while (line := link.line()) is not None:
                assert line.startswith(b"PUT ")
                link.say(b"ERROR no space left\n")

        nodes.scripts = [refuse]
        connection = door.connect()
        headers = {"X-git-annex-data-length": str(len(LARGE))}
        for _ in range(2):  # the whole body was taken, so that the connection can be used again
            answer = connection.ask("POST", target("put", 4, NODE, key=LARGE_KEY), headers, LARGE)
            assert answer.json == NOT_STORED
        connection.close()

    def test_a_node_that_hangs_up_while_content_comes(self, door: Door, nodes: Nodes) -> None:
        def leave(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"PUT-FROM 0\n")
            link.line()
            link.content(100_000)

        nodes.scripts = [leave]
        assert put(door, LARGE_KEY, LARGE).status in (200, 502)


class TestTime:
    """What is to be removed in time is compared with the clock that the client was told the time of."""

    @pytest.fixture
    def door(self, proxy: Proxy, nodes: Nodes) -> Iterator[Door]:
        with Door(below=[proxy.directory], limits=Limits(proxyconnections=0, grace=1.0)) as door:
            yield door  # which has each request come by a connection of its own

    @pytest.mark.parametrize("version", [3, 4])
    def test_a_node_has_a_clock_of_its_own(self, door: Door, nodes: Nodes, version: int) -> None:
        """Be it far ahead of ours, or far behind."""
        for now in (7, 10**12):

            def tell(link: Link, now: int = now) -> None:
                link.greet()
                while (line := link.line()) is not None:
                    if line == b"GETTIMESTAMP":
                        link.say(b"TIMESTAMP %d\n" % now)
                    else:
                        word, before, key = line.split()
                        assert (word, key) == (b"REMOVE-BEFORE", HELLO.serialized)
                        link.say(b"SUCCESS\n" if now < int(before) else b"FAILURE\n")

            nodes.scripts = [tell]
            told = post(door, "gettimestamp", version).json["timestamp"]
            assert told == now
            for before, removed in ((told, False), (told + 1, True)):
                assert post(door, "remove-before", version, key=HELLO, timestamp=before).json["removed"] is removed
        assert len(nodes.links) == 6

    @pytest.mark.parametrize("node_version", [0, 1, 2])
    def test_a_node_that_knows_of_no_time(self, door: Door, node: RealNode, nodes: Nodes, node_version: int) -> None:
        node.version = node_version
        told = post(door, "gettimestamp").json["timestamp"]
        assert post(door, "remove-before", key=HELLO, timestamp=told - 1).json == {"plusuuids": [], "removed": False}
        assert node.content(HELLO) == b"hello\n"
        assert post(door, "remove-before", key=HELLO, timestamp=told + 60).json == {"plusuuids": [], "removed": True}
        assert node.content(HELLO) is None
        assert [line for line in nodes.heard if b"VERSION" not in line] == [b"REMOVE %s" % HELLO.serialized]

    def test_a_node_that_cannot_tell(self, door: Door, nodes: Nodes) -> None:
        """Our time is not told instead: the node would compare with another."""

        def fail(link: Link) -> None:
            link.greet()
            while link.line() is not None:
                link.say(b"ERROR no clock\n")

        nodes.scripts = [fail]
        answer = post(door, "gettimestamp")
        assert (answer.status, answer.body) == (500, b"no clock")


class TestDownloads:
    def test_content_that_changed_on_its_way(self, door: Door, nodes: Nodes) -> None:
        def change(link: Link) -> None:
            link.greet()
            while (line := link.line()) is not None:
                assert line.startswith(b"GET ")
                link.say(b"DATA 6\nhello\nINVALID\n")
                assert link.line() == b"FAILURE"

        nodes.scripts = [change]
        for _ in range(2):
            answer = get(door, HELLO)
            assert (answer.data_length, answer.body, answer.complete) == (6, b"hello", False)
        assert len(nodes.links) == 1

    @pytest.mark.parametrize("size", [6, 5_000_000])
    def test_a_node_that_hangs_up(self, door: Door, nodes: Nodes, size: int) -> None:
        def leave(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"DATA %d\nhel" % size)

        nodes.scripts = [leave]
        answer = get(door, HELLO)
        assert (answer.status, answer.complete) == (200, False) or answer.status == 502
        assert b"hel".startswith(answer.body) or answer.status == 502

    def test_an_error(self, door: Door, nodes: Nodes) -> None:
        def fail(link: Link) -> None:
            link.greet()
            while link.line() is not None:
                link.say(b"ERROR it is broken\n")

        nodes.scripts = [fail]
        assert (get(door, HELLO).status, get(door, HELLO).body) == (500, b"it is broken")
        answer = post(door, "checkpresent", key=HELLO)
        assert (answer.status, answer.body) == (500, b"it is broken")

    def test_a_client_that_goes(self, door: Door, node: RealNode, nodes: Nodes) -> None:
        node.store(LARGE_KEY, LARGE)
        with door.socket() as connection:
            path = f"/git-annex/{NODE}/v4/key/{quoted(LARGE_KEY)}?clientuuid={CLIENT}"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            connection.recv(10)
        wait_until(lambda: nodes.open == 0, 5)
        assert get(door, LARGE_KEY).body == LARGE

    def test_whoever_reads_slowly_gets_it_all(self, door: Door, node: RealNode) -> None:
        node.store(LARGE_KEY, LARGE)
        with door.socket() as connection:
            path = f"/git-annex/{NODE}/v4/key/{quoted(LARGE_KEY)}?clientuuid={CLIENT}"
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
            time.sleep(0.3)
            assert received(connection).partition(b"\r\n\r\n")[2] == LARGE


def test_who_else_has_it_now_but_never_who_was_asked(door: Door, proxy: Proxy, nodes: Nodes) -> None:
    uuids = b"%s %s" % (OTHER, NODE)

    def several(link: Link) -> None:
        link.greet()
        while (line := link.line()) is not None:
            if line.startswith(b"PUT ") and line.endswith(LARGE_KEY.serialized):
                link.say(b"ALREADY-HAVE-PLUS %s\n" % uuids)
            elif line.startswith(b"PUT "):
                link.say(b"PUT-FROM 0\n")
            elif line.startswith(b"REMOVE"):
                link.say(b"SUCCESS-PLUS %s\n" % uuids)
            elif line.startswith(b"DATA "):
                link.content(int(line[5:]))
                assert link.line() == b"VALID"
                link.say(b"SUCCESS-PLUS %s\n" % uuids)

    nodes.scripts = [several]
    other = OTHER.decode()
    assert put(door, HELLO, b"hello\n").json == {"plusuuids": [other], "stored": True}
    assert proxy.logged(HELLO) == {NODE: b"1", OTHER: b"1"}
    assert put(door, LARGE_KEY, LARGE).json == {"plusuuids": [other], "stored": True}
    assert post(door, "putoffset", key=LARGE_KEY).json == {"alreadyhave": True, "plusuuids": [other]}
    assert post(door, "remove", key=HELLO).json == {"plusuuids": [other], "removed": True}
    assert post(door, "remove", 1, key=HELLO).json == {"removed": True}
    assert proxy.logged(HELLO) == {NODE: b"0", OTHER: b"0"}


class TestWhatCannotBeAsked:
    ACTIONS = ("checkpresent", "putoffset", "remove", "lockcontent")

    def everything(self, door: Door, uuid: UUID = NODE) -> Iterator[Any]:
        yield door.get(HELLO, uuid=uuid)
        yield door.get(HELLO, uuid=uuid, method="HEAD")
        yield door.put(LARGE_KEY, LARGE, uuid=uuid)
        yield door.post("gettimestamp", uuid=uuid)
        yield door.post("remove-before", uuid=uuid, key=HELLO, timestamp=10**10)
        for action in self.ACTIONS:
            yield door.post(action, uuid=uuid, key=HELLO)

    def test_a_node_that_is_not_there(self, door: Door, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: None]
        start = time.monotonic()
        statuses = [answer.status for answer in self.everything(door)]
        # Removing and locking have answers for it.
        assert set(statuses) <= {502, 200} and statuses[:4] == [502] * 4
        assert time.monotonic() - start < 5
        # Others do not notice.
        assert door.post("gettimestamp", uuid=OWN).status == 200

    def test_it_says_why(self, door: Door, nodes: Nodes) -> None:
        nodes.scripts = [lambda link: None]
        answer = get(door, HELLO)
        assert answer.body.startswith(b"Unable to connect to remote b: ")

    def test_what_config_does_not_allow_any_more(self, door: Door, proxy: Proxy, node: RealNode) -> None:
        assert get(door, HELLO).status == 200
        set_config(proxy.directory, {"remote.b.annex-proxy": "false"})
        proxy.write_branch(uuid_log=f"{NODE.decode()} its name timestamp=1795342684s\n")
        for answer in self.everything(door):
            if answer.status == 502 and answer.body:
                assert answer.body == b"not configured to proxy for repository its name"

    def test_what_is_not_configured(self, proxy: Proxy, nodes: Nodes) -> None:
        set_config(proxy.directory, {"remote.b.annex-proxy": "false"})
        with Door(below=[proxy.directory]) as door:
            assert (get(door, HELLO).status, get(door, HELLO).body) == (502, b"unknown uuid")
        assert nodes.links == []

    def test_special_remotes(self, proxy: Proxy, nodes: Nodes, tmp_path: Path) -> None:
        """They are not used yet; what is asked of one hangs nowhere, and is told so."""
        (tmp_path / "store").mkdir()
        settings = {"annex-directory": str(tmp_path / "store"), "annex-uuid": OTHER.decode(), "annex-proxy": "true"}
        set_config(proxy.directory, {f"remote.special.{name}": value for name, value in settings.items()})
        listed = f"{NODE.decode()}:b {OTHER.decode()}:special"
        proxy.write_branch(
            proxy_log=f"1795342684s {OWN.decode()} {listed}\n",
            remote_log=f"{OTHER.decode()} encryption=none name=special type=directory timestamp=1795342684s\n",
        )
        with Door(below=[proxy.directory], limits=Limits(jobs=1, grace=1.0)) as door:
            start = time.monotonic()
            for answer in self.everything(door, UUID(OTHER)):
                assert answer.status == 502
                assert not answer.body or b"it is a special remote (directory)" in answer.body
            assert time.monotonic() - start < 5
            assert door.post("gettimestamp", uuid=OWN).status == 200
        assert list((tmp_path / "store").iterdir()) == nodes.links == []

    def test_a_connection_that_ended_meanwhile(self, door: Door, node: RealNode, nodes: Nodes) -> None:
        def once(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"SUCCESS\n")

        nodes.scripts = [once, node]
        assert post(door, "checkpresent", key=HELLO).json == {"present": True}
        wait_until(lambda: not nodes.links[0].write_fd or not threads_of(nodes))
        assert get(door, HELLO).body == b"hello\n"

    def test_unknown_ones(self, door: Door, nodes: Nodes) -> None:
        assert door.get(HELLO, uuid=UUID(OTHER)).status == 404
        assert nodes.links == []


def threads_of(nodes: Nodes) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_run" in thread.name and thread.daemon]


def test_nodes_that_hang_are_in_nobodys_way(proxy: Proxy, nodes: Nodes) -> None:
    over = threading.Event()

    def hang(link: Link) -> None:
        link.greet()
        link.line()
        over.wait(10)

    nodes.scripts = [hang]
    with Door(below=[proxy.directory], limits=Limits(jobs=2, grace=0.1)) as door:
        connections = []
        for _ in range(4):
            connections.append(door.connect())
            connections[-1].send_head("POST", target("checkpresent", 4, NODE, key=HELLO), {})
        wait_until(lambda: sum(len(link.heard) > 1 for link in nodes.links) == 4)
        start = time.monotonic()
        assert door.post("checkpresent", uuid=OWN, key=HELLO).json == {"present": False}
        assert time.monotonic() - start < 8
        for connection in connections:
            connection.close()
        over.set()
