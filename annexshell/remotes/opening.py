"""Opening a remote, of whatever kind (spec: proxy §5)."""

from __future__ import annotations

from annexshell.errors import RemoteUnavailable
from annexshell.remotes.remote import AnnexHttp, LocalPath, Special, Ssh, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.remotes.patience import Patience
    from annexshell.remotes.remote import Remote
    from annexshell.repository import Repository
    from annexshell.uuid import UUID


def open_remote(repo: GitRepository, remote: Remote, target: UUID, highest: int, patience: Patience) -> Repository:
    """The repository TARGET behind one of REPO's remotes, spoken to at version HIGHEST of the protocol at the most.

    Raises RemoteUnavailable, with the remote's name and the reason.
    """
    try:
        why = obstacle(remote)
        if why is not None:
            raise RemoteUnavailable(why)
        opener = _OPENERS[type(remote.location)]
        return opener()(repo, remote, target, highest, patience)
    except RemoteUnavailable as reason:
        raise RemoteUnavailable(f"Unable to connect to remote {remote}: {reason}") from reason


def obstacle(remote: Remote) -> str | None:
    """Why it is of a kind that cannot be opened; None if that can be tried."""
    location = remote.location
    if isinstance(location, Special):
        kind = location.kind.decode("utf-8", "backslashreplace")
        return f"it is a special remote ({kind}), and this version of annexshell uses git remotes only"
    return location.reason if isinstance(location, Unreachable) else None


# Each kind's module is imported when the first of them is opened.


def _path() -> Opener:
    from annexshell.remotes.path import open_path

    return open_path


def _ssh() -> Opener:
    from annexshell.remotes.ssh import open_ssh

    return open_ssh


def _http() -> Opener:
    from annexshell.remotes.http import open_http

    return open_http


if TYPE_CHECKING:
    Opener = Callable[[GitRepository, Remote, UUID, int, Patience], Repository]

_OPENERS: dict[type, Callable[[], Opener]] = {
    LocalPath: _path,
    Ssh: _ssh,
    AnnexHttp: _http,
}
