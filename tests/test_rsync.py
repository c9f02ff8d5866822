from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import landlock, rsync
from annexshell.errors import RepositoryError
from annexshell.termination import Termination
from tests import vectors
from tests.leftovers import left_open
from tests.rsyncing import wait_for

RECORDED = vectors.load("shell-rsync-options")
# Values that git-annex-shell hands over, and we do not (spec: shell §7.5).
UNCHECKED = ["--bwlimit=", "--bwlimit=a", "--bwlimit=-1", "--bwlimit=1;id", "--bwlimit=--server"]


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: " ".join(case["args_after_last_separator"]))
def test_limits_as_recorded(case: dict[str, list[str]]) -> None:
    recorded = case["rsync_argv"]
    assert recorded[:6] == [*map(os.fsdecode, rsync._SERVER), "--sender"]
    expected = [word for word in recorded[6:-1] if word not in UNCHECKED]
    given = [word.encode() for word in case["args_after_last_separator"]]
    assert [word.decode() for word in rsync.bandwidth_limits(given)] == expected


@given(
    st.lists(st.binary(max_size=12) | st.sampled_from([b"--bwlimit", b"--bwlimit=5", b"--b", b"--", b"1.5m", b"-"]))
)
def test_nothing_but_limits_gets_through(words: list[bytes]) -> None:
    for word in rsync.bandwidth_limits(words):
        name, _, value = word.partition(b"=")
        assert name == b"--bwlimit"
        assert value.isalnum() or value.replace(b".", b"").isalnum()
        assert value[:1] in b"0123456789."


# What runs instead of rsync: a script, which gets the same arguments.


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes a program rsync that comes first in PATH."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs), prepend=":")

    def make(script: str) -> Path:
        program = programs / "rsync"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
        return program

    return make


def serve(file: Path, *, is_sender: bool = False, words: tuple[bytes, ...] = (), **more) -> int:
    with Termination() as termination:
        return rsync.serve(rsync.find(), os.fsencode(file), words, termination, is_sender=is_sender, **more)


def test_arguments(stand_in, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    stand_in('echo "$@"; exit 7')
    file = tmp_path / "a *[b]"
    file.touch()
    assert serve(file, words=(b"dummy --bwlimit=5k", b"--delete")) == 7
    assert capfd.readouterr().out == f"--server -t --inplace -e.Lsf . --bwlimit=5k {file}\n"
    assert serve(file, is_sender=True) == 7
    assert capfd.readouterr().out == f"--server -t --inplace -e.Lsf . --sender {file}\n"


def test_the_first_program_in_path(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = stand_in("")
    assert rsync.find() == os.fsencode(program)
    program.chmod(0o644)
    assert rsync.find() != os.fsencode(program)
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "rsync").mkdir()
    with pytest.raises(RepositoryError, match="it is not in PATH on this server"):
        rsync.find()


def test_a_program_that_cannot_be_started(stand_in, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = stand_in("")
    program.write_text("#!/nowhere/sh\n")
    assert serve(program) == 127
    assert capfd.readouterr().err == "annexshell: cannot run rsync: No such file or directory\n"


def test_it_sees_only_its_file(stand_in, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secret, file, other = (tmp_path / name for name in ("secret", "file", "other"))
    secret.write_text("secret")
    file.write_text("content")
    stand_in(
        f"cat {file}; cat {secret}; echo more >> {file}; echo > {other}; mkdir {other}d; cat /etc/passwd; exit 0"
    )
    assert serve(file) == 0
    out = capfd.readouterr().out
    with landlock.Ruleset() as rules:
        if rules.exists:
            assert out == "content"
            assert not other.exists()
            assert not (tmp_path / "otherd").exists()
        assert file.read_text() == "contentmore\n"
        file.write_text("content")
        assert serve(file, is_sender=True) == 0
        assert file.read_text() == ("content" if rules.exists else "contentmore\n")


def test_it_writes_no_more_than_fits(stand_in, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "file"
    file.touch()
    stand_in(f"head -c 1000000 /dev/zero > {file}; exit 11")
    assert serve(file, largest=5000) == 11
    assert file.stat().st_size == 5000
    assert "too large" in capfd.readouterr().err
    assert serve(file, largest=None) == 11
    assert file.stat().st_size == 1_000_000


def test_it_is_watched(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_LOOK", 0.02)
    file = tmp_path / "file"
    file.touch()
    stand_in("sleep 0.3")
    looks = []
    assert serve(file, watch=lambda: looks.append(1)) == 0
    assert len(looks) > 3


def test_nothing_of_it_is_left(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_LOOK", 0.02)
    before = left_open()
    file = tmp_path / "file"
    file.touch()
    # A child that it did not wait for, and that could write to the file after it was verified.
    stand_in(f"(sleep 1; echo late > {file}) & exit 0")
    assert serve(file) == 0
    assert left_open() <= before
    assert file.read_text() == ""


def test_it_may_close_what_it_does_not_know(stand_in, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    closing = "; ".join(f"exec {fd}>&-" for fd in range(3, 10))
    stand_in(f"{closing}; sleep 0.2; exit 3")
    assert serve(file) == 3


def test_it_ends_when_the_client_is_gone(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_GRACE", 0.1)
    monkeypatch.setattr(rsync, "_LOOK", 0.02)
    file = tmp_path / "file"
    file.touch()
    # As one that reads from a FIFO instead, which a filter rule can name.
    stand_in("exec sleep 1000")
    read_fd, write_fd = os.pipe()
    before = os.dup(0)
    os.dup2(read_fd, 0)
    try:
        os.close(write_fd)
        assert serve(file) == -9
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(read_fd)


def test_what_ends_waiting_ends_it(stand_in, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rsync, "_LOOK", 0.02)
    file = tmp_path / "file"
    file.touch()
    stand_in(f"echo $$ > {file}; exec sleep 1000")

    def watch() -> None:
        if file.read_text():
            raise ZeroDivisionError

    before = left_open()
    with pytest.raises(ZeroDivisionError):
        serve(file, watch=watch)
    assert left_open() <= before
    pid = int(file.read_text())
    wait_for(lambda: not os.path.exists(f"/proc/{pid}"))


def test_a_client_that_is_gone_ends_it(stand_in, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    stand_in("kill -PIPE $$; exit 0")
    assert serve(file) == -13
