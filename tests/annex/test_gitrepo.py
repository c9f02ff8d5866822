from __future__ import annotations

import os
from pathlib import Path

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RepositoryError
from tests.shell import UUID, git, make_annex, make_ref, make_repository


def opened(directory: Path) -> GitRepository:
    repo = GitRepository(os.fsencode(directory))
    assert repo.config
    return repo


def test_work_tree(tmp_path: Path) -> None:
    repo = opened(make_annex(tmp_path))
    gitdir = os.fsencode(tmp_path / ".git")
    assert (repo.gitdir, repo.commondir, repo.annexdir) == (gitdir, gitdir, gitdir + b"/annex")
    assert (repo.bare, repo.worktree, repo.uuid, repo.version) == (False, os.fsencode(tmp_path), UUID.encode(), 10)


def test_bare(tmp_path: Path) -> None:
    repo = opened(make_annex(tmp_path, bare=True))
    assert (repo.gitdir, repo.annexdir) == (os.fsencode(tmp_path), os.fsencode(tmp_path / "annex"))
    assert repo.bare
    assert repo.worktree is None


def test_bare_inside_dotgit(tmp_path: Path) -> None:
    git(make_annex(tmp_path), "config", "core.bare", "true")
    repo = opened(tmp_path)
    assert repo.bare
    assert (repo.gitdir, repo.worktree) == (os.fsencode(tmp_path / ".git"), None)


def test_bareness_that_config_does_not_tell(tmp_path: Path) -> None:
    for name in ("bare", "tree"):
        git(make_annex(tmp_path / name, bare=name == "bare"), "config", "--unset", "core.bare")
    assert opened(tmp_path / "bare").bare
    assert not opened(tmp_path / "tree").bare


def test_configured_work_tree(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    git(make_annex(tmp_path / "repo"), "config", "core.worktree", "../../elsewhere")
    assert opened(tmp_path / "repo").worktree == os.fsencode(tmp_path / "elsewhere")


def test_separate_git_directory_by_both_names(tmp_path: Path) -> None:
    git(tmp_path, "init", "-q", "--separate-git-dir=real", "tree")
    make_annex(tmp_path / "tree")
    for name in ("tree", "real"):
        repo = opened(tmp_path / name)
        assert repo.uuid == UUID.encode()
        assert not repo.bare
        assert os.path.realpath(repo.annexdir) == os.fsencode(tmp_path / "real" / "annex")


def linked_worktree(tmp_path: Path) -> Path:
    main = make_annex(tmp_path / "main")
    git(main, "commit", "-q", "--allow-empty", "-m", "test")
    git(main, "worktree", "add", "-q", "../linked")
    return tmp_path / "linked"


def test_linked_worktree_shares_the_annex(tmp_path: Path) -> None:
    repo = opened(linked_worktree(tmp_path))
    assert repo.uuid == UUID.encode()
    assert repo.annexdir == os.fsencode(tmp_path / "main/.git/annex")
    assert repo.worktree == os.fsencode(tmp_path / "linked")


def test_linked_worktree_as_git_annex_leaves_it(tmp_path: Path) -> None:
    linked = linked_worktree(tmp_path)
    (linked / ".git").unlink()
    (linked / ".git").symlink_to("../main/.git/worktrees/linked")
    repo = opened(linked)
    assert repo.annexdir == os.fsencode(tmp_path / "main/.git/annex")
    assert repo.is_git_repository


def test_relative_gitfile_behind_a_symlink(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    make_annex(tmp_path / "deep/real")
    tree = tmp_path / "deep/tree"
    tree.mkdir()
    (tree / ".git").write_text("gitdir: ../real/.git\n")
    (tmp_path / "link").symlink_to("deep/tree")
    assert opened(tmp_path / "link").uuid == UUID.encode()


def test_a_subdirectory_is_no_repository(tmp_path: Path) -> None:
    (make_annex(tmp_path) / "sub").mkdir()
    repo = opened(tmp_path / "sub")
    assert not repo.is_git_repository
    assert repo.uuid == b""


def test_a_dotgit_that_is_no_gitfile_is_ignored(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("something else\n")
    assert not opened(tmp_path).is_git_repository


def test_refs_called_git_annex(tmp_path: Path) -> None:
    repo = opened(make_repository(tmp_path))
    assert not repo.has_annex_ref()
    make_ref(tmp_path, "refs/remotes/origin/git-annex")
    assert repo.has_annex_ref()


def test_refresh_sees_changes_and_vanished_repositories(tmp_path: Path) -> None:
    repo = opened(make_annex(tmp_path))
    git(tmp_path, "config", "annex.uuid", "changed")
    assert repo.uuid == UUID.encode()
    repo.refresh_config()
    assert repo.uuid == b"changed"
    (tmp_path / ".git/HEAD").unlink()
    assert repo.reload_config().get(b"annex.uuid") is None


def test_a_directory_that_may_not_be_entered(tmp_path: Path) -> None:
    private = make_annex(tmp_path / "private")
    private.chmod(0)
    superuser = os.geteuid() == 0
    if superuser:  # who may enter any directory
        os.seteuid(65534)
    try:
        with pytest.raises(RepositoryError, match="Permission denied"):
            GitRepository(os.fsencode(private))
    finally:
        if superuser:
            os.seteuid(0)
        private.chmod(0o700)


def test_a_missing_target(tmp_path: Path) -> None:
    (tmp_path / ".git").write_text("gitdir: nowhere\n")
    with pytest.raises(RepositoryError, match="missing directory"):
        GitRepository(os.fsencode(tmp_path))
