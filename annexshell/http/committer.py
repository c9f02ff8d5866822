"""When the git-annex branch of a repository is committed while it is served over HTTP (spec: http §11.3).

Requests leave their changes in the journal, where everybody sees them. They are committed when things have been quiet
for a moment; and, as there may be no such moment for hours, from time to time while requests go on.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from annexshell import log

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor
    from types import TracebackType

# Seconds.
QUIET = 1.0  # after the last request
LATEST = 10.0  # after the first one, whatever goes on
RETRY = 60.0  # after a commit that failed, unless there is another change before


class Committer:
    """The commits of one repository, one at a time. Used on the event loop's thread, commits in the executor's."""

    def __init__(
        self,
        commit: Callable[[], object],
        executor: Executor,
        name: str = "the repository",
        committed: Callable[[bool], None] = lambda _: None,
    ) -> None:
        """COMMIT has to do nothing if the journal is empty, as Branch.commit does; NAME is for messages.

        COMMITTED is told of each time, and whether it worked.
        """
        self._commit = commit
        self._committed = committed
        self._executor = executor
        self._name = name
        self._running = 0  # requests
        self._may_be_dirty = False  # a request has been running since the last commit began
        self._quiet: asyncio.TimerHandle | None = None
        self._latest: asyncio.TimerHandle | None = None
        self._committing: asyncio.Task[None] | None = None
        self._again = False  # it was due while one was going on
        self._complaint = ""
        self._closed = False

    def change(self) -> Change:
        """A ``with`` block around a request that may change the journal, for the event loop's thread or any other.

        It has to last for as long as the work does: where that is done by a thread that goes on when its request is
        cancelled, the block belongs into the thread.
        """
        return Change(self, asyncio.get_running_loop())

    def _begin(self) -> None:
        self._running += 1
        self._may_be_dirty = True
        if self._quiet is not None:
            self._quiet.cancel()
            self._quiet = None
        # What a request changes, it changes after this.
        self._arm_latest(LATEST)

    def _end(self) -> None:
        self._running -= 1
        if not self._running and not self._closed:
            self._quiet = asyncio.get_running_loop().call_later(QUIET, self._due)

    def _arm_latest(self, seconds: float) -> None:
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        time = loop.time() + seconds
        if self._latest is not None:
            if self._latest.when() <= time:
                return
            self._latest.cancel()
        self._latest = loop.call_at(time, self._due)

    def _disarm(self) -> None:
        for timer in (self._quiet, self._latest):
            if timer is not None:
                timer.cancel()
        self._quiet = self._latest = None

    def _due(self) -> None:
        self._disarm()
        if self._committing is not None:
            self._again = True
        else:
            self._committing = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            await self._commit_now()
        finally:
            self._committing = None
        if self._again and not self._closed:
            self._due()

    async def _commit_now(self) -> None:
        self._again = False
        self._may_be_dirty = self._running > 0
        if self._running:
            self._arm_latest(LATEST)
        try:
            await asyncio.get_running_loop().run_in_executor(self._executor, self._commit)
        except Exception as reason:  # whatever it was, the journal has everything, and the next attempt may work
            self._may_be_dirty = True
            self._arm_latest(RETRY)
            self._complain(str(reason) or repr(reason))
            self._committed(False)
        else:
            self._complaint = ""
            self._committed(True)

    def _complain(self, reason: str) -> None:
        # Once: under load there is an attempt every second.
        if reason != self._complaint:
            log.warn(f"cannot commit to the git-annex branch of {self._name}, will try again: {reason}")
        self._complaint = reason

    async def close(self) -> None:
        """Commit what is not committed yet. To be called when no request is running any more."""
        await asyncio.sleep(0)  # let in what threads have said
        self._closed = True
        self._disarm()
        if self._committing is not None:
            await self._committing
        if self._may_be_dirty:
            await self._commit_now()


class Change:
    """One request that may change the journal."""

    __slots__ = ("_committer", "_loop")

    def __init__(self, committer: Committer, loop: asyncio.AbstractEventLoop) -> None:
        self._committer = committer
        self._loop = loop

    def _tell(self, what: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(what)
        except RuntimeError:
            pass  # the server has stopped; who comes next commits what is in the journal

    def __enter__(self) -> None:
        self._tell(self._committer._begin)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tell(self._committer._end)
