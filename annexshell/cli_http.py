"""The declaration of ``annexshell p2phttp``, whose options are many (see cli.py for all others)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class _Option(click.Option):
    """One that is listed with others of its GROUP."""

    def __init__(self, *arguments: Any, group: str = "", **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self.group = group


class _Command(click.Command):
    """Lists options by group, and when used wrongly ends with 1 like git-annex: service files may count on that."""

    def make_context(self, *arguments: Any, **settings: Any) -> click.Context:
        try:
            return super().make_context(*arguments, **settings)
        except click.UsageError as reason:
            vars(reason)["exit_code"] = 1
            raise

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                groups.setdefault(getattr(parameter, "group", "") or "Other options", []).append(record)
        # Columns at the same place everywhere.
        width = max(len(names) for records in groups.values() for names, _ in records)
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl([(names.ljust(width), text) for names, text in records], width)


def _in(group: str) -> Callable[..., Callable[[Any], Any]]:
    def option(*names: str, **settings: Any) -> Callable[[Any], Any]:
        return click.option(*names, cls=_Option, group=group, **settings)

    return option


# Processes. Each has its own git processes and databases for the repositories that it serves.
_MOST_BY_DEFAULT = 4


def _number_or_cpus(_: click.Context, parameter: click.Parameter, text: str | None) -> int | None:
    if text == "cpus":
        return os.cpu_count() or 1
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()) or not 0 < int(text) <= 65535:
        raise click.BadParameter(f"{text} is neither a number from 1 on, nor the word cpus.")
    return int(text)


def _finite(_: click.Context, parameter: click.Parameter, seconds: float) -> float:
    if seconds != seconds:
        raise click.BadParameter("nan is not a number of seconds.")
    return seconds


def _settings(_: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    for value in values:
        if "=" not in value or "." not in value.partition("=")[0]:
            raise click.BadParameter(f"{value} is not a setting of git's, like annex.jobs=8.")
    return tuple((name, setting) for name, _, setting in (value.partition("=") for value in values))


def _host_and_port(_: click.Context, parameter: click.Parameter, text: str | None) -> tuple[str, int] | None:
    if text is None:
        return None
    host, _colon, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise click.BadParameter(f"{text} is not a host and a port, like localhost:9418 or [::1]:9418.")
    return host.removeprefix("[").removesuffix("]"), int(port)


_served = _in("What is served")
_listening = _in("Where")
_access = _in("To whom")
_size = _in("How much")
_watching = _in("What can be seen")
_other = _in("Other options")
_file = click.Path(exists=True, dir_okay=False)
_directory = click.Path(exists=True, file_okay=False)


@click.command(cls=_Command)
@_served(
    "--directory",
    "directories",
    type=_directory,
    multiple=True,
    metavar="DIR",
    help="All repositories in and below DIR, also those that come later; more than one can be given.  "
    "[default: the repository of the current directory]",
)
@_listening("--port", type=click.IntRange(0, 65535), default=9417, show_default=True, metavar="N", help="TCP port.")
@_listening("--bind", metavar="ADDRESS", help="Address or host name to listen on.  [default: all]")
@_listening("--socket", "socket_path", type=click.Path(), metavar="PATH", help="Unix socket, instead of TCP.")
@_listening(
    "--path-prefix",
    default="",
    metavar="PATH",
    help="Be at annex+http://HOST/PATH/, beside others that are at other paths.",
)
@_listening("--certfile", type=_file, metavar="FILE", help="TLS certificate, for HTTPS.")
@_listening("--privatekeyfile", type=_file, metavar="FILE", help="Its private key.")
@_listening("--chainfile", type=_file, metavar="FILE", multiple=True, help="Certificates that it rests upon.")
@_access("--unauth-readonly", is_flag=True, help="Anybody may get content.")
@_access("--unauth-appendonly", is_flag=True, help="Anybody may get and add content.")
@_access("--unauth-nolocking", is_flag=True, help="But may not lock it.")
@_access("--wideopen", is_flag=True, help="Anybody may do everything.")
@_access("--authenv", is_flag=True, help="Users from the environment may log in, by HTTPS only.")
@_access("--authenv-http", is_flag=True, help="The same by HTTP; also those of the files below.")
@_access("--htpasswd", type=_file, metavar="FILE", help="Users and their bcrypt hashes, as of htpasswd -B.")
@_access("--tokens", type=_file, metavar="FILE", help="Users and the SHA256 hashes of their tokens.")
@_access("--permissions", type=_file, metavar="FILE", help="What users may do, and where; without: everything.")
@_size(
    "-J",
    "--jobs",
    metavar="N|cpus",
    callback=_number_or_cpus,
    help="Short requests worked on at once.  [default: annex.jobs of the only repository, or cpus + 4]",
)
@_size(
    "--workers",
    metavar="N|cpus",
    callback=_number_or_cpus,
    help="Processes, among which clients are distributed, and all the numbers here.  [default: cpus, at most 4]",
)
@_size(
    "--transfers",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    metavar="N",
    help="Content on its way at once.",
)
@_size(
    "--lockedfiles",
    type=click.IntRange(0),
    metavar="N",
    help="Content locked at once.  [default: 100 in each process]",
)
@_size(
    "--proxyconnections",
    type=click.IntRange(0),
    default=16,
    show_default=True,
    metavar="N",
    help="Idle connections to other repositories that are kept.",
)
@_size("--clusterjobs", type=click.IntRange(1), default=1, hidden=True)
@_size("--cpus", type=click.IntRange(1), hidden=True)
@_watching("--access-log", metavar="FILE|-", help="A line about each request, in FILE or on stdout.")
@_watching(
    "--access-log-format",
    type=click.Choice(["combined", "json"]),
    default="combined",
    show_default=True,
    help="What the lines look like.",
)
@_watching(
    "--trust-forwarded-for",
    is_flag=True,
    help="The client's address is what the proxy in front of this server says in X-Forwarded-For.",
)
@_watching(
    "--metrics", metavar="HOST:PORT", callback=_host_and_port, help="For Prometheus, at http://HOST:PORT/metrics."
)
@_other(
    "--grace",
    type=click.FloatRange(0, 86400),
    callback=_finite,
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="For requests to be completed in when told to stop.",
)
@_other(
    "-c", "--config", metavar="NAME=VALUE", multiple=True, callback=_settings, help="Override a setting of git's."
)
@_other("-d", "--debug/--no-debug", help="Tell on stderr what is going on.")
# Options of all of git-annex's commands, that make no difference here.
@_other("--quiet", "-q", "--verbose", "-v", "--force", "--fast", "-F", "--explain", is_flag=True, hidden=True)
@_other("--rebalance", "--trust-glacier", "--notify-start", "--notify-finish", is_flag=True, hidden=True)
@_other("--debugfilter", "--user-agent", "--numcopies", "-N", "--mincopies", hidden=True, multiple=True)
@_other("--trust", "--semitrust", "--untrust", hidden=True, multiple=True)
def p2phttp(
    directories: tuple[str, ...],
    port: int,
    bind: str | None,
    socket_path: str | None,
    path_prefix: str,
    certfile: str | None,
    privatekeyfile: str | None,
    chainfile: tuple[str, ...],
    jobs: int | None,
    workers: int | None,
    transfers: int,
    lockedfiles: int | None,
    proxyconnections: int,
    grace: float,
    config: tuple[tuple[str, str], ...],
    debug: bool,
    access_log: str | None,
    access_log_format: str,
    trust_forwarded_for: bool,
    metrics: tuple[str, int] | None,
    htpasswd: str | None,
    tokens: str | None,
    permissions: str | None,
    **flags: Any,
) -> None:
    """Serve repositories over HTTP.

    Takes the place of "git annex p2phttp" and has its options. Serves the repository of the current directory, or
    all below --directory, and those that they stand in front of. Without an option that lets somebody do something,
    nobody may do anything.

    \b
    Clients use it when one of these is annex+http://HOST:9417/git-annex/, or annex+https:
        annex.url in the config of a repository that they clone
        remote.NAME.annexUrl in their own

    \b
    Users of the environment are variables like
        GIT_ANNEX_P2PHTTP_PASSWORD_alice=secret
        GIT_ANNEX_P2PHTTP_PERMISSIONS_alice=readonly      or appendonly

    \b
    Examples:
        annexshell p2phttp --unauth-readonly
        annexshell p2phttp --directory=/srv/annex --authenv-http --socket=/run/annexshell/http.sock
        annexshell p2phttp --directory=/srv/annex --certfile=cert.pem --privatekeyfile=key.pem \\
            --htpasswd=users --permissions=permissions

    SIGTERM and SIGINT have it finish what is going on, and commit; a second one ends it at once. SIGHUP has it read
    the certificate again. GET /healthz says 200 while it serves. "man annexshell-p2phttp" tells the rest.

    \b
    Exit status:
        0   it was told to stop
        1   it could not begin, or the command line makes no sense; stderr says why
    """
    from annexshell import log
    from annexshell.commands import p2phttp
    from annexshell.errors import AnnexshellError
    from annexshell.http.auth import Options
    from annexshell.http.server import Limits

    if debug:
        log.enable_debug()
    access = Options(
        **{name: flags[name] for name in Options._fields if name in flags},
        htpasswd=_fsencoded(htpasswd),
        tokens=_fsencoded(tokens),
        permissions=_fsencoded(permissions),
    )
    watching = p2phttp.Watching(access_log, access_log_format, trust_forwarded_for, metrics)
    where = p2phttp.Where(port, bind, socket_path, path_prefix, certfile, privatekeyfile, chainfile)
    workers = workers or min(os.cpu_count() or 1, _MOST_BY_DEFAULT)
    if lockedfiles is None:
        # Not divided, as a client may take all its locks by one connection, and so of one process.
        lockedfiles = Limits().lockedfiles * workers
    limits = Limits(transfers=transfers, lockedfiles=lockedfiles, proxyconnections=proxyconnections, grace=grace)
    try:
        status = p2phttp.run(
            directories, where, access, limits, jobs=jobs, workers=workers, config=config, watching=watching
        )
    except AnnexshellError as reason:
        raise click.ClickException(str(reason)) from reason
    except OSError as reason:
        named = f"{os.fsdecode(reason.filename)}: " if reason.filename else ""
        raise click.ClickException(f"{named}{reason.strerror or reason}") from reason
    raise SystemExit(status)


def _fsencoded(path: str | None) -> bytes | None:
    return None if path is None else os.fsencode(path)
