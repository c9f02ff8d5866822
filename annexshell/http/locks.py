"""The locks that clients of the HTTP server hold (spec: http §7).

A lock belongs to no connection. It lasts for ten minutes, for as long as a ``keeplocked`` request is open, and is
over at once when such a request says so::

    event                                    the lock
    ---------------------------------------  -------------------------------------------------
    unlock:true                              is released
    ten minutes are over, and no request     is released, a few seconds later
    is open
    ten minutes are over while one is open   stays until no request is open
    a request ends without unlock:true, in   stays: the client counts on ten minutes from when
    whatever way                             its request began, even if its connection breaks
    the server stops                         is let go of, but not its retention time on disk

Everything here is called on the event loop's thread; locks are taken and released in the executor's, because that is
work on disk, or with a remote.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.annex.contentlock import RETENTION
from annexshell.errors import AnnexshellError
from annexshell.uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from types import TracebackType
    from typing import Any, TypeVar

    from typing_extensions import Self

    from annexshell.repository import ContentLock

    _T = TypeVar("_T")

DEFAULT_LIMIT = 100
# Seconds. The client's ten minutes begin when it gets to know of the lock, and on a clock of its own.
LEASE = RETENTION + 5.0
# How often is looked for locks that are over, while there are any. Timers of the loop would be late by all the time
# that the machine sleeps, so none is set for long.
PERIOD = 5.0
_WORKER_BITS = 16


def clock() -> float:
    """Seconds since boot, suspended time included; nobody can set it."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def worker_of(lockid: bytes) -> int | None:
    """The number of the worker process that holds the lock, if there is such a lock; None for what is no id."""
    try:
        return uuid.UUID(lockid.decode("ascii")).int & ((1 << _WORKER_BITS) - 1)
    except ValueError:
        return None


def _new_id(worker: int) -> UUID:
    number = uuid.uuid4().int >> _WORKER_BITS << _WORKER_BITS | worker
    return UUID(str(uuid.UUID(int=number)).encode())


class _Held:
    __slots__ = ("deadline", "lock", "repository", "streams")

    def __init__(self, repository: UUID, lock: ContentLock, deadline: float) -> None:
        self.repository = repository
        self.lock = lock
        self.deadline = deadline
        self.streams = 0  # keeplocked requests that are open

    def is_over(self, now: float) -> bool:
        return not self.streams and self.deadline <= now


