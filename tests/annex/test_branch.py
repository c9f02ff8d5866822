"""Reading and changing files of the git-annex branch."""

from __future__ import annotations

import os
import subprocess
import sys
import threading

import pytest

from annexshell.annex import branchref
from annexshell.annex.branch import private_uuids
from annexshell.annex.config import Config
from annexshell.annex.inodecache import InodeCache
from annexshell.annex.logs import clock, location, uuidmap
from annexshell.key import Key
from tests.annex.branches import HERE, KEY, LOG, THERE, Annex, line

JOURNALED = LOG.replace("/", "_")
OTHER_KEY = Key(b"SHA256E-s3--k2")


@pytest.fixture
def at(monkeypatch):
    """Sets the clock."""
    return lambda time: monkeypatch.setenv("GIT_ANNEX_VECTOR_CLOCK", str(time))


def read(annex: Annex, path: str = LOG) -> bytes:
    with annex.open() as branch:
        return branch.read(path.encode())


def test_the_journal_hides_the_branch(annex):
    annex.push({LOG: line(1, 1, HERE), "uuid.log": b"u x timestamp=1s\n"})
    annex.leave_in_journal(JOURNALED, line(2, 0, HERE))
    assert read(annex) == line(2, 0, HERE)
    assert read(annex, "uuid.log") == b"u x timestamp=1s\n"
    assert read(annex, "trust.log") == b""
    assert not (annex.directory / "index").exists()


def test_the_index_is_never_read(annex, at):
    at(100)
    annex.record()
    assert annex.commit()
    index = {"GIT_INDEX_FILE": str(annex.directory / "index")}
    annex.git("update-index", "--index-info", input=f"0 {'0' * 40}\t{LOG}\n".encode(), **index)
    assert annex.git("ls-files", "-s", **index) == ""
    assert read(annex) == line(100, 1, HERE)


def test_first_and_following_changes(annex, at):
    at(100)
    annex.record()
    assert annex.journal() == {JOURNALED: line(100, 1, HERE)}
    at(105)
    annex.record(uuid=THERE)
    at(103)
    annex.record(uuid=THERE, present=False)
    annex.record(OTHER_KEY)
    assert annex.journal()[JOURNALED] == line(100, 1, HERE) + line(106, 0, THERE)
    assert len(annex.journal()) == 2


def test_what_is_recorded_already_is_not_touched(annex, at):
    at(100)
    annex.record()
    before = InodeCache.of_file(os.fsencode(annex.directory / "journal" / JOURNALED))
    at(200)
    annex.record()
    assert InodeCache.of_file(os.fsencode(annex.directory / "journal" / JOURNALED)) == before
    assert annex.commit()
    annex.record()
    assert annex.journal() == {}


def test_a_change_makes_the_branch(annex):
    annex.record()
    assert annex.git("log", "-1", "--format=%s|%an", "git-annex") == "branch created|Tester"
    assert annex.tree() == {}
    assert annex.git("rev-parse", "git-annex^{tree}") == "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


def test_the_branch_is_made_from_that_of_origin(annex, at):
    at(5)
    sha = annex.commit_with({LOG: line(10, 1, THERE)})
    annex.git("update-ref", "refs/remotes/origin/git-annex", sha)
    assert read(annex) == line(10, 1, THERE)
    annex.record()
    assert annex.tip() == sha
    assert annex.journal() == {JOURNALED: line(5, 1, HERE) + line(10, 1, THERE)}


def test_creating_the_branch_loses_to_a_push(annex, monkeypatch):
    pushed = []
    monkeypatch.setattr(branchref, "empty_tree", lambda repo: _push_first(annex, pushed, branchref_empty_tree(repo)))
    annex.record()
    assert [annex.tip()] == pushed


branchref_empty_tree = branchref.empty_tree


def _push_first(annex, pushed, tree):
    pushed.append(annex.push({LOG: line(10, 1, THERE)}))
    return tree


def test_a_change_keeps_what_was_pushed_under_the_journal(annex, at):
    at(100)
    annex.record()
    annex.push({LOG: line(50, 1, THERE) + line(40, 0, HERE)})
    at(101)
    annex.record(present=False)
    assert annex.journal()[JOURNALED] == line(101, 0, HERE) + line(50, 1, THERE)


def test_a_change_replaces_what_cannot_be_read(annex, at):
    at(100)
    annex.push({LOG: b"rubbish\n\n" + line(50, 1, THERE).rstrip() + b"\r\n" + b"5s 2 x\nno line end"})
    annex.record()
    assert annex.journal()[JOURNALED] == line(100, 1, HERE) + line(50, 1, THERE)


