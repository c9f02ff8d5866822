"""What a request uses of a repository, and what requests share of it."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

from annexshell import log
from annexshell import pool as pools
from annexshell.annex.repository import LocalRepository
from annexshell.errors import AnnexshellError
from annexshell.http.api import GET
from annexshell.http.committer import Committer
from annexshell.http.download import SMALL
from annexshell.proxy import ProxiedRepository, check_can_proxy
from annexshell.remotes import patience
from annexshell.uuid import NO_UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor
    from contextlib import AbstractContextManager
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.http.api import ApiRequest
    from annexshell.http.pace import Pace
    from annexshell.http.repositories import Served
    from annexshell.key import Key
    from annexshell.pool import Pool
    from annexshell.repository import ContentLock, Repository

# Seconds after which is closed what nobody has used. Longer than connections to nodes are kept, which use it too.
IDLE_TIMEOUT = 2 * pools.IDLE_TIMEOUT


class _Shared:
    """What the requests to one repository have in common: a process of git, a database, the journal's commits.

    Entered by each thread that uses it.
    """

    def __init__(self, repo: GitRepository, executor: Executor, committed: Callable[[bool], None]) -> None:
        self._repo = repo
        self._local: LocalRepository | None = None
        self.is_thin = repo.config.get_bool(b"annex.thin")
        self.committer = Committer(self._commit, executor, str(repo.path, "utf-8", "replace"), committed)
        self._opening = threading.Lock()
        self._mutex = threading.Lock()
        self._users = 0
        self._since = time.monotonic()

    @property
    def local(self) -> LocalRepository:
        """Looks at the disk the first time, so it is for threads unless that is quick."""
        if self._local is None:
            with self._opening:
                if self._local is None:
                    local = LocalRepository(self._repo)
                    local.share()
                    self._local = local
        return self._local

    def touch(self) -> None:
        self._since = time.monotonic()

    def is_idle(self, timeout: float) -> bool:
        return not self._users and time.monotonic() - self._since > timeout

    def _commit(self) -> None:
        self.local.branch.commit()
        if self.local.worktree is not None:
            self.local.worktree.close()  # git is told of the unlocked files that have their content now

    async def close(self, executor: Executor) -> None:
        await self.committer.close()
        await asyncio.get_running_loop().run_in_executor(executor, self._end)

    def _end(self) -> None:
        try:
            if self._local is not None:
                self._local.abandon()  # the committer has done the rest
        except (AnnexshellError, OSError) as reason:
            log.warn(f"closing {self._repo.uuid}: {reason}")

    def __enter__(self) -> None:
        with self._mutex:
            self._users += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            self._users -= 1
            self.touch()


class Sessions:
    """Opens repositories for requests. ``close`` ends everything that is shared.

    Its methods are for the event loop's thread. What they give is for one thread, which may be any and may wait.
    """

    def __init__(
        self,
        pool: Pool,
        executor: Executor,
        committed: Callable[[bool], None] = lambda _: None,
        idle_timeout: float = IDLE_TIMEOUT,
    ) -> None:
        """COMMITTED is told of each commit, and whether it was done."""
        self._pool = pool
        self._executor = executor
        self._committed = committed
        self._idle_timeout = idle_timeout
        self._shared: dict[GitRepository, _Shared] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._closing: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        """How many repositories are open."""
        return len(self._shared)

    def open(self, api: ApiRequest, served: Served, *, changes: bool = False) -> AbstractContextManager[Repository]:
        """The repository that API asks, for the length of a ``with``; CHANGES: it may have to be committed then.

        Entering it raises what it takes to connect.
        """
        shared = self._of(served.repo)
        change = shared.committer.change() if changes else nullcontext()
        return self._opened(shared, change, api, served)

    @contextmanager
    def _opened(
        self, shared: _Shared, change: AbstractContextManager[None], api: ApiRequest, served: Served
    ) -> Iterator[Repository]:
        with shared, change:
            if served.proxied:
                with self._pool.take(_key(api, served), _opener(shared, api, served)) as node, _held(api, node):
                    yield node
            else:
                client = api.client or served.uuid
                if api.action is GET and _is_small(api.the_key):
                    # git-annex's server tells of these transfers too (spec: http §1.3), with a lock file and an info
                    # file that are gone before anybody can look. That is half of all the work there is to do for
                    # one. The locks exclude nobody from sending, and only transfers to here count for disk space.
                    client = NO_UUID
                local = shared.local.for_client(client)
                try:
                    yield local
                finally:
                    local.close()

    def checkpresent(self, api: ApiRequest, served: Served) -> bool | None:
        """Whether the content is there, where that can be told at once; None where a thread has to find out.

        That is where there may be somebody to be waited for, be it a git-annex that has a database locked.
        """
        if served.proxied:
            return None
        shared = self._of(served.repo)
        if shared.is_thin or not served.pace.is_quick:
            return None
        with served.pace:
            return shared.local.checkpresent(api.the_key)

    def pace_of_get(self, api: ApiRequest, served: Served) -> Pace | None:
        """What tells whether to get the content directly; None if it has to be a thread that does."""
        if served.proxied or not served.repo.bare or not _is_small(api.the_key):
            return None
        return served.pace

    def lockcontent(self, api: ApiRequest, served: Served) -> Callable[[], ContentLock]:
        """What gives a lock that outlasts the request. Raises NotLocked, and what it takes to connect."""
        shared = self._of(served.repo)

        def lock() -> ContentLock:
            with shared:
                if served.proxied:
                    opener = _opener(shared, api, served)
                    return self._pool.lockcontent(
                        _key(api, served), opener, api.the_key, lambda node: _held(api, node)
                    )
                return shared.local.for_client(api.client).lockcontent(api.the_key)

        return lock

    def _of(self, repo: GitRepository) -> _Shared:
        shared = self._shared.get(repo)
        if shared is None:
            shared = self._shared[repo] = _Shared(repo, self._executor, self._committed)
            self._arm()
        shared.touch()
        return shared

    # Closing what nobody uses: a repository may have been removed, or be one of thousands.

    def _arm(self) -> None:
        if self._timer is None and self._shared:
            self._timer = asyncio.get_running_loop().call_later(self._idle_timeout / 2, self._tidy)

    def _tidy(self) -> None:
        self._timer = None
        for repo, shared in list(self._shared.items()):
            if shared.is_idle(self._idle_timeout):
                del self._shared[repo]
                task = asyncio.get_running_loop().create_task(shared.close(self._executor))
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)
        self._arm()

    async def close(self) -> None:
        """Commit what is still to be committed, and close everything."""
        if self._timer is not None:
            self._timer.cancel()
        for shared in self._shared.values():
            await shared.close(self._executor)
        for task in list(self._closing):
            await task
        # Each may take a node as long as committing what it recorded.
        await asyncio.get_running_loop().run_in_executor(None, self._pool.close)


def _is_small(content: Key) -> bool:
    return content.size is not None and content.size <= SMALL


def _key(api: ApiRequest, served: Served) -> object:
    return pools.key(served.repo.uuid, served.uuid, api.the_version, api.bypass)


def _held(api: ApiRequest, node: Repository) -> AbstractContextManager[None]:
    """A ``with`` in which waiting for the NODE ends when the client goes."""
    assert isinstance(node, ProxiedRepository)
    return api.asker.holding(node.lifeline)


def _opener(shared: _Shared, api: ApiRequest, served: Served) -> Callable[[], Repository]:
    def open() -> Repository:
        repository = check_can_proxy(served.repo, served.uuid, shared.local)
        repository.patience = patience.from_config(served.repo.config)
        repository.bypassed = api.bypass  # and not us: who is asked for itself does not come back (spec: proxy §11.3)
        try:
            repository.watch_lifeline()
            with _held(api, repository):
                repository.agree(api.the_version)
        except BaseException:
            repository.abandon()
            raise
        return repository

    return open
