"""What is explained is what happens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.policies import COMMANDS, Server, rule
from tests.shell import OTHER_UUID, Result, Shell, make_annex


def explain(server: Server, user: str | None, command: str, **environment: str) -> dict[str, Any]:
    words = ["explain", "-c", command, "--json"]
    if user is not None:
        words += ["--policy", str(server.policy), "--user", user]
    result = server.shell(*words, program="annexshell", **environment)
    found: dict[str, Any] = json.loads(result.stdout)
    assert result.status == (0 if found["allowed"] else 1)
    assert found["allowed"] is (found["exit_status"] == 0) is (found["reason"] is None)
    return found


def listing(directory: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.lstat().st_mtime_ns) for path in directory.rglob("*"))


@pytest.fixture
def prepared(shell: Shell) -> Server:
    server = Server(shell)
    make_annex(server.srv / "x")
    make_annex(server.srv / "bare.git", bare=True)
    (server.srv / "plain").mkdir()
    (server.srv / "link").symlink_to("x")
    (server.srv / "out").symlink_to("/etc")
    server.write(
        rule("bob", f"{server.srv}/x", "none"),
        rule("@staff", f"{server.srv}/x {server.srv}/plain", "append", "push"),
        rule("carol", f"{server.srv}/x", "none", "fetch"),
        rule("alice", f"{server.srv}/*", "read"),
    )
    return server


def test_what_it_says(prepared: Server) -> None:
    found = explain(prepared, "alice", f"git-annex-shell 'p2pstdio' '{prepared.srv}/link/.git' 'u'")
    real = str(prepared.srv / "x")
    assert found == {
        "command": f"git-annex-shell 'p2pstdio' '{prepared.srv}/link/.git' 'u'",
        "user": "alice",
        "groups": ["staff"],
        "policy": str(prepared.policy),
        "environment": {},
        "runs": "p2pstdio",
        "directory": {
            "asked": f"{prepared.srv}/link/.git",
            "expanded": f"{prepared.srv}/link/.git",
            "repository": f"{prepared.srv}/link",
            "real": real,
            "exists": True,
            "is_repository": True,
        },
        "rules": [
            {"number": 1, "line": 15, "reason": "is not for alice", "pattern": None, "access": "none", "git": "none"},
            {"number": 2, "line": 20, "reason": "", "pattern": real, "access": "append", "git": "push"},
        ],
        "access": "append-only",
        "git": ["git-upload-pack"],
        "allowed": True,
        "exit_status": 0,
        "reason": None,
    }


def test_the_rules_that_do_not_decide(prepared: Server) -> None:
    found = explain(prepared, "alice", f"git-upload-pack '{prepared.srv}/out'")
    assert [(tried["number"], tried["reason"]) for tried in found["rules"]] == [
        (1, "is not for alice"),
        (2, "no directory fits"),
        (3, "is not for alice"),
        (4, "no directory fits"),
    ]
    assert found["directory"]["real"] == "/etc"
    assert found["reason"] == f"alice may not use {prepared.srv}/out on this server, or it does not exist"


def test_a_repository_around_it(prepared: Server) -> None:
    make_annex(prepared.srv / "x/inside")
    prepared.write(rule("alice", f"{prepared.srv}/**", "write"))
    found = explain(prepared, "alice", f"git-annex-shell 'configlist' '{prepared.srv}/x/inside'")
    assert found["rules"][0]["reason"] == f"it is inside the repository {prepared.srv}/x, to which somebody may push"
    assert not found["allowed"]


def test_a_bad_policy_is_explained_to_its_owner(prepared: Server) -> None:
    prepared.write(rule("@nobody", "/x", "read"))
    found = explain(prepared, "alice", f"git-annex-shell 'configlist' '{prepared.srv}/x'")
    assert not found["allowed"]
    assert found["reason"] == f"{prepared.policy}, line 16: an unknown group in a rule (rules[1].users[1]: @nobody)"


def test_the_environment_alone(prepared: Server) -> None:
    command = f"git-annex-shell 'dropkey' '{prepared.srv}/x' '--force' 'KEY'"
    assert explain(prepared, None, command)["allowed"]
    found = explain(prepared, None, command, GIT_ANNEX_SHELL_APPENDONLY="1")
    assert found["environment"] == {"GIT_ANNEX_SHELL_APPENDONLY": "1"}
    assert found["reason"] == "Action blocked by GIT_ANNEX_SHELL_APPENDONLY"
    found = explain(prepared, None, command, GIT_ANNEX_SHELL_DIRECTORY="/elsewhere")
    assert found["reason"] == f"Only allowed to access /elsewhere not {prepared.srv}/x"
    assert explain(prepared, None, "cvs server")["runs"] == "git-shell -c cvs server"
    assert not explain(prepared, None, "cvs server", GIT_ANNEX_SHELL_LIMITED="1")["allowed"]


@pytest.mark.parametrize(
    ("directory", "reason"),
    [
        ("missing", "the directory is not there, or may not be entered"),
        ("plain", "there is no git repository"),
    ],
)
def test_what_is_there(directory: str, reason: str, prepared: Server) -> None:
    command = f"git-annex-shell 'inannex' '{prepared.srv}/{directory}' 'KEY'"
    assert explain(prepared, None, command)["reason"] == reason


@pytest.mark.parametrize(
    ("user", "command", "allowed", "wanted"),
    [
        ("alice", "git-annex-shell 'configlist' '{}/x'", True, "rule 2 (line 20)"),
        ("alice", "git-annex-shell 'configlist' '{}/x'", True, "append-only"),
        ("bob", "git-annex-shell 'configlist' '{}/x'", False, "bob may not use"),
        ("mallory", "git-annex-shell 'configlist' '{}/x'", False, "mallory is not a user"),
        ("alice", "git-annex-shell 'configlist' '{}/x\x1b[31m'", False, "?[31m"),
    ],
)
def test_for_people(user: str, command: str, allowed: bool, wanted: str, prepared: Server) -> None:
    words = ["explain", "-c", command.format(prepared.srv), "--policy", str(prepared.policy), "--user", user]
    result = prepared.shell(*words, program="annexshell", COLUMNS="200")
    assert result.status == (not allowed)
    text = result.stdout.decode()
    assert wanted in text
    assert "\x1b" not in text
    assert ("Allowed, as far as" in text) is allowed
    assert ("Refused, exit status 1: " in text) is not allowed


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["-c"],
        ["-c", "x", "--user", "alice"],
        ["-c", "x", "--policy", "/x"],
        ["-c", "x", "--policy", "/x", "--user", "a b"],
        ["-c", "x", "y"],
    ],
)
def test_usage(words: list[str], shell: Shell) -> None:
    result = shell("explain", *words, program="annexshell")
    assert (result.status, result.stdout) == (2, b"")


def test_nothing_is_written(prepared: Server) -> None:
    before = listing(prepared.shell.home.parent)
    for name in ("configlist", "gcryptsetup", "p2pstdio", "dropkey", "recvkey"):
        for user in ("alice", None):
            explain(prepared, user, f"git-annex-shell '{name}' '{prepared.srv}/plain' 'x' '--force' -- autoinit=1")
    assert listing(prepared.shell.home.parent) == before


def test_help_teaches(shell: Shell) -> None:
    text = shell("explain", "--help", program="annexshell").stdout.decode()
    assert "annexshell explain --policy /etc/annexshell.toml --user alice -c" in text
    assert max(map(len, text.splitlines())) <= 100


# Served and explained.

DIRECTORIES = ["x", "x/", "x/.git", "link", "out", "plain", "bare", "bare.git", "missing", "../srv/x", "x/../x", ""]
LINES = [
    *COMMANDS,
    f"git-annex-shell 'p2pstdio' '{{}}' '{OTHER_UUID}'",
    "git-annex-shell 'p2pstdio' '{}'",
    "git-annex-shell 'configlist' '{}' --bogus",
    "git-annex-shell 'configlist' '{}' x",
    "git-annex-shell 'configlist'",
    "git-receive-pack {}",
    "--user alice",
    "true",
    "",
]
SETTINGS = ["READONLY", "APPENDONLY", "LIMITED", "DIRECTORY"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(
    st.sampled_from(LINES),
    st.sampled_from(DIRECTORIES),
    st.sampled_from(["alice", "bob", "carol", "mallory", None]),
    st.sets(st.sampled_from(SETTINGS), max_size=2),
)
def test_serving_agrees(prepared: Server, line: str, directory: str, user: str | None, variables: set[str]) -> None:
    srv = prepared.srv
    command = line.format(f"{srv}/{directory}")
    environment = {f"GIT_ANNEX_SHELL_{name}": str(srv / "x") if name == "DIRECTORY" else "1" for name in variables}
    found = explain(prepared, user, command, **environment)
    served = serve(prepared, user, command, environment)
    if found["directory"] and (found["directory"]["real"] or "").endswith("/plain"):
        return  # what git and git-annex make of it is theirs
    assert found["allowed"] is (served.status == 0), (command, found, served.stderr)
    if not found["allowed"] and found["directory"] and found["directory"]["is_repository"]:
        assert found["reason"] in served.stderr


def serve(server: Server, user: str | None, command: str, environment: dict[str, str]) -> Result:
    if user is None:
        return server.shell("-c", command, program="git-annex-shell", **environment)
    return server(user, command, **environment)
