from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from annexshell.annex import arrival as arrival_module
from annexshell.annex.arrival import Arrival
from annexshell.errors import RepositoryError, TransferRefused
from annexshell.key import Key
from annexshell.uuid import NO_UUID
from tests.annex.local import Local, sha256_key

CONTENT = b"content that arrives\n"
KEY = sha256_key(CONTENT)
UNVERIFIABLE = Key(b"GPGHMACSHA1--abc")


@pytest.fixture
def local(tmp_path: Path, clean_environment: Path) -> Local:
    return Local(tmp_path / "repo")


def write(arrival: Arrival, content: bytes) -> Path:
    """What the other program does: in place, and with a time of its own when all is there."""
    path = Path(os.fsdecode(arrival.path))
    with open(path, "r+b") as file:
        file.write(content)
        file.truncate()
    os.utime(path, (5, 5))
    return path


def stored(local: Local, key: Key = KEY) -> bytes | None:
    path = local.object(key)
    return path.read_bytes() if path.exists() else None


def test_content_is_verified_and_stored(local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        assert local.leftovers()
        write(arrival, CONTENT)
        assert arrival.size == len(CONTENT)
        assert arrival.finish()
    assert stored(local) == CONTENT
    assert stat.S_IMODE(local.object(KEY).stat().st_mode) == 0o444
    assert local.logged(KEY) == "1"
    assert not local.temp(KEY).exists()
    assert local.leftovers() == []


@pytest.mark.parametrize("content", [b"content that arrivez\n", CONTENT + b"more", CONTENT[:-1], b""])
def test_wrong_content_is_deleted(content: bytes, local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, content)
        assert arrival.finish().why == "verification of content failed"
    assert stored(local) is None
    assert not local.temp(KEY).exists()
    assert local.logged(KEY) is None


def test_without_verification_anything_is_stored(local: Local) -> None:
    local.config(**{"annex.verify": "false"})
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, b"anything")
        assert arrival.finish()
    assert stored(local) == b"anything"


def test_what_was_not_sent_is_not_stored(local: Local) -> None:
    local.set_temp(UNVERIFIABLE, b"part")
    with Arrival(local.open(), UNVERIFIABLE) as arrival:
        assert arrival.finish().why == "the client did not send the content"
    assert stored(local, UNVERIFIABLE) is None
    assert local.temp(UNVERIFIABLE).read_bytes() == b"part"


@pytest.mark.parametrize(
    ("left", "kept"), [(b"", False), (CONTENT[:5], True), (CONTENT, True), (CONTENT + b"more", False)]
)
def test_what_is_left_for_the_next_attempt(left: bytes, kept: bool, local: Local) -> None:
    with pytest.raises(ZeroDivisionError), Arrival(local.open(), KEY) as arrival:
        write(arrival, left)
        raise ZeroDivisionError
    assert local.temp(KEY).exists() == kept
    assert local.leftovers() == []


def test_what_fills_the_disk_is_not_left(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrival_module, "most_that_fits", lambda *_, **__: 1000)
    with Arrival(local.open(), UNVERIFIABLE) as arrival:
        assert arrival.largest == 1000
        write(arrival, bytes(1000))
    assert not local.temp(UNVERIFIABLE).exists()


def test_how_large_it_may_get(local: Local, monkeypatch: pytest.MonkeyPatch) -> None:
    def largest(key: Key, fits: int | None) -> int | None:
        monkeypatch.setattr(arrival_module, "most_that_fits", lambda *_, **__: fits)
        with Arrival(local.open(), key) as arrival:
            return arrival.largest

    slack = arrival_module._SLACK
    assert largest(KEY, 1 << 40) == len(CONTENT) + slack
    assert largest(KEY, 100) == 100
    assert largest(KEY, None) == len(CONTENT) + slack
    assert largest(UNVERIFIABLE, 1 << 40) == 1 << 40
    assert largest(UNVERIFIABLE, None) is None
    local.set_temp(KEY, bytes(50))
    assert largest(KEY, 1 << 40) == 50 + slack
    local.config(**{"annex.verify": "false"})
    assert largest(KEY, 1 << 40) == 1 << 40


