"""Where the lines of the audit log go: a file that many processes add to, or syslog; by one system call for each."""

from __future__ import annotations

import errno
import os
import stat
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket


# Seconds. The kernel holds up those who write much, in the middle of what they write, for up to 0.2 s at a time.
_PATIENCE_WITH_WRITERS = 1.0


class File:
    """A file, opened anew by each process, so that it can be renamed or removed at any time.

    What is written with O_APPEND goes to the end, and the kernel lets one write() to a regular file finish before it
    begins another one, however long the line is: lines of several processes do not mix. (The limit of PIPE_BUF bytes
    is one of pipes, and only regular files are accepted here. Over NFS, each machine needs a file of its own.)
    """

    __slots__ = ("_cut_at", "_fd", "_is_in_doubt")

    def __init__(self, path: bytes) -> None:
        """Raises OSError."""
        # O_NOFOLLOW: who can make a link there does not decide what is written to. O_NONBLOCK: a pipe that nobody
        # reads is an error here, and not somebody to wait for.
        flags = os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY
        try:
            self._fd = os.open(path, flags | os.O_RDWR, 0o600)
        except PermissionError:
            self._fd = os.open(
                path, flags | os.O_WRONLY, 0o600
            )  # those who may add to it need not be able to read it
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise OSError(errno.EINVAL, "it is not a regular file")
        self._is_in_doubt, self._cut_at = True, 0

    def _ends_within_a_line(self) -> bool:
        """Whether the disk was full in the middle of somebody's line, which ours shall not become a part of.

        While a long line is being written, its beginning can be seen, and the kernel may let its writer sleep there.
        So the rest is waited for, but once for each such line.
        """
        end = time.monotonic() + _PATIENCE_WITH_WRITERS
        try:
            while size := os.fstat(self._fd).st_size:
                if os.pread(self._fd, 1, size - 1) in (b"\n", b""):  # the latter when it was emptied just now
                    return False
                if size == self._cut_at or time.monotonic() > end:
                    self._cut_at = size
                    return True
                time.sleep(0.002)
        except OSError:
            pass  # it is not for us to read
        return False

    def write(self, line: bytes, is_notable: bool) -> None:
        is_after_a_cut_line = self._is_in_doubt and self._ends_within_a_line()
        line = b"\n%b\n" % line if is_after_a_cut_line else line + b"\n"
        self._is_in_doubt = True  # others may begin a line, too, if this fails
        written = os.write(self._fd, line)
        if written < len(line):
            self._cut_at = os.fstat(self._fd).st_size
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._is_in_doubt = False


# Where sshd's own lines about logins go.
_FACILITY_AUTH = 4 << 3
_NOTICE, _INFO = 5, 6
_ADDRESSES = (b"/dev/log", b"/var/run/syslog")
_PATIENCE = 0.1  # seconds, for a daemon that is busy


class Syslog:
    """The machine's syslog daemon.

    Unlike syslog(3) this finds out when there is no daemon, and does not wait for one that takes nothing, but for a
    moment and once: until it takes something again, lines are lost, which is better than a server that hangs.
    """

    __slots__ = ("_address", "_socket", "_tag")

    def __init__(self, *addresses: bytes) -> None:
        """Raises OSError."""
        self._tag = b"annexshell[%d]: " % os.getpid()
        self._address = next(filter(os.path.exists, addresses or _ADDRESSES), (addresses or _ADDRESSES)[0])
        self._socket = self._connect()

    def _connect(self) -> socket:
        # What the socket module, which takes long to import, has its sockets from.
        from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_DGRAM, socket

        connection = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC)
        try:
            connection.settimeout(_PATIENCE)
            connection.connect(self._address)
        except BaseException:
            connection.close()
            raise
        return connection

    def write(self, line: bytes, is_notable: bool) -> None:
        priority = _FACILITY_AUTH | (_NOTICE if is_notable else _INFO)
        moment = time.strftime("%b %e %H:%M:%S", time.localtime())
        message = b"<%d>%b %b%b" % (priority, moment.encode(), self._tag, line)
        try:
            self._send(message)
        except OSError:
            self._socket.settimeout(0)
            raise
        self._socket.settimeout(_PATIENCE)

    def _send(self, message: bytes) -> None:
        try:
            self._socket.send(message)
        except (BlockingIOError, TimeoutError) as reason:
            raise OSError(errno.EAGAIN, "the syslog daemon takes nothing") from reason
        except OSError:
            # The daemon was started anew.
            new = self._connect()
            self._socket.close()
            self._socket = new
            self._socket.send(message)
