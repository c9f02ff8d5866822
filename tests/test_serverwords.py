"""The server's own words in front of a client's command: nothing that a client sends may become one of them."""

from __future__ import annotations

import shlex
import subprocess

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annexshell import __main__, serverwords
from annexshell.errors import AnnexshellError, Refused, UsageError
from annexshell.serverwords import Service

COMMAND = "git-annex-shell 'configlist' '/~/repo'"


def take(*words: str, original: str | None = None) -> tuple[Service, list[bytes]]:
    environ = {} if original is None else {b"SSH_ORIGINAL_COMMAND": original.encode()}
    return serverwords.take([word.encode() for word in words], environ)


def test_the_program_knows_which_options_are_the_servers() -> None:
    assert __main__._SERVER_WORDS == serverwords.OPTIONS


def test_options_in_any_order_and_spelling() -> None:
    for words in (
        ["--policy", "/p", "--user", "alice", "--log", "syslog"],
        ["--log=syslog", "--user=alice", "--policy=/p"],
    ):
        service, rest = take(*words, "-c", COMMAND)
        assert (service.policy, service.user, service.log) == (b"/p", b"alice", b"syslog")
        assert rest == [b"-c", COMMAND.encode()]


def test_what_is_not_said_is_none() -> None:
    service, _ = take("--log", "/l", "-c", COMMAND)
    assert (service.policy, service.user, service.log) == (None, None, b"/l")


def test_the_command_may_come_from_sshd_alone() -> None:
    assert take("--log", "/l", original=COMMAND)[1] == [b"-c", COMMAND.encode()]
    assert take("--log", "/l", "-c", COMMAND, original=COMMAND)[1] == [b"-c", COMMAND.encode()]
    assert take("--log", "/l")[1] == []
    assert take("--log", "/l", original="")[1] == []
    assert take("--log", "/l", "-c", "", original="")[1] == [b"-c", b""]


@pytest.mark.parametrize(
    "words",
    [
        ["--policy"],
        ["--policy="],
        ["--policy", ""],
        ["--policy", "--user", "alice"],
        ["--policy", "/p"],
        ["--user", "alice"],
        ["--user", "alice", "--log"],
        ["--policy", "/p", "--user", "-c"],
        ["--policy", "/p", "--user", "@staff"],
        ["--policy", "/p", "--user", "a b"],
        ["--policy", "/p", "--user", "a\nb"],
        ["--policy", "/p", "--user", "*"],
        ["--policy", "/p", "--user", "a/b"],
    ],
)
def test_words_that_make_no_sense(words: list[str]) -> None:
    with pytest.raises(UsageError):
        take(*words, "-c", COMMAND)


@pytest.mark.parametrize("option", ["--policy", "--user", "--log"])
def test_twice_is_refused(option: str) -> None:
    words = ["--policy", "/p", "--user", "alice", "--log", "/l"]
    with pytest.raises(Refused, match="twice"):
        take(*words, option, "x", "-c", COMMAND)


@pytest.mark.parametrize(
    ("words", "original"),
    [
        (["configlist", "d"], None),
        (["-c"], None),
        (["-c", COMMAND, "x"], None),
        (["-c", "-c", COMMAND], None),
        (["-c", "configlist", "d"], None),
        (["--help"], None),
        (["--policies", "x", "-c", COMMAND], None),
        (["-c", COMMAND], COMMAND + " "),
        (["-c", "x"], "y --log /l -c x"),
    ],
)
def test_what_comes_behind_is_one_word(words: list[str], original: str | None) -> None:
    with pytest.raises(Refused, match="forced command"):
        take("--log", "/l", *words, original=original)


def test_options_in_the_clients_command_are_the_clients() -> None:
    hostile = f"git-annex-shell --policy /evil --user root -c {shlex.quote(COMMAND)}"
    service, words = take("--policy", "/p", "--user", "alice", "-c", hostile, original=hostile)
    assert (service.policy, service.user) == (b"/p", b"alice")
    assert words == [b"-c", hostile.encode()]


# What a shell makes of forced commands that were not written with care, and of clients that know it.

FORCED = [
    "--policy /p $SSH_ORIGINAL_COMMAND",
    "--policy /p --user alice $SSH_ORIGINAL_COMMAND",
    "--policy /p --user alice -c $SSH_ORIGINAL_COMMAND",
    "--log /l $SSH_ORIGINAL_COMMAND",
    "--log /l -c $SSH_ORIGINAL_COMMAND",
    '--policy /p --user alice -c "$SSH_ORIGINAL_COMMAND"',
    "--policy /p --user alice",
]
PIECES = ["--policy", "--user", "--log", "--user=root", "--policy=/evil", "root", "/evil", "-c", "x", "''", "\t"]


def split(forced: str, original: str) -> list[bytes]:
    script = f'printf "%s\\0" {forced}'
    run = subprocess.run(
        ["/bin/sh", "-f", "-c", script], env={"SSH_ORIGINAL_COMMAND": original}, capture_output=True, check=True
    )
    return run.stdout.split(b"\0")[:-1]


@pytest.mark.parametrize("forced", FORCED)
@example("--log /evil")
@example("\t --user=root")
@given(st.lists(st.sampled_from(PIECES), max_size=5).map(" ".join))
def test_no_client_chooses_the_servers_words(forced: str, original: str) -> None:
    try:
        service, words = serverwords.take(split(forced, original), {b"SSH_ORIGINAL_COMMAND": original.encode()})
    except AnnexshellError:
        return
    assert words in ([], [b"-c", original.encode()], [b"-c", b""])
    assert service.user in (None, b"alice")
    assert service.policy in (None, b"/p")
    assert service.log in (None, b"/l")
