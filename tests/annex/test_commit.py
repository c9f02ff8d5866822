"""Committing the journal: what is in the commit, and what others may do meanwhile."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.annex import branchref, commit, git, journal
from annexshell.errors import RepositoryError
from annexshell.key import Key
from tests.annex.branches import HERE, KEY, LOG, REF, THERE, Annex, line
from tests.annex.deaths import die_at
from tests.leftovers import descriptors, descriptors_before

JOURNALED = LOG.replace("/", "_")
UUIDS = HERE + b" x timestamp=1s\n"
OLD, NEW = line(50, 1, THERE), line(60, 0, THERE)


@pytest.fixture(autouse=True)
def at_100(clean_environment, monkeypatch):
    monkeypatch.setenv("GIT_ANNEX_VECTOR_CLOCK", "100")


def executable(path: Path, script: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("#!/bin/sh\n" + script + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def included(annex: Annex) -> str:
    return (annex.directory / "index.lck").read_text()


def index(annex: Annex) -> str:
    return annex.git("ls-files", "-s", GIT_INDEX_FILE=str(annex.directory / "index"))


def in_step(annex: Annex) -> bool:
    """Whether the index is that of the branch, and said to be."""
    listing = annex.git("ls-tree", "-r", "--format=%(objectmode) %(objectname) 0%x09%(path)", REF)
    return index(annex) == listing and included(annex) == annex.tip() + "\n" and no_rubbish(annex)


def no_rubbish(annex: Annex) -> bool:
    othertmp = annex.directory / "othertmp"
    return not othertmp.exists() or not list(othertmp.iterdir())


def test_a_commit(annex):
    annex.push({"uuid.log": UUIDS, "unknown/file": b"kept\n", "no line end": b"kept"})
    parent = annex.tip()
    annex.record()
    assert annex.tip() == parent, "nothing is committed before it is asked for"
    assert annex.commit()
    assert annex.journal() == {}
    assert annex.tree() == {
        LOG: line(100, 1, HERE),
        "uuid.log": UUIDS,
        "unknown/file": b"kept\n",
        "no line end": b"kept",
    }
    described = annex.git("log", "-1", "--format=%P|%an|%ae|%cn|%ce|%B", "git-annex")
    assert described == f"{parent}|Tester|tester@example.com|Tester|tester@example.com|update"
    assert in_step(annex)


def test_one_commit_after_another(annex):
    for number in range(3):
        annex.record(present=bool(number % 2))
        assert annex.commit()
        assert in_step(annex)
        assert not annex.commit()
    assert annex.tree() == {LOG: line(102, 0, HERE)}
    assert annex.git("rev-list", "--count", "git-annex") == "4"


def test_what_others_left_is_committed(annex):
    annex.leave_in_journal("uuid.log", UUIDS)
    assert annex.commit()
    assert annex.tree() == {"uuid.log": UUIDS}


def test_a_clean_journal_costs_nothing(annex, monkeypatch):
    monkeypatch.setattr(git, "output", None)
    with annex.open() as branch:
        assert not branch.commit()
        assert branch._cat_file._child is None
    assert not (annex.directory / "journal.lck").exists()


def test_alwayscommit(annex):
    annex.config(**{"annex.alwayscommit": "false"})
    annex.record()
    assert not annex.commit()
    assert list(annex.journal()) == [JOURNALED]
    assert annex.commit(always=True)


def test_a_cut_last_line_is_left_out(annex):
    annex.leave_in_journal("uuid.log", UUIDS + HERE + b" cut times")
    annex.leave_in_journal("trust.log", b"nothing whole")
    annex.leave_in_journal("group.log", b"")
    assert annex.commit()
    assert annex.tree() == {"uuid.log": UUIDS, "trust.log": b"", "group.log": b""}
    assert in_step(annex)


def test_odd_names_are_committed_and_impossible_ones_are_not(annex):
    names = [b"a\nb.log", b'q"\\.log', b"cr\r", b"\xff\xfe.log", b"sp ace"]
    for name in names:
        annex.leave_in_journal(os.fsdecode(name), b"x\n")
    for name in ("_leading", "a__.._b", "trailing_", ".git_config", "x_.GIT_y"):
        annex.leave_in_journal(name, b"x\n")
    annex.leave_in_journal("a_.._b", b"x\n")
    assert annex.commit()
    assert set(annex.tree()) == {*map(os.fsdecode, names), "a_.._b".replace("__", "_")} - {"a_.._b"} | {"a_../b"}
    assert set(annex.journal()) == {"_leading", "trailing_", ".git_config", "x_.GIT_y", "a_.._b"}
    assert not annex.commit()


def test_links_are_not_followed(annex, tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    annex.leave_in_journal("trust.log", b"x\n")
    (annex.directory / "journal" / "uuid.log").symlink_to(tmp_path / "secret")
    (annex.directory / "journal" / "directory").mkdir()
    assert annex.commit()
    assert annex.tree() == {"trust.log": b"x\n"}
    assert (annex.directory / "journal" / "uuid.log").is_symlink()


def test_many_files(annex):
    keys = [Key(b"SHA256E-s%d--x%d.dat" % (number, number)) for number in range(300)]
    with annex.open() as branch:
        for key in keys:
            branch.journal.write(branch.key_log(key), line(1, 1, HERE))
        assert branch.commit()
    assert len(annex.tree()) == 300


# Pushes


def test_a_push_before_the_commit_is_kept(annex):
    annex.record()
    assert annex.commit()
    annex.record(present=False)
    annex.push({LOG: line(90, 1, THERE) + line(100, 1, HERE), "new.log": b"n\n"})
    pushed = annex.tip()
    assert annex.commit()
    assert annex.tree() == {
        LOG: line(100, 1, HERE) + line(101, 0, HERE) + line(90, 1, THERE),
        "new.log": b"n\n",
    }
    assert annex.git("rev-parse", "git-annex^") == pushed
    assert in_step(annex)


@pytest.mark.parametrize("before", ["write-tree", "commit-tree", "update-ref"])
def test_a_push_during_the_commit_is_kept(annex, monkeypatch, before):
    annex.record()
    pushes = iter([b"a\n", b"b\n", b"c\n"])
    run = git.output

    def interrupted(repo, *arguments, **how):
        if arguments[0].decode() == before and (content := next(pushes, None)):
            annex.push({LOG: annex.tree().get(LOG, b"") + content, content.decode().strip(): content})
        return run(repo, *arguments, **how)

    monkeypatch.setattr(git, "output", interrupted)
    assert annex.commit()
    assert next(pushes, None) is None or before != "update-ref"
    tree = annex.tree()
    assert line(100, 1, HERE) in tree[LOG]
    for content in (b"a\n", b"b\n", b"c\n"):
        if content.decode().strip() in tree:
            assert content in tree[LOG]
    assert int(annex.git("rev-list", "--count", "git-annex")) == len(tree) + 1
    assert annex.journal() == {}
    assert in_step(annex)


def test_a_branch_that_never_stands_still(annex, monkeypatch):
    annex.record()
    monkeypatch.setattr(commit, "_ATTEMPTS", 3)
    monkeypatch.setattr(branchref, "move", lambda *_, **__: False)
    with pytest.raises(RepositoryError, match="journal"):
        annex.commit()
    assert list(annex.journal()) == [JOURNALED]
    assert not (annex.directory / "index").exists()
    assert no_rubbish(annex)


def test_a_forced_push_of_something_else(annex):
    annex.record()
    assert annex.commit()
    annex.record(present=False)
    annex.git(
        "update-ref",
        REF,
        annex.commit_with({"only.log": b"o\n"}, parent=annex.git("rev-list", "--max-parents=0", REF)),
    )
    assert annex.commit()
    assert annex.tree()[LOG] == line(101, 0, HERE)
    assert annex.tree()["only.log"] == b"o\n"


@pytest.mark.parametrize("log", ["transitions.log", "difference.log", "uuid.log"])
def test_other_refs_are_left_to_git_annex(annex, log):
    """Some of them must not be merged, and none has to be."""
    annex.record()
    other = annex.commit_with({log: b"ForgetGitHistory 1s\n"})
    annex.git("update-ref", "refs/heads/synced/git-annex", other)
    annex.git("update-ref", "refs/remotes/origin/git-annex", other)
    assert annex.commit()
    assert annex.tree() == {LOG: line(100, 1, HERE)}


# The index


def test_a_missing_index_with_a_stale_lock(annex):
    annex.push({"uuid.log": UUIDS, "other.log": b"o\n"})
    annex.directory.mkdir()
    (annex.directory / "index.lck").write_text(annex.tip() + "\n")
    (annex.directory / "index.lock").write_text("")
    annex.record()
    assert annex.commit()
    assert annex.tree() == {"uuid.log": UUIDS, "other.log": b"o\n", LOG: line(100, 1, HERE)}
    assert not (annex.directory / "index.lock").exists()
    assert in_step(annex)


@pytest.mark.parametrize("damage", [b"", b"DIRC", b"rubbish" * 100])
def test_a_damaged_index_is_made_anew(annex, damage, capfd):
    annex.push({"uuid.log": UUIDS})
    annex.record()
    assert annex.commit()
    (annex.directory / "index").write_bytes(damage)
    annex.record(present=False)
    assert annex.commit()
    assert annex.tree()["uuid.log"] == UUIDS
    assert line(101, 0, HERE) in annex.tree()[LOG]
    assert in_step(annex)
    assert damage == b"" or "building a new one" in capfd.readouterr().err


def test_an_index_with_a_file_that_has_no_content(annex):
    """What a crash of the machine leaves: the index was written, the object was not."""
    annex.push({"uuid.log": UUIDS})
    annex.record()
    assert annex.commit()
    entry = f"100644 blob {'1' * 40}\tlost.log\n".encode()
    annex.git("update-index", "--index-info", input=entry, GIT_INDEX_FILE=str(annex.directory / "index"))
    annex.record(present=False)
    assert annex.commit()
    assert set(annex.tree()) == {"uuid.log", LOG}
    assert in_step(annex)


def test_an_index_that_is_ahead_of_the_branch(annex):
    annex.record()
    assert annex.commit()
    blob = annex.git("hash-object", "-w", "--stdin", input=NEW)
    entry = f"100644 blob {blob}\t{LOG}\n".encode()
    annex.git("update-index", "--index-info", input=entry, GIT_INDEX_FILE=str(annex.directory / "index"))
    annex.leave_in_journal(JOURNALED, line(100, 1, HERE) + NEW)
    assert annex.commit()
    assert annex.tree() == {LOG: line(100, 1, HERE) + NEW}


@pytest.mark.parametrize("content", ["rubbish", "", "0" * 40 + "\n", "\xff\n"])
def test_rubbish_instead_of_the_included_commit(annex, content):
    annex.record()
    assert annex.commit()
    annex.push({"uuid.log": UUIDS})
    (annex.directory / "index.lck").write_text(content)
    annex.record(present=False)
    assert annex.commit()
    assert annex.tree()["uuid.log"] == UUIDS
    assert in_step(annex)


def test_no_hard_links(annex, monkeypatch):
    annex.record()
    assert annex.commit()

    def refuse(*_):
        raise PermissionError(1, "no")

    monkeypatch.setattr(os, "link", refuse)
    annex.record(present=False)
    assert annex.commit()
    assert annex.tree() == {LOG: line(101, 0, HERE)}
    assert in_step(annex)


# Who, why, and with what consent


def test_configured_message(annex):
    annex.config(**{"annex.commitmessage": "on the server"})
    annex.record()
    assert annex.commit()
    assert annex.git("log", "--format=%s", "git-annex").splitlines() == ["on the server", "on the server"]


def test_message_of_hook_and_command(annex):
    annex.config(**{"annex.commitmessage": "setting", "annex.commitmessage-command": "echo command"})
    annex.record()
    assert annex.commit()
    executable(annex.path / "hooks" / "commitmessage-annex", "printf 'ho\\0ok\\n\\nbody'")
    annex.record(present=False)
    assert annex.commit()
    assert annex.git("log", "-2", "--format=%B|", "git-annex").split("|") == ["hook\n\nbody\n", "\ncommand\n", ""]


def test_a_failing_message_hook_stops_the_commit(annex):
    executable(annex.path / "hooks" / "commitmessage-annex", "echo half; exit 1")
    annex.record()
    with pytest.raises(RepositoryError, match="message hook"):
        annex.commit()
    assert list(annex.journal()) == [JOURNALED]


def test_signing_has_to_be_allowed(annex, tmp_path):
    annex.config(**{"commit.gpgsign": "true", "gpg.program": str(executable(tmp_path / "gpg", "exit 1"))})
    annex.record()
    assert annex.commit()
    annex.config(**{"annex.allowsign": "true"})
    annex.record(present=False)
    with pytest.raises(RepositoryError, match="commit-tree"):
        annex.commit()
    assert list(annex.journal()) == [JOURNALED]
    annex.config(**{"commit.gpgsign": "false"})
    assert annex.commit()


def test_nobody_in_particular(annex, clean_environment, monkeypatch, capfd):
    (clean_environment / ".gitconfig").write_text("[user]\n\tuseConfigOnly = true\n")
    monkeypatch.setenv("USER", "somebody")
    annex.record()
    assert annex.commit()
    assert annex.git("log", "-1", "--format=%an|%ae|%cn|%ce", "git-annex") == "|".join(["somebody"] * 4)
    annex.config(**{"user.name": "Name"})
    annex.record(present=False)
    assert annex.commit()
    assert annex.git("log", "-1", "--format=%an|%ae|%cn|%ce", "git-annex") == "Name|somebody|Name|somebody"
    assert "tell me who you are" not in capfd.readouterr().err


def test_post_update_hook(annex, tmp_path, capfd):
    seen = tmp_path / "seen"
    executable(
        annex.path / "hooks" / "post-update-annex",
        f"git --git-dir={annex.path} rev-parse git-annex >{seen}; echo hi; cat",
    )
    annex.record()
    assert annex.commit()
    assert seen.read_text().strip() == annex.tip()
    output = capfd.readouterr()
    assert output.out == "" and "hi" in output.err
    seen.unlink()
    assert not annex.commit()
    assert not seen.exists()


def test_the_post_update_command_may_fail_and_may_write(annex, tmp_path, capfd):
    probe = f'{sys.executable} -c \'import fcntl; fcntl.lockf(open("{annex.directory}/journal.lck", "w"), 6)\''
    annex.config(**{"annex.post-update-command": f"{probe} && touch {tmp_path}/free; exit 3"})
    annex.record()
    assert annex.commit()
    assert "status 3" in capfd.readouterr().err
    assert (tmp_path / "free").exists(), "the journal is not locked any more"


def test_a_sha256_repository(annex, tmp_path):
    subprocess.run(["git", "init", "-q", "--bare", "--object-format=sha256", tmp_path / "sha256"], check=True)
    for name in ("objects", "config"):
        old, new = annex.path / name, tmp_path / "sha256" / name
        old.rename(tmp_path / f"old-{name}")
        new.rename(old)
    annex.config(**{"annex.uuid": HERE.decode()})
    annex.record()
    assert annex.commit()
    annex.push({LOG: line(90, 1, THERE)})
    annex.record(present=False)
    assert annex.commit()
    assert annex.git("fsck", "--strict") == ""
    assert len(annex.tip()) == 64
    assert annex.tree()[LOG] == line(100, 0, HERE) + line(90, 1, THERE)
    assert in_step(annex)


# A git that is not well, and processes that die


FAILURES = [
    *[(command, "exit 1") for command in ("hash-object", "update-index", "write-tree", "commit-tree", "update-ref")],
    *[(command, "echo rubbish") for command in ("hash-object", "write-tree", "commit-tree", "diff-index")],
    *[(command, "exit 0") for command in ("hash-object", "write-tree", "commit-tree")],
    *[(command, "kill -9 $$") for command in ("diff-index", "update-ref")],
]


@pytest.mark.parametrize(("command", "how"), FAILURES)
def test_a_git_that_fails(annex, tmp_path, monkeypatch, command, how):
    annex.record()
    assert annex.commit()
    if command == "diff-index":
        annex.push({"uuid.log": UUIDS})
    annex.record(present=False)
    before = annex.tip(), annex.tree(), index(annex), descriptors_before()
    real = subprocess.run(["which", "git"], check=True, capture_output=True, text=True).stdout.strip()
    executable(
        tmp_path / "stub" / "git",
        f'for word; do case $word in {command}) {how}; exit;; esac; done; exec {real} "$@"',
    )
    monkeypatch.setattr(commit, "_ATTEMPTS", 2)
    path = os.environ["PATH"]
    monkeypatch.setenv("PATH", str(tmp_path / "stub"), prepend=os.pathsep)
    with pytest.raises(RepositoryError, match="git"):
        annex.commit()
    monkeypatch.setenv("PATH", path)
    assert (annex.tip(), annex.tree(), index(annex), descriptors()) == before
    assert list(annex.journal()) == [JOURNALED]
    assert no_rubbish(annex)
    assert annex.commit()
    assert line(101, 0, HERE) in annex.tree()[LOG]


def test_no_git(annex, monkeypatch, tmp_path):
    annex.record()
    with annex.open() as branch:
        assert branch._repo.config
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(RepositoryError, match="git"):
            branch.commit()
    assert list(annex.journal()) == [JOURNALED]


# Where a commit may be killed: before each of these.
DEADLY = [
    ("git", b"hash-object"),
    ("git", b"update-index"),
    ("git", b"diff-index"),
    ("git", b"write-tree"),
    ("git", b"commit-tree"),
    ("git", b"update-ref"),
    ("os", "rename", 1),
    ("os", "unlink", 1),
    ("os", "unlink", 2),
    ("os", "rename", 2),
]


# Of the renames and removals, only those are meant that come after the ref was moved.
PATHS = (b"/journal/", b"othertmp/index")


@pytest.mark.parametrize("point", DEADLY, ids=str)
@pytest.mark.parametrize("push_after", [True, False], ids=["then a push", "nothing else"])
def test_sigkill_loses_nothing(annex, point, push_after):
    other = Key(b"SHA256E-s3--k2")
    annex.record(other)
    annex.record(uuid=THERE)
    assert annex.commit()
    annex.record()
    annex.record(other, present=False)
    # A push into a file that is in the journal, which the commit has to merge.
    annex.push({LOG: line(95, 1, b"pushed"), "uuid.log": UUIDS})
    child = os.fork()
    if child == 0:
        try:
            die_at(point, *PATHS)
            annex.commit()
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
    if push_after:
        annex.push({LOG: annex.tree()[LOG] + line(96, 1, b"pushed later")})
    with annex.open() as branch:
        assert b" 0 " in branch.read(branch.key_log(other))
        branch.commit()
    assert annex.journal() == {}
    tree = annex.tree()
    assert {*tree[LOG].splitlines(True)} == {
        line(100, 1, HERE),
        line(100, 1, THERE),
        line(95, 1, b"pushed"),
        *([line(96, 1, b"pushed later")] if push_after else []),
    }
    assert line(101, 0, HERE) in tree[journal.key_log(annex.open()._repo, other).decode()]
    assert tree["uuid.log"] == UUIDS
    annex.record(KEY, present=False)
    assert annex.commit()
    assert line(95, 1, b"pushed") in annex.tree()[LOG]
    assert in_step_apart_from_rubbish(annex)


def in_step_apart_from_rubbish(annex):
    for file in (annex.directory / "othertmp").iterdir():
        file.unlink()
    return in_step(annex)
