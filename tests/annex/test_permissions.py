from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from annexshell.annex import lockfile
from annexshell.annex.permissions import Permissions, retry_thawed
from tests import vectors
from tests.annex.disk import KEY, Disk, as_unprivileged, let_others_in

ROWS = vectors.load("objects-permissions")["rows"]


def mode(path: Path) -> str:
    return f"{stat.S_IMODE(path.stat().st_mode):o}"


@pytest.fixture
def umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def expected(row: dict[str, str | int | None]) -> dict[str, str | int | None]:
    """What a row says; 0 is unshared here, as in git, where git-annex makes everything inaccessible."""
    if row["sharedRepository"] == "0":
        row = next(
            r
            for r in ROWS
            if r["sharedRepository"] is None and r["umask"] == "022" and r["version"] == row["version"]
        )
    return row


@pytest.mark.usefixtures("umask")
@pytest.mark.parametrize("row", ROWS, ids=lambda r: f"v{r['version']}-{r['sharedRepository']}-{r['umask']}")
def test_modes(tmp_path: Path, row: dict[str, str | int | None]) -> None:
    disk = Disk(tmp_path, int(row["version"] or 0))
    if row["sharedRepository"] is not None:
        disk.config("core.sharedRepository", str(row["sharedRepository"]))
    os.umask(int(str(row["umask"]), 8))
    want = expected(row)
    opened = disk.open()
    path = disk.store()
    # Of the info and log files, those that are written last.
    opened.permissions.make_directory(os.fsencode(disk.annexdir / "keysdb"))
    opened.permissions.make_directory(os.fsencode(disk.annexdir / "tmp"))
    database = disk.annexdir / "keysdb" / "db"
    database.touch()
    opened.permissions.adjust_file(os.fsencode(database))
    objects = disk.annexdir / "objects"
    found = {
        "objects/": mode(objects),
        "hash1": mode(path.parent.parent.parent),
        "hash2": mode(path.parent.parent),
        "objdir": mode(path.parent),
        "obj": mode(path),
        "keysdb/": mode(disk.annexdir / "keysdb"),
        "keysdb/db": mode(database),
        "tmpdir": mode(disk.annexdir / "tmp"),
    }
    with opened.lock():
        found |= {"objdir@lock": mode(path.parent), "obj@lock": mode(path)}
        for suffix in ("lck", "rtm", "rtl"):
            file = path.with_name(f"{path.name}.{suffix}")
            found[suffix] = mode(file) if file.exists() else None
    found["objdir@unlock"] = mode(path.parent)
    transfer = disk.annexdir / "transfer"
    name = os.fsdecode(KEY.filename)
    with opened.transfers.download(KEY, b"client", None):
        found |= {
            "transfer/": mode(transfer),
            "tinfo": mode(transfer / "download" / "client" / name),
            "tlck": mode(transfer / "download" / "lck" / f"lck.{name}"),
        }
        assert mode(transfer / "download" / "client" / f"lck.{name}") == found["tlck"]
    found["failed"] = mode(transfer / "failed" / "download" / "client" / name)
    assert found == {column: want[column] for column in found}


def test_crippled_file_systems_are_left_alone(tmp_path: Path) -> None:
    disk = Disk(tmp_path, **{"annex.crippledfilesystem": "true", "core.sharedRepository": "0640"})
    path = disk.store()
    with disk.open().lock():
        assert os.stat(path).st_mode & 0o200


def test_executable_objects_stay_so(tmp_path: Path) -> None:
    permissions = Disk(tmp_path, **{"core.sharedRepository": "0640"}).open().permissions
    program = tmp_path / "program"
    program.touch(0o755)
    permissions.freeze_object(os.fsencode(program))
    assert mode(program) == "551"  # 0440, and what was executable


