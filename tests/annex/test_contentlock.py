from __future__ import annotations

import fcntl
import itertools
import os
import shutil
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex import lockfile
from annexshell.annex.objects import Objects
from annexshell.annex.retention import Retention
from annexshell.errors import ContentLocked, NotLocked, NotPresent, RepositoryError
from annexshell.key import Key
from tests import vectors
from tests.annex.disk import (
    CONTENT,
    KEY,
    SUFFIXES,
    Disk,
    Failed,
    as_unprivileged,
    in_child,
    let_others_in,
    posix_lock,
)
from tests.leftovers import descriptors, descriptors_before

LOCKS = vectors.load("objects-locks")
ALL = set(SUFFIXES)
OLD = [8, 9, None]
VERSIONS = [10, *OLD]


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    disk = Disk(tmp_path / "r")
    disk.store()
    return disk


def object_path(disk: Disk) -> Path:
    return Path(os.fsdecode(disk.open().objects.locate(KEY)))


def rtm(disk: Disk) -> Path:
    path = object_path(disk)
    return path.with_name(path.name + ".rtm")


def is_frozen(disk: Disk) -> bool:
    return not object_path(disk).parent.stat().st_mode & 0o222


def remove(disk: Disk) -> None:
    """What removal does under its lock, at its shortest."""
    opened = disk.open()
    with opened.locks.lock_for_removal(KEY) as lock:
        path = lock.path
        opened.permissions.thaw_directory(os.path.dirname(path))
        os.unlink(path)
        opened.objects.prune(os.path.dirname(path))


def refused(disk: Disk) -> bool:
    try:
        with disk.open().locks.lock_for_removal(KEY):
            return False
    except ContentLocked:
        return True


# A shared lock's life.


def test_traces_of_a_lock(disk: Disk) -> None:
    before = time.time()
    with disk.open().lock():
        assert disk.traces() == ALL
        text = rtm(disk).read_text()
        assert text.endswith("s")
        assert before + 600 <= float(text[:-1]) <= time.time() + 600
        assert rtm(disk).with_suffix(".rtl").read_text() == f"{text}\n"  # which git-annex does not look at
        assert is_frozen(disk)
    assert disk.traces() == set()
    assert is_frozen(disk)
    assert object_path(disk).read_bytes() == CONTENT


