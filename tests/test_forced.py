from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import forced
from annexshell.errors import UsageError
from tests import vectors


@pytest.mark.parametrize("case", vectors.load("shell-unquote"), ids=lambda case: case["command"])
def test_splits_as_git_annex_shell_does(case: dict[str, Any]) -> None:
    command = vectors.to_bytes(case["command"])
    request = forced.parse([command])
    assert isinstance(request, forced.PassThrough)
    end = request.words.index(b"--") if b"--" in request.words else None
    assert request.words[:end] == [vectors.to_bytes(word) for word in case["words"]]


@given(st.lists(st.binary(min_size=1).filter(lambda word: b"\0" not in word), min_size=1))
def test_unquotes_what_clients_quote(words: list[bytes]) -> None:
    quoted = b" ".join(b"'" + word.replace(b"'", b"'\"'\"'") + b"'" for word in words)
    assert forced.unquote(quoted) == words


@given(st.binary())
def test_any_bytes_can_be_unquoted(command: bytes) -> None:
    assert b"".join(forced.unquote(command)).translate(None, b"'\" ") == command.translate(None, b"'\" ")


@pytest.mark.parametrize(
    ("words", "name", "directory"),
    [
        (["configlist", "repo"], "configlist", "repo"),
        (["-c", "-c", "configlist", "repo"], "configlist", "repo"),
        (["-c", "git-annex-shell 'configlist' 're po'"], "configlist", "re po"),
        (["-c", 'git-annex-shell -c "git-annex-shell configlist repo"'], "configlist", "repo"),
        (["-c", "/usr/bin/git-annex-shell configlist repo"], "configlist", "repo"),
        (["-c", "/opt/bin/annexshell 'p2pstdio' 'repo' 'U'"], "p2pstdio", "repo"),
        (["-c", "annexshell -c 'git-annex-shell configlist repo'"], "configlist", "repo"),
        (["configlist", "--uuid", "U", "repo"], "configlist", "--uuid"),
        (["configlist", "--", "x"], "configlist", "--"),
    ],
)
def test_finds_the_command_and_its_directory(words: list[str], name: str, directory: str) -> None:
    request = forced.parse([word.encode() for word in words])
    assert isinstance(request, forced.Request)
    assert (request.name, request.directory) == (name.encode(), directory.encode())


@pytest.mark.parametrize(
    "command",
    [
        b" git-annex-shell configlist repo",
        b"git-annex-shell\tconfiglist repo",
        b"'git-annex-shell' configlist repo",
        b"'/bin/git-annex-shell configlist repo",
        b"git-annex-shellx configlist repo",
        b"xgit-annex-shell configlist repo",
        b"git-annex-shell",
        b"annexshell",
        b"git-upload-pack '/srv/git-annex-shell configlist'",
        b"configlist repo",
        b"commit",
        b"",
    ],
)
def test_anything_else_is_passed_through_whole(command: bytes) -> None:
    request = forced.parse([b"-c", command])
    assert isinstance(request, forced.PassThrough)
    assert request.words == [command]


@pytest.mark.parametrize("words", [[], [b"-c"], [b"-c", b"git-annex-shell "], [b"configlist"], [b"-c", b"dropkey"]])
def test_nothing_to_do_is_a_usage_error(words: list[bytes]) -> None:
    with pytest.raises(UsageError, match="bad parameters"):
        forced.parse(words)


def test_deep_nesting_ends() -> None:
    command = b"git-annex-shell " * 5000 + b"git-annex-shell"
    assert isinstance(forced.parse([command]), forced.PassThrough)


def parsed(*words: str) -> forced.Request:
    request = forced.parse([word.encode() for word in words])
    assert isinstance(request, forced.Request)
    return request


def test_separates_options_fields_and_rsync_words() -> None:
    request = parsed("recvkey", "d", "K", "--uuid", "U", "--", "remoteuuid=C", "x=y", "--", "dummy", "--", "--server")
    assert request.words == [b"K", b"--uuid", b"U"]
    assert request.fields == {b"remoteuuid": b"C"}
    assert request.rsync_words == [b"dummy", b"--", b"--server"]


@pytest.mark.parametrize(
    ("field", "kept"),
    [
        ("autoinit=1", True),
        ("autoinit=2", False),
        ("autoinit=", False),
        ("autoinit", False),
        ("autoinit=1=1", False),
        ("remoteuuid=", True),
        ("remoteuuid=é-1", True),
        ("remoteuuid=../x", False),
        ("remoteuuid=a b", False),
        ("unlocked=1", False),
    ],
)
def test_drops_unknown_fields_and_values(field: str, kept: bool) -> None:
    assert bool(parsed("sendkey", "d", "--", field, "--").fields) is kept


def test_a_field_value_that_is_not_utf8_is_dropped() -> None:
    assert forced.parse_fields([b"remoteuuid=\xff"]) == {}


def test_the_last_of_two_equal_fields_counts() -> None:
    assert parsed("sendkey", "d", "--", "remoteuuid=a", "remoteuuid=b").fields == {b"remoteuuid": b"b"}


def test_reads_options_and_parameters_in_any_order() -> None:
    words = ["dropkey", "d", "-qv", "K1", "--uuid=U1", "--force", "-", "--uuid", "--force", "--json", "-d", "K2"]
    options = parsed(*words).options()
    assert options.parameters == [b"K1", b"-", b"K2"]
    assert options.uuids == [b"U1", b"--force"]
    assert options.flags[b"force"]
    assert options.debug is True


def test_the_last_debug_option_counts() -> None:
    assert parsed("configlist", "d", "--debug", "--no-debug").options().debug is False
    assert parsed("configlist", "d").options().debug is None


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--bogus --help", "Invalid option `--bogus'"),
        ("-qx", "Invalid option `-x'"),
        ("-xq", "Invalid option `-xq'"),
        ("-vJ2", "Invalid option `-J2'"),
        ("-q=1", "Invalid option `-=1'"),
        ("--fast=1", "Invalid option `--fast=1'"),
        ("--force=", "Invalid option `--force='"),
        ("--debugfilter", "The option `--debugfilter` expects an argument."),
        ("--uuid", "The option `--uuid` expects an argument."),
        ("--json", "Invalid option `--json'"),
    ],
)
def test_complains_about_wrong_options(words: str, complaint: str) -> None:
    with pytest.raises(UsageError) as raised:
        parsed("configlist", "d", *words.split()).options()
    assert str(raised.value) == complaint


def test_help_ends_the_options() -> None:
    assert parsed("configlist", "d", "--help", "--bogus").options().help


CLIENT_COMMANDS = {row["remote_command"]: row for row in vectors.load("shell-client-commands")}


@pytest.mark.parametrize("command", CLIENT_COMMANDS, ids=lambda command: command[:60])
def test_what_real_clients_send_is_understood(command: str) -> None:
    request = forced.parse([b"-c", command.encode()])
    if not command.startswith("git-annex-shell "):
        # For git-shell, or a name that the client's user made up.
        assert isinstance(request, forced.PassThrough)
        assert request.words == [command.encode()]
        return
    assert isinstance(request, forced.Request)
    assert f"'{request.name.decode()}'" in command
    options = request.options()
    if request.name == b"p2pstdio":
        assert (options.parameters, options.uuids) == ([b"CLIENTUUID"], [b"SERVERUUID"])
    assert (b"autoinit" in request.fields) == ("autoinit=1" in command)
    assert bool(options.debug) == ("'--debug'" in command)
