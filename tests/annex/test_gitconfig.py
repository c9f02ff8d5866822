"""Changing the git config."""

from __future__ import annotations

import os
import stat
import threading

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell.annex import gitconfig
from annexshell.annex.gitconfig import ConfigLock
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RepositoryError
from tests.annex.branches import Annex

VALUE = st.binary(max_size=20).filter(lambda value: b"\0" not in value and b"\r" not in value)


def add(annex: Annex, values: dict[bytes, bytes]) -> GitRepository:
    repo = GitRepository(os.fsencode(annex.path))
    with ConfigLock(repo) as lock:
        lock.add(values)
    repo.reload_config()
    return repo


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(VALUE, VALUE)
def test_git_reads_what_was_written(annex, one, other):
    config = add(annex, {b"annex.one": one, b'filter.a n"n\\ex.two': other, b"annex.three": b"true"}).config
    assert (config.get(b"annex.one"), config.get(b'filter.a n"n\\ex.two')) == (one, other)
    assert config.get_bool(b"annex.three")
    (annex.path / "config").write_text("[annex]\n\tuuid = x\n")


@pytest.mark.parametrize("old", [b"", b"[a]\n\tb = c", b"[a]\n\tb = c\\\n", b"[a]\n\tb = c\\", b"[a]\n\tb = c # x\n"])
def test_what_was_there_stays(annex, old):
    (annex.path / "config").write_bytes(old)
    config = add(annex, {b"annex.x": b"y"}).config
    assert config.get(b"annex.x") == b"y"
    assert config.get(b"a.b") == (b"c" if old else None)


def test_mode_and_symlink_are_kept(annex, tmp_path):
    (annex.path / "config").rename(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").chmod(0o660)
    (annex.path / "config").symlink_to(tmp_path / "elsewhere")
    assert add(annex, {b"annex.x": b"y"}).config.get(b"annex.x") == b"y"
    assert (annex.path / "config").is_symlink()
    assert stat.S_IMODE((tmp_path / "elsewhere").stat().st_mode) == 0o660


def test_git_lock_is_waited_for(annex):
    lock = annex.path / "config.lock"
    lock.touch()
    timer = threading.Timer(0.2, lock.unlink)
    timer.start()
    assert add(annex, {b"annex.x": b"y"}).config.get(b"annex.x") == b"y"
    assert not lock.exists()


def test_a_lock_that_stays_is_named(annex, monkeypatch):
    monkeypatch.setattr(gitconfig, "_PATIENCE", 0.1)
    lock = annex.path / "config.lock"
    lock.touch()
    with pytest.raises(RepositoryError, match=r"config\.lock"):
        add(annex, {b"annex.x": b"y"})
    assert lock.exists()


def test_giving_up_changes_nothing(annex):
    before = (annex.path / "config").read_bytes()
    repo = GitRepository(os.fsencode(annex.path))
    with pytest.raises(ZeroDivisionError), ConfigLock(repo):
        raise ZeroDivisionError
    assert (annex.path / "config").read_bytes() == before
    assert not (annex.path / "config.lock").exists()
    assert repo.config
