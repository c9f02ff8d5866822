"""Receiving content: every row of the decision, resuming, refusals, and faults on the way."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from annexshell.annex import receive, transfers
from annexshell.errors import Hangup, RepositoryError, TransferRefused
from annexshell.key import Key
from annexshell.relay import BytesSource
from annexshell.repository import AlreadyHave
from annexshell.uuid import UUID
from tests.annex.local import CLIENT, Local, put, sha256_key

DATA = b"0123456789" * 100
KEY = sha256_key(DATA)
WRONG = b"x" * len(DATA)


@pytest.fixture(params=[True, False], ids=["bare", "non-bare"])
def local(request, tmp_path, clean_environment):
    return Local(tmp_path / "repo", bare=request.param)


@pytest.fixture
def bare(tmp_path, clean_environment):
    return Local(tmp_path / "repo", bare=True)


def test_good_content_is_stored_and_logged(local):
    repository = local.open()
    assert put(repository, KEY, DATA) is True
    stored = local.object(KEY)
    assert stored.read_bytes() == DATA
    assert stored.stat().st_mode & 0o777 == 0o444
    assert stored.parent.stat().st_mode & 0o777 == 0o555
    assert stored.parent.parent.stat().st_mode & 0o777 == 0o755
    assert local.logged(KEY) == "1"
    assert not local.temp(KEY).exists()
    assert local.leftovers() == []
    repository.close()
    assert local.journal() == {}
    log = subprocess.check_output(["git", "-C", local.path, "log", "--format=%s", "git-annex"], text=True)
    assert log == "update\nbranch created\n"


def test_content_that_is_there_is_not_received_again(local):
    repository = local.open()
    put(repository, KEY, DATA)
    (local.annex / "journal").rename(local.annex / "journal.old")
    assert put(repository, KEY, WRONG) == "already"
    assert local.journal() == {}


def test_content_that_comes_and_goes_meanwhile_is_no_modified_version(local, monkeypatch):
    repository = local.open()
    placed = local.place(KEY, DATA)
    present = repository.checkpresent

    def removed_meanwhile(key):
        placed.unlink(missing_ok=True)
        return present(key)

    monkeypatch.setattr(repository, "checkpresent", removed_meanwhile)
    assert put(repository, KEY, DATA) is True


def test_what_is_not_the_content_stays_in_its_place(local):
    repository = local.open()
    place = local.object(KEY)
    place.parent.mkdir(parents=True)
    place.symlink_to("nowhere")
    with pytest.raises(TransferRefused, match="modified version"):
        repository.put(KEY, None)
    assert place.is_symlink()


# annex.verify, key, what the sender says, content -> stored?  (spec: objects §12.1)
SIZED_WORM = Key(b"WORM-s1000-m1--f")
UNSIZED = Key(b"URL--http://x/")
WRONG_SIZE = Key(KEY.serialized.replace(b"-s1000", b"-s999"))
DECISIONS = [
    (True, KEY, True, DATA, True),
    (True, KEY, True, WRONG, False),
    (True, KEY, False, DATA, True),
    (True, KEY, False, WRONG, False),
    (True, KEY, None, DATA, True),
    (True, KEY, None, WRONG, False),
    (True, WRONG_SIZE, True, DATA, True),
    (True, WRONG_SIZE, False, DATA, False),
    (True, SIZED_WORM, True, WRONG, True),
    (True, SIZED_WORM, True, WRONG[1:], False),
    (True, UNSIZED, True, WRONG, True),
    (True, Key(b"NOBODY-s3--x"), True, b"abc", True),
    (True, Key(b"NOBODY-s3--x"), True, b"ab", False),
    (False, KEY, True, WRONG, True),
    (False, KEY, True, WRONG[1:], True),
    (False, KEY, False, WRONG, False),
    (False, KEY, None, WRONG, False),
    (False, KEY, None, DATA, True),
]


@pytest.mark.parametrize(("verify", "key", "valid", "data", "stored"), DECISIONS)
def test_decisions(bare, verify, key, valid, data, stored):
    bare.config(**{"annex.verify": str(verify).lower()})
    repository = bare.open()
    assert put(repository, key, data, valid) is stored
    assert repository.checkpresent(key) is stored
    assert bare.logged(key) == ("1" if stored else None)
    assert not bare.temp(key).exists()
    assert [name for name in bare.leftovers() if "failed" not in name and "lck" in name] == []


@pytest.mark.parametrize("verify", ["true", "false"])
def test_resumed_content_is_verified_from_its_start(bare, verify):
    bare.config(**{"annex.verify": verify})
    repository = bare.open()
    bare.set_temp(KEY, DATA[:300])
    with repository.put(KEY, None) as upload:
        assert upload.offset == 300
        assert upload.receive(700, BytesSource(DATA[300:]), lambda: True)
    assert bare.object(KEY).read_bytes() == DATA
    other = sha256_key(WRONG)
    bare.set_temp(other, DATA[:300])
    assert put(repository, other, WRONG) is False
    assert not bare.temp(other).exists()


def test_a_complete_temp_file_needs_no_more_data(bare):
    bare.set_temp(KEY, DATA)
    with bare.open().put(KEY, None) as upload:
        assert upload.offset == 1000
        assert upload.receive(0, BytesSource(b""), lambda: True)
    assert bare.object(KEY).read_bytes() == DATA


@pytest.mark.parametrize("key", [KEY, SIZED_WORM, UNSIZED, Key(b"NOBODY--x")])
def test_a_temp_file_that_cannot_be_built_upon_is_replaced(bare, key):
    """Larger than the key, or of a backend that would not notice a wrong start (R7, R9)."""
    bare.set_temp(key, WRONG + b"more")
    with bare.open().put(key, None) as upload:
        assert upload.offset == 0
        assert bare.temp(key).read_bytes() == WRONG + b"more"  # until there is something better
        assert upload.receive(1000, BytesSource(DATA), lambda: True)
    assert bare.object(key).read_bytes() == DATA


def test_no_data_and_invalid_only_asks_for_the_offset(bare):
    bare.set_temp(KEY, DATA[:300])
    with bare.open().put(KEY, None) as upload:
        assert not upload.receive(0, BytesSource(b""), lambda: False)
    assert bare.temp(KEY).read_bytes() == DATA[:300]
    assert not bare.object(KEY).exists()


def test_what_arrived_before_a_hangup_is_kept(bare):
    repository = bare.open()
    with pytest.raises(Hangup), repository.put(KEY, b"file") as upload:
        upload.receive(1000, BytesSource(DATA[:400]), lambda: True)
    assert bare.temp(KEY).read_bytes() == DATA[:400]
    assert (bare.annex / "transfer/failed/download" / CLIENT.decode() / os.fsdecode(KEY.filename)).exists()
    with repository.put(KEY, b"file") as upload:
        assert upload.offset == 400
        assert upload.receive(600, BytesSource(DATA[400:]), lambda: True)
    assert bare.object(KEY).read_bytes() == DATA
    assert not any((bare.annex / "transfer/failed/download" / CLIENT.decode()).iterdir())


def test_an_upload_without_data_leaves_no_trace(bare):
    with bare.open().put(KEY, None):
        pass
    assert bare.leftovers() == []
    assert not bare.temp(KEY).exists()


def test_two_uploads_of_one_key_exclude_each_other(bare):
    with bare.open().put(KEY, None):
        with pytest.raises(TransferRefused, match="in progress"):
            bare.open(UUID(b"another")).put(KEY, None)
        other = sha256_key(WRONG)
        assert put(bare.open(UUID(b"another")), other, WRONG) is True


def test_content_stored_by_somebody_else_meanwhile(bare):
    with bare.open().put(KEY, None) as upload:

        def appear():
            bare.place(KEY, DATA)
            return True

        assert upload.receive(1000, BytesSource(DATA), appear)
    assert bare.logged(KEY) == "1"
    assert not bare.temp(KEY).exists()


def test_data_present(bare):
    with bare.open().put(KEY, None) as upload:
        assert not upload.check_stored()
        bare.place(KEY, DATA)
        assert upload.check_stored()
    assert bare.logged(KEY) == "1"
    assert bare.leftovers() == []


REFUSALS = [
    ({"annex.securehashesonly": "true"}, Key(b"MD5-s1--x"), "securehashesonly blocked transfer of MD5 key"),
    ({"annex.securehashesonly": "true"}, Key(b"WORM-s1--x"), "securehashesonly"),
    ({"annex.diskreserve": "999 PB"}, KEY, "not enough free space"),
    ({}, Key(b"SHA256-s%d--x" % 10**20), "not enough free space"),
    ({}, Key(b"WORM-s1--" + b"n" * 240), "too long"),
]


@pytest.mark.parametrize(("config", "key", "reason"), REFUSALS)
def test_what_cannot_succeed_is_refused_before_any_data(bare, config, key, reason):
    bare.config(**config)
    with pytest.raises(TransferRefused, match=reason):
        bare.open().put(key, None)
    assert bare.leftovers() == []


def test_secure_keys_pass_the_gate(bare):
    bare.config(**{"annex.securehashesonly": "true"})
    assert put(bare.open(), KEY, DATA) is True


def test_without_a_client_uuid_nothing_is_received(bare):
    with pytest.raises(TransferRefused):
        bare.open(UUID(b"")).put(KEY, None)


def test_config_that_changes_during_a_session_counts(bare):
    repository = bare.open()
    assert put(repository, KEY, DATA) is True
    bare.config(**{"annex.securehashesonly": "true"})
    with pytest.raises(TransferRefused):
        repository.put(Key(b"MD5-s1--x"), None)


def test_a_repository_with_pidlock_is_not_written_to(bare):
    bare.config(**{"annex.pidlock": "true"})
    with pytest.raises(RepositoryError, match="pidlock"):
        bare.open().put(KEY, None)


def test_a_modified_thin_object_is_not_replaced(tmp_path, clean_environment):
    local = Local(tmp_path / "repo", **{"annex.thin": "true"})
    local.place(KEY, WRONG)
    repository = local.open()
    assert not repository.checkpresent(KEY)
    with pytest.raises(TransferRefused, match="modified"):
        repository.put(KEY, None)
    assert local.object(KEY).read_bytes() == WRONG


def test_a_link_in_place_of_the_temp_file_is_not_followed(bare):
    target = bare.path.parent / "target"
    target.write_bytes(b"precious")
    bare.temp(KEY).parent.mkdir(parents=True)
    bare.temp(KEY).symlink_to(target)
    with pytest.raises((RepositoryError, OSError)):
        put(bare.open(), KEY, DATA)
    assert target.read_bytes() == b"precious"
    assert not bare.object(KEY).exists()


def test_the_object_directory_vanishing_between_its_making_and_the_rename(bare, monkeypatch):
    repository = bare.open()
    made = repository.permissions.make_directory
    vanished = []

    def make_and_lose(path):
        made(path)
        if b"/objects/" in path and len(vanished) < 3:
            vanished.append(path)
            os.rmdir(path)

    monkeypatch.setattr(type(repository.permissions), "make_directory", lambda self, path: make_and_lose(path))
    assert put(repository, KEY, DATA) is True
    assert len(vanished) == 3
    assert bare.object(KEY).read_bytes() == DATA


def test_temp_files_on_another_file_system(bare, monkeypatch):
    rename = os.rename

    def across(source, target):
        if b"/annex/tmp/" in source and b"/objects/" in target:
            raise OSError(18, "Invalid cross-device link")
        rename(source, target)

    monkeypatch.setattr(receive.os, "rename", across)
    assert put(bare.open(), KEY, DATA) is True
    assert bare.object(KEY).read_bytes() == DATA
    assert [p.name for p in bare.object(KEY).parent.iterdir()] == [bare.object(KEY).name]


FULL_DISK = """
import os, resource, sys
sys.path.insert(0, sys.argv[2])
import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from tests.annex.local import CLIENT, put
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.repository import LocalRepository
from tests.annex.test_receive import DATA, KEY
repository = LocalRepository(GitRepository(os.fsencode(sys.argv[1])), CLIENT)
resource.setrlimit(resource.RLIMIT_FSIZE, (500, resource.RLIM_INFINITY))
try:
    put(repository, KEY, DATA)
