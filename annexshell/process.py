"""Running other programs on the wire path, where importing subprocess would cost more than the program.

Children never get our stdin or stdout, which carry the protocol: they are given /dev/null, a pipe, or stderr
(spec: protocol R12, shell §8).
"""

from __future__ import annotations

import _signal  # its wrapper, signal, takes longer to import than git takes to run
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType

STDERR = 2


def prepare() -> None:
    """Make good what a careless parent left us: ignored SIGCHLD, and standard descriptors that are closed.

    With SIGCHLD ignored nobody could wait for a child; and a file opened as descriptor 1 would be written to by
    everything that goes to stdout.
    """
    _signal.signal(_signal.SIGCHLD, _signal.SIG_DFL)
    while (fd := os.open(os.devnull, os.O_RDWR)) <= STDERR:
        os.set_inheritable(fd, True)
    os.close(fd)


class ProgramNotFound(OSError):
    """The program is not in PATH, or not executable."""


class Completed:
    """What a program said and how it ended; status is negative for a signal, as in subprocess."""

    __slots__ = ("output", "status")

    def __init__(self, status: int, output: bytes) -> None:
        self.status = status
        self.output = output


def spawn(
    argv: Sequence[bytes],
    *,
    stdin: int | None = None,
    stdout: int | None = None,
    stderr: int | None = STDERR,
    env: Mapping[bytes, bytes] | None = None,
) -> int:
    """Start ARGV (found through PATH) and give its pid.

    stdin, stdout, stderr are descriptors to dup, or None for /dev/null. Raises ProgramNotFound, OSError.
    """
    actions: list[tuple[int, ...] | tuple[int, int, str, int, int]] = []
    # Each wanted descriptor could be one of 0-2 that an earlier action overwrites, but the only such use is 2,
    # and 2 is set last.
    for target, source in ((0, stdin), (1, stdout), (2, stderr)):
        if source is None:
            flags = os.O_RDONLY if target == 0 else os.O_WRONLY
            actions.append((os.POSIX_SPAWN_OPEN, target, os.devnull, flags, 0))
        else:
            actions.append((os.POSIX_SPAWN_DUP2, source, target))
    try:
        return os.posix_spawnp(
            argv[0],
            list(argv),
            os.environb if env is None else env,
            file_actions=actions,
            setsigdef=[_signal.SIGPIPE],
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as reason:
        raise ProgramNotFound(reason.errno, reason.strerror, os.fsdecode(argv[0])) from reason


def wait(pid: int) -> int:
    """The exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run(
    argv: Sequence[bytes],
    input: bytes = b"",
    *,
    stderr: int | None = STDERR,
    env: Mapping[bytes, bytes] | None = None,
) -> Completed:
    """Run ARGV to its end with INPUT as its stdin; gives its stdout. Raises ProgramNotFound, OSError."""
    with TemporaryInput(input) as stdin, Pipe() as pipe:
        pid = spawn(argv, stdin=stdin.fd, stdout=pipe.write_fd, stderr=stderr, env=env)
        try:
            pipe.close_write()
            output = read_all(pipe.read_fd)
        finally:
            pipe.close_read()  # a child whose output was not read to its end would wait for us as we for it
            status = wait(pid)
    return Completed(status, output)


def read_all(fd: int) -> bytes:
    """Everything up to end of file."""
    parts = []
    while part := os.read(fd, 1 << 16):
        parts.append(part)
    return b"".join(parts)


class TemporaryInput:
    """Bytes as a descriptor to read. A pipe would need somebody to fill it while the output is read."""

    fd: int | None

    def __init__(self, data: bytes) -> None:
        self.fd = None
        if data:
            self.fd = _anonymous_file()
            view = memoryview(data)
            while view:
                view = view[os.write(self.fd, view) :]
            os.lseek(self.fd, 0, os.SEEK_SET)

    def __enter__(self) -> TemporaryInput:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.fd is not None:
            os.close(self.fd)


class Pipe:
    """A pipe whose ends are closed when done with, each end once."""

    read_fd: int
    write_fd: int

    def __init__(self) -> None:
        self.read_fd, self.write_fd = os.pipe()

    def close_read(self) -> None:
        if self.read_fd >= 0:
            fd, self.read_fd = self.read_fd, -1
            os.close(fd)

    def close_write(self) -> None:
        if self.write_fd >= 0:
            fd, self.write_fd = self.write_fd, -1
            os.close(fd)

    def __enter__(self) -> Pipe:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close_write()
        self.close_read()


def _anonymous_file() -> int:
    if sys.platform == "linux":
        return os.memfd_create("input", os.MFD_CLOEXEC)
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
