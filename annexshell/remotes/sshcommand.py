"""The command that reaches a remote behind ssh (spec: proxy §5.3)."""

from __future__ import annotations

from annexshell import log
from annexshell.errors import RemoteUnavailable
from annexshell.remotes.remote import Ssh

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.remotes.remote import Remote
    from annexshell.uuid import UUID

DEFAULT_PROGRAM = b"git-annex-shell"
CACHING = (b"-o", b"ControlMaster=auto", b"-o", b"ControlPersist=yes")
_HARMLESS_IN_SHELL = b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_."


def ssh_command(
    remote: Remote, own: UUID, target: UUID, environment: Mapping[bytes, bytes], socket: bytes | None = None
) -> list[bytes]:
    """The argv that has TARGET at the far end of REMOTE, whose location is Ssh, speak the protocol with us, OWN.

    SOCKET is the control socket that is shared with others, None for a connection of one's own.
    Raises RemoteUnavailable where no ssh may be asked for that.
    """
    place = place_of(remote)
    port = [] if place.port is None else [b"-p", b"%d" % place.port]
    far = _far_command(program_of(remote), place.path, own, target)
    through = git_ssh(environment)
    if through is None:
        shared = [] if socket is None else [b"-S", socket, *CACHING]
        options = (remote.setting(b"annex-ssh-options") or b"").split()
        argv = [b"ssh", place.host, *shared, *options, *port, b"-T", far]
    elif len(through) == 1:
        argv = [*through, place.host, *port, far]
    else:
        *shell, command = through
        argv = [*shell, b" ".join((command, *map(quote, (place.host, *port, far))))]
    if any(b"\0" in word for word in argv):
        raise RemoteUnavailable("its url or uuid contains a null byte")
    return argv


def place_of(remote: Remote) -> Ssh:
    """Where it is. Raises RemoteUnavailable for what ssh would not take for a host."""
    place = remote.location
    assert isinstance(place, Ssh)
    if place.host.startswith(b"-"):
        # ssh would take it for an option, and there are some that run programs.
        raise RemoteUnavailable(
            f"rejecting ssh hostname that starts with '-' : {place.host.decode(errors='replace')}"
        )
    if not place.host:
        raise RemoteUnavailable("the url has no host")
    return place


def program_of(remote: Remote) -> bytes:
    """What is run at the far end: a piece of shell language, as the user set it."""
    return remote.setting(b"annex-shell") or DEFAULT_PROGRAM


def git_ssh(environment: Mapping[bytes, bytes]) -> list[bytes] | None:
    """How the user wants to have git's way to reach hosts used; None for plain ssh.

    One word is a program. More are a shell and its options, the last being where the arguments are to be appended.
    """
    if environment.get(b"GIT_ANNEX_USE_GIT_SSH") != b"1":
        return None
    command = environment.get(b"GIT_SSH_COMMAND")
    if command:
        return [command] if command.split() == [command] else [b"sh", b"-c", command]
    program = environment.get(b"GIT_SSH")
    return [program] if program else None


def _far_command(program: bytes, path: bytes, own: UUID, target: UUID) -> bytes:
    debug = [b"'--debug'"] if log.debugging() else []
    # Forced commands compare and parse this, so what is harmless is left as git-annex would write it. But who can
    # push to the git-annex branch can invent uuids, and must not have commands run at the far end.
    harmless = target and not target.translate(None, _HARMLESS_IN_SHELL)
    named = target if harmless else quote(target)
    return b" ".join((program, b"'p2pstdio'", quote(path), *debug, quote(own), b"--uuid", named))


def quote(word: bytes) -> bytes:
    """WORD for a shell, quoted in any case."""
    return b"'" + word.replace(b"'", b"'\"'\"'") + b"'"
