"""The sockets that requests come in by: of the service manager's, a unix socket, or TCP (spec: http §10.1).

All of them are bound before anything is served, so that what is wrong is found out at the start, and so that several
worker processes can share them.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.errors import AnnexshellError
from annexshell.http import systemd

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType
    from typing import Any

    from typing_extensions import Self

DEFAULT_PORT = 9417
_BACKLOG = 1024
_PORT_ATTEMPTS = 20
# A peer that is silent is asked after a minute whether it is still there, and given up after another two.
_KEEPALIVE = (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 6))
# What a host's name may well lead to without this machine being able to use it.
_NOT_HERE = frozenset((errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EPROTONOSUPPORT))
_LOCK_PATIENCE = 1.0  # seconds


class CannotListen(AnnexshellError):
    """There is no socket to serve requests on."""


class Listeners:
    """The sockets of one server, which may consist of several processes. Close it when done."""

    def __init__(self, sockets: list[socket.socket], *, per_worker: bool = False, path: bytes | None = None) -> None:
        self._sockets = sockets
        # If so, each worker has sockets of its own with the same addresses; the kernel then distributes connections
        # evenly. Ours only keep the port for them.
        self._per_worker = per_worker
        self._path = path  # to be removed at the end
        self._identity = None if path is None else _identity(path)
        self._owner = os.getpid()
        for listener in sockets:
            _keep_alive(listener)

    def for_worker(self) -> list[socket.socket]:
        """Listening sockets for the calling process, which is to close them. Raises CannotListen."""
        if not self._per_worker:
            return [listener.dup() for listener in self._sockets]
        return _each(self._sockets, lambda ours: _bind_tcp(ours.family, ours.getsockname(), reuse_port=True))

    def addresses(self) -> list[str]:
        """Where we listen, for people."""
        return [_describe(listener.getsockname()) for listener in self._sockets]

    @property
    def port(self) -> int | None:
        """The TCP port, None without one."""
        for listener in self._sockets:
            if listener.family != socket.AF_UNIX:
                port: int = listener.getsockname()[1]
                return port
        return None

    def close(self) -> None:
        """Take no more connections, as far as this process is concerned."""
        # Removed first: who comes now is to find nothing rather than a socket that nobody serves. But not what
        # another server has put in its place, and not by a worker that ends before the others.
        if self._path is not None and self._owner == os.getpid() and _identity(self._path) == self._identity:
            try:
                os.unlink(self._path)
            except OSError as reason:
                log.debug(f"cannot remove {os.fsdecode(self._path)}: {reason.strerror}")
        for listener in self._sockets:
            listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def listen(
    bind: str | None = None, port: int = DEFAULT_PORT, path: bytes | None = None, *, workers: int = 1
) -> Listeners:
    """Sockets as the options say: those of the service manager, else one at PATH, else TCP. Raises CannotListen."""
    try:
        inherited = systemd.take_sockets()
    except systemd.CannotTakeSockets as reason:
        raise CannotListen(f"cannot use the sockets of the service manager: {reason}") from reason
    if inherited:
        if path is not None or bind is not None:
            log.warn("the service manager gave us sockets, so --socket, --bind and --port are not used")
        return Listeners(inherited)
    if path is not None:
        path = os.path.abspath(path)
        return Listeners([_listen_unix(path)], path=path)
    return Listeners(_listen_tcp(bind, port, reuse_port=workers > 1), per_worker=workers > 1)


def listen_beside(bind: str | None, port: int) -> Listeners:
    """Sockets for something else than requests, which all workers share. Raises CannotListen."""
    return Listeners(_listen_tcp(bind, port, reuse_port=False))


# TCP --------------------------------------------------------------


def _listen_tcp(bind: str | None, port: int, *, reuse_port: bool) -> list[socket.socket]:
    addresses = _resolve(bind, port)
    if port != 0:
        return _bind_all(addresses, reuse_port=reuse_port)
    # Any port, but the same one for all addresses, of which somebody else may have some.
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return _bind_all(addresses, reuse_port=reuse_port)
        except CannotListen as reason:
            log.debug(str(reason))
    return _bind_all(addresses, reuse_port=reuse_port)


def _resolve(bind: str | None, port: int) -> list[tuple[int, Any]]:
    """The families and addresses of a host, or of all of this machine."""
    if not 0 <= port <= 65535:
        raise CannotListen(f"{port} is no port; ports are 0 to 65535")
    try:
        found = socket.getaddrinfo(bind or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as reason:
        text = reason.strerror if isinstance(reason, OSError) else reason
        raise CannotListen(f"cannot listen on {bind or 'any address'}, port {port}: {text}") from reason
    return list(dict.fromkeys((int(family), address) for family, _, _, _, address in found))


def _bind_all(addresses: list[tuple[int, Any]], *, reuse_port: bool) -> list[socket.socket]:
    bound: list[socket.socket] = []
    missing: CannotListen | None = None

    def bind(wanted: tuple[int, Any]) -> socket.socket | None:
        nonlocal missing
        family, address = wanted
        if address[1] == 0 and bound:
            address = (address[0], bound[0].getsockname()[1], *address[2:])
        try:
            return _reserve_tcp(family, address) if reuse_port else _bind_tcp(family, address)
        except _NotHere as reason:
            log.debug(str(reason))
            missing = reason
            return None

    _each(addresses, bind, bound)
    if not bound:
        raise missing or CannotListen("there is no address to listen on")
    return bound


class _NotHere(CannotListen):
    """This machine does not have such addresses, which is no failure as long as it has others."""


def _reserve_tcp(family: int, address: Any) -> socket.socket:
    """A socket that keeps the address for those of workers, but gets no connections itself: it does not listen."""
    # Without this another server of the same user would not be noticed, and would share connections with us.
    with _bind_tcp(family, address) as probe:
        address = probe.getsockname()
    return _bind_tcp(family, address, reuse_port=True, backlog=None)


def _bind_tcp(
    family: int, address: Any, *, reuse_port: bool = False, backlog: int | None = _BACKLOG
) -> socket.socket:
    try:
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of before may still linger
            if reuse_port:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)  # IPv4 has a socket of its own
            _keep_alive(listener)
            listener.bind(address)
            if backlog is not None:
                listener.listen(backlog)
        except BaseException:
            listener.close()
            raise
    except OSError as reason:
        kind = _NotHere if reason.errno in _NOT_HERE else CannotListen
        raise kind(f"cannot listen on {_describe(address)}: {reason.strerror}") from reason
    return listener


def _keep_alive(listener: socket.socket) -> None:
    """Find out about peers that vanished; connections inherit this."""
    if listener.family == socket.AF_UNIX:
        return
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE:
        if hasattr(socket, name):  # not everywhere
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


# Unix sockets -----------------------------------------------------


def _listen_unix(path: bytes) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _DirectoryLock(os.path.dirname(path)):
            _clear(path)
            # Nobody else may connect, not even for a moment.
            umask = os.umask(0o077)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            os.chmod(path, 0o700)  # an inherited ACL may have allowed more, or less
            listener.listen(_BACKLOG)
    except OSError as reason:
        listener.close()
        raise CannotListen(f"cannot listen on {os.fsdecode(path)}: {reason.strerror or reason}") from reason
    except BaseException:
        listener.close()
        raise
    return listener


def _clear(path: bytes) -> None:
    """Remove what a server left behind when it was killed. Raises CannotListen, OSError."""
    name = os.fsdecode(path)
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise CannotListen(f"{name} exists and is not a socket; move it away, or give --socket another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass  # a server that has much to do
    raise CannotListen(f"another server is listening on {name}")


class _DirectoryLock:
    """Keeps servers that start at the same time from taking each other's new socket for one that was left behind."""

    def __init__(self, directory: bytes) -> None:
        self._fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def __enter__(self) -> None:
        deadline = time.monotonic() + _LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as reason:
                # Not everywhere can directories be locked, and anybody who can read one can hold its lock for ever.
                if reason.errno != errno.EWOULDBLOCK or time.monotonic() > deadline:
                    return
            time.sleep(0.02)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)


def _identity(path: bytes) -> tuple[int, int] | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino


# Both -------------------------------------------------------------


def _each(
    what: Iterable[Any], make: Callable[[Any], socket.socket | None], made: list[socket.socket] | None = None
) -> list[socket.socket]:
    """Make a socket of each; when one cannot be made, none stays open."""
    sockets = [] if made is None else made
    try:
        for one in what:
            new = make(one)
            if new is not None:
                sockets.append(new)
    except BaseException:
        for listener in sockets:
            listener.close()
        raise
    return sockets


def _describe(address: Any) -> str:
    if isinstance(address, bytes):
        return "@" + log.printable(address[1:]) if address[:1] == b"\0" else log.printable(address)
    if isinstance(address, str):
        return log.printable(address)
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
