"""Several processes that serve the same port, and the one that starts them.

The parent does nothing but look after them: whichever dies is started again, after a pause if that happens often. It
has no threads, so that it can fork at any time. A worker whose parent has vanished stops as if it had been told to.
"""

from __future__ import annotations

import os
import select
import signal
import tempfile
import time
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.errors import AnnexshellError
from annexshell.http import systemd
from annexshell.http.listening import CannotListen
from annexshell.http.siblings import Place
from annexshell.process import Pipe

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from types import TracebackType

    from typing_extensions import Self

# Seconds.
FIRST_PAUSE = 1.0  # before a worker that died is started again
LONGEST_PAUSE = 60.0  # doubled each time up to this, unless
LIVED = 60.0  # it has lived for as long as that
EXTRA = 5.0  # after the time that workers have to end by themselves

_STOP = (signal.SIGTERM, signal.SIGINT)
_HANDLED = (*_STOP, signal.SIGHUP, signal.SIGCHLD)


class Worker:
    """The role of one of several processes."""

    signals = (signal.SIGTERM,)  # what a terminal sends to all of us is for the parent

    def __init__(self, place: Place, lifeline: int, said_fd: int, heartbeat: float | None = None) -> None:
        self.place = place
        self.lifeline = lifeline
        self.heartbeat = heartbeat
        self._said_fd = said_fd

    def ready(self) -> None:
        self.alive()

    def alive(self) -> None:
        os.write(self._said_fd, b"%d\n" % self.place.number)

    def stopping(self) -> None:
        pass  # the parent has told


class Supervisor:
    """Keeps workers running until it is told to stop."""

    def __init__(
        self,
        count: int,
        work: Callable[[Worker], None],
        patience: float,
        status: str = "",
        on_stop: Callable[[], None] = lambda: None,
    ) -> None:
        """WORK is what each of COUNT workers does, which may take PATIENCE seconds to end when it is told to.

        STATUS is what the service manager is told when all are ready; ON_STOP is called before they are told to end.
        """
        self._count = count
        self._work = work
        self._patience = patience
        self._status_text = status
        self._on_stop = on_stop
        self._running: dict[int, int] = {}  # numbers by pid
        self._began: dict[int, float] = {}  # by number
        self._pauses = dict.fromkeys(range(count), FIRST_PAUSE)
        self._due: dict[int, float] = {}  # when those are to be started that do not run
        self._watchdog = systemd.watchdog()  # seconds; None: what hangs is not ended
        self._heard: dict[int, float] = {}  # when last, of those that serve
        self._tried: set[int] = set()  # those that have served, be it in an earlier life
        self._deadline: float | None = None  # set when they were told to stop
        self._exit_status = 0

    def run(self) -> int:
        """Gives the exit status: 1 if one of them could not begin. Raises CannotListen."""
        with (
            _directory_for_sockets() as self._directory,
            Pipe() as self._lifeline,
            Pipe() as self._said,
            _Signals() as self._signals,
        ):
            os.set_blocking(self._said.read_fd, False)
            for number in range(self._count):
                self._start(number)
            while self._running or self._deadline is None:
                for number in self._signals.wait(self._said.read_fd, self._timeout()):
                    self._obey(number)
                self._listen()
                self._reap()
                self._act()
        return self._exit_status

    # What there is to do.

    def _timeout(self) -> float | None:
        times = [self._deadline] if self._deadline is not None else list(self._due.values())
        if self._watchdog is not None:
            times.append(time.monotonic() + self._watchdog / 2)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _obey(self, number: int) -> None:
        if number in _STOP:
            if self._deadline is not None:
                self._kill(signal.SIGKILL)
            else:
                self._stop()
        elif number == signal.SIGHUP:
            self._kill(signal.SIGHUP, self._heard)

    def _stop(self) -> None:
        systemd.stopping()
        self._on_stop()
        self._deadline = time.monotonic() + self._patience + EXTRA
        self._kill(signal.SIGTERM)

    def _kill(self, number: int, those: Collection[int] | None = None) -> None:
        for pid, worker in self._running.items():
            if those is None or worker in those:
                os.kill(pid, number)

    def _listen(self) -> None:
        try:
            said = os.read(self._said.read_fd, 1 << 16)
        except BlockingIOError:
            return
        was_complete = self._is_complete
        self._heard |= dict.fromkeys(map(int, said.split()), time.monotonic())
        self._tried.update(self._heard)
        if self._is_complete and not was_complete:
            systemd.ready(self._status_text)

    @property
    def _is_complete(self) -> bool:
        """Whether all have begun."""
        return len(self._tried) == self._count

    def _reap(self) -> None:
        while self._running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            self._listen()  # to the last that it has said, which is not to be taken for the next one's
            number = self._running.pop(pid, None)
            if number is None:
                continue
            self._heard.pop(number, None)
            if self._deadline is None:
                self._replace(number, os.waitstatus_to_exitcode(status))

    def _replace(self, number: int, status: int) -> None:
        if number not in self._tried:
            self._exit_status = 1  # it has said why
            self._stop()
            return
        now = time.monotonic()
        if now - self._began[number] > LIVED:
            self._pauses[number] = FIRST_PAUSE
        pause = self._pauses[number]
        self._pauses[number] = min(2 * pause, LONGEST_PAUSE)
        self._due[number] = now + pause
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        log.warn(f"worker {number} {how}; starting another one in {pause:.0f} s")

    def _act(self) -> None:
        now = time.monotonic()
        if self._watchdog is not None and self._is_complete:
            systemd.alive()
            hung = {number for number, heard in self._heard.items() if heard + self._watchdog < now}
            if hung:
                log.warn(f"killing workers that hang: {', '.join(map(str, sorted(hung)))}")
                self._kill(signal.SIGKILL, hung)
                for number in hung:
                    del self._heard[number]  # it may take a moment to end
        if self._deadline is not None:
            if self._deadline <= now and self._running:
                log.warn("some workers do not end; killing them")
                self._kill(signal.SIGKILL)
                self._deadline = now + EXTRA
            return
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            try:
                self._start(number)
            except OSError as reason:
                log.warn(f"cannot start worker {number}: {reason.strerror}")
                self._due[number] = now + self._pauses[number]

    # Starting them.

    def _start(self, number: int) -> None:
        # A signal in between would be taken for the parent's by its child, which has no handlers of its own yet.
        signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)
        try:
            pid = os.fork()
            if not pid:
                self._become(number)
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
        self._running[pid] = number
        self._began[number] = time.monotonic()

    def _become(self, number: int) -> None:
        """In the child; does not return."""
        status = 1
        try:
            self._signals.forget()
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _HANDLED)
            self._lifeline.close_write()
            self._said.close_read()
            place = Place(number, self._count, self._directory)
            heartbeat = None if self._watchdog is None else self._watchdog / 2
            self._work(Worker(place, self._lifeline.read_fd, self._said.write_fd, heartbeat))
            status = 0
        except (AnnexshellError, OSError) as reason:
            log.error(f"worker {number}: {reason}")
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)  # what is behind us on the stack is the parent's


