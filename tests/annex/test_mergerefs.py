"""Merging other refs into the branch: what is merged, what is not, and what others may do meanwhile."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell.annex import annexrefs, branchref, git, mergerefs
from annexshell.annex.catfile import CatFile
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RepositoryError, TemporaryFailure
from annexshell.key import Key
from tests import vectors
from tests.annex.branches import HERE, LOG, REF, THERE, Annex, line
from tests.annex.deaths import die_at
from tests.annex.test_commit import executable, in_step, index, no_rubbish
from tests.leftovers import descriptors, descriptors_before
from tests.vectors import to_bytes

SYNCED = "refs/heads/synced/git-annex"
ORIGIN = "refs/remotes/origin/git-annex"
OTHER = "refs/remotes/other/git-annex"
UUIDS = HERE + b" x timestamp=1s\n"


@pytest.fixture(autouse=True)
def at_100(clean_environment, monkeypatch):
    monkeypatch.setenv("GIT_ANNEX_VECTOR_CLOCK", "100")


@pytest.fixture
def annex(annex: Annex) -> Annex:
    """A repository whose branch has a location log, and an index in step with it."""
    annex.record()
    assert annex.commit()
    return annex


def update(annex: Annex) -> bool:
    with annex.open() as branch:
        return branch.update()


def push_to(annex: Annex, ref: str, files: dict[str, bytes], parent: str | None = None) -> str:
    """A commit that a client made on top of the branch, or of PARENT, and pushed to another ref."""
    new = annex.commit_with(files, parent)
    annex.git("update-ref", ref, new)
    return new


def history(annex: Annex) -> list[str]:
    """Subject and parents of the branch's last commit."""
    subject, *parents = annex.git("log", "-1", "--format=%s%n%P", REF).split("\n")
    return [subject, *"".join(parents).split()]


def merged(annex: Annex) -> dict[str, str]:
    """The refs that are known to be merged."""
    file = annex.directory / "mergedrefs"
    text = file.read_text() if file.exists() else ""
    assert text[-1:] in ("", "\n")
    return {name: id for id, name in (row.split("\t") for row in text.splitlines())}


