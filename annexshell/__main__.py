"""Where annexshell starts: commands from the wire are run at once, everything else is for people (cli.py).

A client waits for every command until Python has started, so this file imports the little that reading the command
line takes, has git read the repository's config, and imports the rest while git is at it.
"""

from __future__ import annotations

import os
import sys

from annexshell import forced, log, process
from annexshell.errors import AnnexshellError, TemporaryFailure, UsageError, is_passing

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from annexshell.access import Access
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.policy.permission import Permissions
    from annexshell.proxy import ProxiedRepository
    from annexshell.serverwords import Service

    # The last one is given when the client asked for a repository that this one stands in front of.
    Command: TypeAlias = Callable[
        [GitRepository, forced.Request, forced.Options, Access, ProxiedRepository | None], int
    ]

# After this exit status a client tries again later, after any other it does not (spec: shell §10.3).
TRY_AGAIN = 255
INTERRUPTED = 130
USAGE = "usage: git-annex-shell {commands} DIRECTORY [option ...] [-- field=value ... --]; or -c 'COMMAND'"
# Names under which the click program answers to what is not a command from the wire.
_OUR_NAMES = ("annexshell", "__main__.py")
# With one of these the server speaks first: see serverwords.
_SERVER_WORDS = (b"--policy", b"--user", b"--log")


def main() -> int:
    """Run what the command line asks for; gives the exit status."""
    words = [os.fsencode(word) for word in sys.argv[1:]]
    try:
        if words and words[0].partition(b"=")[0] in _SERVER_WORDS:
            from annexshell import serverwords

            process.prepare()
            service, words = serverwords.take(words, os.environb)
            return run_service(words, service)
        words = with_original_command(words, os.environb)
        if is_for_people(sys.argv[0], words, os.environb):
            from annexshell.cli import main as run_program

            return run_program()
        process.prepare()
        return run_wire_command(words)
    except Exception as reason:
        return explain(reason)
    except KeyboardInterrupt:
        return INTERRUPTED


def with_original_command(words: list[bytes], environ: Mapping[bytes, bytes]) -> list[bytes]:
    """Without any words, what the client sent to sshd is the command (spec: shell §13.9)."""
    original = environ.get(b"SSH_ORIGINAL_COMMAND")
    return words if words or not original else [b"-c", original]


def is_for_people(program: str, words: Sequence[bytes], environ: Mapping[bytes, bytes]) -> bool:
    """Whether the click program is meant.

    Called git-annex-shell, or anything but our own name, we are that program and nothing else. Nor are words that a
    client sent for us: a forced command that lacks the ``-c`` must not open the whole program to it.
    """
    if os.path.basename(program) not in _OUR_NAMES:
        return False
    if not words:
        return True
    original = environ.get(b"SSH_ORIGINAL_COMMAND", b"")
    if words[0] in (original, *original.replace(b"\t", b" ").replace(b"\n", b" ").split()[:1]):
        return False
    if words[0] == b"-c" or (len(words) == 1 and forced.names_us(words[0])):
        return False
    return words[0] not in forced.BUILTINS or len(words) < 2 or (len(words) == 2 and words[1] in (b"--help", b"-h"))


def run_service(words: Sequence[bytes], service: Service) -> int:
    """The same for a server that says who the client is, and where to record what is done."""
    start_audit(service.log, service)
    permissions = None
    if service.policy is not None:
        from annexshell.policy import document, permission

        policy = document.load(service.policy)
        if service.log is None:
            start_audit(policy.log, service)
        permissions = permission.Permissions(policy, os.fsdecode(service.user or b""), os.environb)
    status = run_wire_command(words, permissions)
    if log.audit is not None:
        log.audit.end_with(status)
    return status


def start_audit(where: bytes | None, service: Service) -> None:
    if where is not None:
        from annexshell import audit

        audit.start(where, service.user)


def run_wire_command(words: Sequence[bytes], permissions: Permissions | None = None) -> int:
    """Everything from the words to the command's exit status."""
    request = forced.parse(words)
    if isinstance(request, forced.PassThrough):
        from annexshell import gitshell

        gitshell.run(request.words, permissions)
    try:
        return run_builtin(request, permissions)
    except Exception as reason:
        return max(request.builtin.failure, explain(reason))


