from __future__ import annotations

import os
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell.annex import gitconfig
from annexshell.commands import gcryptsetup, link_shell
from tests.annex.disk import as_unprivileged, let_others_in
from tests.shell import UUID, Shell, git, make_ref, make_repository

ID = ":id:abcdefghijklmnopqrst"
OTHER_ID = ":id:0123456789+/ABCDEFGH"


def config(repo: Path) -> dict[str, list[str]]:
    """The settings of the repository's own config file, as git reads it."""
    values: dict[str, list[str]] = {}
    listing = subprocess.run(
        ["git", "config", "--file", repo / "config", "--null", "--list"], check=True, stdout=subprocess.PIPE
    ).stdout
    for entry in os.fsdecode(listing).split("\0")[:-1]:
        name, _, value = entry.partition("\n")
        values.setdefault(name, []).append(value)
    return values


def files(repo: Path) -> set[str]:
    return {str(path.relative_to(repo)) for path in repo.rglob("*")}


# The four rows.


def test_a_repository_with_a_uuid_is_refused(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True, annex_uuid=UUID)
    before = config(repo)
    result = shell("gcryptsetup", "repo", ID)
    assert (result.status, result.stdout) == (1, b"")
    assert "already has a git-annex uuid" in result.complaint
    assert config(repo) == before


def test_a_repository_with_another_id_is_refused(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True, **{"core_gcrypt-id": OTHER_ID})
    before = config(repo)
    result = shell("gcryptsetup", "repo", ID)
    assert (result.status, result.stdout) == (1, b"")
    assert "mismatch" in result.complaint and OTHER_ID in result.complaint and ID in result.complaint
    assert config(repo) == before


