"""The synchronous core's work, in threads beside the event loop.

Short work on this machine shares a few threads. What moves content, or asks another machine, has a thread of its own
for as long as that takes, because a client that does not read, or a node that does not answer, would otherwise keep
all others waiting.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, TypeVar

from annexshell.http.api import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

T = TypeVar("T")

_RETRY_AFTER = "5"  # seconds


class Workers:
    """Threads for work of all kinds."""

    def __init__(self, executor: Executor, transfers: int) -> None:
        """EXECUTOR is for short work; TRANSFERS is how many there can be at a time, while others are refused.

        As many requests can be waiting for other machines.
        """
        self._executor = executor
        self._transfers = Threads("transfer", transfers)
        self.patient = Threads("remote", transfers)  # for what may have to wait for other machines

    @property
    def transferring(self) -> int:
        return self._transfers.count

    async def run(
        self, function: Callable[[], T], *, patient: bool = False, dispose: Callable[[T], object] | None = None
    ) -> T:
        """What FUNCTION gives, which is PATIENT if it may have to wait for another machine.

        If nobody waits for it any more, it is not begun, or the result given to DISPOSE.
        """
        executor = self.patient if patient else self._executor
        return await _result(executor.submit(function), dispose)

    def transfer(self) -> Slot:
        """The right to move content. Raises Refusal when too much is going on already."""
        return self._transfers.reserve()


class Threads(Executor):
    """An executor in which nothing ever waits for something else to end: there are up to LIMIT threads."""

    def __init__(self, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._mutex = threading.Lock()
        self.count = 0

    def reserve(self) -> Slot:
        """A thread to be started later. Raises Refusal if there are too many."""
        with self._mutex:
            if self.count >= self._limit:
                raise Refusal(503, f"too many threads ({self._name})", {"Retry-After": _RETRY_AFTER})
            self.count += 1
        return Slot(self)

    def _release(self) -> None:
        with self._mutex:
            self.count -= 1

    def submit(self, function: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Raises Refusal too."""
        return self.reserve().start(lambda: function(*args, **kwargs))


class Slot:
    """A thread that is going to be started, or given up."""

    __slots__ = ("_threads",)

    def __init__(self, threads: Threads) -> None:
        self._threads: Threads | None = threads

    def start(self, function: Callable[[], T]) -> Future[T]:
        threads, self._threads = self._threads, None
        assert threads is not None
        future: Future[T] = Future()
        future.set_running_or_notify_cancel()  # nobody can cancel it

        def work() -> None:
            try:
                result = function()
            except BaseException as reason:
                threads._release()
                future.set_exception(reason)
            else:
                threads._release()
                future.set_result(result)

        try:
            threading.Thread(target=work, name=threads._name, daemon=True).start()
        except BaseException:
            threads._release()
            raise
        return future

    def give_up(self) -> None:
        """Does nothing once it was started."""
        threads, self._threads = self._threads, None
        if threads is not None:
            threads._release()


async def _result(future: Future[T], dispose: Callable[[T], object] | None) -> T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if dispose is not None:
            future.add_done_callback(lambda done: _dispose(done, dispose))
        raise


def _dispose(future: Future[T], dispose: Callable[[T], object]) -> None:
    if not future.cancelled() and future.exception() is None:
        dispose(future.result())
