"""Standing in front of other repositories: who may be stood for, and doing it (spec: proxy §3, §7, §10)."""

from __future__ import annotations

from annexshell.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.remotes.remote import Remote
    from annexshell.uuid import UUID


class CannotProxy(Refused):
    """Why a uuid is not stood for, in the spec's words; empty where nothing is to be said."""


def check_can_proxy(repo: GitRepository, uuid: UUID) -> ProxiedRepository:
    """The repository that REPO stands in front of under UUID (spec: proxy §3.1). Raises CannotProxy."""
    raise NotImplementedError


class ProxiedRepository:
    """A remote, used by way of this repository, which records what becomes of its content.

    Nothing is contacted before :meth:`agree`.
    """

    uuid: UUID
    remote: Remote
