"""An event loop on which time passes only when there is nothing to do, and then at once."""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class FakeTimeLoop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        super().__init__(_Selector(self))
        self.now = 1000.0
        self.asleep = 0.0  # seconds that the machine was suspended, of which this loop's clock knows nothing

    def time(self) -> float:
        return self.now

    def boot_time(self) -> float:
        return self.now + self.asleep

    def pass_time(self, seconds: float) -> None:
        """Let what is due in the next SECONDS happen, and what comes of it."""
        self.run_until_complete(asyncio.sleep(seconds))
        self.settle()

    def settle(self) -> None:
        """Let happen what needs no time."""

        async def steps() -> None:
            for _ in range(20):
                await asyncio.sleep(0)

        self.run_until_complete(steps())


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: FakeTimeLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if not ready and timeout is None:
            raise AssertionError("waits for what will never happen")
        if not ready and timeout:
            self._loop.now += timeout
        return ready


class Inline(Executor):
    """Does the work when it is submitted; or, while it is ``held``, not before it is told to."""

    def __init__(self) -> None:
        self.held = False
        self.waiting: list[Callable[[], None]] = []

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **keywords: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = function(*arguments, **keywords)
            except BaseException as reason:
                future.set_exception(reason)
            else:
                future.set_result(result)

        if self.held:
            self.waiting.append(work)
        else:
            work()
        return future

    def let_go(self) -> None:
        self.held = False
        waiting, self.waiting = self.waiting, []
        for work in waiting:
            work()
