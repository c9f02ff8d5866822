"""A remote on this machine, used in this process (spec: proxy §5.2)."""

from __future__ import annotations

import os

from annexshell.annex.gitrepo import GitRepository, check_annex
from annexshell.annex.repository import LocalRepository
from annexshell.errors import RemoteUnavailable, RepositoryError
from annexshell.remotes.remote import LocalPath

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.remotes.patience import Patience
    from annexshell.remotes.remote import Remote
    from annexshell.repository import Repository
    from annexshell.uuid import UUID


def open_path(repo: GitRepository, remote: Remote, target: UUID, highest: int, patience: Patience) -> Repository:
    """The repository at the remote's path, its client being REPO. Raises RemoteUnavailable.

    No program is run, so nothing of the environment that restricts a git-annex-shell restricts it (spec: proxy D11):
    what the client may do was decided before.
    """
    return LocalRepository(repository_at(remote, target), repo.uuid)


def repository_at(remote: Remote, target: UUID) -> GitRepository:
    """The repository at the remote's path, if it is TARGET. Raises RemoteUnavailable."""
    location = remote.location
    assert isinstance(location, LocalPath)
    path = os.path.realpath(location.path)
    if not os.path.isdir(path):
        # The .git may be one that was only tried after what the url says.
        plain = location.path.removesuffix(b".git")
        names = [plain, location.path] if not os.path.isdir(plain) and plain != location.path else [location.path]
        raise RemoteUnavailable(f"there is no directory {' or '.join(map(os.fsdecode, names))}")
    try:
        node = GitRepository(path)
        found = node.uuid
        check_annex(node)
    except RepositoryError as reason:
        raise RemoteUnavailable(str(reason)) from reason
    if found != target:
        has = f"has UUID {found}" if found else "is not initialized"
        raise RemoteUnavailable(
            f"expected repository UUID {target} but the repository in {os.fsdecode(location.path)} {has}"
        )
    return node
