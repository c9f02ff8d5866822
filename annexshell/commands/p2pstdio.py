"""``p2pstdio``: the P2P protocol over stdin and stdout (spec: shell §8, proxy §6)."""

from __future__ import annotations

import os

from annexshell import log
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.p2p.server import Server
    from annexshell.proxy import ProxiedRepository
    from annexshell.repository import Repository


def run(repo: GitRepository, client_uuid: bytes, access: Access, target: ProxiedRepository | None = None) -> int:
    """Serve one client until it is done; gives the exit status (spec: protocol §7.3).

    It is TARGET that is served, if that is given, and REPO's own content if not.
    """
    # The client is told who we are before the modules that serve it are loaded.
    os.write(1, b"AUTH-SUCCESS %s\n" % (repo.uuid if target is None else target.uuid))

    from annexshell.errors import AnnexshellError
    from annexshell.p2p.wire import Connection
    from annexshell.termination import Terminated, Termination

    status = 0
    with Termination() as termination:
        repository: Repository
        session: Server
        connection = Connection(0, 1, termination)
        if target is None:
            from annexshell.annex.repository import LocalRepository
            from annexshell.p2p.connect import GitServices
            from annexshell.p2p.server import Server

            # CONNECT must not give what GIT_ANNEX_SHELL_LIMITED takes away.
            connect = None if os.environ.get("GIT_ANNEX_SHELL_LIMITED") else GitServices(repo.path)
            repository = LocalRepository(repo, UUID(client_uuid))
            session = Server(repository, connection, access, connect)
        else:
            from annexshell.p2p.proxysession import ProxySession
            from annexshell.remotes import patience

            target.patience = patience.from_config(repo.config, termination=termination, for_whom=1)
            repository = target
            session = ProxySession(target, connection, access)
        try:
            session.run()
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