def test_threads_changing_one_log_lose_nothing(annex):
    uuids = [b"%08d-0000-4000-8000-000000000000" % number for number in range(24)]
    with annex.open() as branch:
        threads = [
            threading.Thread(
                target=lambda part: [location.set_presence(branch, KEY, u, True) for u in part], args=(part,)
            )
            for part in (uuids[0::3], uuids[1::3], uuids[2::3])
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert location.locations(branch, KEY) == uuids


def test_one_level_of_hash_directories(annex):
    annex.config(**{"annex.tune.branchhash1": "true"})
    annex.record()
    assert list(annex.journal()) == ["5a2_SHA256E-s3--k1.log"]
    assert annex.commit()
    assert list(annex.tree()) == ["5a2/SHA256E-s3--k1.log"]


def test_a_private_repository_leaves_no_trace_in_public(annex, at):
    at(100)
    annex.config(**{"annex.private": "true"})
    annex.push({LOG: line(50, 1, THERE)})
    tip = annex.tip()
    annex.record()
    assert annex.journal() == {}
    assert not annex.commit()
    assert annex.tip() == tip
    with annex.open() as branch:
        assert location.locations(branch, KEY) == [HERE, THERE]
    # Another's line goes to the public journal, without ours.
    annex.record(uuid=THERE, present=False)
    assert annex.journal() == {JOURNALED: line(100, 0, THERE)}
    with annex.open() as branch:
        assert location.locations(branch, KEY) == [HERE]
    annex.record(present=False)
    with annex.open() as branch:
        assert location.locations(branch, KEY) == []
    assert annex.journal() == {JOURNALED: line(100, 0, THERE)}
    assert annex.commit()
    assert HERE not in annex.tree()[LOG]
    private = (annex.directory / "journal-private" / JOURNALED).read_bytes()
    assert line(101, 0, HERE) in private
    annex.config(**{"annex.private": "false"})
    with annex.open() as branch:
        assert branch.read(LOG.encode()) == annex.tree()[LOG]


def test_who_is_private():
    config = Config(
        {
            b"annex.uuid": [b"own"],
            b"remote.a.annex-private": [b"true"],
            b"remote.a.annex-uuid": [b"a"],
            b"remote.b.annex-private": [b"true"],
            b"remote.b.annex-uuid": [b"x"],
            b"remote.b.annex-config-uuid": [b"b"],
            b"remote.c.annex-private": [b"false"],
            b"remote.c.annex-uuid": [b"c"],
            b"remote.d.annex-private": [b"true"],
        }
    )
    assert private_uuids(config) == {b"a", b"b"}
    assert private_uuids(Config({b"annex.uuid": [b"own"], b"annex.private": [None]})) == {b"own"}


def test_other_logs_are_changed_the_same_way(annex, at):
    at(10)
    with annex.open() as branch:
        for description in (b"one", b"two"):
            branch.change(
                uuidmap.UUIDS,
                lambda old, text=description: uuidmap.with_description(old, HERE, text, clock.now()),
                HERE,
            )
    assert annex.journal() == {"uuid.log": HERE + b" two timestamp=11s\n"}


def test_a_failing_change_leaves_everything_as_it_was(annex):
    with annex.open() as branch:
        with pytest.raises(ZeroDivisionError):
            branch.change(b"uuid.log", lambda old: b"%d" % (1 // 0), HERE)
        with branch.lock():
            pass
    assert annex.journal() == {}


def test_nothing_heavy_is_imported():
    heavy = [
        "typing",
        "dataclasses",
        "enum",
        "re",
        "contextlib",
        "subprocess",
        "signal",
        "logging",
        "json",
        "tempfile",
    ]
    code = f"""
import sys
before = set(sys.modules)
import annexshell.annex.branch, annexshell.annex.logs.location, annexshell.annex.logs.equivalent
print([name for name in {heavy} if name in sys.modules and name not in before])
"""
    command = [sys.executable, "-S", "-c", code]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    assert subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout == "[]\n"


@pytest.mark.parametrize("packed", [False, True])
def test_a_push_between_expecting_a_change_and_making_it_counts(annex, packed):
    annex.push({LOG: line(1, 1, THERE)})
    if packed:
        annex.git("pack-refs", "--all")
    with annex.open() as branch:
        branch.expect_change(LOG.encode())
        annex.push({LOG: line(1, 1, THERE) + line(2, 1, b"elsewhere")})
        location.set_presence(branch, KEY, HERE, True)
        assert set(location.locations(branch, KEY)) == {HERE, THERE, b"elsewhere"}
        branch.expect_change(LOG.encode())
        assert branch.commit()
        branch.expect_change(LOG.encode())
        assert len(location.locations(branch, KEY)) == 3
        location.set_presence(branch, KEY, HERE, False)
    assert annex.tree()[LOG].count(b" 1 ") == 3


def test_expecting_a_change_of_a_branch_that_does_not_exist(annex):
    with annex.open() as branch:
        branch.expect_change(LOG.encode())
        location.set_presence(branch, KEY, HERE, True)
        assert location.locations(branch, KEY) == [HERE]
