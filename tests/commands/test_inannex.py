from __future__ import annotations

import os
from pathlib import Path

import pytest

from annexshell.annex import lockfile
from annexshell.annex.repository import LocalRepository
from tests.leftovers import left_open
from tests.shell import ABSENT, PRESENT, Shell, git, make_annex, make_repository, place


@pytest.fixture
def repo(shell: Shell) -> Path:
    return make_annex(shell.home / "repo")


def snapshot(repo: Path) -> dict[Path, int]:
    return {path: path.lstat().st_mtime_ns for path in repo.rglob("*")}


@pytest.mark.parametrize(
    ("keys", "status"),
    [
        ([], 0),
        ([PRESENT], 0),
        ([ABSENT], 1),
        ([PRESENT, PRESENT], 0),
        ([PRESENT, ABSENT], 1),
        ([ABSENT, "badkey"], 1),
        ([PRESENT, "badkey"], 100),
        ([""], 100),
        (["SHA256E-s3--" + "x" * 300], 1),
        ([PRESENT.replace("-s3-", "-s003-")], 0),
        (["../../" + PRESENT], 1),
    ],
)
def test_the_first_key_that_is_not_present_decides(keys: list[str], status: int, repo: Path, shell: Shell) -> None:
    place(repo, PRESENT, b"abc")
    before = snapshot(repo)
    result = shell("inannex", "repo", *keys)
    assert (result.status, result.stdout) == (status, b"")
    assert bool(result.stderr) == (status == 100)
    assert snapshot(repo) == before


@pytest.mark.parametrize(("kind", "status"), [(lockfile.SHARED, 0), (lockfile.EXCLUSIVE, 100)])
@pytest.mark.parametrize("version", ["10", "9", "8", None])
def test_locks(kind: int, status: int, version: str | None, repo: Path, shell: Shell) -> None:
    path = place(repo, PRESENT, b"abc")
    if version is None:
        git(repo, "config", "--unset", "annex.version")
        git(repo, "config", "core.gcrypt-id", ":id:x")
    else:
        git(repo, "config", "annex.version", version)
    path.chmod(0o644)
    locked = os.fsencode(path) + (b".lck" if version == "10" else b"")
    lock = lockfile.acquire(locked, kind, wait=False)
    assert lock is not None
    before = left_open()
    with lock:
        result = shell("inannex", "repo", PRESENT)
    assert (result.status, result.stdout, result.stderr) == (status, b"", "")
    assert left_open() <= before
    assert shell("inannex", "repo", PRESENT).status == 0


def test_content_that_goes_while_we_look(repo: Path, shell: Shell) -> None:
    """Its lock is gone, too, by the time that we come to it."""
    path = place(repo, PRESENT, b"abc")
    find = LocalRepository.find

    def vanishing(self, key):
        found = find(self, key)
        path.unlink(missing_ok=True)
        return found

    shell.monkeypatch.setattr(LocalRepository, "find", vanishing)
    assert shell("inannex", "repo", PRESENT).status == 1


def test_what_cannot_be_looked_at_is_not_absent(repo: Path, shell: Shell) -> None:
    path = place(repo, PRESENT, b"abc")
    path.unlink()
    path.symlink_to(path.name)  # a loop
    result = shell("inannex", "repo", PRESENT)
    assert result.status == 100
    assert result.complaint.startswith("cannot look for")


def test_modified_content_with_thin(repo: Path, shell: Shell) -> None:
    path = place(repo, PRESENT, b"abc")
    git(repo, "config", "annex.thin", "true")
    assert shell("inannex", "repo", PRESENT).status == 0
    path.chmod(0o644)
    path.write_bytes(b"abd")
    os.utime(path, (1, 1))
    assert shell("inannex", "repo", PRESENT).status == 1


def test_in_an_encrypted_repository(shell: Shell) -> None:
    repo = make_repository(shell.home / "crypt", bare=True, **{"core_gcrypt-id": ":id:abcdef"})
    key = "GPGHMACSHA1--abc"
    uuid = "39d0c840-d914-55c6-9969-739920770697"
    assert shell("inannex", "crypt", key, "--uuid", uuid).status == 1
    place(repo, key, b"x")
    assert shell("inannex", "crypt", key, "--uuid", uuid).status == 0