# What a program could do to the file besides writing it, and what it was before.


def test_another_file_in_its_place(local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        path = write(arrival, CONTENT)
        path.rename(path.with_name("x"))
        path.write_bytes(CONTENT)
        assert arrival.finish().why == "another file is in the place of the temporary file"
    assert stored(local) is None


def test_a_symlink_in_its_place(local: Local, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(CONTENT)
    with Arrival(local.open(), KEY) as arrival:
        path = write(arrival, CONTENT)
        path.unlink()
        path.symlink_to(secret)
        assert not arrival.finish()
    assert stored(local) is None
    assert secret.read_bytes() == CONTENT


def test_a_second_name(local: Local, tmp_path: Path) -> None:
    """By which it could be written to when it is an object."""
    with Arrival(local.open(), KEY) as arrival:
        (tmp_path / "second").hardlink_to(write(arrival, CONTENT))
        assert not arrival.finish()
    assert stored(local) is None


def test_nothing_in_its_place(local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, CONTENT).unlink()
        assert arrival.finish().why == "the temporary file has gone"
    assert stored(local) is None


@pytest.mark.parametrize("mode", [0o6755, 0o777, 0o600, 0o400])
def test_modes_are_ours(mode: int, local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, CONTENT).chmod(mode)
        assert arrival.finish()
    assert stat.S_IMODE(local.object(KEY).stat().st_mode) == 0o444


def test_modes_of_a_shared_repository(local: Local) -> None:
    local.config(**{"core.sharedRepository": "group"})
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, CONTENT)
        assert arrival.finish()
    assert stat.S_IMODE(local.object(KEY).stat().st_mode) == 0o444


# Others.


def test_content_that_is_there_already(local: Local) -> None:
    local.place(KEY, CONTENT)
    inode = local.object(KEY).stat().st_ino
    with Arrival(local.open(), KEY) as arrival:
        write(arrival, CONTENT)
        assert arrival.finish()
    assert local.object(KEY).stat().st_ino == inode
    assert not local.temp(KEY).exists()


def test_two_at_once(local: Local) -> None:
    with Arrival(local.open(), KEY) as arrival:
        for client in (NO_UUID, None):
            repository = local.open() if client is None else local.open(client)
            with pytest.raises(TransferRefused, match="already in progress"):
                Arrival(repository, KEY)
        write(arrival, CONTENT)
        assert arrival.finish()


def test_an_unnamed_client(local: Local) -> None:
    with Arrival(local.open(NO_UUID), KEY) as arrival:
        assert local.leftovers() == [f"transfer/download/lck/lck.{os.fsdecode(KEY.filename)}"]
        write(arrival, CONTENT)
        assert arrival.finish()
    assert local.leftovers() == []
    with Arrival(local.open(NO_UUID), UNVERIFIABLE):
        pass
    assert not (local.annex / "transfer" / "failed").exists()


def test_not_enough_space(local: Local) -> None:
    local.config(**{"annex.diskreserve": "1000 PB"})
    with pytest.raises(TransferRefused, match="not enough free space"):
        Arrival(local.open(), KEY)
    assert local.leftovers() == []
    assert not local.temp(KEY).exists()


def test_something_else_in_the_way(local: Local) -> None:
    local.temp(KEY).mkdir(parents=True)
    with pytest.raises(RepositoryError, match="Is a directory"):
        Arrival(local.open(), KEY)
    assert local.leftovers() == []


def test_progress_is_told(local: Local) -> None:
    with Arrival(local.open(), UNVERIFIABLE) as arrival:
        write(arrival, bytes(300_000))
        arrival.progress()
        info = next((local.annex / "transfer" / "download").glob("*-*/GPG*")).read_text()
        assert info.split("\n")[0].endswith(" 300000")
