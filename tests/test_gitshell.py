from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import gitshell
from annexshell.errors import Refused
from tests.shell import Shell


@given(st.binary().filter(lambda word: b"\0" not in word))
def test_quoting_can_be_undone(word: bytes) -> None:
    assert gitshell.dequote(gitshell.quote(word)) == word


@given(st.text(alphabet="'\\!a b").map(str.encode))
def test_only_what_git_quotes_is_dequoted(text: bytes) -> None:
    word = gitshell.dequote(text)
    if word is not None:
        assert gitshell.dequote(gitshell.quote(word)) == word
        assert text[:1] == text[-1:] == b"'"


@pytest.mark.parametrize(
    ("command", "service"),
    [
        ("git-upload-pack 'a b'", ("git-upload-pack", "a b")),
        ("git receive-pack '/x'", ("git receive-pack", "/x")),
        ("git-upload-archive 'it'\\''s'", ("git-upload-archive", "it's")),
        ("git-upload-pack 'a' 'b'", None),
        ("git-upload-pack 'a' ", None),
        ("git-upload-pack 'a", None),
        ("git-upload-pack a", None),
        ("git-upload-pack  'a'", None),
        ('git-upload-pack "a"', None),
        ("git-upload-pack '", None),
        ("git-upload-pack --x 'a'", None),
        ("git-shell 'a'", None),
        ("upload-pack 'a'", None),
        ("cvs server 'a'", None),
        ("git-upload-pack 'a'\n'b'", None),
    ],
)
def test_recognises_a_git_service(command: str, service: tuple[str, str] | None) -> None:
    expected = None if service is None else (service[0].encode(), service[1].encode())
    assert gitshell.parse_service(command.encode()) == expected


def test_without_restriction_words_go_through_up_to_the_dashes() -> None:
    assert gitshell.admitted([b"git-upload-pack 'x' ", b"--", b"y"], {}) == [b"git-upload-pack 'x' "]


@pytest.mark.parametrize(
    "words",
    [
        ["git-upload-pack 'other'", "--", "allowed"],  # git-annex-shell would serve the other one
        ["git-upload-pack 'other'", "allowed"],
        ["git-upload-pack", "'allowed'"],
        ["git-upload-pack 'evil' 'allowed'"],
        ["git-upload-pack 'allowed"],
        ["git-upload-pack allowed"],
        ["git-upload-pack 'link/../other'"],
        ["git-upload-pack '~//allowed'"],
        ["allowed"],
        ["--"],
        [""],
    ],
)
def test_restriction_refuses_what_could_reach_elsewhere(words: list[str], tmp_path: Path) -> None:
    environ = {b"HOME": os.fsencode(tmp_path), b"GIT_ANNEX_SHELL_DIRECTORY": b"allowed"}
    with pytest.raises(Refused, match="Only allowed to access"):
        gitshell.admitted([word.encode() for word in words], environ)


def test_restriction_runs_the_place_that_was_compared(shell: Shell) -> None:
    home = str(shell.home)
    (shell.home / "sub").mkdir()
    cases = {
        "git-upload-pack 'allowed'": "git-upload-pack 'allowed'",
        "git-upload-pack '~/allowed/'": "git-upload-pack '~/allowed/'",
        f"git-receive-pack '{home}/allowed'": f"git-receive-pack '{home}/allowed'",
        "git-upload-pack 'link/../allowed'": f"git-upload-pack '{home}/allowed'",
        "git-upload-pack '/~/allowed'": f"git-upload-pack '{home}/allowed'",
    }
    for command, run in cases.items():
        assert shell("-c", command, GIT_ANNEX_SHELL_DIRECTORY="allowed").git_shell == [run.encode()]
    # Git would take a relative directory from the current one.
    shell.monkeypatch.chdir("sub")
    command = next(iter(cases))
    result = shell("-c", command, GIT_ANNEX_SHELL_DIRECTORY="allowed")
    assert result.git_shell == [f"git-upload-pack '{home}/allowed'".encode()]


def test_environment_reaches_git_shell(shell: Shell) -> None:
    seen = {}

    def become(program: bytes, argv: list[bytes]) -> None:
        seen.update(os.environ)
        sys.exit(0)

    shell.monkeypatch.setattr("tests.shell._become", become)
    shell("-c", "git-upload-pack 'x'", GIT_PROTOCOL="version=2", GIT_NAMESPACE="n")
    assert (seen["GIT_PROTOCOL"], seen["GIT_NAMESPACE"]) == ("version=2", "n")


def test_git_shell_may_be_missing(shell: Shell) -> None:
    def become(program: bytes, argv: list[bytes]) -> None:
        raise FileNotFoundError(2, "No such file or directory")

    shell.monkeypatch.setattr("tests.shell._become", become)
    result = shell("-c", "git-upload-pack 'x'")
    assert result.status == 1
    assert "git-shell" in result.complaint
