"""``p2pstdio DIRECTORY CLIENTUUID``: the P2P protocol over stdin and stdout."""

from __future__ import annotations

import os

from annexshell import log
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository


def run(repo: GitRepository, client_uuid: bytes, access: Access) -> int:
    """Serve one client until it is done; gives the exit status (spec: protocol §7.3)."""
    # The client is told who we are before the modules that serve it are loaded.
    os.write(1, b"AUTH-SUCCESS %s\n" % repo.uuid)

    from annexshell.annex.repository import LocalRepository
    from annexshell.errors import AnnexshellError
    from annexshell.p2p.connect import GitServices
    from annexshell.p2p.server import Server
    from annexshell.p2p.wire import Connection
    from annexshell.termination import Terminated, Termination

    status = 0
    with Termination() as termination:
        repository = LocalRepository(repo, UUID(client_uuid))
        try:
            # CONNECT must not give what GIT_ANNEX_SHELL_LIMITED takes away.
            connect = None if os.environ.get("GIT_ANNEX_SHELL_LIMITED") else GitServices(repo.path)
            Server(repository, Connection(0, 1, termination), access, connect).run()
        except Terminated:
            log.debug("ended by a signal")
        except BrokenPipeError:
            log.debug("the client closed its end")  # which is no failure: there is nobody left to serve
        except (AnnexshellError, OSError) as reason:
            log.error(str(reason))
            status = 1
        try:
            repository.close()
        except (AnnexshellError, OSError) as reason:
            log.error(f"cannot commit to the git-annex branch, will do so next time: {reason}")
            status = 1
    return status
