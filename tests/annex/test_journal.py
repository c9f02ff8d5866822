"""The journal: names, atomic replacement, and its lock."""

from __future__ import annotations

import fcntl
import os
import resource
import stat
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex import journal, lockfile
from annexshell.annex.config import Config
from annexshell.errors import RepositoryError
from annexshell.key import Key
from tests import vectors
from tests.annex.branches import HERE, KEY, LOG, Annex
from tests.vectors import to_bytes

PATHS = vectors.load("branch-paths")
COMPONENT = st.binary(min_size=1, max_size=8).filter(lambda b: b"/" not in b and b"\0" not in b and b[:1] != b"_")


class Tuned:
    """As much of a repository as key_log looks at."""

    def __init__(self, one_level: bool) -> None:
        self.config = Config({b"annex.tune.branchhash1": [b"true" if one_level else b"false"]})


@pytest.mark.parametrize("row", PATHS, ids=lambda row: repr(row["key"]))
def test_names_of_location_logs(row):
    path = journal.key_log(Tuned(row.get("tune_branchhash1", False)), Key(to_bytes(row["key"])))
    name = journal.file_name(path)
    assert name == to_bytes(row["journal_file"])
    assert journal.branch_path(name) == to_bytes(row["branch_path"])


def test_a_leading_underscore_moves_as_it_does_in_git_annex():
    assert journal.file_name(b"3d1/b62/_X--y.log") == b"3d1_b62___X--y.log"
    assert journal.branch_path(b"3d1_b62___X--y.log") == b"3d1/b62_/X--y.log"


@given(st.lists(COMPONENT, min_size=1, max_size=4).map(b"/".join))
def test_other_names_survive_the_journal(path):
    assert journal.branch_path(journal.file_name(path)) == path
    assert b"/" not in journal.file_name(path)


@pytest.mark.parametrize(("filler", "possible"), [(b"a" * 231, True), (b"a" * 232, False), (b"_" * 116, False)])
def test_a_key_whose_log_cannot_be_written_is_known_before(annex, filler, possible):
    key = Key(b"SHA256-s1--" + filler + b"z")
    with annex.open() as branch:
        repo = branch._repo
        assert journal.can_log(repo, key) is possible
        if possible:
            assert len(journal.file_name(branch.key_log(key))) == 255
            branch.journal.write(branch.key_log(key), b"x\n")
            assert branch.journal.read(branch.key_log(key)) == b"x\n"
        else:
            with pytest.raises(OSError):
                branch.journal.write(branch.key_log(key), b"x\n")
            assert branch.journal.read(branch.key_log(key)) is None
    assert not list((annex.directory / "othertmp").iterdir())


def test_a_file_is_replaced_and_not_written_into(annex):
    with annex.open() as branch:
        branch.journal.write(b"uuid.log", b"old\n")
        with open(annex.directory / "journal" / "uuid.log", "rb") as old:
            branch.journal.write(b"uuid.log", b"new\n")
            assert old.read() == b"old\n"
        assert branch.journal.read(b"uuid.log") == b"new\n"
    assert annex.journal() == {"uuid.log": b"new\n"}
    assert not list((annex.directory / "othertmp").iterdir())


def test_temporary_files_are_protected_from_being_cleaned_up(annex, monkeypatch):
    lock = os.fsencode(annex.directory / "othertmp.lck")
    seen = []
    rename = os.rename

    def observed(source, target):
        seen.append((os.path.dirname(source), lockfile.acquire(lock, lockfile.EXCLUSIVE, wait=False)))
        rename(source, target)

    monkeypatch.setattr(os, "rename", observed)
    with annex.open() as branch:
        branch.journal.write(b"uuid.log", b"x\n")
    # Once more when the journal directory had to be made first.
    assert seen == [(os.fsencode(annex.directory / "othertmp"), None)] * 2


def test_a_full_disk_leaves_the_old_content(annex):
    with annex.open() as branch:
        branch.journal.write(b"uuid.log", b"old\n")
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            with pytest.raises(OSError):
                branch.journal.write(b"uuid.log", b"x" * 5000 + b"\n")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert branch.journal.read(b"uuid.log") == b"old\n"
    assert not list((annex.directory / "othertmp").iterdir())


