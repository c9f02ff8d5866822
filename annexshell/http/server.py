"""The server's life: what it consists of, and its end (spec: http §10)."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol

from annexshell import log
from annexshell.http import prefix, siblings, systemd
from annexshell.http.connections import Server
from annexshell.http.door import Door
from annexshell.http.locks import Locks
from annexshell.http.observing import NOBODY, Observer, Watch
from annexshell.http.sessions import Sessions
from annexshell.http.siblings import Place, Siblings
from annexshell.http.work import Workers
from annexshell.pool import Pool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from annexshell.http.auth import Gate
    from annexshell.http.certificates import Certificates
    from annexshell.http.connections import Handler
    from annexshell.http.listening import Listeners
    from annexshell.http.metrics import Gauges
    from annexshell.http.repositories import Repositories

# Seconds after those for requests, for what was recorded to be committed, and connections to others to be closed.
CLOSING = 15.0
_SETTLING = 3.0  # seconds of these for the threads of requests that were cut off
_RELEASING = 3.0  # and for locks
_TICK = 0.02
_COMMITTERS = 8  # threads, of which some may wait for a git-annex that holds the journal's lock


class Limits(NamedTuple):
    """How much is done at once."""

    jobs: int = 2
    transfers: int = 256
    lockedfiles: int = 100
    proxyconnections: int = 16
    grace: float = 30.0  # seconds for what is going on when the server is told to stop

    def share(self, processes: int) -> Limits:
        """Those of one of several PROCESSES, among which the kernel distributes clients evenly."""
        return self._replace(
            jobs=max(2, -(-self.jobs // processes)) if processes > 1 else self.jobs,
            transfers=-(-self.transfers // processes),
            lockedfiles=-(-self.lockedfiles // processes),
            proxyconnections=-(-self.proxyconnections // processes),
        )


class Role(Protocol):
    """How a process is told what to do, and whom it tells what it does."""

    @property
    def signals(self) -> Sequence[signal.Signals]:
        """Those that mean to stop."""

    @property
    def lifeline(self) -> int | None:
        """A descriptor whose end of file means the same."""

    @property
    def place(self) -> Place | None:
        """None: it is the only one."""

    @property
    def heartbeat(self) -> float | None:
        """Seconds between calls of :meth:`alive`, None if nobody wants to know."""

    def ready(self) -> None:
        """Requests are served from now on."""

    def alive(self) -> None:
        """They still are: the event loop goes round."""

    def stopping(self) -> None:
        """No more requests are taken."""


class Alone:
    """The role of the only process."""

    signals = (signal.SIGTERM, signal.SIGINT)
    lifeline = None
    place = None

    def __init__(self, status: str) -> None:
        self._status = status
        interval = systemd.watchdog()
        self.heartbeat = None if interval is None else interval / 2

    def ready(self) -> None:
        systemd.ready(self._status)

    def alive(self) -> None:
        systemd.alive()

    def stopping(self) -> None:
        systemd.stopping()


async def serve(
    listeners: Listeners,
    repositories: Repositories,
    gate: Gate,
    limits: Limits,
    role: Role,
    certificates: Certificates | None = None,
    watch: Watch = NOBODY,
    path_prefix: str = "",
) -> None:
    """Serve until told to stop, and then until what is going on is finished, or time is up.

    Whatever hangs then, the process ends; a second signal ends it at once.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()

    def on_stop() -> None:
        stop.set()
        for number in role.signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        if role.lifeline is not None:
            loop.remove_reader(role.lifeline)
        _end_after(limits.grace + CLOSING)

    def beat(seconds: float) -> None:
        role.alive()
        loop.call_later(seconds, beat, seconds)

    # Whoever sends this wants files to be read again; those of users are anyway, when they change.
    loop.add_signal_handler(signal.SIGHUP, certificates.reload if certificates else lambda: None)
    tls = certificates.context if certificates else None
    async with serving(listeners.for_worker(), repositories, gate, limits, tls, role.place, watch, path_prefix):
        for number in role.signals:
            loop.add_signal_handler(number, on_stop)
        if role.lifeline is not None:
            loop.add_reader(role.lifeline, on_stop)
        role.ready()
        if role.heartbeat is not None:
            beat(role.heartbeat)
        await stop.wait()
        role.stopping()
        listeners.close()


