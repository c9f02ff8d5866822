"""Finding repositories below directories (spec: http §10.3). No program is run, and no config is read."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from annexshell import log
from annexshell.annex.gitrepo import find_commondir, find_gitdir
from annexshell.errors import RepositoryError, TemporaryFailure, is_passing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_DOTGIT = b".git"
_BARE = frozenset((b"HEAD", b"config", b"objects", b"refs"))


class Found(NamedTuple):
    """Where a git repository is. All paths are absolute."""

    path: bytes  # the work tree; the git directory for a bare repository
    gitdir: bytes
    commondir: bytes

    @property
    def is_linked(self) -> bool:
        """Whether it is one of several work trees of one repository, and not the first of them."""
        return self.gitdir != self.commondir


class ScanStopped(Exception):
    """Nobody wants to know any more."""


def find_repositories(directories: Sequence[bytes], is_stopped: Callable[[], bool] = lambda: False) -> list[Found]:
    """All git repositories in and below DIRECTORIES, each once, those of the first directory first, then by path.

    What is inside of a repository is not looked at. Raises TemporaryFailure when the answer would not be worth
    anything, and ScanStopped.
    """
    found: dict[tuple[int, int], tuple[bool, int, Found]] = {}
    for order, directory in enumerate(directories):
        # Anew each time, for what is behind a symlink may be exchanged.
        for repository in _walk(os.path.realpath(directory), is_stopped):
            try:
                status = os.stat(repository.commondir)
            except OSError:
                continue  # it was removed meanwhile
            # A second way to the same repository, or a second work tree, is no second repository.
            identity = status.st_dev, status.st_ino
            candidate = repository.is_linked, order, repository
            found[identity] = min(candidate, found.get(identity, candidate))
    return [repository for _, _, repository in sorted(found.values(), key=lambda entry: entry[1:])]


def check_directory(directory: bytes) -> None:
    """DIRECTORY can be searched for repositories. Raises RepositoryError."""
    try:
        os.scandir(directory).close()
    except OSError as reason:
        raise RepositoryError(
            f"cannot look for repositories in {os.fsdecode(directory)}: {reason.strerror}"
        ) from reason


def enclosing_repository(directory: bytes) -> Found | None:
    """The repository that DIRECTORY is in, as git looks for it."""
    path = os.path.realpath(directory)
    while True:
        found = repository_at(path) if os.path.basename(path) != _DOTGIT else None
        if found is not None or path == b"/":
            return found
        path = os.path.dirname(path)


def repository_at(path: bytes) -> Found | None:
    """The repository whose work tree, or bare repository, PATH is. Raises TemporaryFailure."""
    try:
        gitdir = find_gitdir(path)
        found = Found(path, gitdir, find_commondir(gitdir))
    except TemporaryFailure:
        raise
    except (RepositoryError, OSError) as reason:
        log.debug(str(reason))
        return None
    is_repository = (
        os.path.lexists(found.gitdir + b"/HEAD")
        and os.path.isfile(found.commondir + b"/config")
        and os.path.isdir(found.commondir + b"/objects")
        and os.path.isdir(found.commondir + b"/refs")
    )
    return found if is_repository else None


def _walk(root: bytes, is_stopped: Callable[[], bool]) -> Iterator[Found]:
    pending = [root]
    while pending:
        if is_stopped():
            raise ScanStopped
        directory = pending.pop()
        try:
            contents = _Contents(directory)
        except OSError as reason:
            if is_passing(reason):
                # To find nothing for want of file descriptors is not to find that there is nothing.
                raise TemporaryFailure(f"cannot read {os.fsdecode(directory)}: {reason.strerror}") from reason
            log.debug(f"cannot look for repositories in {os.fsdecode(directory)}: {reason.strerror}")
            continue
        here = repository_at(directory) if contents.may_be_repository else None
        if here is not None:
            yield here
            continue
        pending.extend(contents.directories)
        for link in contents.symlinks:
            # Only followed to what is a repository itself: anything else could lead anywhere, or in circles.
            there = repository_at(link) if os.path.isdir(link) else None
            if there is not None:
                yield there


class _Contents:
    """What matters of a directory. Raises OSError."""

    __slots__ = ("directories", "may_be_repository", "symlinks")

    def __init__(self, directory: bytes) -> None:
        self.directories: list[bytes] = []
        self.symlinks: list[bytes] = []
        parts = set()
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.name == _DOTGIT or entry.name in _BARE:
                    parts.add(entry.name)
                if entry.is_symlink():
                    self.symlinks.append(entry.path)
                elif entry.is_dir(follow_symlinks=False):
                    self.directories.append(entry.path)
        self.may_be_repository = _DOTGIT in parts or parts >= _BARE
