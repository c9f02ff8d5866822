"""The synchronous core's work, in threads beside the event loop.

Short requests share a few threads. What moves content has a thread of its own for as long as that takes, because a
client that does not read, or does not write, would otherwise keep all others waiting.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Executor, Future
from typing import TYPE_CHECKING, TypeVar

from annexshell.http.api import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

_RETRY_AFTER = "5"  # seconds


class Workers:
    """Threads for short work and for content."""

    def __init__(self, executor: Executor, transfers: int) -> None:
        """EXECUTOR is for short work; TRANSFERS is how many there can be at a time, while others are refused."""
        self._executor = executor
        self._transfers = transfers
        self.transferring = 0

    async def run(self, function: Callable[[], T], *, dispose: Callable[[T], object] | None = None) -> T:
        """What FUNCTION gives. If nobody waits for it any more, it is not begun, or the result given to DISPOSE."""
        return await _result(self._executor.submit(function), dispose)

    def transfer(self, function: Callable[[], T]) -> Future[T]:
        """Begin to move content. Raises Refusal when too much is going on already."""
        if self.transferring >= self._transfers:
            raise Refusal(503, "too many transfers", {"Retry-After": _RETRY_AFTER})
        future: Future[T] = Future()
        loop = asyncio.get_running_loop()

        def work() -> None:
            try:
                result = function()
            except BaseException as reason:
                future.set_exception(reason)
            else:
                future.set_result(result)
            finally:
                loop.call_soon_threadsafe(self._transfer_is_over)

        self.transferring += 1
        try:
            threading.Thread(target=work, name="transfer", daemon=True).start()
        except BaseException:
            self.transferring -= 1
            raise
        return future

    def _transfer_is_over(self) -> None:
        self.transferring -= 1


async def _result(future: Future[T], dispose: Callable[[T], object] | None) -> T:
    try:
        return await asyncio.wrap_future(future)
    except asyncio.CancelledError:
        if dispose is not None and not future.cancelled():
            future.add_done_callback(lambda done: dispose(done.result()) if done.exception() is None else None)
        raise
