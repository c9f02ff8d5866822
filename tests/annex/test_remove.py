"""Removing content."""

from __future__ import annotations

import os

import pytest

from annexshell.annex import remove as module
from annexshell.annex.repository import clock
from annexshell.errors import ContentLocked, RepositoryError
from annexshell.key import Key
from tests.annex.local import Local, put, sha256_key

DATA = b"0123456789" * 100
KEY = sha256_key(DATA)


@pytest.fixture(params=[True, False], ids=["bare", "non-bare"])
def local(request, tmp_path, clean_environment):
    local = Local(tmp_path / "repo", bare=request.param)
    assert put(local.open(), KEY, DATA) is True
    return local


def test_removed_content_is_gone_and_logged(local):
    repository = local.open()
    assert repository.remove(KEY)
    assert not repository.checkpresent(KEY)
    assert local.logged(KEY) == "0"
    assert list((local.annex / "objects").iterdir()) == []


def test_absent_content_is_removed_already_whatever_the_time(local):
    absent = sha256_key(b"absent")
    repository = local.open()
    assert repository.remove(absent)
    assert repository.remove(absent, before=0)
    assert local.logged(absent) is None


def test_a_deadline_that_has_passed(local):
    repository = local.open()
    now = repository.gettimestamp()
    assert abs(now - clock()) <= 1
    for before in (0, -5, now):
        assert not repository.remove(KEY, before=before)
    assert repository.checkpresent(KEY)
    assert local.logged(KEY) == "1"
    assert local.leftovers() == []
    assert repository.remove(KEY, before=now + 100)


def test_the_deadline_is_looked_at_under_the_lock(local, monkeypatch):
    repository = local.open()
    entered = []
    lock = type(repository.locks).lock_for_removal
    monkeypatch.setattr(
        type(repository.locks), "lock_for_removal", lambda self, key: (entered.append(1), lock(self, key))[1]
    )
    monkeypatch.setattr(type(repository), "gettimestamp", lambda self: 100 if entered else 0)
    assert not repository.remove(KEY, before=50)
    assert repository.checkpresent(KEY)


def test_locked_content_stays(local):
    with local.open().lockcontent(KEY), pytest.raises(ContentLocked):
        local.open().remove(KEY)
    assert local.open().checkpresent(KEY)
    assert local.open().remove(KEY)


def test_a_lock_whose_holder_vanished_holds_on(local):
    with local.open().lockcontent(KEY) as lock:
        lock.keep()
    with pytest.raises(ContentLocked):
        local.open().remove(KEY)


def test_a_trash_bin_is_not_bypassed(local):
    local.config(**{"annex.trashbin": "trash"})
    with pytest.raises(RepositoryError, match="trashbin"):
        local.open().remove(KEY)
    assert local.open().checkpresent(KEY)


def test_content_that_vanishes_before_it_is_unlinked(local, monkeypatch):
    repository = local.open()
    unlink = os.unlink
    gone = []

    def unlink_twice(path):
        unlink(path)
        if path.endswith(KEY.filename) and not gone:
            gone.append(path)
            unlink(path)

    monkeypatch.setattr(module.os, "unlink", unlink_twice)
    assert repository.remove(KEY)
    assert gone
    assert local.logged(KEY) == "0"


def test_the_erase_command_sees_the_object_before_it_goes(local):
    record = local.path.parent / "record"
    local.config(**{"annex.secure-erase-command": f"cp %file {record}"})
    assert local.open().remove(KEY)
    assert record.read_bytes() == DATA


def test_the_trace_of_a_modified_thin_object_stays(tmp_path, clean_environment):
    local = Local(tmp_path / "repo", **{"annex.thin": "true"})
    local.place(KEY, b"other")
    repository = local.open()
    assert repository.remove(KEY)
    assert local.object(KEY).read_bytes() == b"other"


def test_a_key_whose_name_is_too_long_to_log(local, capfd):
    key = Key(b"WORM-s1--" + b"n" * 237)
    local.place(key, b"x")
    assert local.open().remove(key)
    assert not local.object(key).exists()
    assert "too long" in capfd.readouterr().err