@pytest.mark.parametrize(
    ("content", "read"), [(b"a\nb", b"a\n"), (b"a\nb\n", b"a\nb\n"), (b"a", b""), (b"", b""), (b"a\n\nb\r", b"a\n\n")]
)
def test_a_cut_last_line_is_not_read(annex, content, read):
    annex.leave_in_journal("uuid.log", content)
    with annex.open() as branch:
        assert branch.read(b"uuid.log") == read


def test_only_plain_files_are_in_the_journal(annex, tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    annex.leave_in_journal("trust.log", b"x\n")
    (annex.directory / "journal" / "uuid.log").symlink_to(tmp_path / "secret")
    (annex.directory / "journal" / "directory").mkdir()
    with annex.open() as branch:
        assert branch.journal.names() == [b"trust.log"]
        assert journal.is_dirty(branch._repo)
    (annex.directory / "journal" / "trust.log").unlink()
    with annex.open() as branch:
        assert not journal.is_dirty(branch._repo)


# What git-annex does to lock the journal: a lock of the process, on the whole file.
HOLDER = """
import fcntl, os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
fcntl.lockf(fd, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_change_waits_for_a_lock_like_that_of_git_annex_and_reading_does_not(annex):
    annex.record(present=False)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, annex.directory / "journal.lck"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout.readline() == b"held\n"
        changer = threading.Thread(target=annex.record)
        changer.start()
        with annex.open() as branch:
            assert b" 0 " in branch.read(branch.key_log(KEY))
        changer.join(0.3)
        assert changer.is_alive()
        with annex.open() as branch:
            assert b" 0 " in branch.read(branch.key_log(KEY))
        holder.stdin.close()
        changer.join(10)
    assert b" 1 " in annex.journal()["5a2_699_SHA256E-s3--k1.log"]


def test_our_lock_excludes_one_like_that_of_git_annex_whatever_else_is_closed(annex):
    probe = [sys.executable, "-c", "import fcntl, os, sys; fcntl.lockf(os.open(sys.argv[1], os.O_RDWR), 6)"]
    path = annex.directory / "journal.lck"

    def is_free():
        return subprocess.run([*probe, path], stderr=subprocess.DEVNULL).returncode == 0

    with annex.open() as branch:
        with branch.lock():
            os.close(os.open(path, os.O_RDWR))  # which would end a lock of the classic kind
            assert not is_free()
        assert is_free()
    assert path.stat().st_size == 0
    assert probe[-1].endswith(f"{fcntl.LOCK_EX | fcntl.LOCK_NB})")


def test_threads_exclude_each_other(annex):
    inside = 0
    most = 0

    def work(branch):
        nonlocal inside, most
        for _ in range(20):
            with branch.lock():
                inside += 1
                most = max(most, inside)
                time.sleep(0.0005)
                inside -= 1

    with annex.open() as one, annex.open() as other:
        threads = [threading.Thread(target=work, args=(branch,)) for branch in (one, one, other)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert most == 1


@pytest.mark.parametrize(
    ("shared", "file_mode", "directory_mode"), [("group", 0o664, 0o775), ("0640", 0o640, 0o2750)]
)
def test_modes_for_sharing(annex, shared, file_mode, directory_mode):
    annex.config(**{"core.sharedRepository": shared})
    annex.record()
    journaled = annex.directory / "journal" / LOG.replace("/", "_")
    for file in (journaled, annex.directory / "journal.lck", annex.directory / "othertmp.lck"):
        assert stat.S_IMODE(file.stat().st_mode) == file_mode
    assert stat.S_IMODE((annex.directory / "journal").stat().st_mode) == directory_mode
    assert annex.commit()
    for name in ("index", "index.lck"):
        assert stat.S_IMODE((annex.directory / name).stat().st_mode) == file_mode


@pytest.mark.parametrize("action", [Annex.record, Annex.commit], ids=["change", "commit"])
def test_a_repository_with_lock_files_of_another_kind_is_left_alone(annex, action):
    annex.leave_in_journal("uuid.log", HERE + b" x timestamp=1s\n")
    annex.config(**{"annex.pidlock": "true"})
    with pytest.raises(RepositoryError, match=r"annex\.pidlock"):
        action(annex)
    assert list(annex.journal()) == ["uuid.log"]


def test_reading_a_repository_with_lock_files_of_another_kind(annex):
    annex.push({"uuid.log": b"x\n"})
    annex.config(**{"annex.pidlock": "true"})
    with annex.open() as branch:
        assert branch.read(b"uuid.log") == b"x\n"
        assert not branch.commit()
