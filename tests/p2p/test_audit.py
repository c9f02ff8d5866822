"""What the audit log tells of sessions over stdin and stdout, however they go and end."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.p2p.driver import CLIENT_UUID, Programs, Repository, Server, sha256e

KS = b"SHA256E-s12--a948904f2f0f479b8f8197694b30184b0d2ed1c1cd2a1ec0fb85d299a192a447"
LARGE = bytes(range(256)) * (1 << 14)  # 4 MiB: more than any pipe takes
ADDRESS = {"SSH_CONNECTION": "192.0.2.7 50022 192.0.2.1 22"}
# What the lines of a session have in common.
WHO = ("session", "user", "account", "address", "port", "client", "command", "directory", "repository")


class Audited:
    """A repository that is served with an audit log."""

    def __init__(self, programs: Programs, repository: Repository, log: Path) -> None:
        self.programs = programs
        self.repository = repository
        self.log = log

    def start(self, *words: str, log: str | None = None, **env: str) -> Server:
        command = f"git-annex-shell 'p2pstdio' '{self.repository.path}' '{CLIENT_UUID}' " + " ".join(words)
        argv = [*self.programs.command("ours"), "--user", "alice", "--log", log or str(self.log), "-c", command]
        return Server(argv, self.programs.environment(**ADDRESS, **env))

    def open(self, **how: Any) -> Server:
        return self.start(**how).open(self.repository)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_bytes().splitlines()]

    def told(self) -> list[tuple[Any, ...]]:
        """Of each line what was done, with which outcome, and further what there is of key, bytes, offset, reason."""
        fields = ("action", "outcome", "key", "bytes", "offset", "reason")
        return [tuple(line[field] for field in fields if field in line) for line in self.lines]


@pytest.fixture
def audited(programs: Programs, repository: Repository, tmp_path: Path) -> Audited:
    return Audited(programs, repository, tmp_path / "log")


def key(content: bytes) -> tuple[bytes, str]:
    name = sha256e(content)
    return name, name.decode()


BEGUN, ENDED = ("session", "begun"), ("session", "ok")


def test_a_session(audited: Audited) -> None:
    name, text = key(b"some content")
    ks = KS.decode()
    with audited.open() as server:
        assert server.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"
        assert server.put(name, b"some content") == b"SUCCESS"
        assert server.put(name, b"some content") == b"ALREADY-HAVE"
        assert server.get(name, 5) == b"content"
        assert server.ask(b"LOCKCONTENT " + name) == b"SUCCESS"
        server.line("UNLOCKCONTENT")
        assert server.ask(b"REMOVE " + name) == b"SUCCESS"
        assert server.ask(b"REMOVE-BEFORE 0 " + KS) == b"FAILURE"
        assert server.finish() == 0
    assert audited.told() == [
        BEGUN,
        ("store", "ok", text, 12),
        ("store", "present", text),
        ("send", "ok", text, 7, 5),
        ("lock", "ok", text),
        ("unlock", "ok", text),
        ("remove", "ok", text),
        ("remove", "failed", ks, "the time until which it may be removed is over"),
        ENDED,
    ]
    common = [{name: line[name] for name in WHO} for line in audited.lines]
    assert all(who == common[0] for who in common)
    assert (
        common[0].items()
        >= {
            "user": "alice",
            "address": "192.0.2.7",
            "port": 50022,
            "client": CLIENT_UUID,
            "command": "p2pstdio",
            "directory": str(audited.repository.path),
            "repository": audited.repository.uuid,
        }.items()
    )
    assert [line["time"] for line in audited.lines] == sorted(line["time"] for line in audited.lines)
    assert audited.lines[-1]["seconds"] >= sum(line.get("seconds", 0) for line in audited.lines[1:-1])


def test_what_was_answered_is_in_the_log(audited: Audited) -> None:
    """Before the answer, so that it is there even if we are killed the moment after."""
    name, text = key(b"some content")
    with audited.open() as server:
        assert server.put(name, b"some content") == b"SUCCESS"
        assert audited.told() == [BEGUN, ("store", "ok", text, 12)]
        assert server.ask(b"LOCKCONTENT " + name) == b"SUCCESS"
        assert audited.told()[2:] == [("lock", "ok", text)]
        server.line("UNLOCKCONTENT")
        assert server.ask(b"REMOVE " + name) == b"SUCCESS"
        assert audited.told()[-1] == ("remove", "ok", text)
        server.signal(signal.SIGKILL)
    assert audited.told()[-1] == ("remove", "ok", text)


def test_a_large_key(audited: Audited) -> None:
    name, text = key(LARGE)
    with audited.open() as server:
        assert server.put(name, LARGE) == b"SUCCESS"
        assert server.get(name) == LARGE
        assert server.finish() == 0
    size = len(LARGE)
    assert audited.told()[1:-1] == [("store", "ok", text, size), ("send", "ok", text, size)]


# What is not done.


def test_what_fails(audited: Audited) -> None:
    name, text = key(b"some content")
    ks = KS.decode()
    with audited.open() as server, audited.open() as other:
        assert server.put(name, b"some contend") == b"FAILURE"
        assert server.ask(b"GET 0  " + name) == b"DATA 0"
        server.expect("INVALID")
        server.line("FAILURE")
        assert server.ask(b"LOCKCONTENT " + name) == b"FAILURE"
        assert other.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        assert server.ask(b"REMOVE " + KS) == b"FAILURE"
        other.line("UNLOCKCONTENT")
        assert other.finish() == 0
        server.get(KS, acknowledge=b"FAILURE")
        server.get(KS, acknowledge=b"ERROR no")
        assert server.ask(b"PUT  " + name) == b"PUT-FROM 0"
        server.line("ERROR not now")
        assert server.finish() == 0
    told = [line for line in audited.told() if line[0] not in ("session", "lock", "unlock")]
    assert told == [
        ("store", "failed", text, 12, "verification of content failed"),
        ("send", "failed", text, f"{text} is not present"),
        ("remove", "failed", ks, told[2][3]),
        ("send", "failed", ks, 12, "the client did not accept it"),
        ("send", "incomplete", ks, 12, "the client did not say whether it got it"),
        ("store", "incomplete", text, 0, "the client sent nothing"),
    ]
    assert "lock" in told[2][3]
    assert [line[:3] for line in audited.told() if line[0] == "lock"] == [
        ("lock", "failed", text),
        ("lock", "ok", ks),
    ]


@pytest.mark.parametrize(
    ("variable", "refused"),
    [
        ("GIT_ANNEX_SHELL_READONLY", "this repository is read-only; write access denied"),
        ("GIT_ANNEX_SHELL_APPENDONLY", "this repository is append-only; removal denied"),
    ],
)
def test_what_is_refused(variable: str, refused: str, audited: Audited) -> None:
    name, text = key(b"some content")
    with audited.open(**{variable: "1"}) as server:
        stored = server.put(name, b"some content")
        assert server.ask(b"REMOVE " + KS) == b"ERROR " + refused.encode()
        server.line("ERROR ok")
        server.line("CONNECT git-receive-pack")
        server.read_all()
        server.exit_code()
    told = [("store", "ok", text, 12)] if stored == b"SUCCESS" else [("store", "refused", text, refused)]
    denied = "this repository is read-only; write access denied"
    told += [("remove", "refused", KS.decode(), refused), ("git-receive-pack", "refused", denied)]
    assert audited.told() == [BEGUN, *told, ENDED]


def test_a_transfer_that_is_in_progress(audited: Audited) -> None:
    name, text = key(b"some content")
    with audited.open() as first, audited.open() as second:
        assert first.ask(b"PUT  " + name) == b"PUT-FROM 0"
        assert second.ask(b"PUT  " + name).startswith(b"ERROR transfer already in progress")
        assert second.finish() == 0
    assert audited.told()[2][:3] == ("store", "refused", text)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--uuid", "x"], "expected repository UUID x but found UUID "),
        (["--bogus"], "Invalid option `--bogus'"),
        (["more"], "missing UUID parameter"),
    ],
)
def test_a_session_that_is_refused(words: list[str], reason: str, audited: Audited) -> None:
    with audited.start(*words) as server:
        assert server.read_all() == b""
        assert server.exit_code() == 1
    (line,) = audited.lines
    assert (line["action"], line["command"]) == ("session", "p2pstdio")
    assert line["outcome"] == ("failed" if "--bogus" in words else "refused")
    assert line["reason"].startswith(reason)
    assert Path(line["directory"]) == audited.repository.path
    assert "repository" not in line


# Ends.


def test_a_client_that_vanishes_while_it_sends(audited: Audited) -> None:
    name, text = key(LARGE)
    with audited.open() as server:
        assert server.ask(b"PUT  " + name) == b"PUT-FROM 0"
        server.send(b"DATA %d\n" % len(LARGE) + LARGE[: 1 << 20])
        server.close()
        assert server.exit_code() == 1
    with audited.open() as server:
        assert server.put(name, LARGE) == b"SUCCESS"
        assert server.finish() == 0
    half, missing = 1 << 20, f"{len(LARGE) - (1 << 20)} bytes are missing"
    assert audited.told() == [
        BEGUN,
        ("store", "incomplete", text, half, missing),
        ("session", "incomplete", missing),
        BEGUN,
        ("store", "ok", text, len(LARGE) - half, half),
        ENDED,
    ]


def test_a_client_that_vanishes_before_it_sends(audited: Audited) -> None:
    name, text = key(b"x")
    with audited.open() as server:
        assert server.ask(b"PUT  " + name) == b"PUT-FROM 0"
        assert server.finish() == 0
    assert audited.told() == [BEGUN, ("store", "incomplete", text, 0, "the client ended the session"), ENDED]


@pytest.mark.parametrize("taken", [0, 1 << 20])
def test_a_client_that_vanishes_while_it_gets(taken: int, audited: Audited) -> None:
    name, text = key(LARGE)
    with audited.open() as server:
        assert server.put(name, LARGE) == b"SUCCESS"
        assert server.ask(b"GET 0  " + name) == b"DATA %d" % len(LARGE)
        server.read(taken)
        assert server.process.stdout
        server.process.stdout.close()
        server.ended = True
        server.close()
        server.process.wait(20)
    sent, session = audited.told()[2:]
    assert sent[:3] == ("send", "incomplete", text)
    assert taken <= sent[3] < len(LARGE)
    assert sent[4] == "the client closed its end"
    assert session == ("session", "incomplete", "the client closed its end")


def test_a_client_that_does_not_acknowledge(audited: Audited) -> None:
    with audited.open() as server:
        assert server.ask(b"GET 0  " + KS) == b"DATA 12"
        server.read(12)
        server.expect("VALID")
        assert server.finish() == 0
    assert audited.told() == [BEGUN, ("send", "incomplete", KS.decode(), 12, "the client ended the session"), ENDED]


def test_a_client_that_vanishes_with_a_lock(audited: Audited) -> None:
    ks = KS.decode()
    with audited.open() as server:
        assert server.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        assert server.finish() == 0
    assert audited.told()[2] == (
        "unlock",
        "incomplete",
        ks,
        "the client went without unlocking, so that it stays locked for its time",
    )
    assert audited.told()[3] == ENDED


def test_a_signal(audited: Audited) -> None:
    name, text = key(LARGE)
    with audited.open() as server:
        assert server.ask(b"PUT  " + name) == b"PUT-FROM 0"
        server.send(b"DATA %d\n" % len(LARGE) + LARGE[:1000])
        wait_for(
            lambda: audited.repository.tmp(name).exists() and audited.repository.tmp(name).stat().st_size == 1000
        )
        assert server.signal(signal.SIGTERM) == -signal.SIGTERM
    assert audited.told() == [
        BEGUN,
        ("store", "incomplete", text, 1000, "a signal ended the session"),
        ("session", "incomplete", "a signal ended the session"),
    ]


def test_a_broken_conversation(audited: Audited) -> None:
    with audited.open() as server:
        server.line("NOTIFYCHANGE")
        assert server.exit_code() == 1
    assert audited.told()[1][:2] == ("session", "failed")


# Git inside the session.


def test_git_by_connect(audited: Audited) -> None:
    with audited.open() as server:
        server.line("CONNECT git-upload-pack")
        assert server.read_line().startswith(b"DATA ")
        server.line("CONNECTDONE 0")
        server.close()
        server.read_all()
        assert server.exit_code() == 0
    assert audited.told() == [BEGUN, ("git-upload-pack", "ok"), ENDED]


# Hostile and failing.


@pytest.mark.parametrize(
    "name",
    [
        b'WORM-s1--"},{"action":"session","outcome":"ok"}',
        b"WORM-s1--\r\x1b[2J\x07\x7f\\",
        b"WORM-s1--\xff\xfe\xc3\xa9",
        b"WORM-s1--" + b"x" * 30000,
        "WORM-s1--\u2028\u202e".encode(),
    ],
)
def test_hostile_keys(name: bytes, audited: Audited) -> None:
    with audited.open() as server:
        assert server.ask(b"GET 0  " + name) == b"DATA 0"
        server.expect("INVALID")
        server.line("FAILURE")
        assert server.finish() == 0
    sent = audited.lines[1]
    assert sent["action"] == "send" and len(sent["key"]) <= 512
    assert all(0x20 <= byte < 0x7F or byte == 0x0A for byte in audited.log.read_bytes())
    if b"\xff" not in name and len(name) < 512:
        assert sent["key"] == name.decode()


def test_a_huge_offset(audited: Audited) -> None:
    with audited.open() as server:
        assert server.ask(b"GET " + b"9" * 6000 + b"  " + KS) == b"DATA 0"
        server.expect("VALID")
        server.line("SUCCESS")
        assert server.finish() == 0
    assert audited.told()[1] == ("send", "ok", KS.decode(), 0, (1 << 63) - 1)


def test_without_the_log_nothing_is_served(audited: Audited, tmp_path: Path) -> None:
    with audited.start(log=str(tmp_path / "none" / "log")) as server:
        assert server.read_all() == b""
        assert server.exit_code() == 255
    assert server.errors.decode() == (
        "annexshell: the audit log of this server cannot be opened (No such file or directory), and nothing is done"
        " without; its administrator can mend that\n"
    )


def test_a_log_that_becomes_full(audited: Audited) -> None:
    """What was begun is done to its end. The next session is not begun."""
    name, _ = key(b"some content")
    with audited.open() as server:
        size = audited.log.stat().st_size
        limit(server.pid, size + 10)
        assert server.get(KS) == b"hello world\n"
        assert server.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        server.line("UNLOCKCONTENT")
        assert server.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"
        limit(server.pid, 1 << 20)
        assert server.put(name, b"some content") == b"SUCCESS"
        assert server.finish() == 0
    assert server.errors.count(b"cannot be written any more") == 1
    lines = audited.log.read_bytes().splitlines()
    assert len(lines) == 4 and len(lines[1]) == 10
    stored = json.loads(lines[2])
    assert (stored["action"], stored["lost"]) == ("store", 3)
    assert json.loads(lines[3])["outcome"] == "ok"


def limit(pid: int, size: int) -> None:
    """How large the files are that a process may write."""
    import resource

    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def wait_for(condition: Any) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


MODULES = """
import sys
from annexshell.__main__ import main
main()
sys.stderr.write(" ".join(sys.modules))
"""


def test_what_is_imported(audited: Audited) -> None:
    """Without a log nothing for it, and with one nothing that takes long."""
    modules = []
    command = f"git-annex-shell p2pstdio '{audited.repository.path}' {CLIENT_UUID}"
    for options in ([], ["--log", str(audited.log)]):
        argv = [sys.executable, "-c", MODULES, *options, "-c", command]
        done = subprocess.run(
            argv, env=audited.programs.environment(), input=b"GET 0  %s\nSUCCESS\n" % KS, capture_output=True
        )
        assert done.stdout.endswith(b"DATA 12\nhello world\n")
        modules.append(set(done.stderr.decode().split()))
    without, audited_too = modules
    assert not any("audit" in name for name in without) and "_json" not in without
    more = audited_too - without
    assert more == {
        "annexshell.serverwords",
        "annexshell.audit",
        "annexshell.auditsinks",
        "annexshell.audited",
        *more,
    }
    assert not more & {"json", "socket", "typing", "re", "enum", "logging", "syslog", "contextlib", "dataclasses"}
