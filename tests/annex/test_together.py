"""Several sessions storing, locking and removing the same few keys: what is logged in the end is what is there."""

from __future__ import annotations

import os
import random
import traceback

import pytest

from annexshell.annex.logs.location import locations
from annexshell.errors import NotLocked, TransferRefused
from annexshell.uuid import UUID
from tests.annex.local import Local, put, sha256_key

CONTENTS = [b"one" * 50, b"two" * 50, b"three" * 50]
KEYS = {sha256_key(content): content for content in CONTENTS}


def work(local: Local, seed: int, rounds: int) -> None:
    """Requests at random; everything but being in each other's way is a failure."""
    chance = random.Random(seed)
    repository = local.open(UUID(b"client-%d" % seed))
    for _ in range(rounds):
        key = chance.choice(list(KEYS))
        action = chance.randrange(4)
        try:
            if action == 0:
                repository.remove(key)
            elif action == 1:
                with repository.lockcontent(key):
                    # Nobody can have removed it, whatever the others do.
                    assert repository.checkpresent(key)
            else:
                assert put(repository, key, KEYS[key])
        except (NotLocked, TransferRefused):
            pass
    repository.close()


@pytest.mark.parametrize("version", [8, 10])
def test_the_log_is_true_in_the_end(tmp_path, clean_environment, version):
    local = Local(tmp_path / "repo", bare=True, version=version)
    local.open().branch.ensure_exists()
    children = []
    for seed in range(4):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(local, seed, 120)
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(pid)
    assert [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children] == [0, 0, 0, 0]
    repository = local.open()
    repository.close()
    for key, content in KEYS.items():
        present = repository.checkpresent(key)
        assert (repository.uuid in locations(repository.branch, key)) == present
        if present:
            assert local.object(key).read_bytes() == content
    assert [name for name in local.leftovers() if "failed" not in name] == []
    assert list((local.annex / "tmp").iterdir()) == []
