"""The synchronous core's work, in threads beside the event loop.

Looking things up shares a few threads, and so do passwords, which take time on purpose. What moves content, asks
another machine, or changes things, for which it may wait for a git-annex that holds the journal's lock, has a thread
of its own for as long as that takes: a client that does not read, or a node that does not answer, would otherwise
keep all others waiting.
"""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from annexshell.http.api import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable
    from typing import Any

    from annexshell.http.pace import Pace

T = TypeVar("T")

_RETRY_AFTER = "5"  # seconds
_CHECKERS = 2


class Workers:
    """Threads for work of all kinds."""

    def __init__(self, executor: Executor, transfers: int) -> None:
        """EXECUTOR is for short work; TRANSFERS is how many there can be at a time, while others are refused.

        As many requests can be waiting for others.
        """
        self._executor = executor
        self._checkers = ThreadPoolExecutor(_CHECKERS, "password")
        self._transfers = Threads("transfer", transfers)
        self.patient = Threads("remote", transfers)  # for what may have to wait for other machines and programs

    @property
    def transferring(self) -> int:
        return self._transfers.count

    async def run(
        self,
        function: Callable[[], T],
        *,
        waits_for: Hashable = None,
        pace: Pace | None = None,
        dispose: Callable[[T], object] | None = None,
    ) -> T:
        """What FUNCTION gives; WAITS_FOR is given if it may have to wait for something that others wait for too. At
        a PACE that is quick it is done right here.

        If nobody waits for it any more, it is not begun, or the result given to DISPOSE. Raises Refusal when too many
        wait already.
        """
        if pace is not None and pace.is_quick:
            with pace:
                return function()
        if waits_for is None:
            return await _result(self._executor.submit(function), dispose)
        return await _result(self.patient.reserve(waits_for).start(function), dispose)

    def waiting_for(self, what: Hashable) -> Executor:
        """An executor for what may have to wait for WHAT. Raises Refusal when it is to begin, as above."""
        return Share(self.patient, what)

    async def check(self, function: Callable[[], T]) -> T:
        """What FUNCTION gives, which computes for long."""
        return await _result(self._checkers.submit(function), None)

    def transfer(self, whose: Hashable) -> Slot:
        """The right to move content. Raises Refusal when too much is going on already."""
        return self._transfers.reserve(whose)


class Threads:
    """In these nothing ever waits for something else to end: there are up to LIMIT threads.

    No more than half of them are for the same, lest one node that hangs has all of them.
    """

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._mutex = threading.Lock()
        self._counts: Counter[Hashable] = Counter()
        self.count = 0

    def reserve(self, whose: Hashable = None) -> Slot:
        """A thread to be started later. Raises Refusal if there are too many."""
        with self._mutex:
            if self.count >= self._limit or (whose is not None and 2 * self._counts[whose] >= self._limit):
                raise Refusal(503, f"too many threads ({self._name})", {"Retry-After": _RETRY_AFTER})
            self.count += 1
            self._counts[whose] += 1
        return Slot(self, whose)

    def _release(self, whose: Hashable) -> None:
        with self._mutex:
            self.count -= 1
            self._counts[whose] -= 1
            if not self._counts[whose]:
                del self._counts[whose]


class Share(Executor):
    """An executor that has those of some threads which are for the same."""

    def __init__(self, threads: Threads, whose: Hashable) -> None:
        self._threads = threads
        self._whose = whose

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        return self._threads.reserve(self._whose).start(lambda: function(*args, **kwargs))


class Slot:
    """A thread that is going to be started, or given up."""

    __slots__ = ("_threads", "_whose")

    def __init__(self, threads: Threads, whose: Hashable) -> None:
        self._threads: Threads | None = threads
        self._whose = whose

    def start(self, function: Callable[[], T]) -> Future[T]:
        threads, self._threads = self._threads, None
        assert threads is not None
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # nobody can cancel it

        def work() -> None:
            try:
                result = function()
            except BaseException as reason:
                threads._release(self._whose)
                future.set_exception(reason)
            else:
                threads._release(self._whose)
                future.set_result(result)

        try:
            threading.Thread(target=work, name=threads._name, daemon=True).start()
        except BaseException:
            threads._release(self._whose)
            raise
        return future

    def give_up(self) -> None:
        """Does nothing once it was started."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads._release(self._whose)


async def _result(future: Future[T], dispose: Callable[[T], object] | None) -> T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if dispose is not None:
            # In the thread that has it; or if it is there already, in another: letting go of a node takes its time.
            _whenever_done(future, lambda: _dispose(future, dispose))
        raise


def aside(function: Callable[[], object]) -> None:
    """Have done what nobody waits for, and what may take too long for the event loop."""
    threading.Thread(target=function, name="aside", daemon=True).start()


def _whenever_done(future: Future[T], function: Callable[[], object]) -> None:
    if future.done():
        aside(function)
    else:
        future.add_done_callback(lambda _: function())


def _dispose(future: Future[T], dispose: Callable[[T], object]) -> None:
    if not future.cancelled() and future.exception() is None:
        dispose(future.result())
