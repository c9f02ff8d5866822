from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path

import pytest

from annexshell.annex import lockfile
from annexshell.annex.lockfile import EXCLUSIVE, SHARED
from tests.annex.disk import in_child, posix_lock
from tests.leftovers import descriptors, descriptors_before


@pytest.fixture
def path(tmp_path: Path) -> bytes:
    (tmp_path / "lock").touch()
    return os.fsencode(tmp_path / "lock")


def held(path: bytes, kind: int) -> lockfile.LockFile:
    lock = lockfile.acquire(path, kind, wait=False)
    assert lock is not None
    return lock


def test_two_of_one_process_conflict_as_two_processes_do(path: bytes) -> None:
    with held(path, SHARED) as first:
        with held(path, SHARED):
            assert lockfile.acquire(path, EXCLUSIVE, wait=False) is None
        # Closing the second has not dropped the first, as it would with classic locks.
        assert lockfile.acquire(path, EXCLUSIVE, wait=False) is None
        first.close()
        with held(path, EXCLUSIVE):
            assert lockfile.acquire(path, SHARED, wait=False) is None
            assert lockfile.acquire(path, EXCLUSIVE, wait=False) is None


@pytest.mark.parametrize(
    ("theirs", "ours", "free"),
    [
        (fcntl.F_RDLCK, SHARED, True),
        (fcntl.F_RDLCK, EXCLUSIVE, False),
        (fcntl.F_WRLCK, SHARED, False),
        (fcntl.F_WRLCK, EXCLUSIVE, False),
    ],
)
def test_classic_locks_of_others_count(path: bytes, theirs: int, ours: int, free: bool) -> None:
    def lock() -> int:
        fd = os.open(path, os.O_RDWR)
        posix_lock(fd, theirs)
        return fd

    with in_child(lock):
        got = lockfile.acquire(path, ours, wait=False)
        assert (got is not None) is free
        if got is not None:
            got.close()
        assert lockfile.is_held_exclusively(path) is (theirs == fcntl.F_WRLCK)


@pytest.mark.parametrize(("ours", "theirs"), [(SHARED, fcntl.F_WRLCK), (EXCLUSIVE, fcntl.F_RDLCK)])
def test_others_with_classic_locks_see_ours(path: bytes, ours: int, theirs: int) -> None:
    with held(path, ours), open(path, "r+b") as file, pytest.raises((BlockingIOError, PermissionError)):
        posix_lock(file.fileno(), theirs)


def test_asking_does_not_lock(path: bytes) -> None:
    assert not lockfile.is_held_exclusively(path)
    with held(path, SHARED):
        assert not lockfile.is_held_exclusively(path)
    with held(path, EXCLUSIVE):
        assert lockfile.is_held_exclusively(path)
        # Asking and then closing does not drop the lock either.
        assert lockfile.is_held_exclusively(path)
    assert not lockfile.is_held_exclusively(path + b".missing")
    assert not os.path.exists(path + b".missing")


def test_a_lock_on_a_deleted_file_is_not_sane(path: bytes) -> None:
    with held(path, EXCLUSIVE) as lock:
        assert lock.is_sane()
        os.unlink(path)
        assert not lock.is_sane()
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
        assert not lock.is_sane()


def test_waiting(path: bytes) -> None:
    first = held(path, EXCLUSIVE)
    got = threading.Event()

    def wait() -> None:
        with lockfile.waited_for(path, SHARED):
            got.set()

    thread = threading.Thread(target=wait)
    thread.start()
    assert not got.wait(0.05)
    first.close()
    assert got.wait(10)
    thread.join()


def test_missing_files(path: bytes) -> None:
    with pytest.raises(FileNotFoundError):
        lockfile.acquire(path + b"2", SHARED, wait=False, create=False)
    with held(path + b"2", SHARED):
        assert os.path.exists(path + b"2")


def test_descriptors_are_not_inherited_nor_left_behind(path: bytes) -> None:
    before = descriptors_before()
    with held(path, EXCLUSIVE) as lock:
        assert not os.get_inheritable(lock.fd)
        assert lockfile.acquire(path, SHARED, wait=False) is None
        lockfile.is_held_exclusively(path)
    lock.close()
    with pytest.raises(KeyError), lockfile.ClosedOnError(held(path, SHARED)):
        raise KeyError
    assert descriptors() == before
