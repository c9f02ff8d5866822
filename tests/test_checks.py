from __future__ import annotations

import os
from pathlib import Path

import pytest

from annexshell import checks, forced
from annexshell.annex.config import ConfigReader
from annexshell.annex.gitrepo import GitRepository, check_annex
from annexshell.errors import Refused, RepositoryError, TemporaryFailure
from tests.shell import OTHER_UUID, UUID, git, make_annex, make_ref, make_repository


def opened(directory: Path) -> GitRepository:
    repo = checks.open_repository(os.fsencode(directory), b"repo")
    checks.read_config(repo, b"repo")
    return repo


def check_uuids(repo: GitRepository, uuids: list[bytes]) -> None:
    """Have a client expect UUIDS that are not proxied for."""
    options = [word for uuid in uuids for word in (b"--uuid", uuid)]
    request = forced.Request(b"p2pstdio", b"repo", [b"client", *options])
    assert checks.check_uuids(repo, request, request.options()) is None


def test_gcrypt_uuid() -> None:
    assert checks.gcrypt_uuid(b":id:abcdef") == b"39d0c840-d914-55c6-9969-739920770697"
    assert checks.gcrypt_uuid(None) == b""


def test_every_expected_uuid_is_checked(tmp_path: Path) -> None:
    repo = opened(make_annex(tmp_path))
    check_uuids(repo, [])
    check_uuids(repo, [UUID.encode()] * 2)
    for wrong in (OTHER_UUID, "", UUID.upper() + "X"):
        with pytest.raises(Refused, match=f"expected repository UUID {wrong} but found UUID {UUID}"):
            check_uuids(repo, [UUID.encode(), wrong.encode()])


def test_a_repository_without_uuid_is_nobody(tmp_path: Path) -> None:
    repo = opened(make_repository(tmp_path))
    for uuid in (UUID, ""):
        with pytest.raises(Refused, match="but found uninitialized repository"):
            check_uuids(repo, [uuid.encode()])


def test_the_gcrypt_uuid_counts_only_without_another(tmp_path: Path) -> None:
    gcrypt = checks.gcrypt_uuid(b":id:abcdef")
    repo = opened(make_repository(tmp_path / "a", bare=True, **{"core_gcrypt-id": ":id:abcdef"}))
    check_uuids(repo, [gcrypt])
    both = opened(make_repository(tmp_path / "b", annex_uuid=UUID, **{"core_gcrypt-id": ":id:abcdef"}))
    with pytest.raises(Refused):
        check_uuids(both, [gcrypt])


@pytest.mark.parametrize("version", ["8", "9", "10"])
def test_serves_known_versions(version: str, tmp_path: Path) -> None:
    check_annex(opened(make_annex(tmp_path, version=version)))


@pytest.mark.parametrize("version", ["5", "7", "11", "99", "-1", "0"])
def test_refuses_unknown_versions(version: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=f"annex.version {version}"):
        check_annex(opened(make_annex(tmp_path, version=version)))


@pytest.mark.parametrize("version", ["", "ten"])
def test_a_version_that_is_no_number_is_none(version: str, tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="Not a git-annex or gcrypt repository"):
        check_annex(opened(make_annex(tmp_path, version=version)))


@pytest.mark.parametrize(
    "ref",
    ["refs/heads/git-annex", "refs/remotes/origin/git-annex", "refs/heads/synced/git-annex", "refs/tags/git-annex"],
)
def test_a_git_annex_ref_makes_it_one(ref: str, tmp_path: Path) -> None:
    make_ref(make_repository(tmp_path), ref)
    check_annex(opened(tmp_path))


def test_other_refs_do_not(tmp_path: Path) -> None:
    make_ref(make_repository(tmp_path, annex_uuid=UUID), "refs/heads/git-annex/x")
    with pytest.raises(RepositoryError, match="Not a git-annex or gcrypt repository"):
        check_annex(opened(tmp_path))


def test_an_empty_gcrypt_id_makes_it_one(tmp_path: Path) -> None:
    check_annex(opened(make_repository(tmp_path, **{"core_gcrypt-id": ""})))


def test_broken_config_is_explained(tmp_path: Path) -> None:
    make_repository(tmp_path)
    (tmp_path / ".git" / "config").write_text("[annex\n")
    with pytest.raises(
        RepositoryError, match=f"failed to read git config of git repository in {os.uname().nodename} on"
    ):
        opened(tmp_path)


def test_a_gitfile_to_nowhere_is_explained(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(RepositoryError, match=r"failed to read git config .* leads to a missing directory"):
        opened(tmp_path)


def test_a_killed_git_may_live_next_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_repository(tmp_path)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "git").write_text("#!/bin/sh\nkill -9 $$\n")
    (tmp_path / "bin" / "git").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(TemporaryFailure, match="signal 9"):
        ConfigReader(os.fsencode(tmp_path)).result()


def test_variables_that_name_a_repository_are_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_annex(tmp_path / "named")
    other = make_annex(tmp_path / "other", OTHER_UUID)
    for name in ("GIT_DIR", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY"):
        monkeypatch.setenv(name, str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    monkeypatch.setenv("GIT_PROTOCOL", "version=2")
    checks.drop_git_variables()
    assert not {"GIT_DIR", "GIT_COMMON_DIR", "GIT_OBJECT_DIRECTORY", "GIT_WORK_TREE"} & set(os.environ)
    assert os.environ["GIT_PROTOCOL"] == "version=2"
    assert opened(tmp_path / "named").uuid == UUID.encode()


def test_the_last_of_two_uuids_counts(tmp_path: Path) -> None:
    make_annex(tmp_path, OTHER_UUID)
    git(tmp_path, "config", "--add", "annex.uuid", UUID)
    assert opened(tmp_path).uuid == UUID.encode()


def test_global_settings_count_in_a_repository_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".gitconfig").write_text(f"[annex]\n\tuuid = {UUID}\n\tversion = 10\n")
    assert opened(make_repository(tmp_path / "repo")).uuid == UUID.encode()
    (tmp_path / "directory").mkdir()
    assert opened(tmp_path / "directory").uuid == b""
    with pytest.raises(RepositoryError, match="Not a git-annex or gcrypt repository"):
        check_annex(opened(tmp_path / "directory"))
