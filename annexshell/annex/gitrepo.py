"""Where the parts of a git repository are, and its config (spec: shell §3.2, objects "Notation").

Paths are bytes and absolute. The annex directory always is the common git directory's, so that a linked worktree
shares the main repository's content.
"""

from __future__ import annotations

import os

from annexshell import process
from annexshell.annex.config import Config, ConfigReader, file_signature
from annexshell.errors import RepositoryError, TemporaryFailure, is_passing
from annexshell.uuid import UUID

_GITFILE_LIMIT = 1 << 16
_SUPPORTED_VERSIONS = (8, 9, 10)


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
        self.commondir = find_commondir(self.gitdir)
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
            self._take(reader.result())
        return self._values

    def _take(self, values: Config) -> None:
        # The user's own settings do not make a repository of any directory.
        self._values = values if self.is_git_repository else Config()
        self._place_worktree()

    def refresh_config(self) -> Config:
        """The git config, read again if its file changed since it was read (spec: objects §6.2)."""
        values = self.config
        signature = file_signature(self._config_file)
        if signature == self._signature:
            return values
        self._take(ConfigReader(self.gitdir).result())
        # Last, so that no other thread takes the old values for the new ones meanwhile.
        self._signature = signature
        return self._values

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
        """Whether there is a git repository at all, rather than some other directory (by what git looks at)."""
        return (
            os.path.lexists(self.gitdir + b"/HEAD")
            and os.path.isdir(self.commondir + b"/objects")
            and os.path.isdir(self.commondir + b"/refs")
        )

    def has_annex_ref(self) -> bool:
        """Whether some ref is called git-annex: the branch, or a remote's (spec: shell §6.2)."""
        return process.run(self.git(b"show-ref", b"git-annex")).status == 0

    def git(self, *arguments: bytes) -> list[bytes]:
        """The argv of a git command on this repository, which does not search for it nor expand path patterns."""
        return [b"git", b"--git-dir=" + self.gitdir, b"--literal-pathspecs", *arguments]


def check_annex(repo: GitRepository) -> None:
    """The repository is one that git-annex uses, and in a way that we know. Raises RepositoryError."""
    version = repo.version
    if version is None:
        if b"core.gcrypt-id" not in repo.config and not (repo.is_git_repository and repo.has_annex_ref()):
            raise RepositoryError("Not a git-annex or gcrypt repository.")
    elif version not in _SUPPORTED_VERSIONS:
        # Unknown versions may lock and place content in ways that we do not take part in (spec: shell §6.3).
        supported = ", ".join(map(str, _SUPPORTED_VERSIONS))
        raise RepositoryError(
            f"The repository has annex.version {version}, and this program serves {supported} only."
            " Running git-annex in it may upgrade it."
        )


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
    first_line = _first_line(dotgit)
    if first_line is None or not first_line.startswith(b"gitdir: "):
        return path
    # Not normalised: ".." behind a symlink is the kernel's to resolve.
    gitdir = os.path.join(path, first_line[len(b"gitdir: ") :].rstrip(b"\r"))
    if not os.path.isdir(gitdir):
        raise RepositoryError(f"{os.fsdecode(dotgit)} leads to a missing directory")
    return gitdir


def find_commondir(gitdir: bytes) -> bytes:
    """The directory of what all work trees of the repository share; GITDIR itself for all but linked ones."""
    target = _first_line(gitdir + b"/commondir")
    # git-annex turns the .git of a linked worktree into a symlink, behind which ".." is not what it looks like.
    return gitdir if target is None else os.path.realpath(os.path.join(gitdir, target))


def _first_line(path: bytes) -> bytes | None:
    """None if there is no such file. Raises RepositoryError when we may not know."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as reason:
        kind = TemporaryFailure if is_passing(reason) else RepositoryError
        raise kind(f"cannot read {os.fsdecode(path)}: {reason.strerror}") from reason
    try:
        return os.read(fd, _GITFILE_LIMIT).split(b"\n", 1)[0]
    except IsADirectoryError:
        return None
    finally:
        os.close(fd)
