"""configlist: tell a client the repository's uuid, making it one if it should have one (spec: shell §7.1)."""

from __future__ import annotations

from annexshell import checks, log, relay
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
            if log.audit is not None:
                log.audit.describe(repository=repo.uuid)
                log.audit.event("init", "ok")
    # In one piece and only now: a client takes one line alone, or none, for the whole answer.
    lines = b"annex.uuid=%s\ncore.gcrypt-id=%s\n" % (
        _one_line(repo, b"annex.uuid"),
        _one_line(repo, b"core.gcrypt-id"),
    )
    relay.write_all(1, lines)
    return 0


def _one_line(repo: GitRepository, name: bytes) -> bytes:
    """A setting's value; what is behind a line end in it would pass for a line of ours, and is left out."""
    return (repo.config.get(name) or b"").partition(b"\n")[0]
