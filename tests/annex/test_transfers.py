from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex import lockfile
from annexshell.annex.logs import clock
from annexshell.annex.transfers import Transfer, directory_name, parse_bytes_complete
from annexshell.errors import RepositoryError, TransferRefused
from annexshell.key import Key
from annexshell.uuid import NO_UUID, UUID
from tests import vectors
from tests.annex.disk import KEY, Disk, Opened, as_unprivileged, in_child, let_others_in, posix_lock
from tests.leftovers import descriptors, descriptors_before

CLIENT = UUID(b"7f0e7ed0-2d57-4d9e-a7ee-5ab1b3c4d001")
OTHER = UUID(b"0c0ffee0-0000-4000-8000-000000000002")
NAME = os.fsdecode(KEY.filename)
BIG = Key(b"SHA256E-s100000000--5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "r")


@pytest.fixture
def opened(disk: Disk) -> Opened:
    return disk.open()


def files(disk: Disk) -> dict[str, bytes]:
    top = disk.annexdir / "transfer"
    return {str(path.relative_to(top)): path.read_bytes() for path in top.rglob("*") if path.is_file()}


def names(disk: Disk) -> set[str]:
    return set(files(disk))


DOWNLOAD = {f"download/lck/lck.{NAME}", f"download/{CLIENT}/lck.{NAME}", f"download/{CLIENT}/{NAME}"}
UPLOAD = {f"upload/{CLIENT}/lck.{NAME}", f"upload/{CLIENT}/{NAME}"}


def info(disk: Disk, direction: str = "download", key: Key = KEY) -> bytes:
    return files(disk)[f"{direction}/{CLIENT}/{os.fsdecode(key.filename)}"]


def test_a_download(disk: Disk, opened: Opened) -> None:
    before = time.time()
    with opened.transfers.download(KEY, CLIENT, b"dir/a file") as transfer:
        assert names(disk) == DOWNLOAD
        start, file, rest = info(disk).split(b"\n")
        assert (file, rest) == (b"dir/a file", b"")
        told = clock.parse(start)
        assert told is not None
        assert before - 1 <= told / clock.SECOND <= time.time() + 1
        for lock in DOWNLOAD - {f"download/{CLIENT}/{NAME}"}:
            assert lockfile.is_held_exclusively(os.fsencode(disk.annexdir / "transfer" / lock))
        transfer.succeed()
        assert names(disk) == set()
    assert names(disk) == set()


def test_an_upload(disk: Disk, opened: Opened) -> None:
    with opened.transfers.upload(KEY, CLIENT, None) as transfer:
        assert names(disk) == UPLOAD
        assert info(disk, "upload").endswith(b"s\n\n")
        transfer.succeed()
    assert names(disk) == set()


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_failing_is_remembered_until_it_succeeds(disk: Disk, opened: Opened, direction: str) -> None:
    begin = getattr(opened.transfers, direction)
    with pytest.raises(KeyError), begin(KEY, CLIENT, b"f") as transfer:
        transfer.progress(1 << 30)
        raise KeyError
    failed = files(disk)
    assert set(failed) == {f"failed/{direction}/{CLIENT}/{NAME}"}
    (content,) = failed.values()
    assert content.endswith(b"s\nf\n")
    assert b" " not in content
    with begin(KEY, CLIENT, b"g") as transfer:
        pass
    assert files(disk)[f"failed/{direction}/{CLIENT}/{NAME}"].endswith(b"s\ng\n")
    with begin(KEY, CLIENT, b"f") as transfer:
        transfer.succeed()
    assert names(disk) == set()


def test_cancelling_leaves_nothing(disk: Disk, opened: Opened) -> None:
    with opened.transfers.download(KEY, CLIENT, None) as transfer:
        transfer.cancel()
    assert names(disk) == set()


def test_progress(disk: Disk, opened: Opened) -> None:
    with opened.transfers.download(BIG, CLIENT, b"f") as transfer:
        first = info(disk, key=BIG)
        transfer.progress(999_999)
        assert info(disk, key=BIG) == first
        for done in (1_000_000, 1_999_999, 50_000_000, 100_000_000):
            transfer.progress(done)
        start = first.split(b"\n")[0]
        assert info(disk, key=BIG) == start + b" 100000000\nf\n"
        transfer.progress(5)
        assert parse_bytes_complete(info(disk, key=BIG)) == 100_000_000


def test_progress_without_a_size_and_of_small_keys(disk: Disk, opened: Opened) -> None:
    for key in (Key(b"URL--x"), KEY):
        with opened.transfers.download(key, CLIENT, None) as transfer:
            transfer.progress(6)
            assert parse_bytes_complete(info(disk, key=key)) is None
            transfer.progress(102_400)
            assert parse_bytes_complete(info(disk, key=key)) == 102_400


# Several at once (spec: objects checklist 32, 33).


def test_a_download_excludes_others(disk: Disk, opened: Opened) -> None:
    with opened.transfers.download(KEY, CLIENT, None):
        for client in (CLIENT, OTHER):
            with pytest.raises(TransferRefused, match="transfer already in progress"):
                disk.open().transfers.download(KEY, client, None)
        # Being refused has neither ended the transfer nor hidden it.
        assert names(disk) >= DOWNLOAD
        assert [running.peer for running in opened.transfers.running(b"download")] == [CLIENT]
        with disk.open().transfers.download(BIG, CLIENT, None) as other:
            other.succeed()
    with disk.open().transfers.download(KEY, OTHER, None) as transfer:
        transfer.succeed()


@pytest.mark.parametrize("lock", sorted(DOWNLOAD - {f"download/{CLIENT}/{NAME}"}))
def test_either_lock_of_another_process_refuses(disk: Disk, opened: Opened, lock: str) -> None:
    path = disk.annexdir / "transfer" / lock
    path.parent.mkdir(parents=True)

    def hold() -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix_lock(fd, lockfile.EXCLUSIVE)
        return fd

    with in_child(hold):
        before = descriptors_before()
        with pytest.raises(TransferRefused):
            opened.transfers.download(KEY, CLIENT, None)
        assert descriptors() == before
        assert path.exists()
    assert not any(name.startswith("failed") for name in names(disk))
    with opened.transfers.download(KEY, CLIENT, None) as transfer:
        transfer.succeed()


def test_the_old_lock_of_another_client_does_not_matter(disk: Disk, opened: Opened) -> None:
    path = disk.annexdir / "transfer" / "download" / str(OTHER) / f"lck.{NAME}"
    path.parent.mkdir(parents=True)
    with lockfile.waited_for(os.fsencode(path), lockfile.EXCLUSIVE):
        opened.transfers.download(KEY, CLIENT, None).succeed()


def test_uploads_do_not_exclude_each_other(disk: Disk, opened: Opened) -> None:
    with opened.transfers.upload(KEY, CLIENT, None) as first:
        with disk.open().transfers.upload(KEY, CLIENT, None) as second:
            second.progress(1 << 20)
            second.succeed()
        with disk.open().transfers.upload(KEY, OTHER, None) as third:
            third.succeed()
        assert names(disk) == UPLOAD
        assert first.is_locked
        assert not second.is_locked
        first.succeed()


def test_lock_files_that_their_holder_deletes(disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    acquire = lockfile.acquire
    left = [2]

    def acquire_late(path: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        lock = acquire(path, kind, **how)
        if left[0]:
            left[0] -= 1
            os.unlink(path)
        return lock

    monkeypatch.setattr(lockfile, "acquire", acquire_late)
    with opened.transfers.download(KEY, CLIENT, None) as transfer:
        assert names(disk) == DOWNLOAD
        transfer.succeed()
    left[0] = 1000
    with pytest.raises(TransferRefused):
        opened.transfers.download(KEY, CLIENT, None)
    with opened.transfers.upload(KEY, CLIENT, None) as transfer:
        assert not transfer.is_locked


def test_directories_that_others_delete(disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    make = opened.permissions.make_directory
    left = [3]

    def make_in_vain(self: Any, path: bytes) -> None:
        make(path)
        if left[0]:
            left[0] -= 1
            shutil.rmtree(disk.annexdir / "transfer")

    monkeypatch.setattr(type(opened.permissions), "make_directory", make_in_vain)
    opened.transfers.download(KEY, CLIENT, None).succeed()


def test_a_killed_process_leaves_nothing_that_matters(disk: Disk, opened: Opened) -> None:
    with in_child(lambda: disk.open().transfers.download(KEY, CLIENT, b"a much longer name than the next")):
        assert [(r.key, r.peer) for r in opened.transfers.running(b"download")] == [(KEY, CLIENT)]
    assert names(disk) == DOWNLOAD
    assert list(opened.transfers.running(b"download")) == []
    with opened.transfers.download(KEY, CLIENT, b"f") as transfer:
        assert info(disk).endswith(b"s\nf\n")
        transfer.succeed()
    assert names(disk) == set()


# Who is running.


def test_running_transfers(disk: Disk, opened: Opened) -> None:
    assert list(opened.transfers.running(b"download")) == []
    with opened.transfers.download(BIG, CLIENT, None) as one, opened.transfers.upload(KEY, OTHER, None):
        one.progress(3_000_000)
        (running,) = opened.transfers.running(b"download")
        assert (running.key, running.peer, running.bytes_complete()) == (BIG, CLIENT, 3_000_000)
        assert list(opened.transfers.running(b"download", other_than=BIG)) == []
        (running,) = opened.transfers.running(b"upload")
        assert (running.key, running.peer, running.bytes_complete()) == (KEY, OTHER, None)
        one.cancel()
        assert list(opened.transfers.running(b"download")) == []


def test_old_programs_hold_only_the_second_lock(disk: Disk, opened: Opened) -> None:
    directory = disk.annexdir / "transfer" / "download" / str(OTHER)
    directory.mkdir(parents=True)
    (directory / NAME).write_bytes(b"1795341748.9s 5\n\n")
    (directory / "junk").touch()
    (disk.annexdir / "transfer" / "download" / "file").touch()
    assert list(opened.transfers.running(b"download")) == []
    with lockfile.waited_for(os.fsencode(directory / f"lck.{NAME}"), lockfile.EXCLUSIVE):
        (running,) = opened.transfers.running(b"download")
        assert running.bytes_complete() == 5
        (directory / NAME).unlink()
        assert running.bytes_complete() is None


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (b"1795341748.928437351s 6000\nfoo/bar.txt\n", 6000),
        (b"1795341748.928437351s\nfoo bar\n", None),
        (b"1795341748s 0\n\n", 0),
        (b"1795341748s 6000", 6000),
        (b"", None),
        (b"\n\n", None),
        (b"1795341748s -5\n\n", None),
        (b"1795341748s 6 7\n\n", None),
        (b"junk 6000\n\n", None),
        (b"1795341748s " + b"9" * 5000, None),
    ],
)
def test_info_files(text: bytes, count: int | None) -> None:
    assert parse_bytes_complete(text) == count


@given(st.binary(max_size=60))
def test_any_info_file_can_be_read(text: bytes) -> None:
    count = parse_bytes_complete(text)
    assert count is None or count >= 0


def test_recorded_info_files() -> None:
    """The info files that the real program wrote, and ours are of the same form."""
    calls = vectors.load("objects-locks")["syscalls"]["v10 PUT"]
    written = [call[2] for call in calls if call[0] == "write" and "/transfer/" in call[1]]
    assert len(written) == 2
    assert [parse_bytes_complete(text.replace("\\n", "\n").encode()) for text in written] == [None, 8]


# Names that a client chooses (spec: objects checklist 50).


@pytest.mark.parametrize("client", [b"..", b".", b"../../..", b"/etc", b"a/../../b", b"\xff\0x", b"lck"])
def test_clients_do_not_choose_directories(disk: Disk, opened: Opened, client: bytes) -> None:
    before = {path for path in disk.path.rglob("*") if path.parts[-3:] != ("annex", "transfer")}
    for begin in (opened.transfers.upload, opened.transfers.download):
        try:
            with begin(KEY, UUID(client), None):
                pass
        except TransferRefused:
            pass
    new = set(disk.path.rglob("*")) - before
    top = disk.annexdir / "transfer"
    assert all(path == top or path.is_relative_to(top) for path in new)
    assert {path.name for path in top.glob("*")} <= {"download", "upload", "failed"}
    allowed = {"lck", "etc", "ab", "x"}
    assert {path.name for path in top.glob("*load/*")} <= allowed


@given(st.binary(max_size=40))
def test_directory_names(client: bytes) -> None:
    name = directory_name(UUID(client))
    assert b"/" not in name
    assert name not in (b".", b"..")
    assert set(name) <= set(client)


def test_uuids_stay_what_they_are() -> None:
    assert directory_name(CLIENT) == CLIENT


@pytest.mark.parametrize("client", [NO_UUID, UUID(b".."), UUID(b"\xff/")])
def test_clients_without_a_name(disk: Disk, opened: Opened, client: UUID) -> None:
    with pytest.raises(TransferRefused, match="unable to take transfer lock"):
        opened.transfers.download(KEY, client, None)
    with opened.transfers.upload(KEY, client, None) as transfer:
        transfer.progress(1 << 30)
    assert names(disk) == set()


def test_file_names_stay_on_their_line(disk: Disk, opened: Opened) -> None:
    with opened.transfers.download(KEY, CLIENT, b"a\nb"):
        assert info(disk).count(b"\n") == 2


# Where it cannot be written.


@pytest.mark.parametrize("direction", ["download", "upload"])
def test_a_read_only_repository(tmp_path: Path, disk: Disk, opened: Opened, direction: str) -> None:
    begin: Callable[..., Transfer] = getattr(opened.transfers, direction)
    let_others_in(tmp_path)
    disk.annexdir.chmod(0o555)

    def work() -> bool:
        with begin(KEY, CLIENT, None) as transfer:
            transfer.progress(1 << 30)
            locked = transfer.is_locked
            transfer.succeed()
        with begin(KEY, CLIENT, None):
            return locked  # and fail

    assert as_unprivileged(work) is False
    assert not (disk.annexdir / "transfer").exists()


@pytest.mark.parametrize("error", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_part_that_is_read_only(disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch, error: int) -> None:
    acquire = lockfile.acquire

    def denied(path: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        if CLIENT in path:
            raise OSError(error, os.strerror(error))
        return acquire(path, kind, **how)

    monkeypatch.setattr(lockfile, "acquire", denied)
    before = descriptors_before()
    with opened.transfers.download(KEY, CLIENT, None) as transfer:
        assert not transfer.is_locked
        assert descriptors() == before
    assert names(disk) == set()


def test_a_full_disk(disk: Disk, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = descriptors_before()
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RepositoryError, match="No space left"):
        opened.transfers.download(KEY, CLIENT, None)
    with opened.transfers.upload(KEY, CLIENT, None):
        pass
    assert descriptors() == before
    assert names(disk) == set()


def test_names_that_are_too_long(disk: Disk, opened: Opened) -> None:
    key = Key(b"WORM--" + b"n" * 247)
    with pytest.raises(RepositoryError):
        opened.transfers.download(key, CLIENT, None)
    with opened.transfers.upload(key, CLIENT, None) as transfer:
        transfer.succeed()
    with pytest.raises(RepositoryError):
        opened.transfers.download(KEY, UUID(b"a" * 300), None)


def test_a_client_without_a_uuid_may_be_let_in_and_is_not_shown(disk: Disk, opened: Opened) -> None:
    lock = {f"download/lck/lck.{NAME}"}
    with opened.transfers.download(KEY, NO_UUID, None, may_be_unnamed=True) as transfer:
        assert transfer.is_locked
        assert names(disk) == lock
        with pytest.raises(TransferRefused, match="already in progress"):
            opened.transfers.download(KEY, CLIENT, None)
        transfer.progress(5_000_000)
    assert names(disk) <= {f"download/{CLIENT}/lck.{NAME}"}  # of who was refused; it failed, and that is not shown
    with opened.transfers.download(KEY, NO_UUID, None, may_be_unnamed=True) as transfer:
        transfer.succeed()
    assert not names(disk) & lock
