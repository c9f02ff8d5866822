"""The local repository as a whole: presence, sessions, and what a session leaves."""

from __future__ import annotations

import os
import subprocess

import pytest

from annexshell.errors import NotLocked, RepositoryError, TransferRefused
from annexshell.key import Key
from tests.annex.local import Local, get, put, sha256_key
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


# Without annex.uuid and annex.version: an encrypted repository, whose clients keep the logs (spec: shell §7.5, §7.6).

CRYPTED = Key(b"GPGHMACSHA1--f4e658723be13a807550fde9883b5d6ad56a6849")


@pytest.fixture
def gcrypt(bare):
    for name in ("annex.uuid", "annex.version"):
        subprocess.run(["git", "-C", bare.path, "config", "--unset", name], check=True)
    bare.config(**{"core.gcrypt-id": ":id:abcdef"})
    return bare


def test_an_encrypted_repository_gets_neither_branch_nor_log(gcrypt):
    repository = gcrypt.open()
    for key in (CRYPTED, KEY):
        assert put(repository, key, DATA) is True
        assert get(repository, key) == (DATA, True)
        with repository.lockcontent(key):
            assert repository.checkpresent(key)
        path = gcrypt.object(key)
        assert path.read_bytes() == DATA
        assert path.parts[-4:-2] == tuple(os.fsdecode(key.hashdirs_lower(2)).split("/"))
        assert path.stat().st_mode & 0o222 == 0
        assert repository.remove(key).done
        assert not repository.checkpresent(key)
    repository.close()
    assert commits(gcrypt) == []
    assert not (gcrypt.annex / "journal").exists()
    assert not list((gcrypt.annex / "objects").iterdir())
    assert gcrypt.leftovers() == []
    assert gcrypt.open().repo.version is None


def test_an_encrypted_repository_needs_no_git(gcrypt, monkeypatch):
    repository = gcrypt.open()
    assert repository.repo.config
    with monkeypatch.context() as without_programs:
        without_programs.setenv("PATH", "/nonexistent")
        assert put(repository, CRYPTED, DATA) is True
        assert repository.remove(CRYPTED).done
        repository.close()


def test_wrong_content_in_an_encrypted_repository(gcrypt):
    """What is not encrypted can be verified there like anywhere else; what is encrypted, by its client only."""
    assert put(gcrypt.open(), KEY, b"other") is False
    assert put(gcrypt.open(), CRYPTED, b"other") is True


def test_securehashesonly_keeps_encrypted_content_out(gcrypt):
    gcrypt.config(**{"annex.securehashesonly": "true"})
    with pytest.raises(TransferRefused, match="securehashesonly blocked transfer of GPGHMACSHA1 key"):
        put(gcrypt.open(), CRYPTED, DATA)
    assert put(gcrypt.open(), KEY, DATA) is True


def test_only_a_log_is_refused_for_the_length_of_a_name(bare, tmp_path):
    """An object's name may be as long as any file's, but a log's in the journal has directories in front."""
    key = Key(b"WORM-s5--" + b"n" * 235)
    assert not bare.open().can_record(key)
    with pytest.raises(TransferRefused, match="too long to be recorded"):
        put(bare.open(), key, DATA)
    subprocess.run(["git", "-C", bare.path, "config", "--unset", "annex.uuid"], check=True)
    assert put(bare.open(), key, DATA) is True
    assert bare.open().remove(key).done


def test_the_log_of_a_repository_that_has_lost_its_uuid(bare):
    repository = bare.open()
    put(repository, KEY, DATA)
    repository.close()
    before = commits(bare)
    subprocess.run(["git", "-C", bare.path, "config", "--unset", "annex.uuid"], check=True)
    repository = bare.open()
    assert repository.remove(KEY).done
    repository.close()
    assert bare.journal() == {}
    assert commits(bare) == before
