from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex import lockfile
from annexshell.annex.logs import clock
from annexshell.annex.retention import Retention
from tests.annex.disk import Disk, Opened


@pytest.fixture
def opened(tmp_path: Path) -> Opened:
    return Disk(tmp_path / "r").open()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "KEY").mkdir()
    return tmp_path / "KEY"


@pytest.fixture
def retention(directory: Path) -> Retention:
    return Retention(os.fsencode(directory / "KEY"))


def test_only_ever_raised(opened: Opened, directory: Path, retention: Retention) -> None:
    file = directory / "KEY.rtm"
    assert retention.until() is None
    first = retention.extend(opened.repo, opened.permissions, 100)
    assert first == file.read_bytes()
    lower = retention.extend(opened.repo, opened.permissions, 50)
    assert file.read_bytes() == first
    second = retention.extend(opened.repo, opened.permissions, 200)
    assert second == file.read_bytes() != first
    assert retention.is_future()
    assert not retention.delete_if_past()
    retention.give_up(opened.repo, opened.permissions, first)
    assert file.read_bytes() == second
    retention.give_up(opened.repo, opened.permissions, second)
    assert file.read_bytes() == lower
    retention.give_up(opened.repo, opened.permissions, lower)
    assert list(directory.iterdir()) == []
    assert not retention.is_future()


@pytest.mark.parametrize("is_alone", [True, False])
@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_each_time_counts_until_it_is_given_up(
    opened: Opened, directory: Path, retention: Retention, order: tuple[int, ...], is_alone: bool
) -> None:
    """In whatever order, and whether or not there are others who do not write lines."""
    file = directory / "KEY.rtm"
    times = [retention.extend(opened.repo, opened.permissions, seconds) for seconds in (100, 300, 200)]
    left = set(times)
    for number in order:
        assert file.read_bytes() == max(left, key=clock.parse)
        retention.give_up(opened.repo, opened.permissions, times[number], is_alone=is_alone)
        left.discard(times[number])
    retention.give_up(opened.repo, opened.permissions, times[order[-1]])
    assert list(directory.iterdir()) == []


def test_times_that_have_passed_are_forgotten(opened: Opened, directory: Path, retention: Retention) -> None:
    (directory / "KEY.rtm").write_bytes(b"1s")
    (directory / "KEY.rtl").write_bytes(b"2s\n1000.5s\nnonsense\n\n-4000000000s")
    written = retention.extend(opened.repo, opened.permissions, 100)
    assert (directory / "KEY.rtm").read_bytes() == written
    retention.give_up(opened.repo, opened.permissions, written)
    assert list(directory.iterdir()) == []


def test_there_is_no_room_for_the_time_of_another(
    opened: Opened, directory: Path, retention: Retention, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = retention.extend(opened.repo, opened.permissions, 100)

    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(OSError, match="No space left"):
            retention.extend(opened.repo, opened.permissions, 200)
    assert (directory / "KEY.rtm").read_bytes() == first
    retention.give_up(opened.repo, opened.permissions, first)
    assert list(directory.iterdir()) == []


def test_nothing_is_left_in_othertmp(opened: Opened, retention: Retention, directory: Path) -> None:
    for seconds in range(3):
        retention.extend(opened.repo, opened.permissions, seconds)
    assert os.listdir(opened.repo.annexdir + b"/othertmp") == []
    (directory / "KEY.rtm").unlink()
    (directory / "KEY.rtm").mkdir()  # cannot be replaced
    with pytest.raises(OSError):
        retention.extend(opened.repo, opened.permissions, 1)
    assert os.listdir(opened.repo.annexdir + b"/othertmp") == []


def test_past_times_are_deleted(opened: Opened, retention: Retention, directory: Path) -> None:
    retention.extend(opened.repo, opened.permissions, -1)
    assert not retention.is_future()
    assert retention.delete_if_past()
    assert list(directory.iterdir()) == []


def test_the_time_itself_still_counts(monkeypatch: pytest.MonkeyPatch, retention: Retention, directory: Path) -> None:
    (directory / "KEY.rtm").write_bytes(b"1000.5s")
    monkeypatch.setattr(time, "time_ns", lambda: 1000_500_000_000)
    assert retention.is_future()
    monkeypatch.setattr(time, "time_ns", lambda: 1000_500_000_001)
    assert not retention.is_future()


def test_writers_take_turns(opened: Opened, retention: Retention, directory: Path) -> None:
    retention.extend(opened.repo, opened.permissions, 1)
    lock = lockfile.acquire(os.fsencode(directory / "KEY.rtl"), lockfile.EXCLUSIVE, wait=False)
    assert lock is not None  # it is held only while the time is written
    lock.close()


def test_what_cannot_be_read_is_not_ignored(retention: Retention, directory: Path) -> None:
    (directory / "KEY.rtm").mkdir()
    with pytest.raises(OSError):
        retention.is_future()


@given(st.integers(min_value=0, max_value=10**15), st.integers(min_value=0, max_value=10**9 - 1))
def test_times_are_written_as_git_annex_writes_them(seconds: int, nanoseconds: int) -> None:
    picoseconds = seconds * clock.SECOND + nanoseconds * 1000
    text = clock.render(picoseconds)
    assert text.endswith(b"s")
    assert b"." not in text or not text.endswith(b"0s")
    assert clock.parse(text) == picoseconds
