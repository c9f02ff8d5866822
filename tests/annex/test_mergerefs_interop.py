"""Real git-annex and annexshell merging refs into the same branch, one after the other and both at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from annexshell.annex import git
from tests.annex.branches import HERE, KEY, LOG, REF, THERE, Annex, line
from tests.annex.test_commit import in_step
from tests.annex.test_mergerefs import ORIGIN, OTHER, SYNCED, merged, push_to, update

pytestmark = pytest.mark.interop

THIRD = b"33333333-3333-4333-8333-333333333333"
NAMES = THERE + b" b timestamp=1s\n" + THIRD + b" c timestamp=1s\n"

# Updates as often as it can, until it is told to stop.
UPDATER = """
import os, select, sys
from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.permissions import Permissions
repo = GitRepository(os.fsencode(sys.argv[1]))
with Branch(repo, Permissions(repo)) as branch:
    count = 0
    while not select.select([0], [], [], 0)[0]:
        count += branch.update()
    print(count)
"""


class Real:
    """The real git-annex at work in a repository."""

    def __init__(self, path: Path, git_annex_path: Path) -> None:
        self.path = path
        self.env = {**os.environ, "PATH": f"{git_annex_path}{os.pathsep}{os.environ['PATH']}"}

    def __call__(self, *words: str, check: bool = True, **environment: str) -> str:
        done = subprocess.run(
            ["git", "annex", *words],
            cwd=self.path,
            env={**self.env, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout + done.stderr


@pytest.fixture
def real(annex: Annex, git_annex_path: Path) -> Real:
    """For a repository that has a location log and all that git-annex wants to have there."""
    real = Real(annex.path, git_annex_path)
    real("init", "a")
    annex.push({"uuid.log": annex.tree()["uuid.log"] + NAMES, LOG: line(100, 1, HERE)})
    real("merge")
    assert in_step(annex)
    return real


def locations(real: Real) -> set[str]:
    listing = real("whereis", f"--key={KEY.serialized.decode()}")
    return {name for name in "abc" if f"-- {name}" in listing or f"-- [{name}]" in listing}


def arrange(annex: Annex, how: str) -> None:
    """What clients did before anybody looks."""
    base = annex.tip()
    synced = push_to(annex, SYNCED, {LOG: line(100, 1, HERE) + line(90, 1, THERE), "proxy.log": b"p\n"})
    if how == "ahead":
        push_to(annex, ORIGIN, {LOG: line(100, 1, HERE) + line(90, 1, THERE) + line(95, 1, THIRD)}, synced)
    else:
        push_to(annex, ORIGIN, {LOG: line(95, 1, THIRD)}, base)
    if how == "several":
        push_to(annex, "refs/tags/git-annex", {"a.log": b"a\n"}, base)
    if how == "diverged":
        annex.push({"ours.log": b"o\n"})
    if how == "journal":
        annex.record()
        annex.record(uuid=THIRD, present=False)


HOW = pytest.mark.parametrize("how", ["ahead", "several", "diverged", "journal"])


@HOW
@pytest.mark.parametrize("forgetful", [False, True], ids=["", "mergedrefs lost"])
def test_git_annex_after_us(annex, real, how, forgetful):
    arrange(annex, how)
    assert update(annex)
    tip, tree = annex.tip(), annex.tree()
    assert tree["proxy.log"] == b"p\n"
    if forgetful:
        (annex.directory / "mergedrefs").unlink()
    assert locations(real) == ({"a", "b"} if how == "journal" else {"a", "b", "c"})
    real("info", "--fast")
    real("merge")
    assert (annex.tip(), annex.tree()) == (tip, tree)
    assert in_step(annex)
    real("numcopies", "3")
    assert annex.tree() == {**tree, "numcopies.log": annex.tree()["numcopies.log"]}
    assert in_step(annex)
    assert not update(annex)


@HOW
def test_we_after_git_annex(annex, real, how, monkeypatch):
    arrange(annex, how)
    real("merge")
    tip = annex.tip()
    with monkeypatch.context() as patch:
        patch.setattr(git, "output", None)
        assert not update(annex)
    (annex.directory / "mergedrefs").unlink()
    assert not update(annex)
    assert annex.tip() == tip
    assert SYNCED in merged(annex)
    assert not annex.commit()


@HOW
def test_both_do_the_same(annex, real, how, tmp_path, git_annex_path):
    arrange(annex, how)
    twin = Annex.__new__(Annex)
    twin.path = tmp_path / "twin"
    shutil.copytree(annex.path, twin.path, symlinks=True)
    Real(twin.path, git_annex_path)("merge")
    assert update(annex)
    assert annex.tree() == twin.tree()
    for what in ("%P", "%s"):
        assert annex.git("log", "-1", f"--format={what}", REF) == twin.git("log", "-1", f"--format={what}", REF)


def test_forgetting(annex, real, tmp_path, git_annex_path, capfd):
    """Only git-annex knows how to forget; afterwards we can merge what others did who have forgotten too."""
    old = annex.tip()
    subprocess.run(["git", "clone", "-q", annex.path, tmp_path / "clone"], check=True)
    clone = Real(tmp_path / "clone", git_annex_path)
    clone("init", "clone")
    clone("forget", "--force")
    subprocess.run(["git", "-C", clone.path, "push", "-qf", "origin", "git-annex:synced/git-annex"], check=True)
    assert not update(annex)
    assert "git annex forget" in capfd.readouterr().err
    assert annex.tip() == old
    assert SYNCED not in merged(annex)
    real("merge")
    assert annex.git("merge-base", "--is-ancestor", SYNCED, REF) == ""
    assert "transitions.log" in annex.tree()
    tip = annex.tip()
    assert not update(annex)
    clone("numcopies", "3")
    subprocess.run(["git", "-C", clone.path, "push", "-qf", "origin", "git-annex:synced/git-annex"], check=True)
    assert update(annex)
    assert annex.git("merge-base", tip, REF) == tip
    assert "numcopies.log" in annex.tree()
    # Somebody who has not heard of it.
    annex.git("update-ref", OTHER, annex.commit_with({"late.log": b"l\n"}, old))
    assert not update(annex)
    tip = annex.tip()
    real("merge")
    assert "late.log" in annex.tree() or annex.tip() == tip
    assert not update(annex)


def test_other_tuning(annex, real, tmp_path, git_annex_path):
    (tmp_path / "tuned").mkdir()
    subprocess.run(["git", "init", "-q", tmp_path / "tuned"], check=True)
    Real(tmp_path / "tuned", git_annex_path)("init", "tuned", "-c", "annex.tune.objecthash1=true")
    subprocess.run(["git", "-C", tmp_path / "tuned", "push", "-q", annex.path, f"git-annex:{SYNCED}"], check=True)
    tip = annex.tip()
    assert not update(annex)
    assert "tuned in incompatible way" in real("info", "--fast", check=False)
    assert annex.tip() == tip


def test_all_at_once(annex, real, tmp_path):
    """Clients push, git-annex commits and merges, and we merge, in two processes.

    Nobody pushes to the branch itself: git-annex may lose that.
    """
    rounds = 5
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    updaters = [
        subprocess.Popen(
            [sys.executable, "-c", UPDATER, annex.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for _ in range(2)
    ]
    said: set[bytes] = set()

    def push(name: str) -> None:
        """As a client does that has seen some version of the branch, and pushes when it is another one."""
        for number in range(rounds):
            said.add(line(number, 1, b"%s-%d" % (name.encode(), number)))
            clone = Annex.__new__(Annex)
            clone.path = tmp_path / f"{name}{number}"
            subprocess.run(["git", "clone", "-q", "--bare", annex.path, clone.path], check=True)
            clone.push({LOG: clone.tree()[LOG] + line(number, 1, b"%s-%d" % (name.encode(), number))})
            clone.git("push", "-q", "origin", f"{REF}:refs/remotes/{name}{number}/git-annex")

    def commit() -> None:
        for number in range(rounds):
            real("setpresentkey", KEY.serialized.decode(), f"{number:08}-3333-4333-8333-333333333333", "1")
            real("merge")

    threads = [threading.Thread(target=commit)]
    threads += [threading.Thread(target=push, args=(name,)) for name in ("p", "q")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    changes = [int(updater.communicate(b"\n")[0]) for updater in updaters]
    assert sum(changes) > 0
    update(annex)
    annex.commit()
    found = annex.tree()[LOG].splitlines(True)
    assert len(said) == 2 * rounds and said <= set(found)
    assert sum(b"-3333-4333-8333-333333333333" in text for text in found) == rounds
    assert annex.journal() == {}
    real("merge")
    tip = annex.tip()
    real("info", "--fast")
    assert not update(annex)
    assert annex.tip() == tip
    assert annex.git("fsck", "--strict", "--no-dangling") == ""
