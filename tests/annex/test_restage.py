"""Making git look into replaced files, without changing what is staged."""

from __future__ import annotations

import os

import pytest

from annexshell.annex import git
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.restage import restage
from tests.interop.harness import Repo, environment, make_home


@pytest.fixture
def repo(tmp_path):
    """A repository with a filter under which "long content" is "x", as git-annex has one."""
    repo = Repo(tmp_path / "repo", environment(make_home(tmp_path / "home")))
    repo.path.mkdir()
    repo.git("init", "--quiet")
    repo.git("config", "filter.short.clean", "sed 's/^long content$/x/'")
    (repo.path / ".gitattributes").write_text("* filter=short\n")
    (repo.path / "dir").mkdir()
    for name in ("a", "dir/b", "c"):
        (repo.path / name).write_text("x\n")
    repo.git("add", ".")
    repo.commit()
    return repo


def do(repo: Repo, *paths: bytes) -> None:
    ours = GitRepository(os.fsencode(repo.path))
    assert ours.config is not None
    restage(ours, paths)
    assert [name for name in os.listdir(repo.git_dir) if "lock" in name or "annexshell" in name] == []


def status(repo: Repo) -> str:
    return repo.git("status", "--porcelain").out


def fill(repo: Repo, *names: str) -> None:
    for name in names:
        (repo.path / name).write_text("long content\n")


def test_git_alone_takes_the_size_for_a_modification(repo):
    fill(repo, "a", "dir/b")
    assert status(repo) == " M a\n M dir/b\n"
    do(repo, b"a", b"dir/b")
    assert status(repo) == ""
    assert repo.git("diff-files", "--quiet")


def test_a_file_system_without_hard_links(repo, monkeypatch):
    def refuse(*arguments):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    fill(repo, "a")
    do(repo, b"a")
    assert status(repo) == ""


def test_modified_files_stay_modified(repo):
    (repo.path / "a").write_text("work\n")
    do(repo, b"a")
    assert status(repo) == " M a\n"


def test_what_is_staged_stays_staged(repo):
    (repo.path / "a").write_text("staged\n")
    repo.git("add", "a")
    (repo.path / "new").write_text("new\n")
    repo.git("add", "new")
    (repo.path / "dir/b").chmod(0o755)
    repo.git("add", "dir/b")
    repo.git("rm", "--quiet", "--cached", "c")
    before = repo.git("ls-files", "--stage").out
    do(repo, b"a", b"new", b"dir/b", b"c", b"missing", b"dir")
    assert repo.git("ls-files", "--stage").out == before
    assert status(repo) == "M  a\nD  c\nM  dir/b\nA  new\n?? c\n"


def test_entries_with_flags_keep_them(repo):
    repo.git("update-index", "--assume-unchanged", "a")
    repo.git("update-index", "--skip-worktree", "dir/b")
    fill(repo, "a", "dir/b", "c")
    before = repo.git("ls-files", "-v").out
    do(repo, b"a", b"dir/b", b"c")
    assert repo.git("ls-files", "-v").out == before
    assert status(repo) == ""


def test_unmerged_entries_are_left_alone(repo):
    repo.git("checkout", "--quiet", "-b", "one")
    (repo.path / "a").write_text("1\n")
    repo.git("commit", "--quiet", "-am", "1")
    repo.git("checkout", "--quiet", "main")
    (repo.path / "a").write_text("2\n")
    repo.git("commit", "--quiet", "-am", "2")
    repo.git("merge", "one", check=False)
    before = repo.git("ls-files", "--unmerged").out
    fill(repo, "c")
    do(repo, b"a", b"c")
    assert repo.git("ls-files", "--unmerged").out == before != ""
    assert status(repo) == "UU a\n"


def test_a_locked_index_is_left_alone(repo, tmp_path):
    fill(repo, "a")
    lock = repo.path / ".git/index.lock"
    lock.write_text("theirs")
    before = (repo.path / ".git/index").read_bytes()
    ours = GitRepository(os.fsencode(repo.path))
    assert ours.config is not None
    restage(ours, [b"a"])
    assert (repo.path / ".git/index").read_bytes() == before
    assert lock.read_text() == "theirs"


def test_an_index_that_changes_meanwhile(repo, monkeypatch):
    fill(repo, "a")
    (repo.path / "new").write_text("new\n")
    real = git.output
    calls = []

    def meanwhile(ours, *arguments, **how):
        if arguments[0] == b"update-index":
            calls.append(arguments)
            if len(calls) == 1:
                repo.git("add", "new")
        return real(ours, *arguments, **how)

    monkeypatch.setattr(git, "output", meanwhile)
    do(repo, b"a")
    assert status(repo) == "A  new\n"
    assert len(calls) == 2


def test_weird_names_and_many(repo):
    names = [b"new\nline", b"\xff", b" ", b"*", b":(top)", b"-x"]
    for name in names:
        with open(os.path.join(os.fsencode(repo.path), name), "wb") as file:
            file.write(b"x\n")
    for number in range(1200):
        (repo.path / f"n{number}").write_text("x\n")
    repo.git("add", ".")
    repo.commit()
    for name in names:
        with open(os.path.join(os.fsencode(repo.path), name), "wb") as file:
            file.write(b"long content\n")
    fill(repo, "n0", "n1199")
    do(repo, *names, *(b"n%d" % number for number in range(1200)))
    entries = repo.git("ls-files", "--debug", "n0", "n5").out
    assert entries.count("size: 0") == 2
    assert status(repo) == ""


def test_from_within_the_work_tree(repo, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "dir").mkdir(parents=True)
    for name in (".gitattributes", "a", "c", "dir/b"):
        (repo.path / name).rename(elsewhere / name)
    repo.git("config", "core.worktree", elsewhere)
    (elsewhere / "dir/b").write_text("long content\n")
    monkeypatch.chdir(elsewhere / "dir")
    do(repo, b"dir/b")
    assert repo.git("-C", elsewhere, "--git-dir", repo.path / ".git", "status", "--porcelain").out == ""


def test_without_an_index(repo):
    (repo.path / ".git/index").unlink()
    do(repo, b"a")
    assert not (repo.path / ".git/index").exists()