def test_an_upgrade_is_noticed(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", 9, **{"core.sharedRepository": "group"})
    opened = disk.open()
    file = tmp_path / "object"
    file.touch(0o644)
    opened.permissions.freeze_object(os.fsencode(file))
    assert mode(file) == "664"
    disk.config("annex.version", "10")
    opened.repo.refresh_config()
    opened.permissions.freeze_object(os.fsencode(file))
    assert mode(file) == "444"


def test_thawed_directories_are_frozen_whatever_happens(tmp_path: Path) -> None:
    permissions = Disk(tmp_path / "r").open().permissions
    directory = tmp_path / "d"
    directory.mkdir(0o555)
    with pytest.raises(KeyError), permissions.thawed(os.fsencode(directory)):
        assert mode(directory) == "755"
        raise KeyError
    assert mode(directory) == "555"
    with permissions.thawed(os.fsencode(directory)):
        directory.rmdir()
    with pytest.raises(FileNotFoundError), permissions.thawed(os.fsencode(directory)):
        pass


def test_explicit_modes_leave_the_owner_in(tmp_path: Path) -> None:
    permissions = Disk(tmp_path / "r", **{"core.sharedRepository": "0660"}).open().permissions
    directory = tmp_path / "d"
    directory.mkdir()
    with permissions.thawed(os.fsencode(directory)):
        assert mode(directory) == "2770"
    assert mode(directory) == "2570"


def test_directories_that_others_freeze_are_thawed_again(tmp_path: Path) -> None:
    permissions = Disk(tmp_path / "r").open().permissions
    directory = tmp_path / "d"
    directory.mkdir(0o555)
    seen: list[str] = []

    def action() -> str:
        seen.append(mode(directory))
        if len(seen) < 4:
            directory.chmod(0o555)  # as another process does
            raise PermissionError(13, "Permission denied")
        return "done"

    assert retry_thawed(permissions, os.fsencode(directory), action) == "done"
    assert seen == ["755"] * 4
    assert mode(directory) == "555"


def test_trying_again_ends(tmp_path: Path) -> None:
    permissions = Disk(tmp_path / "r").open().permissions
    tries: list[int] = []

    def action() -> None:
        tries.append(1)
        raise PermissionError(13, "Permission denied")

    with pytest.raises(PermissionError):
        retry_thawed(permissions, os.fsencode(tmp_path), action)
    assert 2 <= len(tries) <= 100


def test_others_may_own_what_is_shared(tmp_path: Path) -> None:
    unshared, shared = Disk(tmp_path / "u").open(), Disk(tmp_path / "s", **{"core.sharedRepository": "all"}).open()
    directory = tmp_path / "theirs"
    directory.mkdir(0o755)
    let_others_in(tmp_path)
    path = os.fsencode(directory)
    as_unprivileged(lambda: shared.permissions.adjust_directory(path))
    as_unprivileged(lambda: shared.permissions.freeze_directory(path))
    with pytest.raises(Exception, match="PermissionError"):
        as_unprivileged(lambda: unshared.permissions.freeze_directory(path))


def test_directories_come_with_their_parents_but_not_with_a_repository(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r")
    permissions = disk.open().permissions
    permissions.make_directory(os.fsencode(disk.annexdir / "a" / "b" / "c"))
    permissions.make_directory(os.fsencode(disk.annexdir / "a" / "b" / "c"))
    assert (disk.annexdir / "a" / "b" / "c").is_dir()
    disk.gitdir.rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError):
        permissions.make_directory(os.fsencode(disk.annexdir / "a" / "b"))
    assert not disk.gitdir.exists()


def test_the_annex_directory_itself_is_made(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r")
    (disk.annexdir / "sentinal").unlink()
    disk.annexdir.rmdir()
    disk.open().permissions.make_directory(os.fsencode(disk.annexdir / "transfer"))
    assert (disk.annexdir / "transfer").is_dir()


def hook_log(tmp_path: Path) -> list[str]:
    return (tmp_path / "log").read_text().splitlines()


def test_configured_commands_run_after_each_change(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r")
    path = disk.store()
    for action in ("freeze", "thaw"):
        disk.config(f"annex.{action}content-command", f"echo {action} %path %path >>'{tmp_path}/log'; exit 1")
    with disk.open().lock():
        pass
    directory = str(path.parent)
    assert hook_log(tmp_path) == [f"{action} {directory} {directory}" for action in ("thaw", "freeze")] * 2


@pytest.mark.parametrize("executable", [True, False])
def test_hooks_take_the_place_of_commands(tmp_path: Path, executable: bool) -> None:
    disk = Disk(tmp_path / "r")
    disk.config("annex.thawcontent-command", f"echo command >>'{tmp_path}/log'")
    hooks = disk.gitdir / "hooks"
    hooks.mkdir()
    hook = hooks / "thawcontent-annex"
    hook.write_text(f"#!/bin/sh\necho \"hook $#: $1\" >>'{tmp_path}/log'\nexit 3\n")
    hook.chmod(0o755 if executable else 0o644)
    directory = tmp_path / "it's a directory"
    directory.mkdir()
    with disk.open().permissions.thawed(os.fsencode(directory)):
        pass
    assert hook_log(tmp_path) == [f"hook 1: {directory}" if executable else "command"]


def test_lock_files_are_adjusted_by_descriptor(tmp_path: Path) -> None:
    permissions: Permissions = Disk(tmp_path / "r", **{"core.sharedRepository": "group"}).open().permissions
    path = tmp_path / "lock"
    with lockfile.waited_for(os.fsencode(path), lockfile.SHARED) as lock:
        permissions.adjust_file(lock.fd)
    assert stat.S_IMODE(path.stat().st_mode) & 0o660 == 0o660
