"""``p2phttp``: the git-annex API over HTTP (spec: http §10)."""

from __future__ import annotations

import asyncio
import os
import resource
from contextlib import ExitStack
from typing import TYPE_CHECKING, NamedTuple

from annexshell import log, process
from annexshell.checks import drop_git_variables
from annexshell.errors import UsageError
from annexshell.http import certificates, listening, prefix, users
from annexshell.http.accesslog import LogFile
from annexshell.http.auth import Options, open_gate
from annexshell.http.observing import Watch
from annexshell.http.repositories import Repositories
from annexshell.http.server import CLOSING, Alone, Limits, Role, serve
from annexshell.http.supervisor import Supervisor

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

_NO_JOBS = "Use -Jn or set annex.jobs to configure the number of worker threads."
_MOST_JOBS = 32  # unless more are asked for
_JOBS = b"annex.jobs"
_ENOUGH_FILES = 1 << 16


class Watching(NamedTuple):
    """Who is told what goes on; None for what was not given."""

    access_log: str | None = None  # - is standard output
    access_log_format: str = "combined"
    trust_forwarded_for: bool = False
    metrics: tuple[str, int] | None = None  # host and port


NOBODY = Watching()


class Where(NamedTuple):
    """What to listen on, and how; None for what was not given."""

    port: int = listening.DEFAULT_PORT
    bind: str | None = None
    socket: str | None = None
    path_prefix: str = ""
    certificate: str | None = None
    key: str | None = None
    chain: Sequence[str] = ()


def run(
    directories: Sequence[str],
    where: Where,
    access: Options,
    limits: Limits,
    *,
    workers: int,
    jobs: int | None = None,
    config: Sequence[tuple[str, str]] = (),
    watching: Watching = NOBODY,
) -> int:
    """Serve until a signal ends it; gives the exit status. Raises AnnexshellError, OSError when it cannot begin.

    JOBS, if given, goes before what git config and LIMITS say. CONFIG is what overrides that of git.
    """
    process.prepare()
    drop_git_variables()  # only the directories say which repositories are meant
    _override(config)
    with ExitStack() as parts:
        tls = certificates.from_options(where.certificate, where.key, where.chain)
        _check_access(access, has_tls=tls is not None)
        repositories = parts.enter_context(
            Repositories.below(map(os.fsencode, directories)) if directories else Repositories.single(b".")
        )
        path_prefix = prefix.parse(where.path_prefix)
        gate = open_gate(access)
        users.forget_passwords(os.environb)
        _allow_many_files()
        limits = limits._replace(jobs=jobs or _configured_jobs(repositories, config, single=not directories))
        path = None if where.socket is None else os.fsencode(where.socket)
        listeners = parts.enter_context(listening.listen(where.bind, where.port, path, workers=workers))
        watch = _watch(watching, parts)
        status = f"Serving {_count(repositories)} on {', '.join(listeners.addresses())}"

        def work(role: Role) -> None:
            _run(serve(listeners, repositories, gate, limits.share(workers), role, tls, watch, path_prefix))

        if workers > 1:
            return Supervisor(workers, work, limits.grace + CLOSING, status, listeners.close).run()
        work(Alone(status))
    # A thread may be waiting for a client or a node that never says anything again; Python would wait for it.
    os._exit(0)


def _watch(watching: Watching, parts: ExitStack) -> Watch:
    """Raises UsageError, CannotListen."""
    log_file = None
    if watching.access_log is not None:
        log_file = LogFile(None if watching.access_log == "-" else os.fsencode(watching.access_log))
    metrics = None
    if watching.metrics is not None:
        metrics = parts.enter_context(listening.listen_beside(*watching.metrics))
        log.debug(f"metrics: {', '.join(metrics.addresses())}")
    return Watch(log_file, watching.access_log_format, metrics, watching.trust_forwarded_for)


def _check_access(access: Options, *, has_tls: bool) -> None:
    """Raises UsageError for what looks like it lets somebody in, and does not."""
    needs_login = [f"--{name}" for name in ("htpasswd", "tokens") if getattr(access, name) is not None]
    if needs_login and not has_tls and not access.authenv_http:
        raise UsageError(
            f"{' and '.join(needs_login)}: nobody can log in, as secrets are not accepted without TLS; give"
            " --certfile and --privatekeyfile, or --authenv-http if something in front of this server has TLS"
        )
    has_users = needs_login or access.authenv or access.authenv_http
    if access.permissions is not None and not has_users:
        raise UsageError("--permissions is about users, and there are none; see --authenv, --htpasswd and --tokens")
    if access.authenv and not has_tls and not access.authenv_http:
        log.warn("--authenv is for HTTPS only, which needs --certfile and --privatekeyfile: nobody can log in")
    if not has_users and not (access.wideopen or access.unauth_appendonly or access.unauth_readonly):
        log.warn("nobody may do anything; see --authenv, --htpasswd, --tokens, --unauth-readonly and --wideopen")


def _override(config: Sequence[tuple[str, str]]) -> None:
    """Have git, whenever we run it, go by these settings rather than those of files."""
    before = os.environ.get("GIT_CONFIG_COUNT", "")
    first = int(before) if before.isdigit() else 0
    for number, (name, value) in enumerate(config, first):
        os.environ[f"GIT_CONFIG_KEY_{number}"] = name
        os.environ[f"GIT_CONFIG_VALUE_{number}"] = value
    if config:
        os.environ["GIT_CONFIG_COUNT"] = str(first + len(config))


def _configured_jobs(repositories: Repositories, config: Sequence[tuple[str, str]], *, single: bool) -> int:
    """What annex.jobs says; many repositories have no common one. Raises UsageError if it makes no sense."""
    repos = repositories.repos() if single else ()
    given = [os.fsencode(value) for name, value in config if name.lower() == os.fsdecode(_JOBS)]
    configured = repos[0].config.get(_JOBS) if repos else next(reversed(given), None)
    cpus = os.cpu_count() or 1
    if configured is None:
        # Requests wait for the disk more than they compute.
        return min(cpus + 4, _MOST_JOBS)
    if configured == b"cpus":
        return cpus
    if not configured.isdigit() or not int(configured):
        raise UsageError(_NO_JOBS)
    return int(configured)


def _allow_many_files() -> None:
    """As many as the system lets us; the usual limit is for programs that cannot count above 1024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH_FILES if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as reason:
            log.debug(f"cannot allow {wanted} open files: {reason}")


def _count(repositories: Repositories) -> str:
    return "one repository" if len(repositories) == 1 else f"{len(repositories)} repositories"


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
