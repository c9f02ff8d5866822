"""The click program: what a person can type, and the help for what clients send (see __main__ for what runs those).

Only declarations are here. What a subcommand does is imported when it runs.
"""

from __future__ import annotations

import click

from annexshell import __version__
from annexshell.cli_http import p2phttp
from annexshell.cli_policy import authorized_keys, explain

_HELP_OPTIONS = ["-h", "--help"]
_WIDTH = 100
_SETTINGS = {"help_option_names": _HELP_OPTIONS, "max_content_width": _WIDTH}


@click.group(context_settings=_SETTINGS)
@click.version_option(__version__, "--version", prog_name="annexshell")
def program() -> None:
    """Serve git-annex repositories to git-annex clients, over ssh and HTTP.

    annexshell stands in for git-annex-shell on a server: clients reach it through ssh and use it as they would
    use git-annex-shell. A repository can be used by annexshell and git-annex at the same time.

    \b
    To let a client use it, link it into the PATH of the account that the client logs in to
        annexshell link-shell ~/bin
    or allow the client nothing else, by a line in ~/.ssh/authorized_keys
        command="annexshell -c \\"$SSH_ORIGINAL_COMMAND\\"",restrict ssh-ed25519 AAAA... client

    \b
    These variables, set in front of annexshell in such a line, restrict the client further:
        GIT_ANNEX_SHELL_DIRECTORY=DIR   only the repository in DIR
        GIT_ANNEX_SHELL_READONLY=1      it can get content, but not change anything
        GIT_ANNEX_SHELL_APPENDONLY=1    it can add content, but not remove any
        GIT_ANNEX_SHELL_LIMITED=1       no git commands, only those of git-annex

    \b
    In front of -c the server can ask for an audit log of who did what, in a file or syslog:
        annexshell --log FILE --user NAME -c ...

    \b
    Then, on the client:
        git remote add server ssh://HOST/~/REPOSITORY
        git annex sync --content server

    Over HTTP, "annexshell p2phttp" takes the place of "git annex p2phttp".

    For many keys and directories there is a policy, a file: see "annexshell authorized-keys --help".

    Below, authorized-keys, demo, explain, link-shell, p2phttp and proxy are for people, and the others are what
    clients send; "annexshell COMMAND --help" tells what each one is for.
    """


@program.command("link-shell")
@click.argument("directory", type=click.Path(exists=True, file_okay=False))
@click.option("--name", default="git-annex-shell", show_default=True, help="What clients will run.")
@click.option("--symlink", is_flag=True, help="Make a symlink to the annexshell program, which starts slower.")
@click.option("--force", is_flag=True, help="Replace what is there, whatever it is.")
def link_shell(directory: str, name: str, symlink: bool, force: bool) -> None:
    """Give annexshell the name that clients run.

    Writes a small program git-annex-shell to DIRECTORY that starts annexshell with this Python, faster than the
    annexshell program does and without regard to the PYTHON... variables of the client. DIRECTORY should come
    early in the PATH that sshd gives to the account.

    \b
    Example:
        annexshell link-shell ~/bin
    """
    from annexshell.commands import link_shell
    from annexshell.errors import AnnexshellError

    try:
        report = link_shell.run(directory, name, symlink=symlink, force=force)
    except (AnnexshellError, OSError) as reason:
        raise click.ClickException(str(reason)) from reason
    click.echo(report.done)
    for warning in report.warnings:
        click.echo(f"Warning: {warning}", err=True)


@program.command()
@click.option(
    "--size",
    type=click.IntRange(1, 100_000),
    default=64,
    show_default=True,
    metavar="MIB",
    help="How large the large file is.",
)
@click.option("--keep", is_flag=True, help="Leave everything where it is, to be looked at.")
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON, for scripts.")
def demo(size: int, keep: bool, as_json: bool) -> None:
    """Show what annexshell does, on a repository of its own.

    Makes a repository in a temporary directory, starts the server the way that sshd would, and stores, checks,
    locks, fetches and removes content through it; then the same with git-annex as the client, if it is in PATH.
    Each answer is compared with what it should be: the exit status is 0 if all were right, otherwise 1.
    """
    from annexshell.commands import demo

    raise SystemExit(demo.run(size, keep=keep, as_json=as_json))