@asynccontextmanager
async def serving(
    sockets: Sequence[socket.socket],
    repositories: Repositories,
    gate: Gate,
    limits: Limits,
    tls: ssl.SSLContext | None = None,
    place: Place | None = None,
    watch: Watch = NOBODY,
    path_prefix: str = "",
) -> AsyncIterator[None]:
    """Serve for the length of an ``async with`` block, and then until what is going on is finished, or time is up."""
    # Threads of their own, so that requests are in the way of neither locks nor commits.
    jobs = ThreadPoolExecutor(limits.jobs, "job")
    lockers = ThreadPoolExecutor(max(1, limits.lockedfiles), "lock")  # each may wait for its node
    committers = ThreadPoolExecutor(_COMMITTERS, "commit")
    # What is entered last ends first.
    async with AsyncExitStack() as parts:
        for executor in (lockers, committers):
            parts.callback(executor.shutdown, wait=False)
        pool = Pool(limits.proxyconnections)
        observer = Observer(watch, gate)
        parts.push_async_callback(observer.close)
        sessions = Sessions(pool, committers, observer.committed)
        parts.push_async_callback(sessions.close)
        locks = Locks(lockers, limits.lockedfiles, place.number if place else 0)
        parts.push_async_callback(_within, _RELEASING, locks.close, "locks are still being released")
        workers = Workers(jobs, limits.transfers)
        parts.push_async_callback(_within, _SETTLING, lambda: _settle(jobs, workers), "requests still go on")
        answer: Handler = Door(repositories, sessions, gate, locks, workers).answer
        if place is not None:
            await _listen_to_siblings(parts, place, answer)
            others = Siblings(place)
            parts.push_async_callback(others.close)
            answer = others.before(answer)
        answer = prefix.before(path_prefix, answer)
        gauges: Gauges = {
            "transfers": ("Transfers of content that are going on.", lambda: workers.transferring),
            "locks": ("Locks on content that clients hold.", lambda: locks.count),
            "idle_connections": ("Connections to other repositories that are kept.", lambda: len(pool)),
            "repositories": ("Repositories that are open.", lambda: len(sessions)),
        }
        await observer.start(gauges, place)
        server = Server(observer.before(answer), on_nonsense=observer.on_nonsense)
        parts.push_async_callback(server.end, limits.grace)
        for listening in sockets:
            await server.listen(listening, tls)
        parts.callback(observer.stopping)
        yield


async def _listen_to_siblings(parts: AsyncExitStack, place: Place, answer: Handler) -> None:
    server = Server(lambda request: answer(siblings.as_asked_there(request)))
    parts.push_async_callback(server.end, 0.0)
    await server.listen(siblings.listen(place))


# The end


async def _within(seconds: float, end: Callable[[], Awaitable[None]], still: str) -> None:
    try:
        await asyncio.wait_for(end(), seconds)
    except asyncio.TimeoutError:
        log.warn(f"{still}; not waiting for that any longer")


async def _settle(jobs: ThreadPoolExecutor, workers: Workers) -> None:
    """Wait for threads to notice that nobody waits for them; what they did is to be committed with the rest."""
    ended = threading.Event()

    def shut_down() -> None:
        jobs.shutdown(cancel_futures=True)
        ended.set()

    threading.Thread(target=shut_down, name="end of jobs", daemon=True).start()
    while not ended.is_set() or workers.transferring or workers.patient.count:
        await asyncio.sleep(_TICK)


def _end_after(seconds: float) -> None:
    """Whatever hangs, do not. Everything that clients were told of is on disk, be it committed or not."""

    def give_up() -> None:
        log.warn("something does not end; not waiting for that any longer")
        os._exit(0)

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
