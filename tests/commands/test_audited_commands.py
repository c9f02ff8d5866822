"""What the audit log tells of commands: those that run, those that are refused, and those that others run for us.

Of sessions in the P2P protocol, tests/p2p/test_audit.py.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from annexshell.key import Key
from tests.annex.local import sha256_key
from tests.proxying import NODE, Proxy, RealNode, set_config
from tests.shell import OTHER_UUID, UUID, Result, Shell, make_annex, make_repository

SESSION_BEGUN = {"action": "session", "outcome": "begun"}
SESSION_OK = {"action": "session", "outcome": "ok"}


class AuditedShell:
    """Runs ``annexshell --log FILE --user alice -c COMMAND``."""

    def __init__(self, shell: Shell, log: Path) -> None:
        self.shell = shell
        self.log = log

    def __call__(self, command: str, **environment: str) -> Result:
        return self.run("--log", str(self.log), "--user", "alice", "-c", command, **environment)

    def run(self, *words: str, input: bytes = b"", **environment: str) -> Result:
        """Run annexshell with INPUT at stdin."""
        file = self.log.with_name("stdin")
        file.write_bytes(input)
        before = os.dup(0)
        with file.open("rb") as stream:
            os.dup2(stream.fileno(), 0)
        try:
            return self.shell(*words, program="annexshell", **environment)
        finally:
            os.dup2(before, 0)
            os.close(before)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def told(self, *fields: str) -> list[dict[str, Any]]:
        fields = fields or ("action", "outcome", "command", "directory", "repository", "reason")
        return [{name: line[name] for name in fields if name in line} for line in self.lines]


@pytest.fixture
def audited(shell: Shell, tmp_path: Path) -> AuditedShell:
    return AuditedShell(shell, tmp_path / "log")


def test_a_command(audited: AuditedShell) -> None:
    path = str(make_annex(audited.shell.home / "repo"))
    assert audited("git-annex-shell 'configlist' '~/repo'").status == 0
    what = {"action": "session", "command": "configlist", "directory": path, "repository": UUID}
    assert audited.told() == [what | {"outcome": "begun"}, what | {"outcome": "ok"}]


def test_initialising(audited: AuditedShell) -> None:
    make_repository(audited.shell.home / "repo")
    assert audited("git-annex-shell 'configlist' 'repo' '--' 'autoinit=1' '--'").status == 0
    begun, init, ended = audited.told("action", "outcome", "repository")
    assert begun == {"action": "session", "outcome": "begun"}
    assert (init["action"], init["outcome"]) == ("init", "ok")
    assert init["repository"] == ended["repository"] and len(init["repository"]) == 36


def test_an_encrypted_repository(audited: AuditedShell) -> None:
    make_repository(audited.shell.home / "repo", bare=True)
    assert audited("git-annex-shell 'gcryptsetup' 'repo' ':id:abcdef'").status == 0
    assert audited("git-annex-shell 'inannex' 'repo'").status == 0
    uuid = "39d0c840-d914-55c6-9969-739920770697"
    assert [line.get("repository") for line in audited.lines] == [None, None, uuid, uuid]


@pytest.mark.parametrize(
    ("command", "environment", "outcome", "reason"),
    [
        ("configlist repo --uuid " + OTHER_UUID, {}, "refused", "expected repository UUID"),
        ("configlist other", {"GIT_ANNEX_SHELL_DIRECTORY": "repo"}, "refused", "Only allowed to access"),
        ("gcryptsetup repo id", {"GIT_ANNEX_SHELL_READONLY": "1"}, "refused", "Action blocked by"),
        ("configlist none", {}, "failed", "failed to read git config"),
        ("configlist repo --bogus", {}, "failed", "Invalid option `--bogus'"),
        ("configlist repo more", {}, "refused", "This command takes no parameters."),
    ],
)
def test_commands_that_do_not_begin(
    command: str, environment: dict[str, str], outcome: str, reason: str, audited: AuditedShell
) -> None:
    make_annex(audited.shell.home / "repo")
    assert audited(f"git-annex-shell {command}", **environment).status == 1
    (line,) = audited.lines
    assert (line["action"], line["outcome"], line["command"]) == ("session", outcome, command.split()[0])
    assert line["reason"].startswith(reason)
    assert Path(line["directory"]).stem == command.split()[1]


def test_a_command_line_that_makes_no_sense(audited: AuditedShell) -> None:
    assert audited("git-annex-shell 'configlist'").status == 1
    (line,) = audited.told("action", "outcome", "reason")
    assert line["outcome"] == "failed" and line["reason"].startswith("bad parameters")


# Git's commands.


def test_git_commands_are_told_of_before_they_begin(audited: AuditedShell) -> None:
    assert audited("git-upload-pack '/srv/r'\\''s'").git_shell == [b"git-upload-pack '/srv/r'\\''s'"]
    expected = {
        "action": "session",
        "outcome": "handed-over",
        "command": "git-upload-pack",
        "directory": "/srv/r's",
    }
    assert audited.told() == [expected]


def test_other_commands(audited: AuditedShell) -> None:
    assert audited("rm -rf '~'\n").git_shell == [b"rm -rf '~'\n"]
    assert audited.told() == [{"action": "session", "outcome": "handed-over", "command": "rm -rf '~'\n"}]


def test_git_commands_that_are_refused(audited: AuditedShell) -> None:
    assert audited("git-receive-pack 'repo'", GIT_ANNEX_SHELL_LIMITED="1").status == 1
    assert audited("git-receive-pack 'repo'", GIT_ANNEX_SHELL_DIRECTORY="other").status == 1
    limited, elsewhere = audited.told()
    assert limited == {
        "action": "session",
        "outcome": "refused",
        "command": "git-receive-pack",
        "directory": "repo",
        "reason": "Action blocked by GIT_ANNEX_SHELL_LIMITED",
    }
    assert elsewhere["reason"].startswith("Only allowed to access")


def test_without_the_log_git_is_not_run(shell: Shell, tmp_path: Path) -> None:
    result = AuditedShell(shell, tmp_path)("git-upload-pack 'repo'")
    assert (result.status, result.git_shell) == (255, None)
    assert result.complaint.startswith("the audit log of this server cannot be opened (Is a directory)")


# Standing in front of others.


@pytest.fixture
def proxied(shell: Shell) -> tuple[Proxy, RealNode]:
    """~/u, whose remote b is a repository at a path."""
    proxy = Proxy(shell.home / "u")
    node = RealNode(shell.home / "b")
    set_config(proxy.directory, {"remote.b.url": str(node.directory)})
    return proxy, node


@pytest.mark.parametrize("way", ["p2pstdio", "proxy", "proxy --trace"])
def test_a_proxied_session(way: str, proxied: tuple[Proxy, RealNode], audited: AuditedShell) -> None:
    proxy, _ = proxied
    data = b"x" * 100_000
    key = sha256_key(data)
    name = key.serialized
    said = b"VERSION 4\nPUT  %s\nDATA %d\n%sVALID\nGET 1  %s\nSUCCESS\n" % (name, len(data), data, name)
    said += b"LOCKCONTENT %s\nUNLOCKCONTENT\nREMOVE %s\nGET 0  %s\nFAILURE\n" % (name, name, name)
    words = [*way.split(), "--log", str(audited.log), str(proxy.directory), "b"]
    if way == "p2pstdio":
        command = f"git-annex-shell p2pstdio '{proxy.directory}' 'me' --uuid {NODE.decode()}"
        words = ["--log", str(audited.log), "-c", command]
    result = audited.run(*words, input=said)
    assert result.status == 0, result.stderr
    text = key.serialized.decode()
    assert audited.told("action", "outcome", "key", "bytes", "offset") == [
        {"action": "session", "outcome": "begun"},
        {"action": "store", "outcome": "ok", "key": text, "bytes": 100_000},
        {"action": "send", "outcome": "ok", "key": text, "bytes": 99_999, "offset": 1},
        {"action": "lock", "outcome": "ok", "key": text},
        {"action": "unlock", "outcome": "ok", "key": text},
        {"action": "remove", "outcome": "ok", "key": text},
        {"action": "send", "outcome": "failed", "key": text},
        {"action": "session", "outcome": "ok"},
    ]
    for line in audited.lines:
        assert line["repository"] == NODE.decode()
        assert line["directory"] == str(proxy.directory)
        assert line["command"] == way.split()[0]
    if way == "p2pstdio":
        assert audited.lines[0]["client"] == "me"


# Keys by commands of their own.


@pytest.fixture
def annex(shell: Shell) -> RealNode:
    return RealNode(shell.home / "repo")


def test_looking_for_keys(annex: RealNode, audited: AuditedShell) -> None:
    """The answers are not told of, be it yes or no."""
    key = sha256_key(b"here")
    annex.store(key, b"here")
    for name, status in ((key.serialized, 0), (sha256_key(b"not here").serialized, 1)):
        assert audited(f"git-annex-shell inannex repo {name.decode()}").status == status
    assert audited.told("action", "outcome") == [SESSION_BEGUN, SESSION_OK] * 2


def test_dropping_keys(annex: RealNode, audited: AuditedShell) -> None:
    key, other = sha256_key(b"here"), sha256_key(b"not here")
    annex.store(key, b"here")
    names = [key.serialized.decode(), other.serialized.decode()]
    assert audited(f"git-annex-shell dropkey repo --force {' '.join(names)}").status == 0
    assert audited.told("action", "outcome", "key") == [
        SESSION_BEGUN,
        *({"action": "remove", "outcome": "ok", "key": name} for name in names),
        SESSION_OK,
    ]
    assert annex.content(key) is None


def test_dropping_without_force(annex: RealNode, audited: AuditedShell) -> None:
    assert audited("git-annex-shell dropkey repo X--y").status == 1
    (line,) = audited.lines
    assert (line["outcome"], line["command"]) == ("refused", "dropkey")


@pytest.fixture
def rsync(annex: RealNode, audited: AuditedShell, tmp_path: Path) -> Any:
    """Runs rsync with our COMMAND at the other end, as git-annex does."""

    def run(command: str, key: Key, *words: str | Path) -> int:
        script = tmp_path / "ssh"
        ours = f"git-annex-shell {command} {annex.directory} {key.serialized.decode()} -- remoteuuid=me --"
        argv = [sys.executable, "-m", "annexshell", "--log", str(audited.log), "-c"]
        script.write_text(f'#!/bin/sh\nexec {shlex.join(argv)} "{ours} $*"\n')
        script.chmod(0o755)
        env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        argv = ["rsync", "--inplace", "--perms", "-e", str(script), *map(str, words)]
        return subprocess.run(argv, env=env, capture_output=True, timeout=60).returncode

    return run


def test_content_by_rsync(rsync: Any, annex: RealNode, audited: AuditedShell, tmp_path: Path) -> None:
    content = b"content" * 1000
    key = sha256_key(content)
    (tmp_path / "file").write_bytes(content)
    assert rsync("recvkey", key, tmp_path / "file", "dummy:") == 0
    assert annex.content(key) == content
    assert rsync("sendkey", key, "dummy:", tmp_path / "got") == 0
    assert (tmp_path / "got").read_bytes() == content
    moved = {"key": key.serialized.decode(), "bytes": len(content), "outcome": "ok"}
    assert audited.told("action", "outcome", "key", "bytes") == [
        SESSION_BEGUN,
        moved | {"action": "store"},
        SESSION_OK,
        SESSION_BEGUN,
        moved | {"action": "send"},
        SESSION_OK,
    ]
    assert {line["client"] for line in audited.lines} == {"me"}


def test_content_by_rsync_that_is_wrong(rsync: Any, audited: AuditedShell, tmp_path: Path) -> None:
    key = sha256_key(b"content")
    (tmp_path / "file").write_bytes(b"contend")
    assert rsync("recvkey", key, tmp_path / "file", "dummy:") != 0
    assert rsync("sendkey", key, "dummy:", tmp_path / "got") != 0
    _, stored, ended, _, sent, _ = audited.lines
    assert (stored["outcome"], stored["reason"]) == ("failed", "verification of content failed")
    assert (ended["outcome"], ended["reason"]) == ("failed", "exit status 1")
    assert (sent["action"], sent["outcome"]) == ("send", "failed")
    assert sent["reason"] == "requested key is not present"


def test_a_client_of_rsync_that_vanishes(annex: RealNode, audited: AuditedShell) -> None:
    key = sha256_key(b"content")
    assert audited(f"git-annex-shell recvkey repo {key.serialized.decode()} -- --").status == 1
    _, stored, ended = audited.lines
    assert (stored["action"], stored["outcome"], stored["bytes"]) == ("store", "incomplete", 0)
    assert stored["reason"].startswith("rsync ended with status ")
    assert ended["outcome"] == "failed"
