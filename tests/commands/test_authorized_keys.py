"""Lines for sshd: what they allow is what was meant, whatever is in the paths."""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

import asyncssh
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.commands import authorized_keys
from annexshell.errors import AnnexshellError
from annexshell.policy.publickeys import PublicKey
from tests import policies
from tests.policies import ALICE_KEY, BOB_KEY, CAROL_KEY
from tests.shell import Result, Shell

PROGRAM = "/opt/bin/annexshell"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return policies.write(tmp_path / "policy.toml")


def run(shell: Shell, policy: Path | str, *words: str) -> Result:
    return shell("authorized-keys", "--policy", str(policy), "--program", PROGRAM, *words, program="annexshell")


def expected(policy: Path, user: str, key: str) -> str:
    return f'restrict,command="{PROGRAM} --policy {policy} --user {user}" {key}'


def test_all_keys(policy: Path, shell: Shell) -> None:
    result = run(shell, policy)
    assert result.stdout.decode().splitlines() == [
        expected(policy, "alice", f"{ALICE_KEY} laptop"),
        expected(policy, "bob", BOB_KEY),
        expected(policy, "carol", CAROL_KEY),
    ]
    assert (result.status, result.stderr) == (0, "")


@pytest.mark.parametrize(
    ("account", "key", "user"),
    [
        ("annex", ALICE_KEY, "alice"),
        ("annex", BOB_KEY, "bob"),
        ("annex", CAROL_KEY, "carol"),
        ("annex", ALICE_KEY[:-1] + "A", None),
        ("annex", ALICE_KEY[:-4], None),
        ("annex", "ssh-ed25519-cert-v01@openssh.com AAAA", None),
        ("annex", "", None),
        ("annex", "ssh-ed25519", None),
        ("annex", f"{ALICE_KEY}\n{BOB_KEY}", None),
        ("root", ALICE_KEY, None),
        ("", ALICE_KEY, None),
        ("annexe", ALICE_KEY, None),
    ],
)
def test_sshd_gets_the_line_for_one_key(account: str, key: str, user: str | None, policy: Path, shell: Shell) -> None:
    result = run(shell, policy, "--account", account, "--key", key)
    lines = result.stdout.decode().splitlines()
    assert (result.status, result.stderr, len(lines)) == (0, "", user is not None)
    assert all(f"--user {user}" in line and key in line for line in lines)


def test_an_account_alone(policy: Path, shell: Shell) -> None:
    assert len(run(shell, policy, "--account", "annex").stdout.splitlines()) == 3
    assert run(shell, policy, "--account", "root").stdout == b""


def test_a_key_needs_an_account(policy: Path, shell: Shell) -> None:
    result = run(shell, policy, "--key", ALICE_KEY)
    assert (result.status, result.stdout) == (2, b"")
    assert "--key needs --account" in result.stderr


def test_without_accounts_there_are_none(policy: Path, shell: Shell) -> None:
    policies.write(policy, users=policies.USERS.replace('accounts = ["annex"]', ""))
    assert run(shell, policy, "--account", "annex", "--key", ALICE_KEY).stdout == b""
    assert len(run(shell, policy).stdout.splitlines()) == 3


def test_a_bad_policy_has_no_keys(policy: Path, shell: Shell) -> None:
    policies.write(policy, "[[rules]]\nusers = ['nobody']\ndirectories = ['/x']\naccess = 'read'\n")
    result = run(shell, policy)
    assert (result.status, result.stdout) == (1, b"")
    # The owner of the file is told what a client is not.
    assert result.stderr == f"Error: {policy}, line 16: an unknown user in a rule (rules[1].users[1]: nobody)\n"


def test_a_relative_policy_is_written_in_full(policy: Path, shell: Shell) -> None:
    shell.monkeypatch.chdir(policy.parent)
    assert f"--policy {policy} ".encode() in run(shell, policy.name).stdout


def test_by_itself_it_runs_the_annexshell_that_is_installed(policy: Path, shell: Shell) -> None:
    program = shell.home / "annexshell"
    program.touch(mode=0o755)
    result = shell("authorized-keys", "--policy", str(policy), program=str(program))
    assert f'command="{program} --policy'.encode() in result.stdout


def test_line_ends_in_paths_are_refused(policy: Path, shell: Shell) -> None:
    with pytest.raises(AnnexshellError, match="control characters"):
        authorized_keys.line(PublicKey.parse(ALICE_KEY), ["/x\nssh-ed25519"])
    result = shell("authorized-keys", "--policy", str(policy), "--program", "/x\ny", program="annexshell")
    assert (result.status, result.stdout) == (1, b"")


HARD = ["a b", "a'b", 'a"b', "a\\b", 'a\\"b', 'a\\\\"', "$HOME", "`id`", "a;id", "a!b", "é", "\udce9", "#", "%u", "~"]


@given(st.lists(st.sampled_from(HARD) | st.text("ab'\"\\ $", min_size=1), min_size=1, max_size=4))
def test_quoting_survives_sshd_and_the_shell(words: list[str]) -> None:
    line = authorized_keys.line(PublicKey.parse(ALICE_KEY), words)
    command = as_sshd_reads(line)
    assert shlex.split(command) == words


@pytest.mark.parametrize("word", HARD)
def test_quoting_survives_a_real_shell(word: str) -> None:
    line = authorized_keys.line(PublicKey.parse(ALICE_KEY), ["printf", "%s", word])
    done = subprocess.run(["/bin/sh", "-c", as_sshd_reads(line)], capture_output=True, check=True)
    assert done.stdout == word.encode("utf-8", "surrogateescape")


def as_sshd_reads(line: str) -> str:
    """The command of a line, by the rules of sshd(8): only the quotation mark is quoted."""
    options, quoted, position = "", False, 0
    while quoted or line[position] != " ":
        if line.startswith('\\"', position):
            options += "\0"
            position += 1
        else:
            quoted ^= line[position] == '"'
            options += line[position]
        position += 1
    assert line[position + 1 :] == ALICE_KEY
    name, _, value = options.partition(',command="')
    assert name == "restrict"
    assert value[-1] == '"'
    return value[:-1].replace("\0", '"')


def test_another_reader_agrees(policy: Path, shell: Shell) -> None:
    keys = asyncssh.import_authorized_keys(run(shell, policy).stdout.decode())
    options = keys.validate(asyncssh.import_public_key(BOB_KEY), "host", "127.0.0.1")
    assert options is not None
    assert options["command"] == f"{PROGRAM} --policy {policy} --user bob"


def test_help_teaches(shell: Shell) -> None:
    text = shell("authorized-keys", "--help", program="annexshell").stdout.decode()
    for wanted in ("AuthorizedKeysCommand ", '--account %u --key "%t %k"', "AuthorizedKeysCommandUser nobody"):
        assert wanted in text
    assert max(map(len, text.splitlines())) <= 100
