"""Every command in every state of a repository, of the environment and of --uuid, beside git-annex-shell."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from annexshell import forced
from tests import vectors
from tests.proxying import NODE, OWN, Proxy
from tests.shell import (
    ABSENT,
    OTHER_UUID,
    PRESENT,
    UUID,
    Result,
    Shell,
    filled,
    git,
    make_annex,
    make_ref,
    make_repository,
    place,
    status_of,
)

MATRIX = vectors.load("shell-matrix")
STATES = sorted({row["state"] for row in MATRIX})
# A repository that may stand in front of one other, and which uuid it is asked for.
PROXYING = {
    "uuid-proxied": NODE.decode(),
    "uuid-proxied-readonly": NODE.decode(),
    "uuid-not-proxied": OTHER_UUID,
    "uuid-unknown-on-proxy": UUID,
    "uuid-own-on-proxy": OWN.decode(),
}
# What annex.version has to be is not only a matter of taste (spec: shell §6.3).
UNKNOWN_VERSIONS = ("version-5", "version-99")
# Words of git-annex-shell's that ours begin with.
REFUSALS = (
    "Action blocked",
    "Only allowed",
    "expected repository UUID",
    "not configured to proxy",
    "Cannot proxy",
    "Not a git-annex",
    "failed to read git config",
    "dropkey can cause",
)


@pytest.mark.parametrize("state", STATES)
def test_states(state: str, shell: Shell) -> None:
    directory, extra, environment = prepare(state, shell)
    repo = shell.home / directory
    rows = [row for row in MATRIX if row["state"] == state]
    has_content = any(row["command"] == "inannex present" and row["exit"] == 0 for row in rows)
    for row in rows:
        content = place(repo, PRESENT, b"abc") if has_content else None
        result = shell(*command_line(row["command"], directory, extra), **environment)
        check_row(row, result, shell)
        if content is not None:
            assert content.exists() == (row["command"] != "dropkey --force" or row["exit"] != 0), row
            shutil.rmtree(content.parent, ignore_errors=True)
        if row["initialised"]:
            uuid = git(repo, "config", "annex.uuid")
            assert result.stdout.decode() == row["stdout"].replace("NEWUUID", uuid)
            shutil.rmtree(repo)
            prepare(state, shell)
        elif state.startswith("uninit"):
            assert "annex.uuid" not in git(repo, "config", "--list")


def test_nothing_is_left_out() -> None:
    commands = {row["command"].split()[0] for row in MATRIX}
    assert commands == {name.decode() for name in forced.BUILTINS} | {"git-upload-pack", "unknown"}
    assert len(STATES) == 39
    assert len(MATRIX) == 554


def prepare(state: str, shell: Shell) -> tuple[str, list[str], dict[str, str]]:
    """Set STATE up; gives the directory's name, words to add to the command, environment variables."""
    environment = {
        "readonly": {"GIT_ANNEX_SHELL_READONLY": "1"},
        "appendonly": {"GIT_ANNEX_SHELL_APPENDONLY": "1"},
        "readonly+appendonly": {"GIT_ANNEX_SHELL_READONLY": "1", "GIT_ANNEX_SHELL_APPENDONLY": "1"},
        "limited": {"GIT_ANNEX_SHELL_LIMITED": "1"},
        "directory-other": {"GIT_ANNEX_SHELL_DIRECTORY": "/srv/annex"},
        "empty-env": dict.fromkeys(
            ["GIT_ANNEX_SHELL_READONLY", "GIT_ANNEX_SHELL_APPENDONLY", "GIT_ANNEX_SHELL_LIMITED"], ""
        ),
        # What git's own tests use, as only root could give the repository away.
        "other-owner": {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},
        "other-owner-bare": {"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"},
    }.get(state, {})
    uuids = {
        "uuid-right": [UUID],
        "uuid-wrong": [OTHER_UUID],
        "uninit-uuid": [OTHER_UUID],
        "gcrypt-uuid-right": [filled("GCRYPTUUID", shell)],
        "gcrypt-uuid-wrong": [OTHER_UUID],
    }.get(state, [])
    repo = shell.home / "repo"
    if state.startswith("uninit"):
        make_repository(repo, bare=state == "uninit-bare" or "pushed" in state)
        if "branch" in state:
            make_ref(repo, "refs/remotes/origin/git-annex" if "remote" in state else "refs/heads/git-annex")
        for mode in ("readonly", "appendonly"):
            if state.endswith(mode):
                environment = {f"GIT_ANNEX_SHELL_{mode.upper()}": "1"}
    elif state in ("noannex-file", "objects-dir-without-uuid", "uuid-missing"):
        make_ref(make_repository(repo), "refs/heads/git-annex")
        if state == "noannex-file":
            (repo / ".noannex").write_text("do not use\n")
        elif state == "uuid-missing":
            git(repo, "config", "annex.version", "10")
        else:
            (repo / ".git/annex/objects").mkdir(parents=True)
    elif state.startswith("gcrypt"):
        make_repository(repo, bare=True, **{"core_gcrypt-id": ":id:abcdef"})
    elif state in PROXYING:
        proxy = Proxy(repo)
        proxy.write_branch(uuid_log=f"{OWN.decode()} proxy timestamp=1s\n{OTHER_UUID} unprox timestamp=1s\n")
        uuids = [PROXYING[state]]
        if state.endswith("readonly"):
            environment = {"GIT_ANNEX_SHELL_READONLY": "1"}
    elif state == "not-git-dir":
        repo.mkdir()
    elif state == "missing-dir":
        return "nonexistent", [], {}
    else:
        make_annex(repo, bare=state.endswith("bare"))
        if state == "version-missing":
            # git-annex never takes the version away from a repository without leaving the branch.
            git(repo, "config", "--unset", "annex.version")
            make_ref(repo, "refs/heads/git-annex")
        elif state.startswith("version-"):
            git(repo, "config", "annex.version", state.removeprefix("version-"))
    return "repo", [word for uuid in uuids for word in ("--uuid", uuid)], environment


