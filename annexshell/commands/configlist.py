"""configlist: tell a client the repository's uuid, making it one if it should have one (spec: shell §7.1)."""

from __future__ import annotations

from annexshell import checks, relay
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository


def run(repo: GitRepository, access: Access, *, autoinit: bool) -> int:
    """Print the two settings that clients look for. Raises Refused, RepositoryError, OSError."""
    if not repo.uuid:
        if not repo.is_git_repository:
            if autoinit:
                raise RepositoryError("There is no git repository in this directory, so it cannot be initialised.")
        elif autoinit or repo.has_annex_ref():
            if not access.may_write:
                raise checks.blocked(access)
            from annexshell.annex.init import initialise

            initialise(repo)
    config = repo.config
    # In one piece and only now: a client takes one line alone, or none, for the whole answer.
    lines = b"annex.uuid=%s\ncore.gcrypt-id=%s\n" % (repo.uuid, config.get(b"core.gcrypt-id") or b"")
    relay.write_all(1, lines)
    return 0
