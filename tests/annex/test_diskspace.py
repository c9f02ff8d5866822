from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.diskspace import most_that_fits, parse_reserve, require_space, rough_size
from annexshell.errors import TransferRefused
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.annex.disk import Disk

DEFAULT = 100_000_000
CLIENT = UUID(b"client")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1 MB", 10**6),
        ("1mb", 10**6),
        ("1 megabyte", 10**6),
        ("2 megabytes", 2 * 10**6),
        ("  3  PB ", 3 * 10**15),
        ("3 PB extra", 3 * 10**15),
        ("3PB,", 3 * 10**15),
        ("1.5EB", 15 * 10**17),
        ("123.456789PB", 123_456_789 * 10**9),
        ("9999999TiB", 9_999_999 * 2**40),
        ("9999999tebibytes", 9_999_999 * 2**40),
        ("3pi", 3 * 2**50),
        ("3g", 3 * 10**9),
        ("3q", 3 * 10**30),
        ("3ronnabytes", 3 * 10**27),
        ("3 e", 3 * 10**18),
        ("3e3", 3000),
        ("3e3eb", 3 * 10**21),
        ("15e-1 kB", 1500),
        ("9999999 tbit", 9_999_999 * 10**12 // 8),
        ("3 petabit", 3 * 10**15 // 8),
        ("3petabits", 3 * 10**15 // 8),
        ("7 b", 7),
        ("7 bytes", 7),
    ],
)
def test_reserves(text: str, size: int) -> None:
    assert parse_reserve(text.encode()) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "junk",
        "GB",
        ".5PB",
        "5.PB",
        "1/2PB",
        "1,5PB",
        "-5PB",
        "+3PB",
        "3 Pbits",
        "3pbyte",
        "3peta",
        "1e999",
        "9" * 5000,
    ],
)
def test_what_is_no_reserve_counts_as_unset(text: str) -> None:
    assert parse_reserve(text.encode()) == DEFAULT


def test_an_unset_reserve() -> None:
    assert parse_reserve(None) == DEFAULT


@given(st.binary(max_size=30))
def test_any_setting_gives_a_reserve(text: bytes) -> None:
    assert parse_reserve(text) >= 0


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (9_999_999 * 10**12, "10 EB"),
        (125 * 10**16, "1.25 EB"),
        (123_456_789 * 10**9, "123.46 PB"),
        (999_999_900_000 * 10**6, "1000 PB"),
        (101_005 * 10**12, "101 PB"),
        (374_910 * 10**9, "374.91 TB"),
        (1000, "1 kB"),
        (999, "999 B"),
        (3 * 10**33, "3000 QB"),
        (10**300, "1000000 QB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert rough_size(size) == text


class _Space:
    """A repository on a file system with so many bytes free."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch, free: int) -> None:
        self.opened = Disk(path, **{"annex.diskreserve": "1000"}).open()
        self.asked: list[bytes] = []

        def statvfs(path: bytes) -> os.statvfs_result:
            self.asked.append(path)
            return os.statvfs_result((512, 512, 10**9, 10**9, free // 512, 0, 0, 0, 0, 255))

        monkeypatch.setattr(os, "statvfs", statvfs)

    def require(self, size: int | None, already: int = 0) -> None:
        key = Key(b"SHA1--x" if size is None else b"SHA1-s%d--x" % size)
        require_space(self.opened.repo, key, already=already, transfers=self.opened.transfers)
        assert self.asked == [self.opened.repo.annexdir]


def test_what_fits_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _Space(tmp_path, monkeypatch, 5120).require(4120)


def test_one_byte_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        TransferRefused, match=r"^not enough free space, need 1 B more \(use --force .*diskreserve\)$"
    ):
        _Space(tmp_path, monkeypatch, 5120).require(4121)


def test_what_is_there_already_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _Space(tmp_path, monkeypatch, 5120).require(4121, already=1)


def test_unsized_keys_need_at_least_a_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TransferRefused):
        _Space(tmp_path, monkeypatch, 999).require(None)


def test_other_running_downloads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = _Space(tmp_path, monkeypatch, 512 * 4000)
    other = Key(b"SHA1-s1500000--other")
    with space.opened.transfers.download(other, CLIENT, None) as transfer:
        with pytest.raises(TransferRefused, match="more"):
            space.require(1_000_000)
        space.asked.clear()
        transfer.progress(1_200_000)
        space.require(1_000_000)
        transfer.succeed()


def test_its_own_and_dead_and_unsized_downloads_do_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    space = _Space(tmp_path, monkeypatch, 512 * 4000)
    name = "SHA1-s1500000--other"
    stale = Path(os.fsdecode(space.opened.repo.annexdir)) / "transfer" / "download" / "client"
    stale.mkdir(parents=True)
    (stale / name).write_text("1795341748s\n\n")
    (stale / f"lck.{name}").touch()
    own = Key(b"SHA1-s1000000--x")
    with (
        space.opened.transfers.download(own, CLIENT, None),
        space.opened.transfers.download(Key(b"URL--y"), CLIENT, None),
        space.opened.transfers.upload(Key(b"SHA1-s1500000--z"), CLIENT, None),
    ):
        space.require(1_000_000)


def test_an_unknown_amount_of_space_is_enough(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Disk(tmp_path).open()

    def fails(path: bytes) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "statvfs", fails)
    require_space(opened.repo, Key(b"SHA1-s%d--x" % 10**40), already=0, transfers=opened.transfers)


def test_real_file_systems(tmp_path: Path) -> None:
    opened = Disk(tmp_path).open()
    with pytest.raises(TransferRefused, match="QB more"):
        require_space(opened.repo, Key(b"SHA1-s%d--x" % 10**40), already=0, transfers=opened.transfers)


def test_a_size_with_thousands_of_digits(tmp_path: Path) -> None:
    opened = Disk(tmp_path).open()
    with pytest.raises(TransferRefused, match="need 1000000 QB more"):
        require_space(opened.repo, Key(b"SHA1-s" + b"9" * 6000 + b"--x"), already=0, transfers=opened.transfers)


def test_most_that_fits_leaves_the_reserve_and_room_for_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    space = _Space(tmp_path, monkeypatch, 512 * 4000)
    opened, key = space.opened, Key(b"GPGHMACSHA1--x")

    def fits(already: int = 0) -> int | None:
        return most_that_fits(opened.repo, key, already=already, transfers=opened.transfers)

    most = fits()
    assert most is not None
    assert 0 < most <= 512 * 4000
    assert fits(1000) == most + 1000
    with opened.transfers.download(Key(b"SHA1-s1500000--z"), CLIENT, None):
        assert fits() == most - 1_500_000
        with opened.transfers.download(Key(b"SHA1-s9999999--z"), CLIENT, None):
            assert fits(5) == 5


def test_most_that_fits_may_be_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Disk(tmp_path).open()

    def fails(path: bytes) -> None:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "statvfs", fails)
    assert most_that_fits(opened.repo, Key(b"A--x"), already=0, transfers=opened.transfers) is None
