"""A repository made by the real git-annex, and objects put into it and taken out of it by hand."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.keysdb import KeysDatabase
from annexshell.annex.objects import Objects
from annexshell.annex.permissions import Permissions
from annexshell.annex.pointers import format_pointer
from annexshell.annex.worktree import Worktree
from annexshell.key import Key
from tests.interop.harness import Repo, environment, make_home


def make_repo(tmp_path: Path, git_annex_path: Path, name: str = "repo") -> Repo:
    home = tmp_path / "home"
    if not home.exists():
        make_home(home)
    repo = Repo(tmp_path / name, environment(home, git_annex_path))
    repo.path.mkdir()
    repo.git("init", "--quiet")
    repo.annex("init", "--quiet", name)
    return repo


class Opened:
    """Our side of a repository."""

    def __init__(self, repo: Repo, **how) -> None:
        self.repo = GitRepository(os.fsencode(repo.path))
        assert self.repo.config is not None
        self.permissions = Permissions(self.repo)
        self.objects = Objects(self.repo)
        self.database = KeysDatabase(self.repo, self.permissions)
        self.verified: list[bytes] = []
        self.worktree = Worktree(
            self.repo, self.permissions, self.objects, self.database, how.pop("verify", self.verify), **how
        )

    def verify(self, key: Key, path: bytes) -> bool | None:
        self.verified.append(path)
        if not key.variety.startswith(b"SHA256"):
            return None
        return hashlib.sha256(Path(os.fsdecode(path)).read_bytes()).hexdigest().encode() == key.name.split(b".")[0]

    def path(self, key: Key) -> Path:
        return Path(os.fsdecode(self.objects.locate(key)))

    def store(self, key: Key, content: bytes) -> Path:
        """What receiving does: the object appears, then work tree files are filled."""
        path = self.path(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        self.permissions.thaw_directory(os.fsencode(path.parent))
        arrived = path.with_name("arrived")
        arrived.write_bytes(content)
        arrived.rename(path)
        self.permissions.freeze_object(os.fsencode(path))
        self.worktree.populate(key, os.fsencode(path))
        self.permissions.freeze_directory(os.fsencode(path.parent))
        return path

    def drop(self, key: Key) -> None:
        """What removing does: the object goes, then work tree files are emptied."""
        path = self.path(key)
        path.parent.chmod(0o755)
        path.unlink()
        self.worktree.reset(key)
        self.objects.prune(os.fsencode(path.parent))

    def rows(self, key: Key) -> tuple[set[bytes], set[str]]:
        """The associated files and inode caches of a key, as in the database now."""
        return set(self.database.associated_files(key)), {str(cache) for cache in self.database.inode_caches(key)}


def add_absent(repo: Repo, name: str | bytes, content: bytes, *, mode: int = 0o644) -> Key:
    """Commit an unlocked file whose content is not in the repository."""
    key = Key(b"SHA256E-s%d--%s" % (len(content), hashlib.sha256(content).hexdigest().encode()))
    file = os.path.join(os.fsencode(repo.path), os.fsencode(name))
    os.makedirs(os.path.dirname(file), exist_ok=True)
    with open(file, "wb") as stream:
        stream.write(format_pointer(key))
    os.chmod(file, mode)
    add_as_it_is(repo, name)
    repo.commit()
    return key


def add_as_it_is(repo: Repo, name: str | bytes) -> None:
    """Stage a file without git-annex hearing of it."""
    repo.git("-c", "filter.annex.clean=cat", "-c", "filter.annex.process=", "add", "--", name)


def nothing_to_fix(repo: Repo) -> None:
    """The real programs find everything in order."""
    fsck = repo.annex("fsck", check=False)
    # The location log is not the work tree's business.
    said = fsck.said.replace("(fixing location log)", "")
    assert fsck and "fixing" not in said and "failed" not in said, fsck
    assert repo.git("status", "--porcelain").out == ""
    assert repo.annex("info", "--fast")
