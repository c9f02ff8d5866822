"""What a proxy makes of nodes that fail at every point of an exchange.

The client is told which remote failed, and the next request is served by a new connection; nothing is recorded that
the node did not say.
"""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from annexshell.annex.repository import LocalRepository
from annexshell.errors import AnnexshellError
from annexshell.key import Key
from annexshell.proxy import ProxiedRepository
from tests.leftovers import left_open
from tests.proxying import NODE, Client, Link, Nodes, Proxy, Session, nodes

__all__ = ["nodes"]

CONTENT = b"0123456789" * 30
LARGE = b"0123456789abcdef" * (200 << 6)  # 200 KiB, which is not held in memory
KEY = Key(b"SHA256E-s300--" + hashlib.sha256(CONTENT).hexdigest().encode())
LARGE_KEY = Key(b"SHA256E-s%d--" % len(LARGE) + hashlib.sha256(LARGE).hexdigest().encode())
TIMEOUT = 0.1  # seconds in which a node has to say something

# What nodes do instead of what they are to do, by name.
FAULTS = {
    "hangs up": None,
    "nonsense": b"?!?\n",
    "error": b"ERROR it broke\n",
    "out of place": b"TIMESTAMPS\nVERSION 4\n",
    "silence": b"",
}


class Say:
    """A node's step: to say something. A number in front of a fault's name tells which step it replaces."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def __call__(self, link: Link) -> None:
        link.say(self.data)


class Hear:
    """To hear a line."""

    def __call__(self, link: Link) -> None:
        link.line()


class Take:
    """To be sent content, with the line before it."""

    def __init__(self, length: int) -> None:
        self.length = length

    def __call__(self, link: Link) -> None:
        announced = link.line()
        assert announced == b"DATA %d" % self.length, announced
        link.content(self.length)


HEAR = Hear()


def node_steps(request: str, version: int) -> list[Any]:
    """What a node that works does from the request on."""
    valid = version > 0
    word = request.split(" ")[0]
    if word in ("CHECKPRESENT", "REMOVE", "REMOVE-BEFORE"):
        return [HEAR, Say(b"SUCCESS\n")]
    if word == "GETTIMESTAMP":
        return [HEAR, Say(b"TIMESTAMP 7\n")]
    if word == "LOCKCONTENT":
        return [HEAR, Say(b"SUCCESS\n"), HEAR]
    content = LARGE if "large" in request else CONTENT
    if word == "GET":
        half = len(content) // 2
        data = [Say(b"DATA %d\n" % len(content) + content[:half]), Say(content[half:])]
        return [HEAR, *data, *([Say(b"VALID\n")] if valid else []), HEAR]
    if "present" in request:
        return [HEAR, Say(b"PUT-FROM 0\n"), HEAR, Say(b"SUCCESS\n")]
    return [HEAR, Say(b"PUT-FROM 0\n"), Take(len(content)), *([HEAR] if valid else []), Say(b"SUCCESS\n")]


REQUESTS = {
    "CHECKPRESENT": b"CHECKPRESENT KEY",
    "LOCKCONTENT": b"LOCKCONTENT KEY",
    "REMOVE": b"REMOVE KEY",
    "REMOVE-BEFORE": b"REMOVE-BEFORE 1000 KEY",
    "GETTIMESTAMP": b"GETTIMESTAMP",
    "GET": b"GET 0 foo KEY",
    "GET large": b"GET 0 foo LARGE",
    "PUT": b"PUT foo KEY",
    "PUT large": b"PUT foo LARGE",
    "PUT present": b"PUT foo KEY",
}


def fault_cases() -> list[Any]:
    found = []
    for version in (0, 1, 2, 4):
        for request in REQUESTS:
            if request == "PUT present" and version < 4:
                continue
            steps = node_steps(request, version)
            for number, step in enumerate(steps):
                for fault in FAULTS:
                    if number and is_fault(request, number, fault, step, is_last=number + 1 == len(steps)):
                        name = f"v{version}-{request}-{number} {fault}"
                        found.append(pytest.param(request, number, fault, version, id=name))
    return found


def is_fault(request: str, number: int, fault: str, step: Any, is_last: bool) -> bool:
    """Whether anybody could tell it from what is to be."""
    if request.startswith("GET") and number == 2:
        return not FAULTS[fault]  # whatever comes where content is to be is content
    if isinstance(step, Say):
        return True
    return fault == "hangs up" or (fault == "silence" and not is_last)


def script(request: str, number: int, fault: str, version: int) -> Any:
    """A node that fails at the step of that NUMBER."""

    def play(link: Link) -> None:
        link.greet()
        for step in node_steps(request, version)[:number]:
            step(link)
        data = FAULTS[fault]
        if data is not None:
            link.say(data)
            serve_checks(link)

    return play


def serve_checks(link: Link) -> None:
    """Answer CHECKPRESENT, which is what is asked next by those that go on."""
    while line := link.line():
        if line.startswith(b"CHECKPRESENT"):
            link.say(b"SUCCESS\n")


def healthy(link: Link) -> None:
    link.greet()
    serve_checks(link)


def converse(client: Client, request: str, version: int) -> bytes | None:
    """The client's part of a request, whatever it gets; gives the last answer, None for the end of the session."""
    content = LARGE if "large" in request else CONTENT
    answer = client.ask(REQUESTS[request].replace(b"KEY", KEY.serialized).replace(b"LARGE", LARGE_KEY.serialized))
    if answer is None:
        return None
    if answer == b"SUCCESS" and request == "LOCKCONTENT":
        client.say(b"UNLOCKCONTENT\n")
    elif answer.startswith(b"PUT-FROM "):
        if request == "PUT present":
            return client.ask(b"DATA-PRESENT")
        client.say(b"DATA %d\n" % len(content) + content + (b"VALID\n" if version else b""))
        return client.line()
    elif answer.startswith(b"DATA "):
        got = client.content(int(answer[5:]))
        if len(got) < int(answer[5:]):
            return None
        assert got == content
        answer = client.line() if version else b"VALID"
        client.say(b"SUCCESS\n")
    return answer


