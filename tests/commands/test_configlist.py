from __future__ import annotations

import os
import subprocess
import sys
import uuid as uuid_module
from types import SimpleNamespace

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.commands import link_shell
from tests.shell import UUID, Shell, git, make_annex, make_ref, make_repository


@pytest.fixture
def initialised(shell: Shell) -> list[GitRepository]:
    """The repositories that configlist had initialised, by something that gives them UUID."""
    seen = []

    def initialise(repo: GitRepository) -> None:
        seen.append(repo)
        git(shell.home / "repo", "config", "annex.uuid", UUID)
        repo.reload_config()

    shell.monkeypatch.setitem(sys.modules, "annexshell.annex.init", SimpleNamespace(initialise=initialise))
    return seen


NEW = b"annex.uuid=%s\ncore.gcrypt-id=\n" % UUID.encode()
AUTOINIT = ["--", "autoinit=1", "--"]


def test_an_initialised_repository_is_left_alone(shell: Shell, initialised: list[GitRepository]) -> None:
    make_ref(make_annex(shell.home / "repo"), "refs/heads/git-annex")
    assert shell("configlist", "repo", *AUTOINIT).stdout == NEW
    assert not initialised


def test_no_reason_to_initialise(shell: Shell, initialised: list[GitRepository]) -> None:
    make_repository(shell.home / "repo")
    before = sorted(os.walk(shell.home / "repo"))
    assert shell("configlist", "repo").stdout == b"annex.uuid=\ncore.gcrypt-id=\n"
    assert shell("configlist", "repo", "--", "autoinit=2", "--").stdout == b"annex.uuid=\ncore.gcrypt-id=\n"
    assert not initialised
    assert sorted(os.walk(shell.home / "repo")) == before


@pytest.mark.parametrize("mode", ["", "APPENDONLY"])
@pytest.mark.parametrize("ref", ["", "refs/heads/git-annex", "refs/remotes/origin/git-annex"])
def test_initialises(ref: str, mode: str, shell: Shell, initialised: list[GitRepository]) -> None:
    make_repository(shell.home / "repo")
    if ref:
        make_ref(shell.home / "repo", ref)
    words = ["configlist", "repo", *([] if ref else AUTOINIT)]
    assert shell(*words, **({f"GIT_ANNEX_SHELL_{mode}": "1"} if mode else {})).stdout == NEW
    assert len(initialised) == 1


@pytest.mark.parametrize("ref", ["", "refs/heads/git-annex"])
def test_readonly_refuses_to_initialise(ref: str, shell: Shell, initialised: list[GitRepository]) -> None:
    make_repository(shell.home / "repo")
    if ref:
        make_ref(shell.home / "repo", ref)
    result = shell("configlist", "repo", *AUTOINIT, GIT_ANNEX_SHELL_READONLY="1")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint == "Action blocked by GIT_ANNEX_SHELL_READONLY"
    assert not initialised


def test_with_an_expected_uuid_nothing_is_initialised(shell: Shell, initialised: list[GitRepository]) -> None:
    make_ref(make_repository(shell.home / "repo"), "refs/heads/git-annex")
    result = shell("configlist", "repo", "--uuid", UUID, *AUTOINIT)
    assert result.complaint == f"expected repository UUID {UUID} but found uninitialized repository"
    assert not initialised


def test_a_plain_directory_cannot_be_initialised(shell: Shell, initialised: list[GitRepository]) -> None:
    (shell.home / "repo").mkdir()
    assert shell("configlist", "repo").stdout == b"annex.uuid=\ncore.gcrypt-id=\n"
    assert shell("configlist", "repo", *AUTOINIT).status == 1
    assert not initialised


def test_gcrypt_id_is_printed(shell: Shell) -> None:
    make_repository(shell.home / "repo", bare=True, **{"core_gcrypt-id": ":id:a=b c"})
    assert shell("configlist", "repo").stdout == b"annex.uuid=\ncore.gcrypt-id=:id:a=b c\n"


def test_an_id_of_several_lines_adds_none_to_the_answer(shell: Shell) -> None:
    make_repository(shell.home / "repo", bare=True, **{"core_gcrypt-id": f":id:a\nannex.uuid={UUID}"})
    assert shell("configlist", "repo").stdout == b"annex.uuid=\ncore.gcrypt-id=:id:a\n"


def test_hooks_do_not_disturb_the_answer(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    hooks = shell.home / "repo/.git/hooks"
    hooks.mkdir(exist_ok=True)
    for name in ("post-update-annex", "pre-init-annex", "annex-content", "freezecontent-annex"):
        (hooks / name).write_text("#!/bin/sh\necho disturbance\ncat\n")
        (hooks / name).chmod(0o755)
    assert shell("configlist", "repo", *AUTOINIT).stdout == NEW


# With the real initialisation.


@pytest.fixture
def launcher(shell: Shell) -> str:
    link_shell.run(str(shell.home))
    return str(shell.home / "git-annex-shell")


@pytest.mark.parametrize("bare", [False, True])
def test_what_a_new_repository_gets(bare: bool, shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=bare)
    uuid = shell("configlist", "repo", *AUTOINIT).stdout.decode().splitlines()[0].removeprefix("annex.uuid=")
    assert str(uuid_module.UUID(uuid)) == uuid
    assert git(repo, "config", "annex.uuid") == uuid
    assert git(repo, "config", "annex.version") == "10"
    annex = repo / "annex" if bare else repo / ".git/annex"
    assert uuid in (annex / "journal/uuid.log").read_text()
    assert git(repo, "rev-parse", "--verify", "refs/heads/git-annex")


def test_many_clients_at_once_get_one_uuid(shell: Shell, launcher: str) -> None:
    make_repository(shell.home / "repo")
    command = [launcher, "configlist", "repo", *AUTOINIT]
    children = [subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) for _ in range(10)]
    answers = {child.communicate()[0] for child in children}
    assert {child.returncode for child in children} == {0}
    assert answers == {
        b"annex.uuid=%s\ncore.gcrypt-id=\n" % git(shell.home / "repo", "config", "annex.uuid").encode()
    }


def test_somebody_elses_repository_is_not_initialised(shell: Shell) -> None:
    make_repository(shell.home / "repo")
    result = shell("configlist", "repo", *AUTOINIT, GIT_TEST_ASSUME_DIFFERENT_OWNER="1")
    assert (result.status, result.stdout) == (1, b"")
    assert "safe.directory" in result.stderr
    assert "annex.uuid" not in git(shell.home / "repo", "config", "--list")


def test_hooks_do_not_disturb_the_initialisation(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    (repo / "hooks").mkdir(exist_ok=True)
    for name in ("post-update-annex", "pre-init-annex", "freezecontent-annex", "commitmessage-annex"):
        (repo / "hooks" / name).write_text("#!/bin/sh\necho disturbance\ncat >&2\n")
        (repo / "hooks" / name).chmod(0o755)
    result = shell("configlist", "repo", *AUTOINIT)
    assert (result.status, len(result.stdout.splitlines())) == (0, 2)
    assert b"disturbance" not in result.stdout