@pytest.mark.parametrize("version", OLD)
def test_old_versions_lock_the_object(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    path = disk.store()
    with disk.open().lock():
        assert disk.traces() == set()
        assert lockfile.acquire(os.fsencode(path), lockfile.EXCLUSIVE, wait=False) is None
        # An upgrade would wait.
        sentinal = os.fsencode(disk.annexdir / "sentinal")
        assert lockfile.acquire(sentinal, lockfile.EXCLUSIVE, wait=False) is None
        assert refused(disk)
    for lockable in (path, disk.annexdir / "sentinal"):
        lock = lockfile.acquire(os.fsencode(lockable), lockfile.EXCLUSIVE, wait=False)
        assert lock is not None
        lock.close()
    assert path.stat().st_mode & 0o777 == 0o444
    assert (disk.annexdir / "sentinal").read_bytes() == b""


@pytest.mark.parametrize("version", VERSIONS)
def test_removal(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    path = disk.store()
    remove(disk)
    assert not path.exists()
    # Its hash directories are gone, too, but not the one that holds all objects.
    assert list((disk.annexdir / "objects").iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_removal_that_is_given_up(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    disk.store()
    with disk.open().locks.lock_for_removal(KEY):
        pass
    assert disk.traces() == set()
    assert is_frozen(disk)
    assert object_path(disk).stat().st_mode & 0o777 == 0o444
    with disk.open().lock():
        pass


@pytest.mark.parametrize("version", VERSIONS)
def test_only_one_removes(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    disk.store()
    opened = disk.open()
    with opened.locks.lock_for_removal(KEY):
        assert refused(disk)
        with pytest.raises(ContentLocked):
            opened.locks.lock_for_removal(KEY)
        with pytest.raises(ContentLocked, match="content is locked"):
            disk.open().lock()
        with pytest.raises(ContentLocked):
            opened.lock()
    assert not refused(disk)


# Several holders (spec: objects checklist 15, 21).


@pytest.mark.parametrize("version", VERSIONS)
def test_connections_of_one_process_do_not_disturb_each_other(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    disk.store()
    opened = disk.open()
    first, second = opened.lock(), opened.lock()
    assert refused(disk)
    second.release()
    assert refused(disk)
    first.release()
    second.release()  # once more changes nothing


def test_the_second_lock_raises_the_time_and_the_last_unlock_ends_it(disk: Disk) -> None:
    opened = disk.open()
    first = opened.lock()
    earlier = rtm(disk).read_bytes()
    second = opened.lock()
    later = rtm(disk).read_bytes()
    assert float(later[:-1]) > float(earlier[:-1])
    first.release()
    assert rtm(disk).read_bytes() == later
    assert disk.traces() == ALL
    assert refused(disk)
    second.release()
    assert disk.traces() == set()
    assert not refused(disk)


def test_a_later_time_is_neither_lowered_nor_deleted(disk: Disk) -> None:
    far = b"%ds" % (time.time() + 86400)
    rtm(disk).write_bytes(far)
    with disk.open().lock():
        assert rtm(disk).read_bytes() == far
    assert rtm(disk).read_bytes() == far
    assert refused(disk)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_it_does_not_matter_who_unlocks_first(disk: Disk, order: tuple[int, ...]) -> None:
    """Where git-annex leaves a time behind, as the last cannot tell that it was of somebody who is gone."""
    opened = disk.open()
    locks = [opened.lock() for _ in range(3)]
    for number in order:
        assert refused(disk)
        locks[number].release()
    assert disk.traces() == set()
    assert not refused(disk)


@pytest.mark.parametrize("killed", range(3))
def test_the_time_of_a_killed_holder_is_not_forgotten_when_others_unlock(disk: Disk, killed: int) -> None:
    opened = disk.open()
    released = []
    for number in range(3):
        if number == killed:
            with in_child(lambda: disk.open().lock()):
                until = rtm(disk).read_bytes()
        else:
            released.append(opened.lock())
    for lock in released:
        lock.release()
    assert (rtm(disk).read_bytes(), is_frozen(disk)) == (until, True)
    with disk.open().lock():
        pass
    assert rtm(disk).read_bytes() == until
    assert refused(disk)
    rtm(disk).chmod(0o644)
    rtm(disk).write_text(f"{time.time() - 1}s")
    remove(disk)
    assert list((disk.annexdir / "objects").iterdir()) == []


def test_many_threads(disk: Disk) -> None:
    opened = disk.open()
    failures: list[BaseException] = []
    present: list[bool] = []

    def work() -> None:
        try:
            for _ in range(20):
                try:
                    with opened.lock():
                        present.append(opened.is_present() and refused(disk))
                except ContentLocked:
                    pass  # somebody who unlocks holds it exclusively for a moment
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert present
    assert all(present)
    assert is_frozen(disk)
    rtm(disk).unlink(missing_ok=True)
    remove(disk)


def test_lock_or_removal_never_both(disk: Disk) -> None:
    """Lockers and a remover race; who was told that the content is locked must find it all the time."""
    lost: list[str] = []
    stop = threading.Event()

    def lock() -> None:
        opened = disk.open()
        while not stop.is_set():
            time.sleep(0.004)
            try:
                with opened.lock():
                    if not opened.is_present():
                        lost.append("locked")
                    time.sleep(0.001)
                    if not opened.is_present():
                        lost.append("while locked")
            except NotLocked:
                pass

    threads = [threading.Thread(target=lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    removed = 0
    deadline = time.monotonic() + 1.5
    while time.monotonic() < deadline:
        try:
            remove(disk)
            removed += 1
        except (ContentLocked, NotPresent, FileNotFoundError):
            rtm(disk).unlink(missing_ok=True)
        while True:
            try:
                disk.store()
                break
            except OSError:
                pass  # pruned, or there
    stop.set()
    for thread in threads:
        thread.join()
    assert not lost
    assert removed


# A holder that vanishes (spec: objects checklist 14, protocol §5.2).


def test_the_time_of_a_killed_holder_counts_until_it_has_passed(disk: Disk) -> None:
    with in_child(lambda: disk.open().lock()):
        assert refused(disk)
    assert disk.traces() == ALL
    assert refused(disk)
    assert disk.traces() == ALL
    rtm(disk).chmod(0o644)
    rtm(disk).write_text(f"{time.time() - 1}s")
    remove(disk)
    assert list((disk.annexdir / "objects").iterdir()) == []


def test_a_kept_lock_is_like_one_of_a_killed_holder(disk: Disk) -> None:
    with disk.open().lock() as lock:
        lock.keep()
    assert disk.traces() == ALL
    assert is_frozen(disk)
    assert refused(disk)
    # Others may still lock, and must not shorten it.
    with disk.open().lock():
        pass
    assert ".lck" not in disk.traces()
    assert refused(disk)


@pytest.mark.parametrize("version", OLD)
def test_old_versions_keep_nothing(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    disk.store()
    with disk.open().lock() as lock:
        lock.keep()
    assert not refused(disk)


def test_a_holder_killed_between_our_look_and_our_lock(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def look(self: Retention) -> bool:
        answer = looked(self)
        with disk.open().lock() as lock:
            lock.keep()
        return answer

    looked = Retention.is_future
    monkeypatch.setattr(Retention, "is_future", look)
    assert refused(disk)
    assert object_path(disk).exists()


@pytest.mark.parametrize("row", LOCKS["retention_file"], ids=lambda row: row["content"])
def test_what_retention_files_mean(disk: Disk, row: dict[str, str]) -> None:
    future, past = str(int(time.time()) + 1000), str(int(time.time()) - 1000)
    recipes = {
        "T.123456s (T in the future)": f"{future}.123456s",
        "T (future, no fraction, no s)": future,
        "Ts (future)": f"{future}s",
        "+Ts (future)": f"+{future}s",
        "T.123456s (T in the past)": f"{past}.123456s",
        "(empty)": "",
        "T.123456s followed by newline": f"{future}.123456s\n",
        "leading space": f" {future}s",
        "trailing space": f"{future}s ",
        "T.s (dot without digits)": f"{future}.s",
        "T.123 s": f"{future}.123 s",
    }
    rtm(disk).write_text(recipes.get(row["content"], row["content"]))
    if row["meaning"] == "refuses removal":
        assert refused(disk)
        assert rtm(disk).exists()
    else:
        remove(disk)
        assert rtm(disk).exists() is (row["meaning"] == "ignored, file left behind")


def test_a_malformed_time_is_replaced_by_who_locks(disk: Disk) -> None:
    rtm(disk).write_text("junk")
    with disk.open().lock():
        assert rtm(disk).read_text().endswith("s")
    assert disk.traces() == set()


# What others hold (spec: objects-locks.json lock_matrix).


@pytest.mark.parametrize("row", LOCKS["lock_matrix"], ids=lambda r: f"v{r['version']}-{r['held']}-{r['lock_api']}")
def test_answers_while_another_process_holds_the_lock(tmp_path: Path, row: dict[str, Any]) -> None:
    disk = Disk(tmp_path / "r", row["version"])
    path = os.fsencode(disk.store())
    if row["held_on"] == "KEY.lck":
        path += b".lck"
    kind = {"exclusive": lockfile.EXCLUSIVE, "shared": lockfile.SHARED}[row["held"]]

    def hold() -> Any:
        if row["lock_api"] == "OFD":
            return lockfile.acquire(path, kind, wait=False)
        fd = os.open(path, os.O_RDWR | os.O_CREAT)
        posix_lock(fd, kind)
        return fd

    with in_child(hold):
        opened = disk.open()
        assert opened.locks.is_locked_for_removal(KEY) is (row["inannex_exit"] == 100)
        if row["LOCKCONTENT"] == "SUCCESS":
            with opened.lock():
                pass
        else:
            with pytest.raises(ContentLocked):
                opened.lock()
        rtm(disk).unlink(missing_ok=True)
        assert "content is locked" in row["REMOVE"]
        assert refused(disk)


def test_asking_creates_nothing(disk: Disk) -> None:
    assert not disk.open().locks.is_locked_for_removal(KEY)
    assert disk.traces() == set()
    with disk.open().lock():
        assert not disk.open().locks.is_locked_for_removal(KEY)
    with disk.open().locks.lock_for_removal(KEY):
        assert disk.open().locks.is_locked_for_removal(KEY)


@pytest.mark.parametrize("version", OLD)
def test_asking_in_old_versions(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    assert not disk.open().locks.is_locked_for_removal(KEY)
    disk.store()
    opened = disk.open()
    assert not opened.locks.is_locked_for_removal(KEY)
    with opened.locks.lock_for_removal(KEY):
        assert opened.locks.is_locked_for_removal(KEY)


# Absent content (spec: objects checklist 20).


@pytest.mark.parametrize("version", VERSIONS)
def test_absent_content(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    with pytest.raises(NotLocked, match="not present"):
        disk.open().lock()
    with pytest.raises(NotPresent):
        disk.open().locks.lock_for_removal(KEY)
    assert not (disk.annexdir / "objects").exists()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_directory_without_object(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    path = disk.store()
    path.parent.chmod(0o755)
    path.unlink()
    with pytest.raises(NotLocked, match="not present"):
        disk.open().lock()
    if version == 10:
        assert list((disk.annexdir / "objects").iterdir()) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_content_that_does_not_count(tmp_path: Path, version: int | None) -> None:
    disk = Disk(tmp_path / "r", version)
    path = disk.store()
    opened = disk.open()
    with pytest.raises(NotLocked):
        opened.locks.lock_shared(KEY, lambda: False)
    assert disk.traces() == set()
    assert path.exists()
    assert is_frozen(disk)

    def fail() -> bool:
        raise RepositoryError("cannot tell")

    before = descriptors_before()
    with pytest.raises(RepositoryError):
        opened.locks.lock_shared(KEY, fail)
    assert descriptors() == before
    assert disk.traces() == set()


def test_a_lock_is_for_one_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The object was moved between the two places at which it may be: nothing keeps the other one."""
    disk = Disk(tmp_path / "r", bare=True)
    path = disk.store()
    opened = disk.open()
    other = Path(os.fsdecode(list(opened.objects.candidates(KEY))[1]))
    opened.permissions.make_directory(os.fsencode(other.parent))
    shutil.copy(path, other)
    located = opened.objects.locate(KEY)
    path.parent.chmod(0o755)
    # What was found before it vanished.
    monkeypatch.setattr(Objects, "locate", lambda self, key: located)
    path.unlink()
    with pytest.raises(NotLocked):
        opened.locks.lock_shared(KEY, lambda: True)
    assert other.exists()


# Lock files that vanish (spec: objects checklist 18).


def vanish(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Have the lock file deleted by its last holder after we opened it and before we locked it."""
    acquire = lockfile.acquire
    left = [times]

    def acquire_late(path: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        lock = acquire(path, kind, **how)
        if path.endswith(b".lck") and b"/objects/" in path and left[0]:
            left[0] -= 1
            os.unlink(path)
        return lock

    monkeypatch.setattr(lockfile, "acquire", acquire_late)


def test_a_deleted_lock_file_is_no_lock(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    vanish(monkeypatch, 1)
    with disk.open().lock():
        assert disk.traces() == ALL
        monkeypatch.undo()
        lock = lockfile.acquire(os.fsencode(rtm(disk).with_suffix(".lck")), lockfile.EXCLUSIVE, wait=False)
        assert lock is None  # it is the file that is there now that is locked


def test_lock_files_that_are_always_deleted(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = disk.open()
    before = descriptors_before()
    vanish(monkeypatch, 1000)
    with pytest.raises(ContentLocked):
        opened.lock()
    with pytest.raises(ContentLocked):
        opened.locks.lock_for_removal(KEY)
    assert descriptors() == before
    assert disk.traces() == set()


def test_a_new_lock_file_of_others_is_not_deleted(disk: Disk) -> None:
    """Our lock file was deleted by hand, and another one made: unlocking leaves that alone."""
    with disk.open().lock():
        file = rtm(disk).with_suffix(".lck")
        file.unlink()
        lock = lockfile.acquire(os.fsencode(file), lockfile.SHARED, wait=False)
    assert lock is not None
    with lock:
        assert file.exists()
        assert lock.is_sane()


@pytest.mark.parametrize("version", OLD)
def test_an_object_that_is_replaced_while_it_is_locked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int | None
) -> None:
    disk = Disk(tmp_path / "r", version)
    path = disk.store()
    path.parent.chmod(0o755)
    acquire = lockfile.acquire

    def replaced(name: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        lock = acquire(name, kind, **how)
        if name == os.fsencode(path):
            shutil.copy(path, tmp_path / "new")
            (tmp_path / "new").rename(path)
        return lock

    monkeypatch.setattr(lockfile, "acquire", replaced)
    with pytest.raises(NotLocked):
        disk.open().lock()
    assert refused(disk)


# Upgrades (spec: objects §6.2, checklist 19).


@pytest.mark.parametrize("waiting", [True, False])
def test_an_upgrade_switches_to_lock_files(tmp_path: Path, waiting: bool) -> None:
    disk = Disk(tmp_path / "r", 9)
    disk.store()
    opened = disk.open()
    assert opened.repo.version == 9
    upgrade = lockfile.acquire(os.fsencode(disk.annexdir / "sentinal"), lockfile.EXCLUSIVE, wait=False)
    assert upgrade is not None
    got: list[Any] = []
    thread = threading.Thread(target=lambda: got.append(opened.lock()))
    if waiting:
        thread.start()
        time.sleep(0.05)
        assert not got
    disk.config("annex.version", "10")
    upgrade.close()
    if not waiting:
        thread.start()
    thread.join(20)
    assert disk.traces() == ALL
    # Nothing of the old way is left, so the next upgrade does not have to wait.
    upgrade = lockfile.acquire(os.fsencode(disk.annexdir / "sentinal"), lockfile.EXCLUSIVE, wait=False)
    assert upgrade is not None
    upgrade.close()
    assert refused(disk)
    got[0].release()
    remove(disk)


def test_an_upgrade_meets_removal(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", 9)
    disk.store()
    opened = disk.open()
    assert opened.repo.version == 9
    disk.config("annex.version", "10")
    with opened.locks.lock_for_removal(KEY):
        assert disk.traces() == {".lck"}
        assert opened.locks.is_locked_for_removal(KEY)


def test_a_missing_sentinal_is_made(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", 9)
    disk.store()
    (disk.annexdir / "sentinal").unlink()
    with disk.open().lock():
        assert (disk.annexdir / "sentinal").exists()


# Where nothing can be written (spec: objects §6.3, §20).


def test_who_may_not_write_gets_no_lock(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r")
    disk.store()
    opened = disk.open()
    assert opened.repo.config
    let_others_in(tmp_path)
    with pytest.raises(Failed, match="NotLocked: failed to lock content") as failure:
        as_unprivileged(lambda: opened.lock() and None)
    assert failure.value.kind == "NotLocked"
    with pytest.raises(Failed, match="RepositoryError: failed to lock content"):
        as_unprivileged(lambda: opened.locks.lock_for_removal(KEY) and None)
    assert not as_unprivileged(lambda: opened.locks.is_locked_for_removal(KEY))
    assert disk.traces() == set()


def test_who_may_not_write_can_ask_where_nobody_has_locked_before(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", None, bare=True)
    disk.store()
    (disk.annexdir / "sentinal").unlink()
    opened = disk.open()
    assert opened.repo.config
    let_others_in(tmp_path)
    assert not as_unprivileged(lambda: opened.locks.is_locked_for_removal(KEY))
    assert not (disk.annexdir / "sentinal").exists()
    with disk.open().locks.lock_for_removal(KEY):
        assert as_unprivileged(lambda: opened.locks.is_locked_for_removal(KEY))
    # One that cannot be read may be held.
    (disk.annexdir / "sentinal").chmod(0)
    assert as_unprivileged(lambda: opened.locks.is_locked_for_removal(KEY))


def test_nothing_is_locked_where_nothing_is(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", None, bare=True)
    (disk.annexdir / "sentinal").unlink()
    disk.annexdir.rmdir()
    assert not disk.open().locks.is_locked_for_removal(KEY)
    assert not disk.annexdir.exists()


def test_who_may_not_write_gets_a_lock_on_objects(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "r", 9)
    disk.store()
    opened = disk.open()
    assert opened.repo.config
    let_others_in(tmp_path)

    def lock() -> bool:
        with opened.lock():
            return refused(disk)

    if os.getuid() == 0:  # else it is our own, and refused() may lock it
        with pytest.raises(Failed, match="RepositoryError"):
            as_unprivileged(lock)
    assert as_unprivileged(lambda: opened.lock() is not None)


def test_unlocking_where_nothing_can_be_written_any_more(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = disk.open().lock()

    def denied(path: object, mode: int) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "chmod", denied)
    lock.release()
    assert disk.traces() == ALL


def test_a_full_disk(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    opened = disk.open()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(NotLocked, match="No space left"):
            opened.lock()
    assert disk.traces() == set()
    assert is_frozen(disk)
    with opened.lock():
        pass


def test_a_full_disk_does_not_shorten_what_stands(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    standing = b"%ds" % (time.time() + 100)
    rtm(disk).write_bytes(standing)
    monkeypatch.setattr(os, "write", lambda fd, data: len(data) // 2)
    with pytest.raises(NotLocked):
        disk.open().lock()
    assert rtm(disk).read_bytes() == standing
    assert list((disk.annexdir / "othertmp").iterdir()) == []


def test_names_that_are_too_long(disk: Disk) -> None:
    for length in (248, 255, 300):
        key = Key(b"WORM--" + b"n" * (length - 6))
        with pytest.raises(NotLocked):
            disk.open().locks.lock_shared(key, lambda: True)
        with pytest.raises((NotPresent, RepositoryError)):
            disk.open().locks.lock_for_removal(key)


# The order in which things happen.


def test_order_of_locks(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """As recorded from the real program (spec: objects §17), which has no way to make a shared lock exclusive."""
    names = {".lck": "lck", ".rtl": "rtl"}
    calls = LOCKS["syscalls"]["v10 LOCKCONTENT then UNLOCKCONTENT"]
    recorded = [
        (os.path.basename(call[1]).replace("KEY.", ""), call[2].split()[1]) for call in calls if call[0] == "fcntl"
    ]
    assert recorded == [("lck", "F_RDLCK"), ("rtl", "F_WRLCK"), ("othertmp.lck", "F_RDLCK"), ("lck", "F_WRLCK")]
    ours: list[tuple[str, str]] = []
    acquire = lockfile.acquire

    def noted(path: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        suffix = os.fsdecode(os.path.splitext(path)[1])
        name = names[suffix] if b"/objects/" in path else os.fsdecode(os.path.basename(path))
        ours.append((name, "F_RDLCK" if kind == fcntl.F_RDLCK else "F_WRLCK"))
        return acquire(path, kind, **how)

    rtm(disk).write_bytes(b"1s")  # so that there is something to replace
    monkeypatch.setattr(lockfile, "acquire", noted)
    monkeypatch.setattr(lockfile.LockFile, "become_exclusive", lambda self: False)
    with disk.open().lock():
        pass
    # Before it lets go, it gives up its time.
    assert ours == [*recorded[:-1], ("rtl", "F_WRLCK"), recorded[-1]]


def test_hooks_see_each_opening_of_the_directory(disk: Disk, tmp_path: Path) -> None:
    log = tmp_path / "log"
    for action in ("freeze", "thaw"):
        disk.config(f"annex.{action}content-command", f"stat -c '{action} %a' %path >>'{log}'")
    with disk.open().lock():
        pass
    assert log.read_text().split("\n")[:-1] == ["thaw 755", "freeze 555"] * 2


def test_removal_prunes_but_keeps_foreign_files(disk: Disk) -> None:
    directory = object_path(disk).parent
    directory.chmod(0o755)
    (directory / "foreign").touch()
    directory.chmod(0o555)
    remove(disk)
    assert [path.name for path in directory.iterdir()] == ["foreign"]


def test_the_directory_is_opened_twice_and_nothing_more_is_waited_for(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The usual case, on which a client waits: two lock files, and no othertmp."""
    acquired: list[bytes] = []
    acquire = lockfile.acquire

    def noted(path: bytes, kind: int, **how: bool) -> lockfile.LockFile | None:
        acquired.append(path[-4:])
        return acquire(path, kind, **how)

    chmods: list[int] = []
    chmod = os.chmod
    opened = disk.open()
    assert opened.repo.config
    monkeypatch.setattr(lockfile, "acquire", noted)
    monkeypatch.setattr(os, "chmod", lambda path, mode: (chmods.append(mode), chmod(path, mode)))
    with opened.lock():
        pass
    assert acquired == [b".lck", b".rtl"]
    assert chmods == [0o755, 0o555] * 2


def test_two_who_unlock_at_once(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each finds the other in its way; the later to let go must still clean up."""
    opened = disk.open()
    first, second = opened.lock(), opened.lock()
    monkeypatch.setattr(lockfile.LockFile, "become_exclusive", lambda self: False)
    first.release()
    second.release()
    assert disk.traces() == set()


@pytest.mark.parametrize("settings", [{}, {"core.sharedRepository": "group"}, {"annex.tune.objecthash1": "true"}])
def test_no_descriptor_is_left(tmp_path: Path, settings: dict[str, str]) -> None:
    disk = Disk(tmp_path / "r", **settings)
    disk.store()
    opened = disk.open()
    assert opened.repo.config
    before = descriptors_before()
    for action in (opened.lock, lambda: opened.locks.lock_for_removal(KEY)):
        with action():
            assert not stat.S_ISLNK(os.lstat(opened.objects.locate(KEY)).st_mode)
    assert descriptors() == before