def proper_answer(request: str, number: int, fault: str, version: int) -> str | None:
    """The beginning of what the client is to get in the end; None for the end of the session."""
    step = node_steps(request, version)[number]
    if request == "CHECKPRESENT" and version < 2:
        return None  # such a client records the content as lost upon any other answer
    if request == "LOCKCONTENT" and number == 2:
        return "SUCCESS"  # there is no answer to UNLOCKCONTENT
    if request.startswith("GET") and number >= 3:
        return "VALID" if step is HEAR else "INVALID"
    if request == "GET large" and number == 2:
        return None  # nothing else can be said in the middle of content
    if fault == "error":
        return "ERROR it broke"
    return "FAILURE" if request.startswith("REMOVE") else "ERROR"


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A proxy for those that record nothing, with the target that is copied for each session."""
    proxy = Proxy(tmp_path_factory.mktemp("proxy") / "proxy")
    target = proxy.target()
    yield proxy, target
    target.close()


@pytest.mark.parametrize(("request_name", "number", "fault", "version"), fault_cases())
def test_a_node_that_fails(
    request_name: str, number: int, fault: str, version: int, shared_proxy: Any, nodes: Nodes
) -> None:
    proxy, template = shared_proxy
    target = ProxiedRepository(LocalRepository(template.local.repo), NODE, template.remote)
    nodes.scripts = [script(request_name, number, fault, version), healthy]
    before = left_open()
    with Session.start(target, reply_timeout=TIMEOUT) as session:
        session.open(version)
        answer = converse(session, request_name, version)
        if fault == "hangs up":
            nodes.threads[0].join()  # or what comes next could be asked of it before it has
        expected = proper_answer(request_name, number, fault, version)
        if expected is None:
            assert answer is None
            session.join()
            assert isinstance(session.error, AnnexshellError)
            assert "remote b" in str(session.error) or "it broke" in str(session.error)
        else:
            assert answer is not None and answer.decode().startswith(expected), answer
            if expected == "ERROR":
                assert b"remote b" in answer
            assert session.ask(b"CHECKPRESENT " + KEY.serialized) == b"SUCCESS"
            assert session.finish() == b""
            assert session.error is None
            assert len(nodes.links) == (1 if expected == "ERROR it broke" else 2)
    assert left_open() <= before
    assert not (proxy.git_dir / "annex" / "journal").exists() or not os.listdir(proxy.git_dir / "annex" / "journal")
