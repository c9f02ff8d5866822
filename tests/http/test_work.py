"""Threads for requests."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from annexshell.http.api import Refusal
from annexshell.http.work import Share, Threads, Workers

DEADLINE = 10.0


class Gate:
    """Work that goes on until it is let through."""

    def __init__(self) -> None:
        self._open = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self) -> str:
        self.entered.release()
        assert self._open.wait(DEADLINE)
        return threading.current_thread().name

    def open(self) -> None:
        self._open.set()


def with_workers(test: Callable[[Workers], Any], transfers: int = 2) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1, "job") as executor:
            await asyncio.wait_for(test(Workers(executor, transfers)), DEADLINE)

    asyncio.run(run())


def test_who_waits_for_others_is_in_nobodys_way() -> None:
    async def test(workers: Workers) -> None:
        gate = Gate()
        waiting = [asyncio.ensure_future(workers.run(gate, waits_for=n)) for n in range(2)]
        for _ in waiting:
            await asyncio.to_thread(gate.entered.acquire)
        assert await workers.run(lambda: threading.current_thread().name) == "job_0"
        with pytest.raises(Refusal) as refusal:
            await workers.run(gate, waits_for=2)
        assert refusal.value.status == 503 and "Retry-After" in refusal.value.headers
        gate.open()
        assert await asyncio.gather(*waiting) == ["remote", "remote"]
        assert await workers.run(lambda: 3, waits_for=0) == 3

    with_workers(test)


def test_transfers_are_counted_from_when_they_are_reserved() -> None:
    async def test(workers: Workers) -> None:
        gate = Gate()
        first, second = workers.transfer(1), workers.transfer(2)
        with pytest.raises(Refusal):
            workers.transfer(3)
        second.give_up()
        second.give_up()
        assert workers.transferring == 1
        future = first.start(gate)
        first.give_up()
        assert workers.transferring == 1
        gate.open()
        assert await asyncio.wrap_future(future) == "transfer"
        assert workers.transferring == 0

    with_workers(test)


def test_nobody_has_all_the_threads() -> None:
    async def test(workers: Workers) -> None:
        mine = [workers.transfer("me"), workers.transfer("me")]
        with pytest.raises(Refusal):
            workers.transfer("me")
        yours = workers.transfer("you")
        mine.pop().give_up()
        mine.append(workers.transfer("me"))
        for slot in (*mine, yours):
            slot.give_up()
        assert workers.transferring == 0

    with_workers(test, 4)


def test_passwords_are_in_nobodys_way() -> None:
    async def test(workers: Workers) -> None:
        gate = Gate()
        checks = [asyncio.ensure_future(workers.check(gate)) for _ in range(5)]
        await asyncio.to_thread(gate.entered.acquire)
        assert await workers.run(lambda: 3) == 3
        gate.open()
        assert {name.partition("_")[0] for name in await asyncio.gather(*checks)} == {"password"}

    with_workers(test)


def test_what_goes_wrong_is_told_and_the_thread_is_free_again() -> None:
    async def test(workers: Workers) -> None:
        def fail() -> None:
            raise ValueError("no")

        for how in ({}, {"waits_for": 0}):
            with pytest.raises(ValueError, match="no"):
                await workers.run(fail, **how)
        with pytest.raises(ValueError, match="no"):
            await asyncio.wrap_future(workers.transfer(1).start(fail))
        assert workers.transferring == workers.patient.count == 0

    with_workers(test)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    threads = Threads("x", 1)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError):
            Share(threads, None).submit(lambda: None)
    assert threads.count == 0
    assert Share(threads, None).submit(lambda a, b: a + b, 1, b=2).result(DEADLINE) == 3


@pytest.mark.parametrize("node", [None, "node"])
def test_a_result_that_nobody_waits_for_is_disposed_of(node: str | None) -> None:
    async def test(workers: Workers) -> None:
        gate, disposed = Gate(), asyncio.Event()
        loop = asyncio.get_running_loop()

        def dispose(result: str) -> None:
            assert result in ("job_0", "remote")
            loop.call_soon_threadsafe(disposed.set)

        task = asyncio.ensure_future(workers.run(gate, waits_for=node, dispose=dispose))
        await asyncio.to_thread(gate.entered.acquire)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not disposed.is_set()
        gate.open()
        await disposed.wait()

    with_workers(test)


def test_work_that_nobody_waits_for_is_not_begun(caplog: pytest.LogCaptureFixture) -> None:
    async def test(workers: Workers) -> None:
        gate, begun = Gate(), []
        first = asyncio.ensure_future(workers.run(gate))
        await asyncio.to_thread(gate.entered.acquire)
        queued = asyncio.ensure_future(workers.run(lambda: begun.append(1), dispose=lambda _: begun.append(2)))
        await asyncio.sleep(0)
        queued.cancel()
        with pytest.raises(asyncio.CancelledError):
            await queued
        await asyncio.sleep(0)
        gate.open()
        await first
        assert await workers.run(lambda: begun) == []

    with_workers(test)
    assert caplog.records == []
