"""``proxy``: what ``p2pstdio --uuid`` does for a client, by hand: standing between stdin, stdout and a remote."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from annexshell import access, audit, checks, directories, log, process
from annexshell.access import READ_WRITE, Access
from annexshell.annex.gitrepo import GitRepository, check_annex
from annexshell.annex.logs import proxy as proxylog
from annexshell.annex.repository import LocalRepository
from annexshell.commands import session
from annexshell.errors import Refused
from annexshell.proxy import CannotProxy, ProxiedRepository, check_can_proxy, logged_names, update, why_not
from annexshell.remotes import patience
from annexshell.remotes.listing import list_remotes
from annexshell.remotes.remote import AnnexHttp, LocalPath, Remote
from annexshell.uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.branch import Branch

_HINT = """\
Type messages of the P2P protocol, VERSION 4 first; those in the manual page annexshell-proxy(1) are a choice.
Ctrl-D at the beginning of a line ends the session.
"""


def run(
    directory: str,
    asked: str,
    *,
    mode: Access = READ_WRITE,
    trace: bool = False,
    dry_run: bool = False,
    as_json: bool = False,
    connect_timeout: float | None = None,
    reply_timeout: float | None = None,
    debug: bool = False,
    log_to: str | None = None,
) -> int:
    """Serve the remote ASKED of the repository in DIRECTORY until stdin ends; gives the exit status.

    LOG_TO is where an audit log is kept: a file, or "syslog".
    Limits are in seconds, 0 for none, None for what git config says. Raises AnnexshellError, OSError.
    """
    process.prepare()
    if log_to is not None:
        audit.start(os.fsencode(log_to)).describe(command="proxy", directory=directory)
    repo = open_repository(directory, debug=debug)
    with LocalRepository(repo).branch as branch:
        update(branch)
        remotes = list_remotes(repo, branch)
        uuid = find_uuid(repo, branch, remotes, asked)
        if dry_run:
            from annexshell.commands import proxy_dryrun

            return proxy_dryrun.run(repo, branch, remotes, uuid, as_json=as_json)
        target = open_target(repo, branch, remotes, uuid)
    limits = patience.from_config(repo.config)
    if connect_timeout is not None:
        limits.connect = patience.limit(connect_timeout)
    if reply_timeout is not None:
        limits.reply = patience.limit(reply_timeout)
    if os.isatty(0):
        os.write(2, _HINT.encode())
    narrowed = access.narrower(access.from_environment(), mode)
    if log.audit is not None:
        log.audit.describe(directory=repo.path, repository=target.uuid)
        log.audit.begin()
    status = _serve(target, narrowed, limits, trace=trace)
    if log.audit is not None:
        log.audit.end_with(status)
    return status


def _serve(target: ProxiedRepository, access: Access, limits: patience.Patience, *, trace: bool) -> int:
    greeting = b"AUTH-SUCCESS %s" % target.uuid
    os.write(1, greeting + b"\n")
    if not trace:
        return session.serve_proxied(target, access, limits)
    from annexshell.p2p.trace import CLIENT, PROXY, REMOTE, Trace

    with Trace() as told:
        told.message(PROXY, CLIENT, greeting)
        if isinstance(target.remote.location, LocalPath | AnnexHttp):
            how = "in this process" if isinstance(target.remote.location, LocalPath) else "by HTTP"
            told.note(f"remote {target.remote} is used {how}, so that there are no messages to it")
        limits.make_connection = told.connections_to(REMOTE)
        return session.serve_proxied(target, access, limits, told.connections_to(CLIENT))


def open_repository(directory: str, *, debug: bool) -> GitRepository:
    """The repository in DIRECTORY, which unlike a client's is relative to the current directory.

    Raises Refused, RepositoryError.
    """
    if debug:
        log.enable_debug()
    path = os.path.abspath(os.fsencode(directory))
    if directories.RESTRICTION in os.environb:
        path = directories.opened_path(path)
    checks.drop_git_variables()
    repo = checks.open_repository(directories.repository_path(path), os.fsencode(directory))
    config = checks.read_config(repo, os.fsencode(directory))
    if config.get_bool(b"annex.debug"):
        log.enable_debug()
    check_annex(repo)
    return repo


def find_uuid(repo: GitRepository, branch: Branch, remotes: Sequence[Remote], asked: str) -> UUID:
    """The uuid that is meant by ASKED: the name of one of REPO's REMOTES, or a uuid. Raises Refused."""
    word = os.fsencode(asked)
    named = next((remote for remote in remotes if remote.name == word), None)
    if named is not None:
        if not named.uuid:
            raise Refused(
                f"cannot proxy to remote {named}: its uuid is not known"
                f" (git annex init, or git annex sync {named}, finds it out)"
            )
        return named.uuid
    proxied = proxylog.parse(branch.read(proxylog.FILE)).get(repo.uuid, ())
    if word != repo.uuid and all(word != uuid for uuid, _ in proxied) and not any(r.uuid == word for r in remotes):
        names = ", ".join(dict.fromkeys(map(str, remotes))) or "none"
        raise Refused(f"cannot proxy to {asked}: it is neither the name nor the uuid of a remote; there are: {names}")
    return UUID(word)


def open_target(repo: GitRepository, branch: Branch, remotes: Sequence[Remote], uuid: UUID) -> ProxiedRepository:
    """What UUID stands for. Raises Refused, with all that it takes to allow it."""
    if uuid == repo.uuid:
        raise Refused(f"cannot proxy to {uuid}: that is the repository itself, which annexshell p2pstdio serves")
    try:
        return check_can_proxy(repo, uuid)
    except CannotProxy as reason:
        names = logged_names(repo, branch, uuid) or frozenset()
        own = next((remote for remote in remotes if remote.uuid == uuid), None)
        if own is None:
            raise Refused(f"cannot proxy to {uuid}: no remote has this uuid (git remote -v lists them)") from reason
        why = why_not(repo, own, uuid, names, remotes) or str(reason)
        raise Refused(
            f"cannot proxy to remote {own} ({uuid}): {why}; to allow it, run in the repository:"
            f" git config remote.{own}.annex-proxy true && git annex updateproxy"
        ) from reason
