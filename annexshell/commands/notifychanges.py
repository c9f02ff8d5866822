"""notifychanges: tell a client which objects refs point to, whenever they change (spec: shell §7.3)."""

from __future__ import annotations

import _signal  # signal, its wrapper, takes long to import
import os
import select
import time

from annexshell import log, process
from annexshell.errors import RepositoryError
from annexshell.termination import Terminated, Termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.refwatch import Changes, RefWatch
    from annexshell.proxy import ProxiedRepository

_STDIN, _STDOUT = 0, 1
_PATIENCE = 0.05  # seconds to wait for more, as a push changes several refs
_IDS_IN_LINE = 500  # clients give up at a line of 32 KiB, which has less than this many ids of SHA-256
_READ_SIZE = 1 << 16
# As much as a pipe or socket that is ready for writing takes without making us wait.
_WRITE_SIZE = select.PIPE_BUF
_HUNG_UP = select.POLLERR | select.POLLHUP | select.POLLNVAL


def run(repo: GitRepository, target: ProxiedRepository | None = None) -> int:
    """Report changes of REPO until the client closes stdin or stdout. Raises RepositoryError, OSError.

    That also is what happens when TARGET was asked for, as it is from REPO that a client fetches the refs of either.
    """
    if target is not None:
        target.abandon()  # what it took to find it would wait for as long as the client does
    try:
        from annexshell.annex import refwatch
    except ImportError as reason:
        raise RepositoryError(f"cannot watch for changes on this server, for lack of inotify: {reason}") from reason
    with Termination() as termination, _Wakeup() as wakeup, refwatch.watch(repo) as watch:
        try:
            _report(watch, wakeup.read_fd)
        except ConnectionError:
            pass  # the client is gone
        if termination.received is not None and log.audit is not None:
            log.audit.end_by(Terminated())  # here, because the signal has its effect when this is over
    return 0


class _Wakeup(process.Pipe):
    """A pipe that can be read from once a signal came. One that came just before poll() would not interrupt that."""

    def __enter__(self) -> _Wakeup:
        os.set_blocking(self.write_fd, False)
        self._before = _signal.set_wakeup_fd(self.write_fd)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _signal.set_wakeup_fd(self._before)
        super().__exit__(kind, error, trace)


def _report(watch: RefWatch, wakeup_fd: int) -> None:
    output = memoryview(b"READY\n")
    due: float | None = None  # when to tell of changes
    while True:
        # While the client does not take what it was told, the kernel keeps further changes for us, up to the point
        # where it only knows that there are too many.
        waiting = {_STDIN: select.POLLIN, _STDOUT: select.POLLOUT if output else 0, wakeup_fd: select.POLLIN}
        if not output:
            waiting[watch.fd] = select.POLLIN
        ready = _poll(waiting, None if due is None or output else due)
        if wakeup_fd in ready or ready.get(_STDOUT, 0) & _HUNG_UP:
            return
        if _STDOUT in ready:
            output = output[os.write(_STDOUT, output[:_WRITE_SIZE]) :]
        if _STDIN in ready and _is_at_end():
            return
        if watch.fd in ready:
            watch.read()
        if due is None and watch.changed:
            due = time.monotonic() + _PATIENCE
        elif due is not None and time.monotonic() >= due and not output:
            output, due = memoryview(lines(watch.take())), None


def _poll(waiting: Mapping[int, int], until: float | None) -> dict[int, int]:
    """What of WAITING, events by descriptor, came about; hangups always count."""
    poll = select.poll()
    for fd, events in waiting.items():
        poll.register(fd, events)
    return dict(poll.poll(None if until is None else max(0.0, (until - time.monotonic()) * 1000)))


def _is_at_end() -> bool:
    """Read what the client has to say, which nobody wants to know; whether that was all."""
    try:
        return not os.read(_STDIN, _READ_SIZE)
    except BlockingIOError:
        return False
    except OSError:
        return True  # as at the end of a terminal


def lines(changes: Changes) -> bytes:
    """What a client is told of CHANGES.

    First what git-annex-shell would say, all ids in one line, or more if one gets too long. But a client that has any
    object of a line takes the whole line for old, and would stay without the others until something else changes. So
    the branches get lines of their own as well, of which it fetches all with the first that it lacks. Other refs do
    not: a client never gets those that it does not fetch, and would try once for each.
    """
    ids = list(changes.ids)
    told = [ids[start : start + _IDS_IN_LINE] for start in range(0, len(ids), _IDS_IN_LINE)]
    if len(ids) > 1:
        told += [[object_id] for object_id in ids if changes.ids[object_id]]
    if changes.unnamed:
        told.append([])  # which makes any client fetch
    return b"".join(b" ".join([b"CHANGED", *line]) + b"\n" for line in told)