class _Signals:
    """Signals as something that can be waited for."""

    def __enter__(self) -> Self:
        self._pipe = Pipe()
        for fd in (self._pipe.read_fd, self._pipe.write_fd):
            os.set_blocking(fd, False)
        self._fd_before = signal.set_wakeup_fd(self._pipe.write_fd)
        self._before = {number: signal.signal(number, lambda *_: None) for number in _HANDLED}
        return self

    def wait(self, also: int, timeout: float | None) -> Iterator[int]:
        """Those that came, once at least one has, or there is something to be read from ALSO, or time is up."""
        select.select([self._pipe.read_fd, also], [], [], timeout)
        try:
            yield from os.read(self._pipe.read_fd, 1 << 10)
        except BlockingIOError:
            pass

    def forget(self) -> None:
        """In a child: signals are as they were before anybody handled them."""
        signal.set_wakeup_fd(-1)
        for number in _HANDLED:
            signal.signal(number, signal.SIG_DFL)
        self._pipe.close_write()
        self._pipe.close_read()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._fd_before)
        self._pipe.close_write()
        self._pipe.close_read()


def _directory_for_sockets() -> tempfile.TemporaryDirectory[str]:
    try:
        return tempfile.TemporaryDirectory(prefix="annexshell-", dir=_runtime_directory())
    except OSError as reason:
        raise CannotListen(
            f"cannot make a directory for what processes say to each other: {reason.strerror or reason};"
            " set RUNTIME_DIRECTORY to one that can be written to, or give --workers=1"
        ) from reason


def _runtime_directory() -> str | None:
    """Where a directory for our sockets is best made, None for the usual place for temporary files."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        directory = os.environ.get(name, "").partition(":")[0]
        if os.path.isdir(directory) and os.access(directory, os.W_OK | os.X_OK):
            return directory
    return None
