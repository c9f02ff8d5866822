"""The order in which hooks see what happens to content (spec: objects §4), and repositories of other users."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest

# Here and not when they are needed, since the reader below may be unable to import them.
from annexshell.annex import branch, contentlock, keysdb, receive, remove, send, transfers, worktree  # noqa: F401
from tests.annex.local import Local, get, put, sha256_key

DATA = b"0123456789" * 100
KEY = sha256_key(DATA)


class Recorded(Local):
    """A repository whose hooks write down what they are run for."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, bare=True)
        self.record = path.parent / "record"
        self.record.touch()
        for name in ("freezecontent", "thawcontent"):
            self.config(**{f"annex.{name}-command": f"echo {name} %path >> {self.record}"})
        self.config(**{"annex.secure-erase-command": f"echo erase %file >> {self.record}"})

    def taken(self) -> list[str]:
        """What was recorded since the last time, the paths being told as ODIR and OBJ."""
        lines = self.record.read_text().splitlines()
        self.record.write_text("")
        object = self.object(KEY)
        names = {str(object): "OBJ", str(object.parent): "ODIR"}
        return [f"{word.removesuffix('content')} {names[path]}" for word, path in (line.split() for line in lines)]


@pytest.fixture
def recorded(tmp_path, clean_environment):
    return Recorded(tmp_path / "repo")


def test_order(recorded):
    repository = recorded.open()
    assert put(repository, KEY, DATA) is True
    assert recorded.taken() == ["thaw ODIR", "freeze OBJ", "freeze ODIR"]
    with repository.lockcontent(KEY):
        pass
    taken = recorded.taken()
    assert taken == ["thaw ODIR", "freeze ODIR"] * (len(taken) // 2)
    assert taken
    assert repository.remove(KEY)
    assert recorded.taken()[:5] == ["thaw ODIR", "freeze ODIR", "thaw ODIR", "thaw OBJ", "erase OBJ"]


def test_a_hook_file_takes_the_place_of_the_setting(recorded):
    hook = recorded.gitdir / "hooks/freezecontent-annex"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f'#!/bin/sh\necho hookcontent "$1" >> {recorded.record}\nexit 1\n')
    hook.chmod(0o755)
    assert put(recorded.open(), KEY, DATA) is True  # although the hook fails
    assert recorded.taken() == ["thaw ODIR", "hook OBJ", "hook ODIR"]


@pytest.fixture
def owned_by_another(clean_environment):
    """A repository with content, and a function that runs another as a user who may only read it."""
    directory = Path(tempfile.mkdtemp())
    directory.chmod(0o755)
    local = Local(directory / "repo", bare=True)
    assert put(local.open(), KEY, DATA) is True

    def as_reader(action) -> int:
        if os.geteuid() != 0:
            for path in [directory, *directory.rglob("*")]:
                if not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~0o222)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                if os.geteuid() == 0:
                    os.setgid(65534)
                    os.setuid(65534)
                action(local)
                status = 0
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    yield as_reader
    for path in [directory, *directory.rglob("*")]:
        path.chmod(0o755)
    shutil.rmtree(directory)


def test_content_is_sent_from_a_repository_that_cannot_be_written_to(owned_by_another):
    def read(local):
        repository = local.open()
        assert repository.checkpresent(KEY)
        assert get(repository, KEY) == (DATA, True)
        repository.close()

    assert owned_by_another(read) == 0


def test_nothing_is_stored_locked_or_removed_there(owned_by_another):
    def write(local):
        repository = local.open()
        other = sha256_key(b"other")
        for action in (
            lambda: put(repository, other, b"other"),
            lambda: repository.lockcontent(KEY),
            lambda: repository.remove(KEY),
        ):
            with pytest.raises(Exception):  # noqa: B017  (why it fails differs, and is tested elsewhere)
                action()
        assert repository.checkpresent(KEY)

    assert owned_by_another(write) == 0
