"""A repository behind ssh (spec: proxy §5.1, §5.3)."""

from __future__ import annotations

import os
import time

from annexshell.errors import RemoteUnavailable
from annexshell.p2p.client import P2PRepository
from annexshell.process import ProgramNotFound
from annexshell.remotes import sshcommand
from annexshell.remotes.child import Child, environment_for_children
from annexshell.remotes.sshcaching import ControlSocket, Turn

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.remotes.patience import Patience
    from annexshell.remotes.remote import Remote
    from annexshell.repository import Repository
    from annexshell.uuid import UUID

_GRACE_AFTER_FAILURE = 2.0  # seconds for ssh to tell by its exit status why nothing came of it
_GRACE_AFTER_CUT = 1.0
_SSH_FAILED = 255
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127  # what shells exit with


def open_ssh(repo: GitRepository, remote: Remote, target: UUID, highest: int, patience: Patience) -> Repository:
    """Connect to TARGET, which is REMOTE or behind it; HIGHEST is the protocol version wanted.

    Raises RemoteUnavailable, and Hangup when the client for whom this is done is gone.
    """
    environment = environment_for_children()
    place = sshcommand.place_of(remote)
    own_way = sshcommand.git_ssh(environment) is not None
    socket = None if own_way else ControlSocket.share(repo, place, environment)
    try:
        path = None if socket is None else socket.path
        argv = sshcommand.ssh_command(remote, repo.uuid, target, environment, path)
        with Turn(socket, patience.connect):
            return SshRepository(_spawn(remote, argv, environment), socket, remote, target, highest, patience)
    except BaseException:
        if socket is not None:
            socket.close()
        raise


def _spawn(remote: Remote, argv: list[bytes], environment: dict[bytes, bytes]) -> Child:
    program = os.fsdecode(argv[0])
    try:
        return Child(argv, environment)
    except ProgramNotFound as reason:
        raise RemoteUnavailable(f"{program} is not in PATH here; install it") from reason
    except OSError as reason:
        raise RemoteUnavailable(f"cannot run {program}: {reason.strerror}") from reason


class SshRepository(P2PRepository):
    """Owns the ssh process and its share of the connection, and ends both when it is closed."""

    def __init__(
        self,
        child: Child,
        socket: ControlSocket | None,
        remote: Remote,
        target: UUID,
        highest: int,
        patience: Patience,
    ) -> None:
        """Takes CHILD over in any case, and SOCKET once it is made."""
        self._child = child
        self._socket = socket
        began = time.monotonic()
        try:
            connection = patience.connection(child.read_fd, child.write_fd)
            super().__init__(connection, target, highest, name=f"remote {remote}")
            connection.timeout = patience.reply
        except RemoteUnavailable as reason:
            in_time = patience.connect is None or time.monotonic() - began < patience.connect
            status = child.close(_GRACE_AFTER_FAILURE if in_time else 0)
            said_something_else = not self.usable and not hasattr(self, "uuid")
            why = _explanation(remote, reason, status, said_something_else) if in_time else str(reason)
            raise RemoteUnavailable(why) from reason
        except BaseException:
            child.close(0)
            raise

    def close(self) -> None:
        was_cut_short = not self.usable
        super().close()
        try:
            if was_cut_short:
                # Nothing of it is going to be finished, and our client, or who ends us, waits for this.
                self._child.close(_GRACE_AFTER_CUT)
            else:
                self._child.close()
        finally:
            if self._socket is not None:
                self._socket.close()


def _explanation(remote: Remote, reason: RemoteUnavailable, status: int, said_something_else: bool) -> str:
    """Why there is no connection, from what was read and how ssh ended (negative: by our signal)."""
    host = sshcommand.place_of(remote).host.decode("utf-8", "backslashreplace")
    if status == _SSH_FAILED:
        return f"ssh to {host} failed, see its message above"
    if status in (_NOT_FOUND, _NOT_EXECUTABLE):
        program = sshcommand.program_of(remote).decode("utf-8", "backslashreplace")
        what = "is missing" if status == _NOT_FOUND else "cannot be run"
        return f"{program} {what} on {host}; install it there, or set remote.{remote}.annex-shell to where it is"
    if said_something_else:
        return f"{reason} (the shell's start-up files on {host} must not print anything)"
    if status > 0:
        return f"{reason} (exit status {status})"
    return str(reason)
