"""Several processes at work on one git-annex branch: what any of them was told is done can be found afterwards."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from annexshell.annex.logs import location
from annexshell.annex.unionmerge import union
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.annex.branches import REF, Annex, line

KEYS = [Key(b"SHA256E-s3--k%d" % number) for number in range(4)]

# Records keys in turn for uuids of its own, saying so afterwards, and commits now and then.
WORKER = """
import os, sys
from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.logs import location
from annexshell.annex.permissions import Permissions
from annexshell.key import Key
path, name, count, *keys = map(os.fsencode, sys.argv[1:])
repo = GitRepository(path)
with Branch(repo, Permissions(repo)) as branch:
    for number in range(int(count)):
        key = keys[number % len(keys)]
        uuid = b"%s-%d" % (name, number)
        location.set_presence(branch, Key(key), uuid, True)
        print(key.decode(), uuid.decode(), flush=True)
        if number % 7 == 6:
            branch.commit()
    branch.commit()
"""


def start_worker(annex: Annex, name: str, count: int) -> subprocess.Popen[str]:
    keys = [key.serialized.decode() for key in KEYS]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", WORKER, str(annex.path), name, str(count), *keys]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


def finish(worker: subprocess.Popen[str], status: int = 0) -> set[tuple[bytes, bytes]]:
    """The key and uuid of everything that the worker was told is recorded."""
    output = worker.communicate()[0]
    assert worker.returncode == status
    done = [said.split() for said in output.splitlines(True) if said.endswith("\n")]
    return {(key.encode(), uuid.encode()) for key, uuid in done}


def recorded(annex: Annex) -> set[tuple[bytes, bytes]]:
    """The key and uuid of everything that the branch has; nothing may be left in the journal."""
    annex.commit()
    assert annex.journal() == {}
    with annex.open() as branch:
        return {(key.serialized, uuid) for key in KEYS for uuid in location.locations(branch, key)}


class Pusher(threading.Thread):
    """A client that adds lines to the same logs, and pushes."""

    def __init__(self, annex: Annex, directory: Path, count: int) -> None:
        super().__init__()
        self.annex = annex
        subprocess.run(["git", "clone", "-q", "--bare", annex.path, directory], check=True)
        self.clone = Annex.__new__(Annex)
        self.clone.path = directory
        self.count = count
        self.pushed: set[tuple[bytes, bytes]] = set()

    def run(self) -> None:
        for number in range(self.count):
            uuid = UUID(b"pushed-%d" % number)
            while not self.push(uuid):
                pass
            self.pushed |= {(key.serialized, uuid) for key in KEYS}

    def push(self, uuid: UUID) -> bool:
        self.clone.git("fetch", "-q", "origin", f"+{REF}:{REF}")
        tree = self.clone.tree()
        with self.annex.open() as branch:
            paths = [branch.key_log(key).decode() for key in KEYS]
        new = self.clone.commit_with({path: union(line(5, 1, uuid), tree.get(path, b"")) for path in paths})
        command = ["git", "--git-dir", self.clone.path, "push", "-q", "origin", f"{new}:{REF}"]
        return subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0


def test_we_and_pushes(annex, tmp_path):
    annex.record()
    assert annex.commit()
    pusher = Pusher(annex, tmp_path / "clone", 5)
    workers = [start_worker(annex, f"worker{number}", 40) for number in range(3)]
    pusher.start()
    told = set.union(*map(finish, workers))
    pusher.join()
    assert len(told) == 120 and len(pusher.pushed) == 20
    assert told | pusher.pushed <= recorded(annex)
    merged = annex.git("log", "--format=%P", "git-annex").splitlines()
    assert all(len(parents.split()) <= 1 for parents in merged), "every commit builds on the one before"
    annex.git("fsck", "--strict")


def test_we_and_pushes_and_sigkill(annex, tmp_path):
    annex.record()
    assert annex.commit()
    pusher = Pusher(annex, tmp_path / "clone", 4)
    pusher.start()
    told = set()
    chance = random.Random(1)
    for number in range(6):
        worker = start_worker(annex, f"victim{number}", 10**6)
        first = worker.stdout.readline()
        time.sleep(chance.uniform(0, 0.25))
        worker.kill()
        told |= finish(worker, -9) | {tuple(first.encode().split())}
    pusher.join()
    assert len(told) > 6
    assert told | pusher.pushed <= recorded(annex)


@pytest.mark.interop
def test_we_and_git_annex(annex, git_annex_path):
    """git-annex changes the same logs, and commits in its ways what any of us has written."""
    environment = {**os.environ, "PATH": f"{git_annex_path}{os.pathsep}{os.environ['PATH']}"}

    def git_annex(*words: str, **how: object) -> subprocess.Popen[str]:
        command = ["git-annex", *words]
        return subprocess.Popen(command, cwd=annex.path, env=environment, text=True, **how)

    assert git_annex("init", "-q", "real").wait() == 0
    workers = [start_worker(annex, f"worker{number}", 40) for number in range(2)]
    told = set()
    for number in range(3):
        batch = git_annex("setpresentkey", "--batch", "-q", stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
        uuids = [f"real-{number}-{n}" for n in range(10)]
        batch.communicate("".join(f"{key.serialized.decode()} {uuid} 1\n" for uuid in uuids for key in KEYS))
        assert batch.returncode == 0
        told |= {(key.serialized, uuid.encode()) for uuid in uuids for key in KEYS}
        assert git_annex("merge", "-q").wait() == 0
    told |= set.union(*map(finish, workers))
    assert len(told) == 200
    assert told <= recorded(annex)
    tip = annex.tip()
    whereis = git_annex(
        "whereis", "--key", KEYS[0].serialized.decode(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    seen = whereis.communicate()[0]
    assert all(uuid.decode() in seen for key, uuid in told if key == KEYS[0].serialized)
    assert annex.tip() == tip, "git-annex finds nothing to do"
