"""One ssh connection to a host for all who talk to it at the moment (spec: proxy §5.3).

The first ssh to a host listens at a control socket and goes on in the background, OpenSSH's ControlMaster; others
talk through it. All git-annex processes of a repository use the same sockets. Who uses one holds a shared lock on the
file beside it, so that whoever gets an exclusive one knows that nobody does, and has its master stop.
"""

from __future__ import annotations

import _thread
import os
import time

from annexshell import log, process
from annexshell.annex import lockfile
from annexshell.annex.permissions import Permissions
from annexshell.remotes import child
from annexshell.remotes.sshcommand import CACHING

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.lockfile import LockFile
    from annexshell.remotes.remote import Ssh

_LOCK = b".lock"
_LONGEST_NAME = 32
# What every system can have in a socket's address, and what ssh appends to the name until it listens there.
_ADDRESS_SIZE = 100
_TEMPORARY_SUFFIX = 17
_STOP_TIMEOUT = 5.0  # seconds for having a master stop, which takes milliseconds


def socket_for(repo: GitRepository, place: Ssh, environment: Mapping[bytes, bytes]) -> bytes | None:
    """What ``ssh -S`` is to be told, as seen from the working directory; None for a connection of one's own."""
    directory = _directory(repo, environment)
    return None if directory is None else _as_told(os.path.join(directory, socket_name(place)))


def _directory(repo: GitRepository, environment: Mapping[bytes, bytes]) -> bytes | None:
    config = repo.config
    if not config.get_bool(b"annex.sshcaching", True):
        return None
    if not config.get_bool(b"annex.crippledfilesystem"):
        return os.path.abspath(repo.annexdir) + b"/ssh"
    # There may be no sockets on such a file system.
    elsewhere = environment.get(b"GIT_ANNEX_SSH_SOCKET_DIR")
    return os.path.abspath(elsewhere) + b"/ssh" if elsewhere else None


def socket_name(place: Ssh) -> bytes:
    """The file name by which all processes know the connection to a host."""
    name = place.host if place.port is None else b"%s!%d" % (place.host, place.port)
    name = name.replace(b"%", b"")
    # The length is in characters. Slashes and dots would lead out of the directory.
    if len(os.fsdecode(name)) <= _LONGEST_NAME and b"/" not in name and name not in (b"", b".", b".."):
        return name
    import hashlib

    return hashlib.md5(name, usedforsecurity=False).hexdigest().encode()


def _as_told(path: bytes) -> bytes | None:
    """PATH or the way to it from here, whichever is shorter; None where ssh could not use it."""
    try:
        path = min(path, os.path.relpath(path), key=len)
    except FileNotFoundError:
        pass  # we are in a directory that was removed
    if len(path) + _TEMPORARY_SUFFIX >= _ADDRESS_SIZE:
        return None
    if b"%" in path or b"${" in path or path.startswith(b"~"):
        return None  # ssh would replace it by something else
    return path


class ControlSocket:
    """A share in the connection to a host, held until it is closed; ``path`` is for ``ssh -S``."""

    __slots__ = ("_lock", "path")

    def __init__(self, path: bytes, lock: LockFile) -> None:
        self.path = path
        self._lock = lock

    @classmethod
    def share(cls, repo: GitRepository, place: Ssh, environment: Mapping[bytes, bytes]) -> ControlSocket | None:
        """Take a share in the connection to PLACE; None where there can be none, as in a read-only repository.

        Masters that nobody uses any more are stopped before, since they may be stuck in a connection that is dead.
        """
        directory = _directory(repo, environment)
        path = socket_for(repo, place, environment)
        if directory is None or path is None:
            return None
        stop_unused(directory)
        permissions = Permissions(repo)
        try:
            permissions.make_directory(directory)
            lock = _lock_shared(path + _LOCK)
        except OSError as reason:
            log.debug(f"no ssh connection is shared: {reason}")
            return None
        if lock is None:
            return None
        try:
            permissions.adjust_file(lock.fd)
        except OSError:
            pass  # it is another user's
        return cls(path, lock)

    def close(self) -> None:
        """Give the share back; the master is stopped if nobody else has one."""
        if self._lock.fd >= 0:
            self._lock.close()
            stop_unused(os.path.dirname(self.path))

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _lock_shared(path: bytes) -> LockFile | None:
    """None when somebody keeps us from it for longer than it takes to stop a master."""
    deadline = time.monotonic() + _STOP_TIMEOUT
    while (lock := lockfile.acquire(path, lockfile.SHARED, wait=False)) is None:
        if time.monotonic() >= deadline:
            return None
        time.sleep(0.01)
    return lock


def stop_unused(directory: bytes) -> None:
    """Have the masters in DIRECTORY stop that nobody has a share in, and remove their sockets."""
    try:
        names = set(os.listdir(directory))
    except OSError:
        return
    for name in names:
        if name + _LOCK in names and not name.endswith(_LOCK):
            _stop_if_unused(os.path.join(directory, name))


def _stop_if_unused(path: bytes) -> None:
    told = _as_told(os.path.abspath(path))
    if told is None:
        return
    try:
        lock = lockfile.acquire(path + _LOCK, lockfile.EXCLUSIVE, wait=False, create=False)
    except OSError:
        return  # another user's
    if lock is None:
        return
    with lock:  # the lock file stays: others may be waiting for it
        try:
            pid = process.spawn([b"ssh", b"-O", b"stop", b"-S", told, *CACHING, b"localhost"], stderr=None)
            child.end(pid, _STOP_TIMEOUT)
            os.unlink(path)
        except OSError:
            pass  # there is no ssh, or the socket went with its master


_being_made: dict[bytes, _thread.LockType] = {}


class Turn:
    """A ``with`` block that makes a connection. Who wants the same socket at the time waits for the outcome.

    Otherwise several would try to become its master, and all but one of them would fail, and say so.
    """

    __slots__ = ("_lock", "_seconds", "_socket")

    def __init__(self, socket: ControlSocket | None, seconds: float | None) -> None:
        """Waits for SECONDS at the most, None for no limit."""
        self._socket = socket
        self._seconds = seconds
        self._lock: _thread.LockType | None = None

    def __enter__(self) -> None:
        if self._socket is None or os.path.exists(self._socket.path):
            return
        lock = _thread.allocate_lock()
        lock.acquire()
        first = _being_made.setdefault(self._socket.path, lock)
        if first is lock:
            self._lock = lock
        elif first.acquire(timeout=-1 if self._seconds is None else min(self._seconds, _thread.TIMEOUT_MAX)):
            first.release()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None and self._socket is not None:
            del _being_made[self._socket.path]
            self._lock.release()
