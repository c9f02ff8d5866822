"""Sending content, and noticing what happens to it meanwhile."""

from __future__ import annotations

import os

import pytest

from annexshell.errors import NotPresent
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.annex.local import CLIENT, Local, get, put, sha256_key

DATA = b"0123456789" * 100
KEY = sha256_key(DATA)


@pytest.fixture(params=[True, False], ids=["bare", "non-bare"])
def local(request, tmp_path, clean_environment):
    local = Local(tmp_path / "repo", bare=request.param)
    assert put(local.open(), KEY, DATA) is True
    return local


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 5000])
def test_content_from_an_offset(local, offset):
    assert get(local.open(), KEY, offset) == (DATA[offset:], True)
    assert local.leftovers() == []


def test_absent_content(local):
    with pytest.raises(NotPresent):
        local.open().get(sha256_key(b"other"), 0, None)


def change(what, path):
    os.chmod(path.parent, 0o755)
    if what == "append":
        path.chmod(0o644)
        with path.open("ab") as file:
            file.write(b"more")
    elif what == "touch":
        os.utime(path, (1, 1))
    elif what == "replace":
        path.unlink()
        path.write_bytes(DATA)
    else:
        path.unlink()


@pytest.mark.parametrize("what", ["append", "touch", "replace", "unlink"])
def test_changes_while_it_is_sent_are_noticed(local, what):
    with local.open().get(KEY, 0, None) as content:
        view = memoryview(bytearray(2000))
        assert content.source.readinto(view[:500]) == 500
        change(what, local.object(KEY))
        assert content.length == 1000
        assert not content.still_valid()


def test_a_running_transfer_is_shown_and_a_failed_one_remembered(local):
    upload = local.annex / "transfer/upload" / CLIENT.decode()
    failed = local.annex / "transfer/failed/upload" / CLIENT.decode() / os.fsdecode(KEY.filename)
    repository = local.open()
    with repository.get(KEY, 0, b"a/file") as content:
        shown = (upload / os.fsdecode(KEY.filename)).read_text()
        assert shown.endswith("\na/file\n")
        content.acknowledge(False)
    assert local.leftovers() == [] or failed.exists()
    assert failed.exists()
    with repository.get(KEY, 0, b"a/file") as content:
        content.acknowledge(True)
    assert not failed.exists()


def test_several_at_once(local):
    repository, other = local.open(), local.open()
    with repository.get(KEY, 0, None) as one, other.get(KEY, 0, None) as two:
        assert one.length == two.length == 1000
        one.acknowledge(True)
        two.acknowledge(True)


def test_without_a_client_uuid(local):
    assert get(local.open(UUID(b"")), KEY) == (DATA, True)


def test_insecure_keys_are_not_sent_when_only_secure_ones_may_be(local):
    key = Key(b"WORM-s3-m1--x")
    put(local.open(), key, b"abc")
    local.config(**{"annex.securehashesonly": "true"})
    repository = local.open()
    with pytest.raises(Exception, match="securehashesonly"):
        repository.get(key, 0, None)
    assert get(repository, KEY) == (DATA, True)


@pytest.mark.parametrize(
    "make",
    [lambda p: os.mkfifo(p), lambda p: p.mkdir(), lambda p: p.symlink_to("/etc/passwd")],
    ids=["fifo", "directory", "link"],
)
def test_what_is_no_regular_file_is_not_content(local, make):
    key = sha256_key(b"odd")
    path = local.object(key)
    path.parent.mkdir(parents=True)
    make(path)
    with pytest.raises(NotPresent):
        local.open().get(key, 0, None)


def test_an_object_that_was_modified_since_it_was_recorded(tmp_path, clean_environment):
    """Where inode caches are known, other content is not sent under the key's name (spec: objects §13)."""
    from annexshell.annex.inodecache import InodeCache
    from annexshell.annex.keysdb import KeysDatabase

    local = Local(tmp_path / "repo")
    repository = local.open()
    put(repository, KEY, DATA)
    database = KeysDatabase(repository.repo, repository.permissions)
    database.add_inode_caches(KEY, [InodeCache.of_file(os.fsencode(local.object(KEY)))])
    database.close()
    assert get(local.open(), KEY) == (DATA, True)
    path = local.object(KEY)
    os.chmod(path.parent, 0o755)
    path.unlink()
    path.write_bytes(DATA[::-1])
    os.utime(path, (1, 1))
    with pytest.raises(NotPresent, match="modified"):
        local.open().get(KEY, 0, None)