def run_builtin(request: forced.Request, permissions: Permissions | None) -> int:
    """The command behind all checks, the first that fails deciding what is said (spec: shell §2.6)."""
    if log.audit is not None:
        log.audit.describe(command=request.name, directory=request.directory)
    from annexshell import access, checks, directories
    from annexshell.annex.gitrepo import check_annex

    mode = access.from_environment()
    checks.check_access(request.builtin, mode)
    path = directories.repository_path(directories.opened_path(request.directory))
    if permissions is not None:
        path, mode = permissions.annex_access(request.directory, path, mode)
        checks.check_access(request.builtin, mode)
    options = request.options()
    if log.audit is not None:
        log.audit.describe(directory=path, client=request.client(options))
    if options.help:
        from annexshell.cli import show_help

        return show_help(os.fsdecode(request.name))
    if options.debug:
        log.enable_debug()
    checks.drop_git_variables()
    repo = checks.open_repository(path, request.directory)
    command = command_named(request.name)
    config = checks.read_config(repo, request.directory)
    if options.debug is None and config.get_bool(b"annex.debug"):
        log.enable_debug()
    target = checks.check_uuids(repo, request, options)
    try:
        if request.builtin.in_annex:
            check_annex(repo)
        checks.check_parameters(request, options)
        if log.audit is not None:
            uuid = checks.own_uuid(repo) if target is None else target.uuid
            log.audit.describe(directory=repo.path, repository=uuid)
            log.audit.begin()
        return command(repo, request, options, mode, target)
    finally:
        if target is not None:
            target.abandon()


def command_named(name: bytes) -> Command:
    """The command, imported; one line here for each that this version has."""
    if name == b"p2pstdio":
        from annexshell.commands import p2pstdio

        return lambda repo, _, options, mode, target: p2pstdio.run(repo, options.parameters[0], mode, target)
    if name == b"configlist":
        from annexshell.commands import configlist

        return lambda repo, request, _, mode, __: configlist.run(repo, mode, autoinit=b"autoinit" in request.fields)
    if name == b"gcryptsetup":
        from annexshell.commands import gcryptsetup

        return lambda repo, _, options, __, ___: gcryptsetup.run(repo, options.parameters)
    if name == b"notifychanges":
        from annexshell.commands import notifychanges

        return lambda repo, _, __, ___, target: notifychanges.run(repo, target)
    if name == b"inannex":
        from annexshell.commands import inannex

        return lambda repo, _, options, __, ___: inannex.run(repo, options.parameters)
    if name == b"sendkey":
        from annexshell.commands import sendkey

        return lambda repo, request, options, _, __: sendkey.run(
            repo, options.parameters, request.client(options), request.rsync_words
        )
    if name == b"recvkey":
        from annexshell.commands import recvkey

        return lambda repo, request, options, _, __: recvkey.run(
            repo, options.parameters, request.client(options), request.rsync_words
        )
    from annexshell.commands import dropkey

    assert name == b"dropkey", name
    return lambda repo, _, options, __, ___: dropkey.run(repo, options.parameters, options.flags)


def explain(reason: Exception) -> int:
    """Tell the client's user in one line what went wrong; gives the exit status."""
    if log.audit is not None:
        log.audit.end_by(reason)
    if log.debugging():
        import traceback

        for line in "".join(traceback.format_exception(reason)).splitlines():
            log.debug(line)
    if isinstance(reason, AnnexshellError):
        log.error(str(reason))
        if isinstance(reason, UsageError):
            log.error(USAGE.format(commands="|".join(map(os.fsdecode, forced.BUILTINS))))
        return TRY_AGAIN if isinstance(reason, TemporaryFailure) else 1
    if isinstance(reason, MemoryError):
        log.error("out of memory")
        return TRY_AGAIN
    if isinstance(reason, OSError):
        log.error(str(reason))
        return TRY_AGAIN if is_passing(reason) else 1
    log.error(f"internal error: {type(reason).__name__}: {reason}; --debug shows where")
    return 1


if __name__ == "__main__":
    sys.exit(main())
