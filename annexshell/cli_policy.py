"""The declarations of ``authorized-keys`` and ``explain``, which go with ``--policy`` (see cli.py for all others)."""

from __future__ import annotations

import click

_POLICY = click.Path(dir_okay=False)


@click.command("authorized-keys")
@click.option("--policy", required=True, type=_POLICY, metavar="FILE", help="The policy: see annexshell-policy(5).")
@click.option("--account", metavar="NAME", help="Print nothing if the policy does not have this account.")
@click.option("--key", metavar="'TYPE BASE64'", help="Print the line for this key alone, if it is there.")
@click.option("--program", type=click.Path(), metavar="FILE", help="What the lines run.  [default: this annexshell]")
def authorized_keys(policy: str, account: str | None, key: str | None, program: str | None) -> None:
    """Print a policy's ssh keys for sshd.

    Each line of the output is one for an authorized_keys file: a key that may do nothing but run annexshell, for the
    user that the key belongs to.

    \b
    Either write them to such a file, again after each change of the policy
        annexshell authorized-keys --policy /etc/annexshell.toml > ~annex/.ssh/authorized_keys
    or let sshd ask each time that somebody connects. In /etc/ssh/sshd_config
        AuthorizedKeysCommand /usr/local/bin/annexshell authorized-keys --policy /etc/annexshell.toml
                              --account %u --key "%t %k"
        AuthorizedKeysCommandUser nobody
    in which the command is one line, and in the policy
        accounts = ["annex"]

    sshd wants the program, and all directories above it, to belong to root and not to be writable by others. Who
    cannot log in that way can still by the account's own authorized_keys file. The account's shell has to be one that
    runs commands, like /bin/sh, as sshd starts the forced command with it.

    Whatever is wrong with the policy, nothing is printed but the reason, on stderr, and the exit status is 1.
    """
    if key is not None and account is None:
        raise click.UsageError("--key needs --account: sshd asks for all accounts, those of people too.")
    from annexshell.commands import authorized_keys
    from annexshell.errors import AnnexshellError
    from annexshell.policy.document import PolicyError

    try:
        lines = authorized_keys.run(policy, program=program, account=account, key=key)
    except PolicyError as reason:
        raise click.ClickException(reason.detail) from reason
    except (AnnexshellError, OSError) as reason:
        raise click.ClickException(str(reason)) from reason
    for line in lines:
        click.echo(line.encode("utf-8", "surrogateescape"))


@click.command()
@click.option("-c", "--command", required=True, help="What a client sends: git-annex-shell 'p2pstdio' '/~/annex' ...")
@click.option("--policy", type=_POLICY, metavar="FILE", help="The policy: see annexshell-policy(5).")
@click.option("--user", metavar="NAME", help="Who in the policy the client is.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON, for scripts.")
def explain(command: str, policy: str | None, user: str | None, as_json: bool) -> None:
    """Tell what would become of a client's command, and why.

    Nothing is run and nothing is written. What a command finds out about the repository only when it runs, like its
    uuid, is not looked at. Run this as the account that clients log in to: its home is the ~ of directories, and
    what it may not enter is refused.

    \b
    Examples:
        annexshell explain --policy /etc/annexshell.toml --user alice -c "git-receive-pack '/srv/x'"
        GIT_ANNEX_SHELL_READONLY=1 annexshell explain -c "git-annex-shell 'recvkey' '/~/annex' 'KEY'"

    Without --policy it tells what the GIT_ANNEX_SHELL_... variables do; with it, they count as well.

    \b
    Exit status:
        0   it would be allowed
        1   it would be refused
        2   the command line makes no sense
    """
    if (policy is None) != (user is None):
        raise click.UsageError("--policy and --user belong together.")
    from annexshell.commands import explain
    from annexshell.errors import UsageError
    from annexshell.serverwords import check_user

    if user is not None:
        try:
            check_user(user.encode("utf-8", "surrogateescape"))
        except UsageError as reason:
            raise click.UsageError(str(reason)) from reason
    raise SystemExit(explain.run(command, policy=policy, user=user, as_json=as_json))
