"""rsync's server, which talks to the client at our stdin and stdout and sends or writes one file (spec: shell §7.5).

The client has full control over what it says to rsync, and it may be trusted with the content of this repository
only, while rsync was made for users who may read and write what their account can. So:

* The options are fixed here, and none of the client's own gets through but a limit of bandwidth.
* The file to be written exists before: to an rsync that is given a file that exists, sending several files or a
  directory is an error, where otherwise it would make a directory of that name and put there whatever is sent.
  Symlinks and devices it ignores, for lack of options.
* It cannot see any other file, where the system has Landlock. A client's filter rule may name a file on the server to
  read further rules from, and what is no rule in there comes back in an error message; and versions before 3.4 let a
  sender choose which file new content is a variant of.
* It cannot write more than fits: the size that the client announces is only what it announces.
* All of its processes end before we go on, so that nothing is written to the file after it was verified.
"""

from __future__ import annotations

import _signal  # signal, its wrapper, takes long to import
import os
import resource
import select
import time

from annexshell import log, process
from annexshell.errors import RepositoryError
from annexshell.landlock import Ruleset

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from annexshell.termination import Termination

_NAME = b"rsync"
_SERVER = (b"--server", b"-t", b"--inplace", b"-e.Lsf", b".")
_SENDER = b"--sender"
_LIMIT = b"--bwlimit"
_SHORTEST = len(b"--b")  # all that it takes to tell --bwlimit from rsync's other options, as git-annex sees it

_STDIN, _STDOUT = 0, 1
_LOOK = 1.0  # seconds between two looks at how far it is
_GRACE = 30.0  # seconds for an rsync whose client is gone; it notices that itself, unless it waits for something else
_LAST_GRACE = 5.0  # for processes that were killed to be gone
_CANNOT_START = 127

# Where programs have what they need to start, and nothing that is private.
_LIBRARIES = (
    *(
        b"/bin",
        b"/lib",
        b"/lib32",
        b"/lib64",
        b"/usr/bin",
        b"/usr/lib",
        b"/usr/lib32",
        b"/usr/lib64",
        b"/usr/libexec",
    ),
    *(b"/usr/local/lib", b"/usr/share/locale", b"/usr/share/zoneinfo", b"/nix/store", b"/gnu/store"),
    *(b"/home/linuxbrew/.linuxbrew", b"/etc/ld.so.cache", b"/etc/ld.so.preload", b"/etc/localtime"),
    *(b"/dev/null", b"/dev/zero", b"/dev/urandom", b"/dev/random"),
)


def find() -> bytes:
    """The program in PATH. Raises RepositoryError."""
    for directory in os.get_exec_path():
        path = os.path.join(os.fsencode(directory), _NAME)
        if os.access(path, os.X_OK) and os.path.isfile(path):
            return path
    raise RepositoryError(
        "cannot run rsync, by which this command transfers content: it is not in PATH on this server."
        " Its administrator can install it."
    )


def bandwidth_limits(words: Sequence[bytes]) -> list[bytes]:
    """What is kept of the options that a client's rsync gave: its limits of bandwidth that are a number."""
    kept = []
    rest = iter(b" ".join(words).split())
    for word in rest:
        if word == b"--":
            break
        name, equals, value = word.partition(b"=")
        if len(name) < _SHORTEST or not _LIMIT.startswith(name):
            continue
        if not equals:
            value = next(rest, b"")
        if _is_limit(value):
            kept.append(_LIMIT + b"=" + value)
    return kept


def _is_limit(value: bytes) -> bool:
    unit = value.lstrip(b"0123456789.")
    return len(unit) < len(value) and (not unit or unit.isalpha())


def serve(
    program: bytes,
    file: bytes,
    words: Sequence[bytes],
    termination: Termination,
    *,
    is_sender: bool,
    largest: int | None = None,
    watch: Callable[[], object] = lambda: None,
) -> int:
    """Let PROGRAM, see :func:`find`, send FILE, or write it, which then exists and is not to get larger than LARGEST.

    WORDS are the options that the client's rsync gave. WATCH is called now and then meanwhile. Gives the exit status,
    negative for a signal. Raises OSError, Terminated; rsync has ended in any case.
    """
    sender = (_SENDER,) if is_sender else ()
    argv = [_NAME, *_SERVER, *sender, *bandwidth_limits(words), file]
    with Ruleset() as rules:
        if rules.exists:
            rules.let_read(_LIBRARIES)
            rules.let_read(_beside(program))
        else:
            log.debug("this system has no Landlock: rsync can read whatever we can")
        if is_sender:
            rules.let_read([file])
        else:
            rules.let_write(file)
        started = _Rsync(program, argv, rules, largest)
    with started as rsync:
        return rsync.wait(termination, watch)