def _check_seconds(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    if value is not None and not 0 <= value < float("inf"):
        raise click.BadParameter(f"{value} is not a number of seconds.")
    return value


@program.command()
@click.argument("directory", type=click.Path())
@click.argument("remote", metavar="REMOTE|UUID")
@click.option("--trace", is_flag=True, help="Tell on stderr what is said, and the hash of content.")
@click.option("--dry-run", is_flag=True, help="Tell which remote would be used, and how; contact nothing.")
@click.option("--json", "as_json", is_flag=True, help="Print what --dry-run tells as JSON, for scripts.")
@click.option("--read-only", is_flag=True, help="Let nothing be changed.")
@click.option("--append-only", is_flag=True, help="Let content be added, but not removed.")
@click.option(
    "--connect-timeout",
    type=float,
    callback=_check_seconds,
    metavar="SECONDS",
    help="How long the remote may take to be reached; 0 for no limit.  [default: 60]",
)
@click.option(
    "--reply-timeout",
    type=float,
    callback=_check_seconds,
    metavar="SECONDS",
    help="How long the remote may take for each thing it says; 0 for no limit.  [default: no limit]",
)
@click.option("--log", "log_to", metavar="FILE|syslog", help="Keep an audit log: see annexshell-audit(5).")
@click.option("-d", "--debug", is_flag=True, help="Tell on stderr what is going on.")
def proxy(
    directory: str,
    remote: str,
    trace: bool,
    dry_run: bool,
    as_json: bool,
    read_only: bool,
    append_only: bool,
    connect_timeout: float | None,
    reply_timeout: float | None,
    log_to: str | None,
    debug: bool,
) -> None:
    """Stand between stdin, stdout and a remote.

    Does by hand what "p2pstdio --uuid" does when a client asks for one of the remotes of the repository in
    DIRECTORY: speaks the P2P protocol for that remote over stdin and stdout until stdin is closed, and records in
    the git-annex branch what becomes of content there. For finding out why a proxied remote does not work, and for
    scripts. "man annexshell-proxy" has the messages of the protocol.

    \b
    The repository has to allow that, once for each remote:
        git remote add NAME URL && git annex sync NAME
        git config remote.NAME.annex-proxy true
        git annex updateproxy

    \b
    Examples:
        annexshell proxy --dry-run ~/annex NAME
        printf 'VERSION 4\\nGETTIMESTAMP\\n' | annexshell proxy --trace ~/annex NAME

    GIT_ANNEX_SHELL_READONLY and GIT_ANNEX_SHELL_APPENDONLY restrict this too.

    \b
    Exit status:
        0   the client has ended the session; with --dry-run: the remote could be used
        1   it is not allowed, the remote failed, or the session broke; stderr says why
        2   the command line makes no sense
        255 it could not be tried, for a reason that may pass
    """
    if as_json and not dry_run:
        raise click.UsageError("--json is for --dry-run; --trace writes JSON where stderr is no terminal")
    from annexshell import access
    from annexshell.commands import proxy

    mode = access.READ_ONLY if read_only else access.APPEND_ONLY if append_only else access.READ_WRITE
    status = proxy.run(
        directory,
        remote,
        mode=mode,
        trace=trace,
        dry_run=dry_run,
        as_json=as_json,
        connect_timeout=connect_timeout,
        reply_timeout=reply_timeout,
        debug=debug,
        log_to=log_to,
    )
    raise SystemExit(status)


program.add_command(p2phttp)
program.add_command(authorized_keys)
program.add_command(explain)

_OPTIONS = [
    click.Option(["--uuid"], metavar="UUID", multiple=True, help="Refuse to do anything in another repository."),
    click.Option(["-d", "--debug/--no-debug"], help="Tell on stderr what is going on."),
    # Clients may send these to any command.
    click.Option(["--debugfilter"], hidden=True),
    click.Option(["-F", "--fast"], is_flag=True, hidden=True),
    click.Option(["-v", "--verbose"], is_flag=True, hidden=True),
    click.Option(["-q", "--quiet"], is_flag=True, hidden=True),
    click.Option(["--explain"], is_flag=True, hidden=True),
]
_FORCE = [click.Option(["--force"], is_flag=True, hidden=True)]
_DROPKEY_OPTIONS = [
    click.Option(["--force"], is_flag=True, help="Needed, as no other copies are looked for."),
    click.Option(["-j", "--json"], is_flag=True, help="Tell on stdout what was done, as JSON."),
    click.Option(["--json-error-messages"], is_flag=True, help="Put error messages into the JSON."),
    click.Option(["--batch"], is_flag=True, help="Read keys from stdin, one per line."),
    click.Option(["-z"], is_flag=True, help="The keys on stdin are separated by NUL."),
]


def _declare(name: str, words: str, purpose: str, more: str, example: str) -> None:
    """Add the help of a command that clients send: NAME DIRECTORY WORDS."""

    def run(**values: object) -> None:
        # With a directory, __main__ runs the command itself, without click.
        raise click.UsageError(f"the directory comes first: annexshell {name} DIRECTORY {words}")

    example = f"\n\n\b\nExample:\n    {example}" if example else ""
    program.add_command(
        click.Command(
            name,
            params=[
                click.Argument(["directory"], metavar="DIRECTORY"),
                click.Argument(["words"], metavar=words, nargs=-1),
                *_OPTIONS,
                *(_DROPKEY_OPTIONS if name == "dropkey" else _FORCE),
            ],
            callback=run,
            help=f"{purpose}\n\n{more}{example}",
            short_help=purpose,
            options_metavar="",
            context_settings=_SETTINGS,
        )
    )


_declare(
    "p2pstdio",
    "CLIENTUUID [OPTIONS]",
    "Transfer, check, lock and remove content.",
    "Speaks the P2P protocol over stdin and stdout until stdin is closed. All that a client does with content"
    " goes through this.",
    "echo VERSION 4 | annexshell p2pstdio ~/annex 00000000-0000-0000-0000-000000000001",
)
_declare(
    "configlist",
    "[OPTIONS] [-- autoinit=1 --]",
    "Print the repository's uuid.",
    "With autoinit=1, or after a git-annex branch was pushed to it, a repository without a uuid is initialised.",
    "annexshell configlist ~/annex",
)
_declare(
    "notifychanges",
    "[OPTIONS]",
    "Print when branches change.",
    "Clients run this while they want to fetch what others push, as the assistant does (git annex remotedaemon)."
    " Prints READY, then a line CHANGED with the new object ids whenever refs are set to something else, at first"
    " those of all refs that are not packed; of several changes at once, first all in one line, then each branch's."
    " Ends when stdin is closed.\n\n"
    "Uses inotify: changes made by another machine on a network file system go unnoticed, and the system limits how"
    " many clients (sysctl fs.inotify.max_user_instances) and directories of refs (max_user_watches) an account can"
    " watch for.",
    "annexshell notifychanges ~/annex",
)
_declare(
    "inannex",
    "[KEY...] [OPTIONS]",
    "Tell whether content is present.",
    "The exit status is 0 if the content of all keys is present, 1 if not, 100 if that cannot be told.",
    "annexshell inannex ~/annex WORM-s3-m1--foo",
)
_declare(
    "sendkey",
    "KEY [OPTIONS] -- [remoteuuid=UUID] -- RSYNC...",
    "Send content to rsync.",
    "The client is rsync, run by git-annex for an encrypted repository of type gcrypt.",
    "",
)
_declare(
    "recvkey",
    "KEY [OPTIONS] -- [remoteuuid=UUID] -- RSYNC...",
    "Receive content from rsync.",
    "The client is rsync, run by git-annex for an encrypted repository of type gcrypt.",
    "",
)
_declare(
    "dropkey",
    "[KEY...] --force [OPTIONS]",
    "Remove content.",
    "Without looking for other copies: that has been done by the client, for an encrypted repository of type gcrypt.",
    "annexshell dropkey ~/annex --force WORM-s3-m1--foo",
)
_declare(
    "gcryptsetup",
    "GCRYPTID [OPTIONS]",
    "Prepare a bare repository for gcrypt.",
    "Stores the id that git-remote-gcrypt gave the repository as core.gcrypt-id in its git config, and allows"
    " the pushes that replace its branch (receive.denyNonFastForwards=false). From then on clients can keep"
    " encrypted content in it. Nobody needs to type this: clients send it when a user makes the repository a"
    " remote, or enables it in another clone.\n\n"
    "\b\nOn the server:\n    git init --bare crypt.git\nOn the client:\n"
    "    git annex initremote crypt type=gcrypt encryption=hybrid keyid=KEYID gitrepo=ssh://HOST/~/crypt.git\n"
    "    git push crypt main git-annex\n    git annex copy --to=crypt\n\n"
    "The same id again changes nothing. Refused are a repository that has an annex.uuid, one that has another"
    " id, and one that is not bare; clients that GIT_ANNEX_SHELL_READONLY or GIT_ANNEX_SHELL_APPENDONLY"
    " restricts; and ids with control characters. The repository gets no uuid and no git-annex branch: clients"
    " know it by a uuid that is made of the id.",
    "annexshell gcryptsetup ~/crypt.git :id:fy3KuYgG/+8vDPqdWXGw",
)


def show_help(name: str) -> int:
    """The help of a command from the wire, on stdout (spec: shell §2.4)."""
    command = program.commands[name]
    context = click.Context(
        command, info_name=f"git-annex-shell {name}", help_option_names=_HELP_OPTIONS, max_content_width=_WIDTH
    )
    click.echo(command.get_help(context))
    return 0


def main() -> int:
    """Run the click program; ends with SystemExit, as click programs do."""
    program(prog_name="annexshell")
    return 0
