"""The command's own part: the conversation is tested in tests/p2p, and who is stood for in tests/test_proxy."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annexshell.key import Key
from tests.annex.local import sha256_key
from tests.proxying import CLUSTER, NODE, OTHER, OWN, Link, Nodes, Proxy, RealNode, nodes, set_config
from tests.shell import Result, Shell, git

__all__ = ["nodes"]

ROOT = Path(__file__).parents[2]
DATA = b"hello, annex\n"
KEY = sha256_key(DATA)
LARGE = bytes(range(256)) * 8192
LARGE_KEY = sha256_key(LARGE)


@pytest.fixture
def proxy(shell: Shell) -> Proxy:
    """~/u, whose remote b is behind ssh."""
    return Proxy(shell.home / "u")


@pytest.fixture
def node(shell: Shell, proxy: Proxy) -> RealNode:
    """The same remote as a repository at a path."""
    node = RealNode(shell.home / "b")
    git(proxy.directory, "config", "remote.b.url", str(node.directory))
    return node


@pytest.fixture
def run(shell: Shell, tmp_path: Path) -> Callable[..., Result]:
    """Runs ``annexshell proxy`` with INPUT at stdin."""

    def run(*words: str, input: bytes = b"", command: str = "proxy", **environment: str) -> Result:
        (tmp_path / "stdin").write_bytes(input)
        before = os.dup(0)
        with open(tmp_path / "stdin", "rb") as file:
            os.dup2(file.fileno(), 0)
        try:
            return shell(command, *words, program="annexshell", **environment)
        finally:
            os.dup2(before, 0)
            os.close(before)

    return run


Run = Callable[..., Result]


def put(key: Key, data: bytes) -> bytes:
    return b"PUT  %s\nDATA %d\n%sVALID\n" % (key.serialized, len(data), data)


def conversation(key: Key, data: bytes) -> tuple[bytes, bytes]:
    """What a client says to an empty repository, and what it gets back behind the greeting."""
    name = key.serialized
    said = b"VERSION 4\nCHECKPRESENT %s\n%sCHECKPRESENT %s\nGET 3  %s\nSUCCESS\n" % (name, put(key, data), name, name)
    said += b"LOCKCONTENT %s\nUNLOCKCONTENT\nREMOVE %s\nCHECKPRESENT %s\n" % (name, name, name)
    rest = data[3:]
    back = b"VERSION 4\nFAILURE\nPUT-FROM 0\nSUCCESS\nSUCCESS\nDATA %d\n%sVALID\n" % (len(rest), rest)
    return said, back + b"SUCCESS\nSUCCESS\nFAILURE\n"


def events(result: Result) -> list[dict[str, Any]]:
    """The trace, without its times."""
    found = [json.loads(line) for line in result.stderr.splitlines() if line.startswith("{")]
    times = [event.pop("time") for event in found]
    assert times == sorted(times)
    return found


# Sessions.


@pytest.mark.parametrize("asked", ["b", NODE.decode()])
def test_a_session(asked: str, proxy: Proxy, node: RealNode, run: Run) -> None:
    said, back = conversation(KEY, DATA)
    result = run("u", asked, input=said)
    assert (result.status, result.stderr) == (0, "")
    assert result.stdout == b"AUTH-SUCCESS %s\n%s" % (NODE, back)
    assert proxy.logged(KEY, committed=True) == {NODE: b"0"}


@pytest.mark.parametrize("trace", [[], ["--trace"]])
@pytest.mark.parametrize(("key", "data"), [(KEY, DATA), (LARGE_KEY, LARGE)])
@pytest.mark.parametrize("way", ["path", "ssh"])
def test_it_is_what_p2pstdio_does(
    way: str, key: Key, data: bytes, trace: list[str], proxy: Proxy, shell: Shell, run: Run, nodes: Nodes
) -> None:
    node = RealNode(shell.home / "b")
    nodes.scripts = [node]
    if way == "path":
        git(proxy.directory, "config", "remote.b.url", str(node.directory))
    said, back = conversation(key, data)
    there = run(str(proxy.directory), "client", "--uuid", NODE.decode(), input=said, command="p2pstdio")
    here = run("u", "b", *trace, input=said)
    assert (here.status, here.stdout) == (there.status, there.stdout)
    assert here.stdout == b"AUTH-SUCCESS %s\n%s" % (NODE, back)


def test_stored_content_stays(proxy: Proxy, node: RealNode, run: Run) -> None:
    assert run("u", "b", input=b"VERSION 4\n" + put(KEY, DATA)).stdout.endswith(b"PUT-FROM 0\nSUCCESS\n")
    assert node.content(KEY) == DATA
    assert proxy.logged(KEY, committed=True) == {NODE: b"1"}


def test_the_directory_is_relative_to_the_current_one(
    proxy: Proxy, node: RealNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for place, directory in ((proxy.directory, "."), (proxy.directory / "objects", ".."), (proxy.directory, "../u")):
        monkeypatch.chdir(place)
        assert run(directory, "b").stdout == b"AUTH-SUCCESS %s\n" % NODE


@pytest.mark.parametrize(
    ("options", "environment", "may_put", "may_remove"),
    [
        ([], {}, True, True),
        (["--append-only"], {}, True, False),
        (["--read-only"], {}, False, False),
        (["--read-only", "--append-only"], {}, False, False),
        ([], {"GIT_ANNEX_SHELL_APPENDONLY": "1"}, True, False),
        (["--read-only"], {"GIT_ANNEX_SHELL_APPENDONLY": "1"}, False, False),
        (["--append-only"], {"GIT_ANNEX_SHELL_READONLY": "1"}, False, False),
    ],
)
def test_what_is_allowed(
    options: list[str],
    environment: dict[str, str],
    may_put: bool,
    may_remove: bool,
    proxy: Proxy,
    node: RealNode,
    run: Run,
) -> None:
    node.store(KEY, DATA)
    other = sha256_key(b"other")
    input = b"VERSION 4\nPUT  %s\n" % other.serialized + (b"DATA 5\notherVALID\n" if may_put else b"")
    answers = run(
        "u", "b", *options, input=input + b"REMOVE %s\n" % KEY.serialized, **environment
    ).stdout.splitlines()
    assert (node.content(other) == b"other") is may_put
    assert (node.content(KEY) is None) is may_remove
    denied = b"ERROR this repository is %s"
    if not may_put:
        assert answers[-2].startswith(denied % b"read-only")
    if not may_remove:
        assert answers[-1].startswith(denied % (b"append-only" if may_put else b"read-only"))


# Tracing.


def test_a_trace_of_both_ends(proxy: Proxy, shell: Shell, run: Run, nodes: Nodes) -> None:
    nodes.scripts = [RealNode(shell.home / "b")]
    name = KEY.serialized.decode()
    result = run(
        "u", "b", "--trace", input=b"VERSION 4\n" + put(KEY, DATA) + b"GET 7  %s\nSUCCESS\n" % KEY.serialized
    )
    whole = {"length": len(DATA), "sha256": hashlib.sha256(DATA).hexdigest()}
    rest = {"length": len(DATA) - 7, "sha256": hashlib.sha256(DATA[7:]).hexdigest()}
    expected: list[tuple[str, str, Any]] = [
        ("proxy", "client", f"AUTH-SUCCESS {NODE}"),
        ("client", "proxy", "VERSION 4"),
        ("remote", "proxy", f"AUTH-SUCCESS {NODE}"),
        ("proxy", "remote", "VERSION 4"),
        ("remote", "proxy", "VERSION 4"),
        ("proxy", "client", "VERSION 4"),
        ("client", "proxy", f"PUT  {name}"),
        ("proxy", "remote", f"PUT  {name}"),
        ("remote", "proxy", "PUT-FROM 0"),
        ("proxy", "client", "PUT-FROM 0"),
        ("client", "proxy", f"DATA {len(DATA)}"),
        ("proxy", "remote", f"DATA {len(DATA)}"),
        ("client", "proxy", whole),
        ("client", "proxy", "VALID"),
        ("proxy", "remote", whole),
        ("proxy", "remote", "VALID"),
        ("remote", "proxy", "SUCCESS"),
        ("proxy", "client", "SUCCESS"),
        ("client", "proxy", f"GET 7  {name}"),
        ("proxy", "remote", f"GET 7  {name}"),
        ("remote", "proxy", f"DATA {len(DATA) - 7}"),
        ("remote", "proxy", rest),
        ("remote", "proxy", "VALID"),
        ("proxy", "client", f"DATA {len(DATA) - 7}"),
        ("proxy", "client", rest),
        ("proxy", "client", "VALID"),
        ("client", "proxy", "SUCCESS"),
        ("proxy", "remote", "SUCCESS"),
    ]
    told = [(event["from"], event["to"], event.get("message", event.get("content"))) for event in events(result)]
    for way in {(sender, receiver) for sender, receiver, _ in expected}:
        assert [e for e in told if e[:2] == way] == [e for e in expected if e[:2] == way]
    assert [e for e in told if "client" in e] == [e for e in expected if "client" in e]


def test_a_trace_where_there_are_no_messages_to_the_remote(proxy: Proxy, node: RealNode, run: Run) -> None:
    told = events(run("u", "b", "--trace", input=b"VERSION 4\nCHECKPRESENT %s\n" % KEY.serialized))
    assert [event["note"] for event in told if "note" in event] == [
        "remote b is used in this process, so that there are no messages to it"
    ]
    assert {event.get("to", "client") for event in told} == {"client", "proxy"}
    assert told[-1] == {"from": "proxy", "to": "client", "message": "FAILURE"}


def test_a_trace_of_a_remote_that_goes_away(proxy: Proxy, run: Run, nodes: Nodes) -> None:
    def script(link: Link) -> None:
        link.greet()
        assert link.line() == b"GET 0  " + LARGE_KEY.serialized
        link.say(b"DATA %d\n%s" % (len(LARGE), LARGE[: 1 << 20]))

    nodes.scripts = [script]
    result = run("u", "b", "--trace", input=b"VERSION 4\nGET 0  %s\n" % LARGE_KEY.serialized)
    assert result.status == 1
    half = {"length": 1 << 20, "sha256": hashlib.sha256(LARGE[: 1 << 20]).hexdigest(), "missing": 1 << 20}
    assert [event["content"] for event in events(result) if "content" in event] == [half, half]
    assert "lost the connection to remote b while it sent content" in result.stderr


# A remote that does not answer.


def test_a_remote_that_does_not_greet(proxy: Proxy, run: Run, nodes: Nodes) -> None:
    nodes.scripts = [Link.wait_for_end]
    began = time.monotonic()
    result = run("u", "b", "--connect-timeout", "0.2", input=b"VERSION 4\n")
    assert time.monotonic() - began < 5
    assert (result.status, result.stdout) == (1, b"AUTH-SUCCESS %s\n" % NODE)
    assert result.complaint.startswith("Unable to connect to remote b: ")
    assert result.complaint.endswith("it has said nothing for 0.2 seconds")


def test_a_remote_that_does_not_reply(proxy: Proxy, run: Run, nodes: Nodes) -> None:
    def script(link: Link) -> None:
        link.greet()
        link.wait_for_end()

    nodes.scripts = [script]
    set_config(proxy.directory, {"annexshell.replytimeout": "3600", "annexshell.connecttimeout": "3600"})
    input = b"VERSION 4\nCHECKPRESENT %s\n" % KEY.serialized
    result = run("u", "b", "--reply-timeout=0.2", "--connect-timeout=0", input=input)
    assert b"ERROR" in result.stdout
    assert b"it has said nothing for 0.2 seconds" in result.stdout


# Refusals.


def test_names_that_are_none(proxy: Proxy, run: Run) -> None:
    git(proxy.directory, "config", "remote.also.url", "ssh://host/y")
    for options in ([], ["--dry-run"], ["--dry-run", "--json"], ["--trace"]):
        result = run("u", "nope", *options)
        assert (result.status, result.stdout) == (1, b"")
        assert result.stderr == (
            "annexshell: cannot proxy to nope: it is neither the name nor the uuid of a remote; there are: b, also\n"
        )
    result = run("u", "also")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint.startswith("cannot proxy to remote also: its uuid is not known (git annex init")


@pytest.mark.parametrize(
    ("missing", "why"),
    [
        ("log", "the proxy log does not have it under this name"),
        ("config", "git config does not allow it"),
        ("both", "the proxy log does not have it under this name"),
    ],
)
@pytest.mark.parametrize("asked", ["b", NODE.decode()])
def test_what_is_not_allowed(asked: str, missing: str, why: str, proxy: Proxy, run: Run) -> None:
    if missing != "config":
        proxy.write_branch(proxy_log=f"1s {OWN.decode()} {OTHER.decode()}:other\n")
    if missing != "log":
        set_config(proxy.directory, {"remote.b.annex-proxy": "false"})
    result = run("u", asked, input=b"VERSION 4\n")
    assert (result.status, result.stdout) == (1, b"")
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"annexshell: cannot proxy to remote b ({NODE}): {why}")
    assert line.endswith("run in the repository: git config remote.b.annex-proxy true && git annex updateproxy")


def test_uuids_that_are_nobodys_to_stand_for(proxy: Proxy, run: Run) -> None:
    proxy.write_branch(
        proxy_log=f"1s {OWN.decode()} {OTHER.decode()}:gone {CLUSTER.decode()}:c\n",
        cluster_log=f"1s {CLUSTER.decode()} {NODE.decode()}\n",
    )
    for uuid, why in (
        (OWN, "that is the repository itself, which annexshell p2pstdio serves"),
        (OTHER, "no remote has this uuid"),
        (CLUSTER, "is a cluster"),
    ):
        result = run("u", uuid.decode())
        assert (result.status, result.stdout) == (1, b"")
        assert why in result.complaint


@pytest.mark.parametrize("place", ["missing", "not-git", "not-annex"])
def test_other_directories(place: str, shell: Shell, run: Run) -> None:
    directory = shell.home / place
    if place != "missing":
        directory.mkdir()
    if place == "not-annex":
        git(directory, "init", "-q")
    result = run(place, "b")
    assert (result.status, result.stdout) == (1, b"")
    assert len(result.stderr.splitlines()) == 1


def test_only_the_directory_that_is_allowed(proxy: Proxy, node: RealNode, run: Run) -> None:
    assert run("u", "b", GIT_ANNEX_SHELL_DIRECTORY="u").status == 0
    result = run("u", "b", GIT_ANNEX_SHELL_DIRECTORY="other")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint == "Only allowed to access ~/other not ~/u"


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["u"],
        ["u", "b", "more"],
        ["u", "b", "--bogus"],
        ["u", "b", "--json"],
        *(
            ["u", "b", f"--{which}-timeout={value}"]
            for which in ("connect", "reply")
            for value in ("x", "-1", "nan", "inf")
        ),
    ],
    ids=" ".join,
)
def test_bad_usage(words: list[str], proxy: Proxy, run: Run) -> None:
    result = run(*words)
    assert (result.status, result.stdout) == (2, b"")
    assert "Usage: annexshell proxy" in result.stderr


def test_failures_inside_are_told_in_one_line(proxy: Proxy, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr("annexshell.commands.proxy.list_remotes", fail)
    result = run("u", "b")
    assert (result.status, result.stdout) == (1, b"")
    assert result.stderr == "annexshell: internal error: RuntimeError: broken; --debug shows where\n"
    assert "Traceback" in run("u", "b", "--debug").stderr


# The dry run.


def dry_run(run: Run, asked: str, **environment: str) -> tuple[int, dict[str, Any]]:
    result = run("u", asked, "--dry-run", "--json", **environment)
    report = json.loads(result.stdout)
    shown = run("u", asked, "--dry-run", COLUMNS="300", **environment)
    assert shown.status == result.status
    for remote in report["remotes"]:
        for text in (remote["name"], remote["reason"], *(remote["reached"] or {}).values()):
            assert text is None or text in shown.stdout.decode()
    assert report["reason"] is None or report["reason"] in shown.stdout.decode()
    assert report["usable"] is (result.status == 0) is any(remote["used"] for remote in report["remotes"])
    return result.status, {remote["name"]: remote for remote in report.pop("remotes")} | {"": report}


@pytest.mark.parametrize("caching", ["true", "false"])
def test_the_ssh_command_is_the_one_that_is_run(
    caching: str, proxy: Proxy, shell: Shell, run: Run, nodes: Nodes
) -> None:
    set_config(
        proxy.directory,
        {
            "remote.b.url": "ssh://user@host:2222/~/it's here",
            "annex.sshcaching": caching,
            "remote.b.annex-ssh-options": "-o A=b -F none",
        },
    )
    status, report = dry_run(run, "b")
    assert status == 0
    assert nodes.links == []
    assert not (proxy.git_dir / "annex" / "ssh").exists()
    nodes.scripts = [RealNode(shell.home / "b")]
    run("u", "b", input=b"VERSION 4\n")
    assert shlex.split(report["b"]["reached"]["ssh"]) == [os.fsdecode(word) for word in nodes.links[0].argv]
    assert ("ControlMaster=auto" in report["b"]["reached"]["ssh"]) == (caching == "true")


def test_why_the_others_are_not_used(proxy: Proxy, shell: Shell, run: Run) -> None:
    node = RealNode(shell.home / "b")
    names = ("b", "copy", "unlisted", "silent")
    proxy.write_branch(
        proxy_log=f"1s {OWN.decode()} " + " ".join(f"{NODE.decode()}:{n}" for n in names if n[0] != "u")
    )
    set_config(
        proxy.directory,
        {
            "annex.proxy": "true",
            "remote.copy.url": str(node.directory),
            "remote.unlisted.url": str(node.directory),
            "remote.silent.url": str(node.directory),
            "remote.silent.annex-proxy": "false",
            "remote.other.url": "ssh://host/other",
            "remote.other.annex-uuid": OTHER.decode(),
            "remote.unknown.url": "ssh://host/unknown",
        },
    )
    status, report = dry_run(run, NODE.decode())
    assert status == 0
    assert report[""] == {"uuid": NODE.decode(), "usable": True, "reason": None}
    assert [name for name in report if name and report[name]["used"]] == ["copy"]
    assert report["copy"] == {
        "name": "copy",
        "cost": 100.0,
        "used": True,
        "reached": {"path": str(node.directory)},
        "reason": None,
    }
    assert report["b"]["reason"] == "remote copy comes first"
    assert report["unlisted"]["reason"].startswith("the proxy log does not have it under this name")
    assert report["silent"]["reason"].startswith("git config does not allow it")
    assert report["other"]["reason"] == f"its uuid is {OTHER}"
    assert report["unknown"]["reason"] == "its uuid is not known"


def test_no_password_is_told(proxy: Proxy, run: Run) -> None:
    set_config(proxy.directory, {"remote.b.url": "annex+http://me:secret@host:9417/git-annex/"})
    result = run("u", "b", "--dry-run", "--json")
    assert json.loads(result.stdout)["remotes"][0]["reached"] == {"url": "annex+http://host:9417/"}
    shown = run("u", "b", "--dry-run")
    assert shown.status == 0
    for text in (result.stdout, shown.stdout):
        assert b"secret" not in text and b"me" not in text.replace(b"remote", b"").replace(b"name", b"")


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"remote.b.url": "git://host/x"}, "content cannot be transferred by this kind of url"),
        ({"remote.b.url": "ssh://-oProxyCommand=evil/x"}, "hostname that starts with '-'"),
        ({"remote.b.url": "/nowhere"}, "there is no directory /nowhere"),
        ({"remote.b.annex-proxy": "false"}, "git config does not allow it"),
    ],
)
def test_a_remote_that_could_not_be_used(settings: dict[str, str], why: str, proxy: Proxy, run: Run) -> None:
    set_config(proxy.directory, settings)
    status, report = dry_run(run, "b")
    assert status == 1
    assert why in report[""]["reason"]
    assert why in report["b"]["reason"]


def test_the_repository_itself_is_no_remote_of_it(proxy: Proxy, run: Run) -> None:
    proxy.write_branch(proxy_log=f"1s {OWN.decode()} {OWN.decode()}:b\n")
    set_config(proxy.directory, {"remote.b.annex-uuid": OWN.decode()})
    status, report = dry_run(run, "b")
    assert status == 1
    assert report["b"]["reason"] == report[""]["reason"]
    assert "that is the repository itself" in report[""]["reason"]


def test_names_cannot_control_the_terminal(proxy: Proxy, run: Run) -> None:
    set_config(proxy.directory, {"remote.b.url": "ssh://host/\x1b[31m[red]", "remote.\x1b[31m[bold].url": "x"})
    shown = run("u", "b", "--dry-run", COLUMNS="300").stdout
    assert b"\x1b" not in shown
    assert b"[red]" in shown and b"[bold]" in shown


# Where a person is.


def test_a_person_is_told_what_to_type(proxy: Proxy, node: RealNode) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "annexshell", "proxy", "--trace", str(proxy.directory), "b"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=theirs,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": "40"},
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"AUTH-SUCCESS %s\n" % NODE
        os.write(ours, b"VERSION 4\n")
        assert child.stdout.readline() == b"VERSION 4\n"
        os.write(ours, b"\x04")
        assert child.stdout.read() == b""
    assert child.returncode == 0
    os.close(theirs)
    seen = b""
    try:
        while piece := os.read(ours, 1 << 16):
            seen += piece
    except OSError:
        pass  # how the end of a terminal is told
    os.close(ours)
    assert b"VERSION 4 first" in seen and b"Ctrl-D" in seen
    assert b"client \xe2\x86\x92 proxy" in seen
    assert b"\x1b[" in seen


def test_help_teaches(run: Run) -> None:
    text = run("--help").stdout.decode()
    for wanted in (
        "git remote add NAME URL",
        "git config remote.NAME.annex-proxy true",
        "git annex updateproxy",
        "printf 'VERSION 4\\nGETTIMESTAMP\\n' | annexshell proxy",
        "Exit status",
    ):
        assert wanted in text


def test_the_example_of_the_help(proxy: Proxy, node: RealNode, shell: Shell) -> None:
    """As a person would paste it."""
    sh = shutil.which("sh")
    assert sh is not None
    done = subprocess.run(
        [sh, "-c", f"printf 'VERSION 4\\nGETTIMESTAMP\\n' | {shlex.quote(sys.executable)} -m annexshell proxy u b"],
        capture_output=True,
        cwd=shell.home,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[:2] == [b"AUTH-SUCCESS " + NODE, b"VERSION 4"]
    assert lines[2].startswith(b"TIMESTAMP ")
    assert done.stderr == b""