def test_a_repository_with_a_work_tree_is_refused(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo")
    before = config(repo / ".git")
    result = shell("gcryptsetup", "repo", ID)
    assert (result.status, result.complaint) == (1, "cannot use gcrypt in a non-bare repository")
    assert config(repo / ".git") == before


@pytest.mark.parametrize("ref", ["", "refs/heads/git-annex"])
def test_a_bare_repository_is_set_up(ref: str, shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    if ref:
        make_ref(repo, ref)
    before, old = config(repo), files(repo)
    result = shell("gcryptsetup", "repo", ID)
    assert (result.status, result.stdout, result.stderr) == (0, b"", "")
    assert config(repo) == before | {"core.gcrypt-id": [ID], "receive.denynonfastforwards": ["false"]}
    assert files(repo) == old


# The same client again, and others.


def test_the_same_id_again_changes_nothing(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    assert shell("gcryptsetup", "repo", ID).status == 0
    before = (repo / "config").stat()
    assert shell("gcryptsetup", "repo", ID).status == 0
    assert (repo / "config").stat() == before
    assert shell("gcryptsetup", "repo", OTHER_ID).status == 1


def test_pushes_that_were_denied_are_allowed_again(shell: Shell) -> None:
    repo = make_repository(
        shell.home / "repo", bare=True, **{"core_gcrypt-id": ID, "receive_denyNonFastForwards": "true"}
    )
    assert shell("gcryptsetup", "repo", ID).status == 0
    assert git(repo, "config", "--type=bool", "receive.denyNonFastForwards") == "false"
    assert config(repo)["core.gcrypt-id"] == [ID]


def test_of_two_at_once_one_wins(shell: Shell) -> None:
    link_shell.run(str(shell.home))
    repo = make_repository(shell.home / "repo", bare=True)
    ids = [ID, OTHER_ID] * 3
    # All have read the config before the first can change it.
    (repo / "config.lock").touch()
    children = [
        subprocess.Popen([str(shell.home / "git-annex-shell"), "gcryptsetup", "repo", id], stderr=subprocess.PIPE)
        for id in ids
    ]
    timer = threading.Timer(0.5, (repo / "config.lock").unlink)
    timer.start()
    said = [child.communicate()[1] for child in children]
    timer.join()
    found = config(repo)
    (winner,) = found["core.gcrypt-id"]
    assert found["receive.denynonfastforwards"] == ["false"]
    for id, child, complaint in zip(ids, children, said, strict=True):
        assert (child.returncode, b"mismatch" in complaint) == ((0, False) if id == winner else (1, True))


def test_it_is_initialised_while_we_wait(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)

    class Slow(gitconfig.ConfigLock):
        def __enter__(self) -> Slow:
            git(repo, "config", "annex.uuid", UUID)
            super().__enter__()
            return self

    shell.monkeypatch.setattr(gitconfig, "ConfigLock", Slow)
    result = shell("gcryptsetup", "repo", ID)
    assert result.status == 1
    assert "already has a git-annex uuid" in result.complaint
    assert "core.gcrypt-id" not in config(repo)
    assert not (repo / "config.lock").exists()


def test_no_id(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    before = config(repo)
    assert shell("gcryptsetup", "repo").status == 0
    assert config(repo) == before


def test_one_that_stored_two_would_have_neither(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    assert shell("gcryptsetup", "repo", ID, OTHER_ID).complaint == "gcryptsetup takes one id"
    assert "core.gcrypt-id" not in config(repo)


def test_a_directory_without_repository(shell: Shell) -> None:
    (shell.home / "repo").mkdir()
    result = shell("gcryptsetup", "repo", ID)
    assert result.status == 1
    assert "no git repository" in result.complaint
    assert not list((shell.home / "repo").iterdir())


# Hostile ids.


@pytest.mark.parametrize(
    ("id", "complaint"),
    [
        ("", "is empty"),
        (":id:a\nannex.uuid=" + UUID, "control character"),
        (":id:a\r", "control character"),
        (":id:a\x1b[2J", "control character"),
        (":id:a\x7f", "control character"),
        (":id:" + "a" * 100_000, "100004 bytes, more than 1000"),
        ("-x", "Invalid option `-x'"),
        ("--file=/etc/passwd", "Invalid option `--file=/etc/passwd'"),
    ],
)
def test_ids_that_are_refused(id: str, complaint: str, shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    before = config(repo)
    result = shell("gcryptsetup", "repo", id)
    assert (result.status, result.stdout) == (1, b"")
    assert complaint in result.complaint
    assert len(result.stderr) < 1000
    assert config(repo) == before


@pytest.mark.parametrize("byte", [b"\0", b"\n", b"\t", b"\x1f"])
def test_control_characters_are_refused_wherever_they_come_from(byte: bytes, shell: Shell) -> None:
    # No command line can hold a NUL, so that this cannot come through one.
    with pytest.raises(gcryptsetup.Refused, match="control character"):
        gcryptsetup._check_id(b":id:" + byte)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(min_size=1, max_size=40).filter(lambda id: id[:1] != b"-" and min(id) >= 0x20 and 0x7F not in id))
def test_every_other_id_is_stored_as_it_is(shell: Shell, id: bytes) -> None:
    repo = shell.home / "repo"
    if not repo.exists():
        make_repository(repo, bare=True)
        (repo / "config.fresh").write_bytes((repo / "config").read_bytes())
    (repo / "config").write_bytes((repo / "config.fresh").read_bytes())
    result = shell("gcryptsetup", "repo", id)
    assert (result.status, result.stderr) == (0, "")
    assert config(repo)["core.gcrypt-id"] == [os.fsdecode(id)]
    assert shell("configlist", "repo").stdout == b"annex.uuid=\ncore.gcrypt-id=%s\n" % id


@pytest.mark.parametrize("id", ["-", "; rm -rf x #", "$(touch x)", '"', "\\", " a ", ":id:" + "a" * 996, "é"])
def test_ids_that_are_stored(id: str, shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    assert shell("gcryptsetup", "repo", id).status == 0
    assert config(repo)["core.gcrypt-id"] == [id]
    assert shell("gcryptsetup", "repo", id).status == 0
    assert sorted(path.name for path in shell.home.iterdir()) == ["repo"]


# A config that cannot be written.


def test_a_config_that_cannot_be_written(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    before = config(repo)
    let_others_in(repo)

    def attempt() -> tuple[int, str]:
        result = shell("gcryptsetup", str(repo), ID)
        return result.status, result.complaint

    status, complaint = as_unprivileged(attempt)
    assert status == 1
    assert complaint == f"gcryptsetup cannot change the git config {repo}/config: Permission denied"
    assert config(repo) == before


def test_a_full_disk(shell: Shell) -> None:
    link_shell.run(str(shell.home))
    repo = make_repository(shell.home / "repo", bare=True)
    # The same file, longer than the limit.
    (repo / "config").write_text((repo / "config").read_text() + "# " + "x" * 8192 + "\n")
    before = (repo / "config").read_bytes()
    done = subprocess.run(
        ["prlimit", "--fsize=4096", str(shell.home / "git-annex-shell"), "gcryptsetup", "repo", ID],
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "gcryptsetup cannot change the git config" in done.stderr
    assert (repo / "config").read_bytes() == before
    assert not (repo / "config.lock").exists()


def test_a_lock_that_somebody_left(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    (repo / "config.lock").touch()
    shell.monkeypatch.setattr(gitconfig, "_PATIENCE", 0.1)
    result = shell("gcryptsetup", "repo", ID)
    assert result.status == 1
    assert "config.lock exists" in result.complaint
    assert (repo / "config.lock").exists()


def test_only_where_everything_is_allowed(shell: Shell) -> None:
    repo = make_repository(shell.home / "repo", bare=True)
    for mode in ("READONLY", "APPENDONLY"):
        result = shell("gcryptsetup", "repo", ID, **{f"GIT_ANNEX_SHELL_{mode}": "1"})
        assert (result.status, result.complaint) == (1, f"Action blocked by GIT_ANNEX_SHELL_{mode}")
    assert "core.gcrypt-id" not in config(repo)
