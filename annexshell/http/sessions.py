"""What a request uses of a repository, and what requests share of it."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from annexshell import pool as pools
from annexshell.annex.repository import LocalRepository
from annexshell.errors import RepositoryError
from annexshell.http.committer import Committer
from annexshell.proxy import check_can_proxy
from annexshell.remotes import patience

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.http.api import ApiRequest
    from annexshell.http.repositories import Served
    from annexshell.pool import Pool
    from annexshell.repository import ContentLock, Repository


class _Shared:
    """What the requests to one repository have in common."""

    __slots__ = ("committer", "local")

    def __init__(self, repo: GitRepository, executor: Executor) -> None:
        self.local = LocalRepository(repo)
        self.local.share()
        self.committer = Committer(self.local.branch.commit, executor, str(repo.path, "utf-8", "replace"))


class Sessions:
    """Opens repositories for requests. ``close`` ends everything that is shared."""

    def __init__(self, pool: Pool, executor: Executor) -> None:
        self._pool = pool
        self._executor = executor
        self._shared: dict[GitRepository, _Shared] = {}

    def committer(self, served: Served) -> Committer:
        """Of the repository that changes when SERVED does. On the event loop's thread."""
        return self._of(served.repo).committer

    def prepare(self, served: Served) -> None:
        """Have ready what the other methods need. On the event loop's thread."""
        self._of(served.repo)

    def _of(self, repo: GitRepository) -> _Shared:
        shared = self._shared.get(repo)
        if shared is None:
            shared = self._shared[repo] = _Shared(repo, self._executor)
        return shared

    @contextmanager
    def open(self, api: ApiRequest, served: Served) -> Iterator[Repository]:
        """The repository that API asks, in one thread that may wait for it. Raises what it takes to connect."""
        if served.proxied:
            with self._pool.take(self._key(api, served), self._opener(api, served)) as repository:
                yield repository
        else:
            local = self._shared[served.repo].local.for_client(api.client or served.uuid)
            try:
                yield local
            finally:
                local.close()

    def lockcontent(self, api: ApiRequest, served: Served) -> ContentLock:
        """A lock that outlasts the request. Raises NotLocked, and what it takes to connect."""
        if served.proxied:
            return self._pool.lockcontent(self._key(api, served), self._opener(api, served), api.the_key)
        return self._shared[served.repo].local.for_client(api.client).lockcontent(api.the_key)

    @staticmethod
    def _key(api: ApiRequest, served: Served) -> object:
        return pools.key(served.repo.uuid, served.uuid, api.the_version, api.bypass)

    def _opener(self, api: ApiRequest, served: Served) -> Callable[[], Repository]:
        def open() -> Repository:
            shared = self._shared[served.repo]
            repository = check_can_proxy(served.repo, served.uuid, shared.local)
            repository.patience = patience.from_config(served.repo.config)
            try:
                repository.agree(api.the_version)
            except BaseException:
                repository.abandon()
                raise
            return repository

        return open

    async def close(self) -> None:
        """Commit what is still to be committed, and close everything."""
        for shared in self._shared.values():
            await shared.committer.close()
            try:
                shared.local.close()
            except (RepositoryError, OSError):
                pass  # the committer has told of it
        self._pool.close()