class Locks:
    """The locks of all clients of one worker process, LIMIT of them at the most."""

    def __init__(
        self,
        executor: Executor,
        limit: int = DEFAULT_LIMIT,
        worker: int = 0,
        clock: Callable[[], float] = clock,
    ) -> None:
        """WORKER is the number of this process among those that serve together; an id tells it."""
        if not 0 <= worker < 1 << _WORKER_BITS:
            raise ValueError(f"worker {worker} cannot be told by a lock's id")
        self._executor = executor
        self._limit = limit
        self._worker = worker
        self._clock = clock
        self._held: dict[bytes, _Held] = {}
        self._count = 0  # of those, and of those that are being released
        self._background: set[asyncio.Task[Any]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def count(self) -> int:
        """How many locks are held, to the end of their being released. An attempt to lock is no lock."""
        return self._count

    @property
    def is_full(self) -> bool:
        return self._count >= self._limit

    # Taking them.

    async def acquire(
        self, repository: UUID, take: Callable[[], ContentLock], executor: Executor | None = None
    ) -> UUID | None:
        """The id of the lock on content of REPOSITORY that TAKE gives, in a worker thread. None: too many.

        EXECUTOR is for one that may have to be waited for, where others must not wait as well.
        Raises what TAKE raises. If the one who asks goes away meanwhile there will be no lock.
        """
        if self.is_full or self._closed:
            return None
        taking = self._in_background(self._take(repository, take, executor or self._executor))
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            # The thread goes on, and what it comes back with nobody was told of.
            taking.add_done_callback(self._release_untold)
            raise

    async def _take(self, repository: UUID, take: Callable[[], ContentLock], executor: Executor) -> UUID | None:
        lock = await asyncio.get_running_loop().run_in_executor(executor, take)
        lockid = self.hold(repository, lock)
        if lockid is None:
            await self._exit(lock)
        return lockid

    def _release_untold(self, taking: asyncio.Task[UUID | None]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            lockid = taking.result()
            if lockid is not None:
                self._release(lockid)

    def hold(self, repository: UUID, lock: ContentLock) -> UUID | None:
        """Take over a LOCK, and give its id. None if there are too many: then it stays the caller's to release."""
        # Asked again: others may have been faster. What counts as one of the locks is what a client was told of.
        if self.is_full or self._closed:
            return None
        lockid = _new_id(self._worker)
        self._held[lockid] = _Held(repository, lock, self._clock() + LEASE)
        self._count += 1
        self._arm()
        return lockid

    # Keeping them.

    def stream(self, repository: UUID, lockid: bytes) -> Stream:
        """A ``keeplocked`` request, for the length of a ``with`` block. There need not be such a lock."""
        return Stream(self, repository, lockid)

    def _stream_begins(self, repository: UUID, lockid: bytes) -> _Held | None:
        held = self._held.get(lockid)
        if held is None or held.repository != repository:
            return None
        held.streams += 1
        # For as long as its client is going to count on it, should we never hear of it again.
        held.deadline = max(held.deadline, self._clock() + LEASE)
        return held

    def _stream_ends(self, lockid: bytes, held: _Held) -> None:
        held.streams -= 1
        if self._held.get(lockid) is held and held.is_over(self._clock()):
            self._release(lockid)

    # Ending them.

    def _arm(self) -> None:
        if self._timer is None and self._held:
            self._timer = asyncio.get_running_loop().call_later(PERIOD, self._sweep)

    def _sweep(self) -> None:
        """Release what is over. They are few enough to be looked at one by one."""
        self._timer = None
        now = self._clock()
        for lockid in [lockid for lockid, held in self._held.items() if held.is_over(now)]:
            self._release(lockid)
        self._arm()

    def _release(self, lockid: bytes) -> asyncio.Task[None] | None:
        """Nobody finds it any more from now on; the task ends when it is released. None if there is no such lock."""
        held = self._held.pop(lockid, None)
        return None if held is None else self._in_background(self._end(held.lock))

    async def _end(self, lock: ContentLock) -> None:
        try:
            await self._exit(lock)
        finally:
            self._count -= 1

    async def _exit(self, lock: ContentLock) -> None:
        await asyncio.get_running_loop().run_in_executor(self._executor, _exit, lock)

    def _in_background(self, work: Coroutine[Any, Any, _T]) -> asyncio.Task[_T]:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)  # the loop itself would forget it
        task.add_done_callback(self._background.discard)
        return task

    async def close(self) -> None:
        """The server stops: let go of all locks, but leave on disk how long clients count on them."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for lockid, held in list(self._held.items()):
            held.lock.keep()
            self._release(lockid)
        while self._background:
            await asyncio.wait(self._background)


class Stream:
    """One ``keeplocked`` request."""

    __slots__ = ("_held", "_lockid", "_locks", "_repository")

    def __init__(self, locks: Locks, repository: UUID, lockid: bytes) -> None:
        self._locks = locks
        self._repository = repository
        self._lockid = lockid
        self._held: _Held | None = None

    @property
    def is_known(self) -> bool:
        """Whether there was such a lock when the request began."""
        return self._held is not None

    async def unlock(self) -> None:
        """The client said ``unlock:true``. Returns when the lock is released."""
        if self._held is not None:
            releasing = self._locks._release(self._lockid)
            if releasing is not None:
                await asyncio.shield(releasing)

    def __enter__(self) -> Self:
        self._held = self._locks._stream_begins(self._repository, self._lockid)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._held is not None:
            self._locks._stream_ends(self._lockid, self._held)


def _exit(lock: ContentLock) -> None:
    try:
        lock.__exit__(None, None, None)
    except (AnnexshellError, OSError) as reason:
        log.warn(f"cannot unlock content: {reason}")