except OSError as reason:
    print(type(reason).__name__, reason.errno)
except Exception as reason:
    print(type(reason).__name__, reason)
"""


def test_a_full_disk_keeps_what_fits_and_shows_nothing(bare):
    root = os.path.dirname(os.path.dirname(os.path.dirname(__file__)))
    said = subprocess.check_output([sys.executable, "-c", FULL_DISK, bare.path, root], text=True)
    assert said.startswith("OSError 27")
    assert bare.temp(KEY).read_bytes() == DATA[:500]
    assert not bare.object(KEY).exists()
    assert put(bare.open(), KEY, DATA) is True
    assert bare.object(KEY).read_bytes() == DATA


def test_a_log_that_cannot_be_written_is_a_failure_although_the_content_stays(bare, monkeypatch):
    repository = bare.open()
    monkeypatch.setattr(type(repository), "record_presence", lambda *args: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(OSError, match="full"):
        put(repository, KEY, DATA)
    assert repository.checkpresent(KEY)
    assert [name for name in bare.leftovers() if name.startswith("lck")] == []


def test_work_directories_of_other_programs_go_with_the_content(bare):
    work = bare.annex / "tmp" / f"work.{os.fsdecode(KEY.filename)}"
    work.mkdir(parents=True)
    (work / "x").write_bytes(b"x")
    assert put(bare.open(), KEY, DATA) is True
    assert not work.exists()


def test_put_answers_already_have_as_an_exchange(bare):
    put(bare.open(), KEY, DATA)
    with bare.open().put(KEY, None) as answer:
        assert isinstance(answer, AlreadyHave)


def test_without_a_transfer_lock_nothing_is_received(bare, monkeypatch):
    monkeypatch.setattr(transfers.Transfer, "is_locked", property(lambda self: False))
    with pytest.raises(TransferRefused, match="not writable"):
        bare.open().put(KEY, None)


def test_content_removed_before_it_is_logged_is_not_logged_as_present(bare, monkeypatch):
    store = receive.move_into_place
    other = bare.open()

    def store_and_lose(repository, key, path):
        store(repository, key, path)
        assert other.remove(key)

    monkeypatch.setattr(receive, "move_into_place", store_and_lose)
    put(bare.open(), KEY, DATA)
    assert not bare.open().checkpresent(KEY)
    assert bare.logged(KEY) in (None, "0")


def test_content_stored_before_its_removal_is_logged_is_logged_as_present(bare):
    repository, other = bare.open(), bare.open()
    put(repository, KEY, DATA)
    prune = repository.objects.prune
    returned = []

    def prune_and_return(directory):
        prune(directory)
        if not returned:
            returned.append(directory)
            assert put(other, KEY, DATA) is True

    class Objects:
        def __getattr__(self, name):
            return prune_and_return if name == "prune" else getattr(other.objects, name)

    repository.objects = Objects()
    assert repository.remove(KEY)
    assert returned
    assert bare.object(KEY).read_bytes() == DATA
    assert bare.logged(KEY) == "1"


@pytest.mark.parametrize(("data", "stored"), [(DATA, True), (WRONG, False)])
def test_a_vurl_key_is_verified_by_the_keys_that_the_branch_has_for_it(bare, data, stored):
    vurl = Key(b"VURL--http://example.com/file")
    repository = bare.open()
    branch = repository.branch
    branch.change(branch.key_log(vurl, b".log.ek"), lambda _: b"1s 1 %s\n" % KEY.serialized, repository.uuid)
    assert branch.commit()
    assert put(repository, vurl, data) is stored
    assert repository.checkpresent(vurl) is stored
    bare.config(**{"annex.securehashesonly": "true"})
    if not stored:
        assert put(bare.open(), vurl, DATA) is True
