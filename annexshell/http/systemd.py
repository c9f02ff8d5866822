"""What systemd is told, and what it hands over: sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from annexshell import log

if TYPE_CHECKING:
    from collections.abc import MutableMapping

FIRST_DESCRIPTOR = 3


class CannotTakeSockets(Exception):
    """The service manager handed over something that cannot be used."""


def ready(status: str) -> None:
    """Requests are served from now on."""
    notify("READY=1", f"STATUS={log.printable(status)}")


def stopping() -> None:
    """No more requests are taken."""
    notify("STOPPING=1", "STATUS=Finishing what was begun")


def status(text: str) -> None:
    """What is going on, to be shown by ``systemctl status``."""
    notify(f"STATUS={log.printable(text)}")


def watchdog() -> float | None:
    """Seconds after which the service manager takes us for dead if it hears nothing; None if it does not listen."""
    interval = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", "") in ("", str(os.getpid()))
    if not (is_ours and interval.isascii() and interval.isdigit()):
        return None
    return int(interval) / 1e6 or None


def alive() -> None:
    """To be told twice in each interval of the watchdog."""
    notify("WATCHDOG=1")


def notify(*assignments: str) -> bool:
    """Tell the service manager, if there is one; whether that was done. It is not important, so nothing is raised."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return False
    # A name in the abstract namespace starts with a NUL, which no environment variable can contain.
    name = os.fsencode(address.replace("@", "\0", 1) if address[0] == "@" else address)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)  # a service manager that does not listen must not keep us from serving
            sender.sendto("\n".join(assignments).encode("utf-8", "replace"), name)
    except (OSError, ValueError) as reason:
        log.debug(f"cannot notify the service manager: {reason}")
        return False
    return True


def take_sockets(
    environ: MutableMapping[str, str] = os.environ, first: int = FIRST_DESCRIPTOR
) -> list[socket.socket]:
    """The listening sockets that were handed over, if any, which are ours from now on. Raises CannotTakeSockets.

    Afterwards neither our children nor another call of this will take them for theirs.
    """
    pid, count, names = (environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"))
    if pid != str(os.getpid()):
        return []
    if not (count.isascii() and count.isdigit()):
        raise CannotTakeSockets(f"LISTEN_FDS={log.printable(count)} is not a number")
    labels = names.split(":")
    labels += [""] * (int(count) - len(labels))
    taken: list[socket.socket] = []
    try:
        for fd, label in zip(range(first, first + int(count)), labels, strict=False):
            taken.append(_take(fd, label))
    except BaseException:
        for listener in taken:
            listener.close()
        raise
    return taken


def _take(fd: int, label: str) -> socket.socket:
    try:
        os.set_inheritable(fd, False)
        taken = socket.socket(fileno=fd)
    except OSError as reason:
        raise CannotTakeSockets(f"descriptor {fd} ({label}) is not a socket: {reason.strerror}") from reason
    is_stream = taken.type == socket.SOCK_STREAM
    if not is_stream or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        taken.detach()
        raise CannotTakeSockets(f"descriptor {fd} ({label}) does not listen; use ListenStream= and Accept=no")
    return taken
