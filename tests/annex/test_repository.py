"""The local repository as a whole: presence, sessions, and what a session leaves."""

from __future__ import annotations

import os
import subprocess

import pytest

from annexshell.errors import NotLocked, RepositoryError
from annexshell.key import Key
from tests.annex.local import Local, put, sha256_key
from tests.leftovers import left_open

DATA = b"hello"
KEY = sha256_key(DATA)


@pytest.fixture
def bare(tmp_path, clean_environment):
    return Local(tmp_path / "repo", bare=True)


def test_presence_in_either_place(tmp_path, clean_environment):
    for bare in (True, False):
        local = Local(tmp_path / str(bare), bare=bare)
        repository = local.open()
        for path in map(os.fsdecode, repository.objects.candidates(KEY)):
            assert not repository.checkpresent(KEY)
            os.makedirs(os.path.dirname(path))
            with open(path, "wb") as file:
                file.write(DATA)
            assert repository.checkpresent(KEY)
            os.unlink(path)


def test_keys_whose_names_are_too_long_for_files_are_absent(bare):
    assert not bare.open().checkpresent(Key(b"WORM-s1--" + b"n" * 5000))


def test_a_dangling_link_is_absent(bare):
    path = bare.object(KEY)
    path.parent.mkdir(parents=True)
    path.symlink_to("nowhere")
    assert not bare.open().checkpresent(KEY)


def commits(local):
    run = subprocess.run(
        ["git", "-C", local.path, "rev-list", "git-annex"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return run.stdout.split()


def test_a_session_that_only_reads_commits_and_runs_nothing(bare, monkeypatch):
    repository = bare.open()
    assert repository.repo.config
    with monkeypatch.context() as without_programs:
        without_programs.setenv("PATH", "/nonexistent")
        repository.checkpresent(KEY)
        repository.close()
    assert commits(bare) == []


def test_a_session_commits_what_others_left(bare):
    assert put(bare.open(), KEY, DATA) is True  # killed before its end
    assert commits(bare) == [] or len(commits(bare)) == 1
    before = len(commits(bare))
    bare.open().close()
    assert len(commits(bare)) > before
    assert bare.journal() == {}


def test_alwayscommit_false_leaves_the_journal(bare):
    bare.config(**{"annex.alwayscommit": "false"})
    repository = bare.open()
    put(repository, KEY, DATA)
    repository.close()
    assert bare.logged(KEY) == "1"


def test_a_session_leaves_no_process_and_no_descriptor(bare):
    before = left_open()
    repository = bare.open()
    put(repository, KEY, DATA)
    repository.remove(KEY)
    repository.close()
    assert left_open() <= before


def test_a_lock_that_git_annex_would_not_see_is_not_given(bare):
    put(bare.open(), KEY, DATA)
    bare.config(**{"annex.pidlock": "true"})
    with pytest.raises(NotLocked, match="pidlock"):
        bare.open().lockcontent(KEY)


def test_a_commit_that_fails_is_told_to_those_who_wrote_and_nobody_else(bare, monkeypatch):
    def fail(self):
        raise RepositoryError("cannot commit")

    writer, reader = bare.open(), bare.open()
    put(writer, KEY, DATA)
    monkeypatch.setattr(type(writer.branch), "commit", fail)
    with pytest.raises(RepositoryError):
        writer.close()
    reader.close()
