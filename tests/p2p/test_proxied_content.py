"""Content on its way through a proxy: all of it, no more of it in memory than pipes hold, and no faster than it is
taken.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annexshell.key import Key
from tests.leftovers import left_open
from tests.proxying import NODE, OTHER, Link, Nodes, Proxy, RealNode, Session, nodes, set_config

__all__ = ["nodes"]

ROOT = Path(__file__).resolve().parents[2]
MB = 1 << 20
HELD_BY_PIPES = MB  # at the most: two wide pipes, and what is read ahead
KEY = Key(b"WORM-m1--x")


def some_bytes(length: int) -> bytes:
    block = random.Random(length).randbytes(MB + 13)
    return (block * (length // len(block) + 1))[:length]


@pytest.fixture(scope="module")
def proxy(tmp_path_factory: pytest.TempPathFactory) -> Proxy:
    return Proxy(tmp_path_factory.mktemp("proxy") / "proxy")


@pytest.fixture
def start(proxy: Proxy, nodes: Nodes) -> Any:
    before = left_open()
    yield lambda **options: Session.start(proxy.target(), **options)
    assert left_open() <= before


def sender(content: bytes, *, at_once: bool = False, pieces: Callable[[int], int] | None = None) -> Any:
    """A node that sends CONTENT, with its messages in the same writes or not, in PIECES of a size by their number."""

    def play(link: Link) -> None:
        link.greet()
        link.line()
        begin, end = b"DATA %d\n" % len(content), b"VALID\n"
        if at_once:
            link.say(begin + content + end)
        else:
            link.say(begin)
            send_pieces(link.say, content, pieces)
            link.say(end)
        assert link.line() == b"SUCCESS"
        link.wait_for_end()

    return play


def send_pieces(say: Callable[[bytes], None], content: bytes, pieces: Callable[[int], int] | None) -> None:
    position = number = 0
    while position < len(content):
        size = pieces(number) if pieces else len(content)
        say(content[position : position + size])
        position += size
        number += 1


def receiver(content: bytes) -> Any:
    def play(link: Link) -> None:
        link.greet()
        link.line()
        link.say(b"PUT-FROM 0\n")
        assert link.line() == b"DATA %d" % len(content)
        assert link.content(len(content)) == content
        assert link.line() == b"VALID"
        link.say(b"SUCCESS\n")
        link.wait_for_end()

    return play


ODD: dict[str, Callable[[int], int] | None] = {
    "whole": None,
    "odd": lambda number: number * 7919 % 70_001 + 1,
    "small": lambda number: 4097,
}


@pytest.mark.parametrize("over_socket", [False, True], ids=["pipes", "socket"])
@pytest.mark.parametrize(
    ("size", "pieces"), [(64 * MB, "whole"), (8 * MB + 1, "odd"), (3 * MB - 1, "small"), (70_000, "odd")]
)
class TestBytes:
    def test_get(self, size: int, pieces: str, over_socket: bool, start: Any, nodes: Nodes) -> None:
        content = some_bytes(size)
        nodes.scripts = [sender(content, pieces=ODD[pieces])]
        with start(over_socket=over_socket) as session:
            session.open(4)
            assert session.ask(b"GET 0 foo " + KEY.serialized) == b"DATA %d" % size
            assert session.content(size) == content
            assert session.line() == b"VALID"
            session.say(b"SUCCESS\n")
            session.say_no_more()
            session.join()
            assert session.error is None

    def test_put(self, size: int, pieces: str, over_socket: bool, start: Any, nodes: Nodes) -> None:
        content = some_bytes(size)
        nodes.scripts = [receiver(content)]
        with start(over_socket=over_socket) as session:
            session.open(4)
            assert session.ask(b"PUT foo " + KEY.serialized) == b"PUT-FROM 0"
            session.say(b"DATA %d\n" % size)
            send_pieces(session.say, content, ODD[pieces])
            session.say(b"VALID\n")
            assert session.line() == b"SUCCESS"
            session.say_no_more()
            session.join()
            assert session.error is None


@pytest.mark.parametrize("size", [0, 1, 300, 65_536, 65_537, 200_000])
class TestReadAhead:
    """What comes in one write with a message, or before it is asked for."""

    def test_get(self, size: int, start: Any, nodes: Nodes) -> None:
        content = some_bytes(size)
        nodes.scripts = [sender(content, at_once=True)]
        with start() as session:
            # The acknowledgement is said before there is anything to acknowledge.
            session.say(b"VERSION 4\nGET 0 foo " + KEY.serialized + b"\nSUCCESS\n")
            session.say_no_more()
            assert session.rest() == b"VERSION 4\nDATA %d\n" % size + content + b"VALID\n"

    def test_put(self, size: int, start: Any, nodes: Nodes) -> None:
        content = some_bytes(size)
        nodes.scripts = [receiver(content)]
        with start() as session:
            request = b"VERSION 4\nPUT foo " + KEY.serialized + b"\n"
            session.say(request + b"DATA %d\n" % size + content + b"VALID\n")
            session.say_no_more()
            assert session.rest() == b"VERSION 4\nPUT-FROM 0\nSUCCESS\n"


class TestBackPressure:
    CONTENT = some_bytes(16 * MB)

    def test_a_client_that_does_not_read(self, start: Any, nodes: Nodes) -> None:
        """The node is not read from faster than the client reads."""
        sent = 0

        def play(link: Link) -> None:
            nonlocal sent
            link.greet()
            link.line()
            link.say(b"DATA %d\n" % len(self.CONTENT))
            for position in range(0, len(self.CONTENT), 4096):
                link.say(self.CONTENT[position : position + 4096])
                sent = position + 4096
            link.say(b"VALID\n")
            link.wait_for_end()

        nodes.scripts = [play]
        with start() as session:
            session.open(4)
            assert session.ask(b"GET 0 foo " + KEY.serialized) == b"DATA %d" % len(self.CONTENT)
            assert settled(lambda: sent) <= HELD_BY_PIPES
            assert session.content(4 * MB) == self.CONTENT[: 4 * MB]
            assert 4 * MB <= settled(lambda: sent) <= 4 * MB + HELD_BY_PIPES
            assert session.content(12 * MB) == self.CONTENT[4 * MB :]
            assert session.line() == b"VALID"
            session.say(b"SUCCESS\n")
            assert session.finish() == b""

    def test_a_node_that_does_not_read(self, start: Any, nodes: Nodes) -> None:
        go_on = threading.Event()
        sent = 0

        def play(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"PUT-FROM 0\n")
            assert link.line() == b"DATA %d" % len(self.CONTENT)
            go_on.wait(10)
            assert link.content(len(self.CONTENT)) == self.CONTENT
            assert link.line() == b"VALID"
            link.say(b"SUCCESS\n")
            link.wait_for_end()

        def say(session: Session) -> None:
            nonlocal sent
            for position in range(0, len(self.CONTENT), 4096):
                session.say(self.CONTENT[position : position + 4096])
                sent = position + 4096
            session.say(b"VALID\n")

        nodes.scripts = [play]
        with start() as session:
            session.open(4)
            assert session.ask(b"PUT foo " + KEY.serialized) == b"PUT-FROM 0"
            session.say(b"DATA %d\n" % len(self.CONTENT))
            thread = threading.Thread(target=say, args=(session,))
            thread.start()
            assert settled(lambda: sent) <= HELD_BY_PIPES
            go_on.set()
            thread.join()
            assert session.line() == b"SUCCESS"
            assert session.finish() == b""


def settled(count: Callable[[], int]) -> int:
    """What COUNT gives once it has not changed for a while."""
    before = -1
    while before != (before := count()):
        time.sleep(0.15)
    return before


# Whole processes ------------------------------------------------


class Processes:
    """The proxy as a process, with the shell script SSH in place of ssh."""

    def __init__(self, proxy: Proxy, directory: Path, ssh: str) -> None:
        self.proxy = proxy
        programs = directory / "bin"
        programs.mkdir()
        for name, text in {"ssh": ssh, "git-annex-shell": f'exec {sys.executable} -m annexshell "$@"'}.items():
            (programs / name).write_text(f"#!/bin/sh\n{text}\n")
            (programs / name).chmod(0o755)
        path = f"{programs}:{os.environ['PATH']}"
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(directory)}

    def start(self, **options: Any) -> subprocess.Popen[bytes]:
        words = ["p2pstdio", str(self.proxy.directory), "client", "--uuid", NODE.decode()]
        argv = [sys.executable, "-m", "annexshell", *words]
        pipe = subprocess.PIPE
        return subprocess.Popen(
            argv, stdin=pipe, stdout=pipe, stderr=pipe, env=self.environment, bufsize=0, **options
        )


def peak(process: subprocess.Popen[bytes]) -> int:
    """Bytes, the highest resident size so far."""
    for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


RUN_LAST_ARGUMENT = 'for command; do :; done\nexec sh -c "$command"'


@pytest.mark.parametrize("what", ["GET", "PUT"])
def test_memory_does_not_grow_with_the_content(what: str, tmp_path: Path) -> None:
    proxy, node = Proxy(tmp_path / "proxy"), RealNode(tmp_path / "node")
    set_config(proxy.directory, {"remote.b.url": f"ssh://node{node.directory}"})
    peaks = []
    processes = Processes(proxy, tmp_path, RUN_LAST_ARGUMENT)
    for size in (MB, 64 * MB):
        content = some_bytes(size)
        key = Key(b"SHA256-s%d--" % size + hashlib.sha256(content).hexdigest().encode())
        if what == "GET":
            node.store(key, content)
        with processes.start() as process:
            assert process.stdin and process.stdout and process.stderr
            out = process.stdout
            process.stdin.write(b"VERSION 4\n")
            assert out.readline() == b"AUTH-SUCCESS %s\n" % NODE
            assert out.readline() == b"VERSION 4\n"
            if what == "GET":
                process.stdin.write(b"GET 0 foo %s\n" % key.serialized)
                assert out.readline() == b"DATA %d\n" % size
                got = hashlib.sha256()
                while size:
                    piece = out.read(min(size, MB))
                    got.update(piece)
                    size -= len(piece)
                assert got.hexdigest().encode() == key.name
                assert out.readline() == b"VALID\n"
                process.stdin.write(b"SUCCESS\n")
            else:
                process.stdin.write(b"PUT foo %s\n" % key.serialized)
                assert out.readline() == b"PUT-FROM 0\n"
                view = memoryview(b"DATA %d\n" % size + content + b"VALID\n")
                while view:
                    view = view[process.stdin.write(view) :]
                assert out.readline() == b"SUCCESS\n"
            peaks.append(peak(process))
            process.stdin.close()
            assert (process.wait(20), process.stderr.read()) == (0, b"")
    assert peaks[1] <= peaks[0] + 2 * MB


GREET = f"""
echo AUTH-SUCCESS {NODE.decode()}
read version
echo VERSION 4
"""
UNTIL_END = "while read line; do :; done"


@pytest.mark.parametrize(
    ("number", "node"),
    [
        (signal.SIGTERM, UNTIL_END),
        (signal.SIGTERM, "exec sleep 60"),
        (signal.SIGHUP, UNTIL_END),
        (signal.SIGINT, UNTIL_END),
    ],
)
def test_a_signal_ends_waiting_for_a_node(number: signal.Signals, node: str, proxy: Proxy, tmp_path: Path) -> None:
    with Processes(proxy, tmp_path, GREET + node).start() as process:
        assert process.stdin and process.stdout
        process.stdin.write(b"VERSION 4\n")
        assert process.stdout.readline() == b"AUTH-SUCCESS %s\n" % NODE
        assert process.stdout.readline() == b"VERSION 4\n"
        process.stdin.write(b"CHECKPRESENT %s\n" % KEY.serialized)
        time.sleep(0.3)
        began = time.monotonic()
        process.send_signal(number)
        assert process.stdout.read() == b""
        assert process.wait(10) == -number
        assert time.monotonic() - began < 4  # less than the time that a node has to end by itself


def test_a_proxy_with_a_full_disk_tells_the_truth(tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "proxy")
    answer = f"read request\necho SUCCESS-PLUS {OTHER.decode()}\n{UNTIL_END}"

    def no_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))

    with Processes(proxy, tmp_path, GREET + answer).start(preexec_fn=no_files) as process:
        said = b"VERSION 4\nREMOVE %s\n" % KEY.serialized
        out, err = process.communicate(said, timeout=20)
    assert out == b"AUTH-SUCCESS %s\nVERSION 4\nSUCCESS-PLUS %s %s\n" % (NODE, NODE, OTHER)
    assert b"cannot record where the content of WORM-m1--x is: " in err
    assert proxy.logged(KEY) == {}
