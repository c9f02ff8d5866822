"""Where the parts of a git repository are, and its config (spec: shell §3.2, objects "Notation").

Paths are bytes and absolute. The annex directory always is the common git directory's, so that a linked worktree
shares the main repository's content.
"""

from __future__ import annotations

import os

from annexshell.annex.config import Config, ConfigReader, file_signature
from annexshell.errors import RepositoryError
from annexshell.uuid import UUID

_GITFILE_LIMIT = 1 << 16


class GitRepository:
    """A git repository on this machine. Opening it runs one ``git config`` and nothing else."""

    __slots__ = (
        "_reader",
        "_signature",
        "_values",
        "annexdir",
        "bare",
        "commondir",
        "gitdir",
        "path",
        "worktree",
    )

    path: bytes  # the directory that was named
    gitdir: bytes
    commondir: bytes
    annexdir: bytes
    bare: bool  # as core.bare says; known once config was read
    worktree: bytes | None

    def __init__(self, path: bytes) -> None:
        """Find the git directory of PATH, an existing directory, and start reading its config."""
        self.path = path
        self.gitdir = find_gitdir(path)
        self.commondir = _commondir(self.gitdir)
        self.annexdir = self.commondir + b"/annex"
        self._signature = file_signature(self._config_file)
        self._reader: ConfigReader | None = ConfigReader(self.gitdir)
        self._values = Config()
        self.bare = False
        self.worktree = None

    @property
    def _config_file(self) -> bytes:
        return self.commondir + b"/config"

    @property
    def config(self) -> Config:
        """The git config as last read; raises RepositoryError when git cannot read it."""
        if self._reader is not None:
            reader, self._reader = self._reader, None
            self._values = reader.result()
            self._place_worktree()
        return self._values

    def refresh_config(self) -> Config:
        """The git config, read again if its file changed since it was read (spec: objects §6.2)."""
        values = self.config
        signature = file_signature(self._config_file)
        if signature == self._signature:
            return values
        self._signature = signature
        self._reader = ConfigReader(self.gitdir)
        return self.config

    def reload_config(self) -> Config:
        """The git config, read again in any case: for after changing it."""
        self._signature = None
        return self.refresh_config()

    def _place_worktree(self) -> None:
        config = self._values
        bare = config.get(b"core.bare")
        if bare is None:
            self.bare = self.gitdir == self.path and looks_bare(self.path)
        else:
            self.bare = config.get_bool(b"core.bare")
        configured = config.get(b"core.worktree")
        if configured is not None and not self.bare:
            self.worktree = os.path.normpath(os.path.join(self.gitdir, configured))
        elif not self.bare and self.gitdir != self.path:
            self.worktree = self.path
        else:
            self.worktree = None

    @property
    def uuid(self) -> UUID:
        """annex.uuid; empty when the repository has none."""
        return UUID(self.config.get(b"annex.uuid") or b"")

    @property
    def version(self) -> int | None:
        """annex.version, None when unset or not a number (spec: shell §6.2)."""
        value = self.config.get(b"annex.version")
        try:
            return None if value is None else int(value)
        except ValueError:
            return None

    @property
    def is_git_repository(self) -> bool:
        """Whether there is a git repository at all, rather than some other directory."""
        return looks_bare(self.gitdir) or os.path.exists(self.commondir + b"/config")

    def git(self, *arguments: bytes) -> list[bytes]:
        """The argv of a git command on this repository, which does not search for it nor expand path patterns."""
        return [b"git", b"--git-dir=" + self.gitdir, b"--literal-pathspecs", *arguments]


def looks_bare(path: bytes) -> bool:
    """Whether PATH has what a git directory has at its top."""
    return os.path.isfile(path + b"/config") and os.path.isdir(path + b"/objects")


def find_gitdir(path: bytes) -> bytes:
    """The git directory of the repository at PATH; PATH itself when there is no ``.git`` in it.

    A plain subdirectory of a work tree is not searched upwards for its repository (spec: shell §3.2).
    """
    dotgit = path + b"/.git"
    if os.path.isdir(dotgit):
        return dotgit
    try:
        fd = os.open(dotgit, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return path
    try:
        first_line = os.read(fd, _GITFILE_LIMIT).split(b"\n", 1)[0]
    finally:
        os.close(fd)
    if not first_line.startswith(b"gitdir: "):
        return path
    target = first_line[len(b"gitdir: ") :].rstrip(b"\r")
    gitdir = os.path.normpath(os.path.join(path, target))
    if not os.path.isdir(gitdir):
        raise RepositoryError(f"{os.fsdecode(dotgit)} leads to a missing directory")
    return gitdir


def _commondir(gitdir: bytes) -> bytes:
    try:
        fd = os.open(gitdir + b"/commondir", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return gitdir
    try:
        target = os.read(fd, _GITFILE_LIMIT).rstrip(b"\n")
    finally:
        os.close(fd)
    return os.path.normpath(os.path.join(gitdir, target))
