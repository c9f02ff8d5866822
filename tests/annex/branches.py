"""A repository with a git-annex branch, and the things that others do to it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.logs import location
from annexshell.annex.permissions import Permissions
from annexshell.key import Key
from annexshell.uuid import UUID

HERE = UUID(b"11111111-1111-4111-8111-111111111111")
THERE = UUID(b"22222222-2222-4222-8222-222222222222")
KEY = Key(b"SHA256E-s3--k1")
LOG = "5a2/699/SHA256E-s3--k1.log"
REF = "refs/heads/git-annex"


class Annex:
    """A bare git repository that is set up for git-annex but has no git-annex branch yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.directory = path / "annex"
        path.mkdir()
        self.git("init", "-q", "--bare")
        self.config(**{"annex.uuid": HERE.decode(), "annex.version": "10"})

    def git(self, *arguments: str, input: bytes = b"", **environment: str) -> str:
        """The output of a git command."""
        return self.git_bytes(*arguments, input=input, **environment).decode().strip()

    def git_bytes(self, *arguments: str, input: bytes = b"", **environment: str) -> bytes:
        command = ["git", "--git-dir", str(self.path), *arguments]
        env = {**os.environ, **environment}
        return subprocess.run(command, input=input, env=env, check=True, stdout=subprocess.PIPE).stdout

    def config(self, **settings: str) -> None:
        for name, value in settings.items():
            self.git("config", name, value)

    def open(self) -> Branch:
        """The branch as a new process has it."""
        repo = GitRepository(os.fsencode(self.path))
        return Branch(repo, Permissions(repo))

    def record(self, key: Key = KEY, uuid: UUID = HERE, present: bool = True) -> None:
        with self.open() as branch:
            location.set_presence(branch, key, uuid, present)

    def commit(self, *, always: bool = False) -> bool:
        with self.open() as branch:
            return branch.commit(always=always)

    def journal(self) -> dict[str, bytes]:
        try:
            return {file.name: file.read_bytes() for file in (self.directory / "journal").iterdir()}
        except FileNotFoundError:
            return {}

    def leave_in_journal(self, name: str, content: bytes) -> None:
        """What another process wrote to the journal before it died."""
        (self.directory / "journal").mkdir(parents=True, exist_ok=True)
        (self.directory / "journal" / name).write_bytes(content)

    def tip(self) -> str:
        return self.git("rev-parse", "--verify", REF)

    def tree(self) -> dict[str, bytes]:
        """Every file of the branch."""
        names = self.git_bytes("ls-tree", "-r", "-z", "--name-only", REF).split(b"\0")[:-1]
        return {os.fsdecode(name): self.git_bytes("cat-file", "blob", f"{REF}:{os.fsdecode(name)}") for name in names}

    def commit_with(self, files: Mapping[str, bytes], parent: str | None = None) -> str:
        """A commit on top of the branch in which FILES are different."""
        index = {"GIT_INDEX_FILE": str(self.path / "pusher.index")}
        parents = [parent] if parent else self.git("for-each-ref", "--format=%(objectname)", REF).split()
        self.git("read-tree", *(parents or ["--empty"]), **index)
        for name, content in files.items():
            blob = self.git("hash-object", "-w", "--stdin", input=content)
            self.git("update-index", "--add", "--cacheinfo", f"100644,{blob},{name}", **index)
        tree = self.git("write-tree", **index)
        return self.git("commit-tree", tree, "-m", "pushed", *(arg for sha in parents for arg in ("-p", sha)))

    def push(self, files: Mapping[str, bytes]) -> str:
        """What a push does that arrives now."""
        new = self.commit_with(files)
        self.git("update-ref", REF, new)
        return new


def line(time: int, status: int, uuid: bytes) -> bytes:
    """A line of a location log."""
    return b"%ds %d %s\n" % (time, status, uuid)