def _beside(program: bytes) -> list[bytes]:
    """What a program that is installed in a place of its own needs there."""
    found = []
    for path in (program, os.path.realpath(program)):
        above = os.path.dirname(os.path.dirname(path))
        found += [path, above + b"/lib", above + b"/lib64"]
    return found + [path for path in os.environb.get(b"LD_LIBRARY_PATH", b"").split(b":") if path]


class _Rsync:
    """A running rsync, which leaving the ``with`` ends."""

    __slots__ = ("_alive", "_pid", "_status")

    def __init__(self, program: bytes, argv: list[bytes], rules: Ruleset, largest: int | None) -> None:
        self._status: int | None = None
        # Open for writing in each of rsync's processes and nowhere else, so that the end of file tells that all of
        # them have ended, be they its children that it did not wait for.
        self._alive = process.Pipe()
        try:
            self._pid = os.fork()
            if self._pid == 0:
                _become(program, argv, rules, largest, self._alive.write_fd)
            try:
                os.setpgid(self._pid, 0)  # as the child does: whoever comes first
            except OSError:
                pass  # the child did, and is rsync by now
            self._alive.close_write()
        except BaseException:
            self._alive.close_write()
            self._alive.close_read()
            raise

    def wait(self, termination: Termination, watch: Callable[[], object]) -> int:
        poll = select.poll()
        poll.register(self._alive.read_fd, select.POLLIN)
        for fd in (_STDIN, _STDOUT):
            poll.register(fd, 0)  # for nothing but the other end being closed
        deadline: float | None = None
        while True:
            before = termination.begin_waiting_for_input()
            try:
                events = poll.poll(_LOOK * 1000)
            finally:
                termination.waiting = before
            for fd, _ in events:
                if fd == self._alive.read_fd:
                    before = termination.begin_waiting_for_input()
                    try:
                        return self._reap()  # which takes time only if it has closed that itself
                    finally:
                        termination.waiting = before
                # Not at once: the client's last words may still be on their way.
                poll.unregister(fd)
                deadline = deadline or time.monotonic() + _GRACE
            watch()
            if self._has_ended() or (deadline is not None and time.monotonic() > deadline):
                self._kill()
                return self._reap()

    def _has_ended(self) -> bool:
        if self._status is None and (found := os.waitpid(self._pid, os.WNOHANG))[0]:
            self._status = os.waitstatus_to_exitcode(found[1])
        return self._status is not None

    def _reap(self) -> int:
        if self._status is None:
            self._status = process.wait(self._pid)
        return self._status

    def _kill(self) -> None:
        """End all of its processes, and wait until they are gone. Raises RepositoryError."""
        try:
            os.killpg(self._pid, _signal.SIGKILL)  # with --inplace it has nothing to tidy up
        except (ProcessLookupError, PermissionError):
            pass
        poll = select.poll()
        poll.register(self._alive.read_fd, select.POLLIN)
        if not poll.poll(_LAST_GRACE * 1000):
            raise RepositoryError("rsync does not end")

    def __enter__(self) -> _Rsync:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is not None:
                self._kill()
                self._reap()
        finally:
            self._alive.close_read()


def _become(program: bytes, argv: list[bytes], rules: Ruleset, largest: int | None, alive: int) -> None:
    """What the child does; it never returns."""
    try:
        os.setpgid(0, 0)
        # So that a client that is gone ends it; too large a file does not, which it can then explain.
        _signal.signal(_signal.SIGPIPE, _signal.SIG_DFL)
        _signal.signal(_signal.SIGXFSZ, _signal.SIG_IGN)
        if largest is not None:
            limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
            if limit == resource.RLIM_INFINITY or largest < limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (largest, largest))
        os.set_inheritable(alive, True)
        rules.restrict()
        os.execv(program, argv)
    except BaseException as reason:
        log.error(f"cannot run rsync: {getattr(reason, 'strerror', None) or reason}")
    finally:
        os._exit(_CANNOT_START)
