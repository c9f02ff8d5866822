"""A conversation with the client at stdin and stdout, once it was greeted, to its exit status (spec: protocol §7.3).

This is imported after the greeting, and may import what serving takes.
"""

from __future__ import annotations

import os

from annexshell import log
from annexshell.errors import AnnexshellError
from annexshell.p2p.wire import Connection
from annexshell.termination import Terminated, Termination
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.p2p.server import GitService, Server
    from annexshell.proxy import ProxiedRepository
    from annexshell.remotes.patience import Patience
    from annexshell.repository import Repository

_STDIN, _STDOUT = 0, 1


def serve(repo: GitRepository, client_uuid: bytes, access: Access) -> int:
    """Serve the content of REPO itself."""
    from annexshell.annex.repository import LocalRepository
    from annexshell.p2p.connect import GitServices
    from annexshell.p2p.server import Server

    with Termination() as termination:
        connection = Connection(_STDIN, _STDOUT, termination)
        # CONNECT must not give what GIT_ANNEX_SHELL_LIMITED takes away.
        connect: GitService | None = None if os.environ.get("GIT_ANNEX_SHELL_LIMITED") else GitServices(repo.path)
        if connect is not None and log.audit is not None:
            connect = log.audit.watch_git(connect)
        repository = _audited(LocalRepository(repo, UUID(client_uuid)))
        return _hold(Server(repository, connection, access, connect), repository)


def serve_proxied(
    target: ProxiedRepository,
    access: Access,
    patience: Patience,
    make_connection: Callable[[int, int, Termination], Connection] = Connection,
) -> int:
    """Serve what a repository stands in front of, which is waited for with PATIENCE, for the client's sake."""
    from annexshell.p2p.proxysession import ProxySession

    with Termination() as termination:
        patience.termination = termination
        patience.for_whom = _STDOUT
        target.patience = patience
        connection = make_connection(_STDIN, _STDOUT, termination)
        repository = _audited(target)
        return _hold(ProxySession(repository, connection, access), repository)


def _audited(repository: Repository) -> Repository:
    return repository if log.audit is None else log.audit.watch(repository)


def _hold(session: Server, repository: Repository) -> int:
    status = 0
    ended: BaseException | None = None
    try:
        session.run()
    except Terminated as reason:
        log.debug("ended by a signal")
        ended = reason
    except BrokenPipeError as reason:
        log.debug("the client closed its end")  # which is no failure: there is nobody left to serve
        ended = reason
    except (AnnexshellError, OSError) as reason:
        log.error(str(reason))
        status = 1
        ended = reason
    try:
        repository.close()
    except (AnnexshellError, OSError) as reason:
        log.error(f"cannot commit to the git-annex branch, will do so next time: {reason}")
        status = 1
        ended = ended or reason
    if log.audit is not None and ended is not None:
        log.audit.end_by(ended)  # here, because a signal has its effect when it is over
    return status
