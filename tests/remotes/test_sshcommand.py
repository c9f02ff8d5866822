from __future__ import annotations

import os
import shlex
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import log
from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RemoteUnavailable
from annexshell.remotes import sshcaching
from annexshell.remotes.remote import Ssh
from annexshell.remotes.sshcommand import git_ssh, quote, ssh_command
from annexshell.remotes.urls import Urls
from annexshell.uuid import UUID
from tests import vectors
from tests.remotes.sshremotes import OWN, TARGET, remote_at

RECORDED = vectors.load("proxy-remotes")
TOP = RECORDED["cwd"].split()[0].encode()


def lowered(name: str) -> bytes:
    """NAME as git lists it."""
    head, _, rest = name.partition(".")
    middle, dot, last = rest.rpartition(".")
    return f"{head.lower()}.{middle}{dot}{last.lower()}".encode()


def repository(case: dict[str, Any]) -> GitRepository:
    """As much of one as is looked at: its config."""
    values: dict[bytes, list[bytes | None]] = {b"remote.r.url": [os.fsencode(case["url"])]}
    for name, value in case["config"]:
        values.setdefault(lowered(name), []).append(os.fsencode(value))
    gitdir = TOP + b"/.git"
    return cast(
        GitRepository,
        SimpleNamespace(
            config=Config(values), worktree=TOP, gitdir=gitdir, annexdir=gitdir + b"/annex", bare=False, path=TOP
        ),
    )


@pytest.mark.parametrize(
    "case",
    [case for case in RECORDED["connections"] if case["spawned"] in ("ssh", "GIT_SSH program")],
    ids=lambda case: " ".join([case["url"], *(f"{k}={v}" for k, v in case["config"]), *case["env"]]),
)
def test_recorded_connections(case: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwdb", lambda: TOP)
    monkeypatch.setattr(log, "_debugging", "--debug" in case.get("git_annex_shell_args", ()))
    expected = case["argv"]
    if "shortest match wins" in case.get("note", ""):
        expected = [
            "longer",
            *expected[1:2],
            ".git/annex/ssh/longer",
            *expected[3:-1],
            expected[-1].replace("/x", "/"),
        ]
    repo = repository(case)
    urls = Urls(repo)
    place = urls.parse(urls.of(b"r"))
    assert isinstance(place, Ssh)
    environment = {os.fsencode(name): os.fsencode(value) for name, value in case["env"].items()}
    socket = sshcaching.socket_for(repo, place, environment)

    own, target = UUID(RECORDED["own_uuid"].encode()), UUID(RECORDED["target_uuid"].encode())
    argv = ssh_command(remote_at(place, repo.config), own, target, environment, socket)

    if argv[:2] == [b"sh", b"-c"]:
        argv = [os.fsencode(word) for word in shlex.split(os.fsdecode(argv[2]))]
    program = "ssh" if case["spawned"] == "ssh" else "myssh"
    assert [os.fsdecode(word) for word in argv] == [program, *expected]


@pytest.mark.parametrize("host", [b"-oProxyCommand=x", b"-", b""])
def test_what_is_no_host_is_refused(host: bytes) -> None:
    for environment in ({}, {b"GIT_ANNEX_USE_GIT_SSH": b"1", b"GIT_SSH": b"myssh"}):
        with pytest.raises(RemoteUnavailable) as refusal:
            ssh_command(remote_at(Ssh(host, None, b"/x")), OWN, TARGET, environment)
    if host:
        assert str(refusal.value) == f"rejecting ssh hostname that starts with '-' : {host.decode()}"


def test_a_null_byte_is_refused() -> None:
    with pytest.raises(RemoteUnavailable):
        ssh_command(remote_at(Ssh(b"host", None, b"/x\0y")), OWN, TARGET, {})
    with pytest.raises(RemoteUnavailable):
        ssh_command(remote_at(Ssh(b"host", None, b"/x")), OWN, UUID(b"a\0b"), {})


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({b"GIT_SSH_COMMAND": b"a", b"GIT_SSH": b"b"}, None),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"yes", b"GIT_SSH": b"b"}, None),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"1"}, None),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"1", b"GIT_SSH_COMMAND": b"", b"GIT_SSH": b""}, None),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"1", b"GIT_SSH_COMMAND": b"", b"GIT_SSH": b"b c"}, [b"b c"]),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"1", b"GIT_SSH_COMMAND": b"a", b"GIT_SSH": b"b"}, [b"a"]),
        ({b"GIT_ANNEX_USE_GIT_SSH": b"1", b"GIT_SSH_COMMAND": b"a\t-v"}, [b"sh", b"-c", b"a\t-v"]),
    ],
)
def test_the_users_choice_of_ssh(environment: dict[bytes, bytes], expected: list[bytes] | None) -> None:
    assert git_ssh(environment) == expected


def test_empty_settings_are_as_good_as_none() -> None:
    remote = remote_at(Ssh(b"host", None, b"/x"), annex_shell="", annex_ssh_options="")
    assert ssh_command(remote, OWN, TARGET, {})[:3] == [b"ssh", b"host", b"-T"]
    assert ssh_command(remote, OWN, TARGET, {})[3].startswith(b"git-annex-shell 'p2pstdio' ")


words = st.binary(max_size=30).filter(lambda word: b"\0" not in word)


@given(words)
def test_quoting_is_undone_by_a_shell(word: bytes) -> None:
    text = word.decode("latin-1")
    assert shlex.split(quote(word).decode("latin-1")) == [text]


@given(words, words, words)
def test_the_far_command_is_the_program_and_its_arguments(path: bytes, own: bytes, target: bytes) -> None:
    """Whatever uuids somebody has invented in the git-annex branch."""
    argv = ssh_command(remote_at(Ssh(b"host", None, path)), UUID(own), UUID(target), {})
    said = shlex.split(argv[-1].decode("latin-1"))
    expected = (b"git-annex-shell", b"p2pstdio", path, own, b"--uuid", target)
    assert said == [word.decode("latin-1") for word in expected]
