"""``p2pstdio``: the P2P protocol over stdin and stdout (spec: shell §8, proxy §6)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.proxy import ProxiedRepository


def run(repo: GitRepository, client_uuid: bytes, access: Access, target: ProxiedRepository | None = None) -> int:
    """Serve one client until it is done; gives the exit status.

    It is TARGET that is served, if that is given, and REPO's own content if not.
    """
    # The client is told who we are before the modules that serve it are loaded.
    os.write(1, b"AUTH-SUCCESS %s\n" % (repo.uuid if target is None else target.uuid))

    from annexshell.commands import session

    if target is None:
        return session.serve(repo, client_uuid, access)
    from annexshell.remotes import patience

    return session.serve_proxied(target, access, patience.from_config(repo.config))