def command_line(command: str, directory: str, extra: list[str]) -> list[str]:
    name = command.split()[0]
    if name == "git-upload-pack":
        return ["-c", f"git-upload-pack '{directory}'"]
    if name == "unknown":
        return ["-c", "foo"]
    parameters = {
        "configlist autoinit=1": ["--", "autoinit=1", "--"],
        "p2pstdio": [OTHER_UUID],
        "gcryptsetup": [":id:abcdef"],
        "recvkey": [ABSENT],
        "dropkey": [PRESENT],
        "dropkey --force": ["--force", PRESENT],
        "dropkey --force absent": ["--force", ABSENT],
        "inannex present": [PRESENT],
        "inannex absent": [ABSENT],
        "sendkey present": [PRESENT],
        "sendkey absent": [ABSENT],
    }.get(command, [])
    return [name, directory, *extra, *parameters]


def check_row(row: dict[str, Any], result: Result, shell: Shell) -> None:
    name, state = row["command"].split()[0], row["state"]
    said = [line.strip() for line in expected_text(row["stderr"], row, shell).splitlines()]
    said = [line for line in said if not line.startswith("fatal: ")]  # git's own
    complaint = said[0].partition(": ")[2] if said and said[0].startswith("git-annex") else "".join(said[:1])
    status = status_of(row, complaint)
    stdout = expected_text(row["stdout"], row, shell).encode().decode("unicode_escape").encode("latin-1")
    if complaint.startswith(REFUSALS):
        assert (result.status, result.stdout, result.git_shell) == (status, b"", None), row
        if state not in UNKNOWN_VERSIONS or "dropkey" not in complaint:
            assert result.complaint == complaint, row
    elif name in ("git-upload-pack", "unknown"):
        assert result.git_shell is not None, row
    elif state in UNKNOWN_VERSIONS and forced.BUILTINS[name.encode()].in_annex:
        # Not served in these versions at all.
        assert (result.status, result.stdout) == (forced.BUILTINS[name.encode()].failure, b"")
        assert "annex.version" in result.complaint
    elif name == "notifychanges":
        # The end of stdin is no failure.
        assert (result.status, result.stdout, result.stderr) == (0, b"READY\n", ""), (row, result)
    elif name in ("sendkey", "recvkey") and stdout:
        # rsync has told its version and found that the client is gone; which version it has, nobody can know.
        assert (result.status, len(result.stdout), result.stdout[1:]) == (1, 4, stdout[1:]), (row, result.stderr)
        assert "rsync: connection unexpectedly closed" in result.stderr
    elif state == "not-git-dir" and row["exit"]:
        assert (result.status, result.stdout) == (1, b"")
        assert "no git repository" in result.complaint
    elif row["initialised"]:
        assert (result.status, result.stderr) == (0, "")
    elif state == "noannex-file" and name == "configlist":
        assert (result.status, result.stdout) == (1, b"")
        expected = row["stderr"].replace("git-annex-shell:", "annexshell:").splitlines()
        assert [line.strip() for line in result.stderr.splitlines()] == [line.strip() for line in expected]
    else:
        assert (result.status, result.stdout) == (status, stdout), (row, result.stderr)
        assert result.complaint.startswith(complaint) if complaint else result.stderr == "", row


def expected_text(text: str, row: dict[str, Any], shell: Shell) -> str:
    own = PROXYING.get(row["state"], "")
    text = text.replace("PROXYUUID", OWN.decode()).replace("NODEUUID", NODE.decode())
    return filled(text.replace("WRONGUUID", own) if own else text, shell)