def commands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The git commands that are run from now on."""
    ran = []
    run = git.output

    def output(repo, *arguments, **how):
        ran.append(arguments[0].decode())
        return run(repo, *arguments, **how)

    monkeypatch.setattr(git, "output", output)
    return ran


# What is merged


def test_a_ref_that_is_ahead(annex):
    before = index(annex)
    pushed = push_to(annex, SYNCED, {"proxy.log": b"p\n"})
    assert update(annex)
    assert annex.tip() == pushed
    assert index(annex) == before
    assert merged(annex) == {SYNCED: pushed}
    assert no_rubbish(annex)
    annex.record(present=False)
    assert annex.commit()
    assert annex.tree() == {LOG: line(100, 1, HERE) + line(101, 0, HERE), "proxy.log": b"p\n"}
    assert in_step(annex)


def test_a_ref_that_has_diverged(annex):
    old = annex.tip()
    push_to(annex, SYNCED, {LOG: line(90, 1, THERE), "theirs.log": b"t\n"})
    annex.push({LOG: line(100, 1, HERE) + line(80, 1, b"u"), "ours.log": b"o\n"})
    tip, synced = annex.tip(), annex.git("rev-parse", SYNCED)
    assert tip != old
    annex.config(**{"annex.commitmessage": "not for merges"})
    assert update(annex)
    assert history(annex) == ["merging synced/git-annex into git-annex", tip, synced]
    assert annex.tree() == {
        LOG: line(100, 1, HERE) + line(80, 1, b"u") + line(90, 1, THERE),
        "theirs.log": b"t\n",
        "ours.log": b"o\n",
    }
    assert in_step(annex)
    assert not update(annex)
    assert annex.commit() is False


def test_several_refs(annex):
    base = annex.tip()
    refs = [SYNCED, "refs/odd/x/git-annex", ORIGIN, OTHER, "refs/tags/git-annex"]
    for number, ref in enumerate(refs):
        push_to(annex, ref, {f"{number}.log": b"x\n"}, base)
    annex.git("update-ref", "refs/remotes/third/git-annex", ORIGIN)
    annex.git("update-ref", "refs/heads/not-git-annex", OTHER)
    assert update(annex)
    subject, *parents = history(annex)
    assert subject == (
        "merging synced/git-annex refs/odd/x/git-annex origin/git-annex other/git-annex refs/tags/git-annex"
        " into git-annex"
    )
    assert parents == [base, *(annex.git("rev-parse", ref) for ref in refs)]
    assert set(annex.tree()) == {LOG, *(f"{number}.log" for number in range(5))}
    assert in_step(annex)


def test_a_ref_that_has_all_the_others(annex):
    first = push_to(annex, ORIGIN, {"a.log": b"a\n"})
    last = push_to(annex, SYNCED, {"b.log": b"b\n"}, first)
    assert update(annex)
    assert annex.tip() == last
    assert merged(annex) == {ORIGIN: first, SYNCED: last}


def test_many_refs(annex, monkeypatch):
    monkeypatch.setattr(mergerefs, "_AT_A_TIME", 3)
    base = annex.tip()
    for number in range(8):
        push_to(annex, f"refs/remotes/r{number}/git-annex", {f"{number}.log": b"x\n"}, base)
    assert update(annex)
    assert len(annex.tree()) == 9
    assert len(merged(annex)) == 8
    assert annex.git("rev-list", "--count", "--min-parents=2", REF) == "3"
    assert in_step(annex)
    assert not update(annex)


@pytest.mark.parametrize("row", vectors.load("branch-union-merge"), ids=lambda row: row["name"])
def test_unions(annex, row):
    base = annex.tip()
    remote = {} if row["remote"] is None else {"uuid.log": to_bytes(row["remote"])}
    push_to(annex, ORIGIN, {"other.log": b"x\n", **remote})
    local = {} if row["local"] is None else {"uuid.log": to_bytes(row["local"])}
    annex.git("update-ref", REF, annex.commit_with({"ours.log": b"x\n", **local}, base))
    assert update(annex)
    assert annex.tree()["uuid.log"] == to_bytes(row["merged"])


LINES = st.dictionaries(
    st.sampled_from(["a.log", "b.log"]),
    st.sets(st.sampled_from([b"1\n", b"2\n", b"3\n"]), min_size=1).map(lambda lines: b"".join(sorted(lines))),
)


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES, LINES, LINES)
def test_nothing_is_lost(annex, ours, theirs, journaled):
    base = annex.tip()
    # Or else both may be the same commit.
    ours, theirs = {f"ours of {base}": b"0\n", **ours}, {f"theirs of {base}": b"0\n", **theirs}
    push_to(annex, OTHER, theirs, base)
    annex.git("update-ref", REF, annex.commit_with(ours, base))
    for name, content in journaled.items():
        annex.leave_in_journal(name, content)
    assert update(annex)
    tree = annex.tree()
    for files in (ours, theirs, journaled):
        for name, content in files.items():
            assert set(content.splitlines()) <= set(tree[name].splitlines())
    assert annex.journal() == {}
    assert in_step(annex)


def test_the_journal_is_committed_first(annex):
    """Journal, branch and ref all have something of the same file."""
    push_to(annex, SYNCED, {LOG: line(100, 1, HERE) + line(90, 1, b"synced")})
    annex.config(**{"annex.alwayscommit": "false"})
    annex.record(uuid=THERE)
    annex.push({LOG: line(100, 1, HERE) + line(80, 1, b"pushed")})
    tip = annex.tip()
    assert update(annex)
    assert {*annex.tree()[LOG].splitlines(True)} == {
        line(100, 1, HERE),
        line(100, 1, THERE),
        line(80, 1, b"pushed"),
        line(90, 1, b"synced"),
    }
    assert history(annex)[1:] == [tip, annex.git("rev-parse", SYNCED)]
    assert annex.journal() == {}
    assert in_step(annex)


def test_a_journal_that_waits_keeps_the_branch_from_just_moving(annex):
    annex.record(present=False)
    tip = annex.tip()
    pushed = push_to(annex, SYNCED, {"proxy.log": b"p\n"})
    assert update(annex)
    assert history(annex)[1:] == [tip, pushed]
    assert annex.tree() == {LOG: line(100, 1, HERE) + line(101, 0, HERE), "proxy.log": b"p\n"}
    assert in_step(annex)


def test_a_journal_alone_is_left_for_the_end_of_the_session(annex):
    annex.record(present=False)
    tip = annex.tip()
    assert not update(annex)
    assert annex.tip() == tip
    assert len(annex.journal()) == 1


def test_a_tag_with_an_object_of_its_own(annex):
    pushed = annex.commit_with({"proxy.log": b"p\n"})
    annex.git("tag", "-a", "-m", "tagged", "git-annex", pushed)
    annex.push({"ours.log": b"o\n"})
    assert update(annex)
    assert history(annex)[2:] == [pushed]
    assert not update(annex)


def test_another_name_of_a_ref(annex):
    pushed = push_to(annex, ORIGIN, {"proxy.log": b"p\n"})
    annex.git("symbolic-ref", "refs/remotes/again/git-annex", ORIGIN)
    annex.git("symbolic-ref", "refs/remotes/nowhere/git-annex", "refs/heads/missing")
    assert update(annex)
    assert annex.tip() == pushed


def test_packed_refs(annex):
    annex.git("tag", "-a", "-m", "peeled in packed-refs", "v1", REF)
    base = annex.tip()
    push_to(annex, ORIGIN, {"a.log": b"a\n"}, base)
    push_to(annex, OTHER, {"old.log": b"b\n"}, base)
    push_to(annex, "refs/heads/xgit-annex", {"not.log": b"c\n"}, base)
    annex.git("pack-refs", "--all")
    push_to(annex, OTHER, {"b.log": b"b\n"}, base)
    assert update(annex)
    assert set(annex.tree()) == {LOG, "a.log", "b.log"}


def test_refs_that_are_no_files(annex, monkeypatch):
    """A reftable: git is asked. (A repository of format 0 may have the setting without meaning it.)"""
    annex.config(**{"extensions.refstorage": "reftable"})
    pushed = push_to(annex, SYNCED, {"proxy.log": b"p\n"})
    ran = commands(monkeypatch)
    assert update(annex)
    assert annex.tip() == pushed
    assert ran == ["for-each-ref", "merge-base", "update-ref"]
    ran.clear()
    assert not update(annex)
    assert ran == ["for-each-ref"]


def test_both_ways_of_listing_agree(annex):
    for ref in (SYNCED, ORIGIN, OTHER, "refs/tags/git-annex", "refs/git-annex", "refs/a/b/c/d/git-annex"):
        annex.git("update-ref", ref, annex.tip())
    annex.git("pack-refs", "--all")
    push_to(annex, OTHER, {"a.log": b"a\n"})
    annex.git("symbolic-ref", "refs/remotes/s/git-annex", OTHER)
    repo = GitRepository(os.fsencode(annex.path))
    cat_file = CatFile(repo)
    by_hand = annexrefs.listed(repo, cat_file)
    annex.config(**{"extensions.refstorage": "reftable"})
    assert by_hand == annexrefs.listed(GitRepository(os.fsencode(annex.path)), cat_file)
    assert len(by_hand) == 8
    cat_file.close()


def test_a_linked_worktree(annex, tmp_path):
    annex.push({"ours.log": b"o\n"})
    annex.git("worktree", "add", "-q", "--detach", str(tmp_path / "linked"), REF)
    pushed = push_to(annex, SYNCED, {"proxy.log": b"p\n"})
    linked = Annex.__new__(Annex)
    linked.path = tmp_path / "linked"
    assert update(linked)
    assert annex.tip() == pushed
    assert (annex.directory / "mergedrefs").exists()


# What is not merged


def test_nothing_to_merge_costs_no_git(annex, monkeypatch):
    old = annex.tip()
    annex.git("update-ref", ORIGIN, old)
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    assert update(annex)
    annex.push({"b.log": b"b\n"})
    annex.git("pack-refs", "--all")
    annex.git("update-ref", OTHER, annex.tip())
    with annex.open() as branch:
        assert not branch.update()  # after which it is known that the first one is merged
    assert merged(annex)[ORIGIN] == old
    before = annex.tip(), descriptors_before()
    monkeypatch.setattr(git, "output", None)
    (annex.directory / "journal.lck").unlink()
    with annex.open() as branch:
        assert not branch.update()
        assert branch._cat_file._child is None
    assert (annex.tip(), descriptors()) == before
    assert not (annex.directory / "journal.lck").exists()


def test_merging_may_be_forbidden(annex, monkeypatch):
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    annex.config(**{"annex.merge-annex-branches": "false"})
    monkeypatch.setattr(annexrefs, "listed", None)
    assert not update(annex)


@pytest.mark.parametrize("file", ["mergedrefs", "ignoredrefs"])
def test_refs_that_others_have_seen(annex, file):
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    content = f"{pushed}\t{SYNCED}\n" if file == "mergedrefs" else f"refs/heads/odd\n{pushed}\n"
    (annex.directory / file).write_text(content)
    assert not update(annex)
    (annex.directory / file).write_text(content.replace(pushed, "rubbish\n\t\n"))
    assert update(annex)
    if file == "ignoredrefs":
        assert (annex.directory / file).read_text() == content.replace(pushed, "rubbish\n\t\n")


def test_two_refs_that_are_the_same_are_both_known_to_be_merged(annex, monkeypatch):
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    annex.git("update-ref", OTHER, pushed)
    assert update(annex)
    assert merged(annex) == {SYNCED: pushed, OTHER: pushed}
    push_to(annex, SYNCED, {"b.log": b"b\n"})
    assert update(annex)
    monkeypatch.setattr(git, "output", None)
    assert not update(annex)


def test_one_line_for_a_ref_in_mergedrefs(annex):
    (annex.directory / "mergedrefs").write_text(f"{'1' * 40}\t{SYNCED}\n{'2' * 40}\t{OTHER}\n")
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    assert update(annex)
    assert (annex.directory / "mergedrefs").read_text() == f"{pushed}\t{SYNCED}\n{'2' * 40}\t{OTHER}\n"


@pytest.mark.parametrize("ours", [b"", b"ForgetGitHistory 1s\n"])
@pytest.mark.parametrize("theirs", [b"ForgetGitHistory 1s\n", b"ForgetGitHistory 2s\n", b"Unknown 1s\n", b""])
def test_rewritten_histories(annex, capfd, ours, theirs):
    """A ref is merged only if its history was rewritten as often as ours."""
    base = annex.tip()
    if ours:
        annex.push({"transitions.log": ours})
    tip = annex.tip()
    push_to(annex, SYNCED, {"a.log": b"a\n", **({"transitions.log": theirs} if theirs else {})}, base)
    push_to(annex, OTHER, {"b.log": b"b\n"})
    assert update(annex)
    assert ("a.log" in annex.tree()) == (ours == theirs)
    assert "b.log" in annex.tree()
    assert annex.git("merge-base", tip, REF) == tip
    assert ("git annex forget" in capfd.readouterr().err) == (ours != theirs)
    assert (SYNCED in merged(annex)) == (ours == theirs)
    assert not (annex.directory / "ignoredrefs").exists()


def test_a_rewriting_that_has_begun(annex):
    annex.leave_in_journal("transitions.log", b"ForgetGitHistory 1s\n")
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    tip = annex.tip()
    assert not update(annex)
    assert annex.tip() == tip
    assert list(annex.journal()) == ["transitions.log"]


@pytest.mark.parametrize("ours", [(), ("objecthashlower",), ("objecthash1", "branchhash1")])
@pytest.mark.parametrize("theirs", ["", "ObjectHashLower", "OneLevelBranchHash,OneLevelObjectHash", "New"])
def test_tuning(annex, capfd, ours, theirs):
    annex.config(**{f"annex.tune.{name}": "true" for name in ours})
    log = THERE + b" fromList [%s] timestamp=1s\n" % theirs.encode()
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n", **({"difference.log": log} if theirs else {})})
    names = {"objecthashlower": "ObjectHashLower", "objecthash1": "OneLevelObjectHash"}
    same = {names.get(name, "OneLevelBranchHash") for name in ours} == set(filter(None, theirs.split(",")))
    assert update(annex) == same
    assert (annex.tip() == pushed) == same
    assert ("tuned" in capfd.readouterr().err) != same


@pytest.mark.parametrize("broken", ["missing", "blob", "rubbish", "empty", "directory"])
def test_a_broken_ref_does_not_keep_the_others_out(annex, broken, capfd):
    file = annex.path / ORIGIN
    file.parent.mkdir(parents=True)
    if broken == "directory":
        file.mkdir()
    else:
        blob = annex.git("hash-object", "-w", "--stdin", input=b"x")
        file.write_text(
            {"missing": "1" * 40 + "\n", "blob": blob + "\n", "rubbish": "rubbish\n", "empty": ""}[broken]
        )
    pushed = push_to(annex, OTHER, {"a.log": b"a\n"})
    assert update(annex)
    assert annex.tip() == pushed
    assert not update(annex)
    assert merged(annex) == {OTHER: pushed}
    assert "Traceback" not in capfd.readouterr().err


# A missing branch


def test_a_missing_branch_is_origins(tmp_path, clean_environment):
    annex = Annex(tmp_path / "new")
    pushed = push_to(annex, ORIGIN, {"uuid.log": UUIDS})
    other = push_to(annex, OTHER, {"a.log": b"a\n"}, pushed)
    assert update(annex)
    assert annex.tip() == other
    assert annex.tree() == {"uuid.log": UUIDS, "a.log": b"a\n"}


def test_a_missing_branch_is_that_of_origin_only(tmp_path, clean_environment):
    annex = Annex(tmp_path / "new")
    pushed = push_to(annex, ORIGIN, {"uuid.log": UUIDS, "transitions.log": b"ForgetGitHistory 1s\n"})
    assert update(annex)
    assert annex.tip() == pushed
    assert not update(annex)


def test_a_missing_branch_without_origin(tmp_path, clean_environment):
    annex = Annex(tmp_path / "new")
    assert not update(annex)
    assert annex.git("for-each-ref") == ""
    pushed = push_to(annex, SYNCED, {"uuid.log": UUIDS})
    assert update(annex)
    assert history(annex)[2:] == [pushed]
    assert annex.tree() == {"uuid.log": UUIDS}
    assert in_step(annex)


# Others at work


@pytest.mark.parametrize("ahead", [True, False], ids=["ahead", "diverged"])
@pytest.mark.parametrize("before", ["merge-base", "write-tree", "commit-tree", "update-ref"])
def test_a_push_meanwhile_is_kept(annex, monkeypatch, before, ahead):
    push_to(annex, SYNCED, {LOG: line(100, 1, HERE) + line(90, 1, THERE)})
    if not ahead:
        annex.push({"ours.log": b"o\n"})
    pushes = iter([b"a\n", b"b\n", b"c\n"])
    run = git.output

    def interrupted(repo, *arguments, **how):
        if arguments[0].decode() == before and (content := next(pushes, None)):
            annex.push({LOG: annex.tree()[LOG] + content, content.decode().strip(): content})
        return run(repo, *arguments, **how)

    monkeypatch.setattr(git, "output", interrupted)
    assert update(annex)
    tree = annex.tree()
    assert {line(100, 1, HERE), line(90, 1, THERE)} <= {*tree[LOG].splitlines(True)}
    for content in (b"a\n", b"b\n", b"c\n"):
        assert (content.decode().strip() in tree) == (content in tree[LOG].splitlines(True))
    assert annex.git("merge-base", "--is-ancestor", SYNCED, REF) == ""


def test_a_rewritten_branch_is_pushed_meanwhile(annex, monkeypatch):
    """What could be merged before cannot be merged any more."""
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    annex.push({"ours.log": b"o\n"})
    run = git.output

    def interrupted(repo, *arguments, **how):
        if arguments[0] == b"update-ref":
            monkeypatch.setattr(git, "output", run)
            annex.git("update-ref", REF, annex.commit_with({"transitions.log": b"ForgetGitHistory 1s\n"}))
        return run(repo, *arguments, **how)

    monkeypatch.setattr(git, "output", interrupted)
    assert not update(annex)
    assert set(annex.tree()) == {LOG, "ours.log", "transitions.log"}
    assert no_rubbish(annex)


def test_a_branch_that_never_stands_still(annex, monkeypatch):
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    annex.record(present=False)
    before = annex.tip(), index(annex), annex.journal()
    monkeypatch.setattr(mergerefs, "_ATTEMPTS", 3)
    monkeypatch.setattr(branchref, "move", lambda *_, **__: False)
    with pytest.raises(RepositoryError, match=f"cannot merge .* of {annex.path}"):
        update(annex)
    assert (annex.tip(), index(annex), annex.journal()) == before
    assert no_rubbish(annex)
    assert not (annex.directory / "mergedrefs").exists()


def test_a_journal_that_is_locked_for_long(annex, monkeypatch):
    monkeypatch.setattr(mergerefs, "_PATIENCE", 0.1)
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    with annex.open() as branch, branch.lock(), pytest.raises(TemporaryFailure, match="too long"):
        update(annex)
    program = "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, 2); print(flush=True); input()"
    command = [sys.executable, "-c", program, annex.directory / "journal.lck"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert holder.stdout.read(1) == b"\n"
    with pytest.raises(TemporaryFailure, match="too long"):
        update(annex)
    holder.communicate(b"\n")
    assert update(annex)


def test_a_journal_that_is_locked_for_a_moment(annex):
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    with annex.open() as holder, annex.open() as branch:
        with holder.lock():
            updating = threading.Thread(target=branch.update)
            updating.start()
            time.sleep(0.1)
            assert annex.tip() != pushed
        updating.join()
    assert annex.tip() == pushed


def test_two_at_once(annex):
    base = annex.tip()
    for number in range(3):
        push_to(annex, f"refs/remotes/r{number}/git-annex", {f"{number}.log": b"x\n"}, base)
    with annex.open() as one, annex.open() as two:
        both = [threading.Thread(target=branch.update) for branch in (one, two, one)]
        for thread in both:
            thread.start()
        for thread in both:
            thread.join()
    assert annex.git("rev-list", "--count", "--min-parents=2", REF) == "1"
    assert len(annex.tree()) == 4
    assert in_step(annex)


def test_hook(annex, tmp_path, capfd):
    seen = tmp_path / "seen"
    executable(
        annex.path / "hooks" / "post-update-annex", f"git --git-dir={annex.path} rev-parse {REF} >{seen}; echo hi"
    )
    for parent in (None, annex.tip()):  # ahead, then diverged
        push_to(annex, SYNCED, {f"{parent}.log": b"a\n"}, parent)
        assert update(annex)
        assert seen.read_text().strip() == annex.tip()
        assert capfd.readouterr().out == ""
    seen.unlink()
    assert not update(annex)
    assert not seen.exists()


def test_a_pidlock_is_not_ours_to_take(annex):
    annex.config(**{"annex.pidlock": "true"})
    assert not update(annex)
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    with pytest.raises(RepositoryError, match=r"annex\.pidlock"):
        update(annex)


# A git that is not well, a full disk, and processes that die


FAILURES = [
    *[(command, "exit 1") for command in ("merge-base", "diff-index", "update-index", "write-tree", "commit-tree")],
    *[(command, "echo rubbish") for command in ("diff-index", "write-tree", "commit-tree")],
    *[(command, "kill -9 $$") for command in ("merge-base", "update-index", "update-ref")],
]


@pytest.mark.parametrize(("command", "how"), FAILURES)
def test_a_git_that_fails(annex, tmp_path, monkeypatch, command, how):
    push_to(annex, SYNCED, {"a.log": b"a\n"})
    annex.record(present=False)
    before = annex.tip(), annex.tree(), index(annex), annex.journal(), descriptors_before()
    real = subprocess.run(["which", "git"], check=True, capture_output=True, text=True).stdout.strip()
    executable(
        tmp_path / "stub" / "git", f'for word; do case $word in {command}) {how}; exit;; esac; done; exec {real} "$@"'
    )
    monkeypatch.setattr(mergerefs, "_ATTEMPTS", 2)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "stub"), prepend=os.pathsep)
    with pytest.raises(RepositoryError, match="cannot merge other refs"):
        update(annex)
    monkeypatch.setenv("PATH", path)
    assert (annex.tip(), annex.tree(), index(annex), annex.journal(), descriptors()) == before
    assert no_rubbish(annex)
    assert not (annex.directory / "mergedrefs").exists()
    assert update(annex)
    assert set(annex.tree()) == {LOG, "a.log"}


def forked(function: Callable[[], object]) -> int:
    """What became of FUNCTION in a child: 0 if it was done, 1 if RepositoryError was raised, 2 for something else."""
    child = os.fork()
    if child == 0:
        status = 2
        try:
            function()
            status = 0
        except RepositoryError:
            status = 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("size", [0, 10, 60, 200, 1000])
def test_a_full_disk(annex, size):
    lines = b"".join(line(number, 1, b"%040d" % (number * 7919)) for number in range(60))
    push_to(annex, SYNCED, {"a.log": b"a\n", LOG: lines})
    annex.record(uuid=THERE)
    before = annex.tip(), annex.tree(), index(annex), annex.journal()

    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
        update(annex)

    status = forked(limited)
    assert status in (0, 1)
    if status == 1:
        assert (annex.tip(), annex.tree(), index(annex), annex.journal()) == before
        assert no_rubbish(annex)
        assert update(annex)
    assert status == 1 or size == 1000
    assert {*lines.splitlines(), line(100, 1, THERE).strip()} <= {*annex.tree()[LOG].splitlines()}


def test_a_repository_that_may_only_be_read(annex, tmp_path):
    """Whoever can only read is told so, and can go on reading."""
    for directory in (tmp_path, *tmp_path.parents[:3]):
        directory.chmod(directory.stat().st_mode | 0o055)
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    (annex.directory / "journal.lck").chmod(0o644)
    annex.git("config", "--global", "safe.directory", "*")

    def as_nobody():
        os.setgid(65534)
        os.setuid(65534)
        with annex.open() as branch:
            try:
                branch.update()
            finally:
                assert branch.read(os.fsencode(LOG)) == line(100, 1, HERE)

    assert forked(as_nobody) == 1
    assert annex.tip() != pushed


# Where a merge may be killed: before each of these.
DEADLY = [
    *[("git", command) for command in (b"merge-base", b"hash-object", b"update-index", b"diff-index")],
    *[("git", command) for command in (b"write-tree", b"commit-tree", b"update-ref")],
    ("os", "rename", 1),
    ("os", "unlink", 1),
    ("os", "rename", 2),
    ("os", "rename", 3),
]


PATHS = (b"/journal/", b"othertmp/index", b"othertmp/mergedrefs")


@pytest.mark.parametrize("point", DEADLY, ids=str)
@pytest.mark.parametrize("then", ["update", "push", "commit"])
def test_sigkill_loses_nothing(annex, point, then):
    push_to(annex, SYNCED, {LOG: line(100, 1, HERE) + line(90, 1, b"synced")})
    annex.record(uuid=THERE)
    annex.push({LOG: line(100, 1, HERE) + line(95, 1, b"pushed"), "uuid.log": UUIDS})

    def deadly():
        die_at(point, *PATHS)
        update(annex)

    assert forked(deadly) == -signal.SIGKILL
    with annex.open() as branch:
        assert line(100, 1, THERE) in branch.read(os.fsencode(LOG))
    if then == "push":
        annex.push({LOG: annex.tree()[LOG] + line(96, 1, b"pushed later")})
    elif then == "commit":
        annex.record(Key(b"SHA256E-s3--k2"))
        assert annex.commit()
    update(annex)
    annex.commit()
    assert {*annex.tree()[LOG].splitlines(True)} == {
        line(100, 1, HERE),
        line(100, 1, THERE),
        line(95, 1, b"pushed"),
        line(90, 1, b"synced"),
        *([line(96, 1, b"pushed later")] if then == "push" else []),
    }
    assert annex.journal() == {}
    assert annex.tree()["uuid.log"] == UUIDS
    assert not update(annex)
    annex.record(uuid=THERE, present=False)
    assert annex.commit()
    shutil.rmtree(annex.directory / "othertmp")  # of the one that was killed
    assert in_step(annex)


@pytest.mark.parametrize("point", [("git", b"merge-base"), ("git", b"update-ref"), ("os", "rename", 1)], ids=str)
def test_sigkill_when_the_branch_just_moves(annex, point):
    pushed = push_to(annex, SYNCED, {LOG: line(100, 1, HERE) + line(90, 1, b"synced")})

    def deadly():
        die_at(point, *PATHS)
        update(annex)

    assert forked(deadly) == -signal.SIGKILL
    assert update(annex) == (point[0] == "git")
    assert annex.tip() == pushed
    assert not update(annex)


def test_nobody_depends_on_mergedrefs(annex, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(annexrefs, "remember_merged", fail)
    pushed = push_to(annex, SYNCED, {"a.log": b"a\n"})
    assert update(annex)
    assert annex.tip() == pushed
    annex.push({"b.log": b"b\n"})
    assert not update(annex)
