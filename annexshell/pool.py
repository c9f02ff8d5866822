"""Connections to repositories behind us, kept for the next request (spec: http §12.4, proxy §11.3).

Opening one takes a process, an ssh session and two round trips; most requests take one. Any thread may use the pool,
and none of them waits for a connection to be closed, which can take a node as long as committing what it recorded.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from contextlib import nullcontext
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.errors import AnnexshellError, RemoteUnavailable
from annexshell.repository import ContentLock

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable
    from contextlib import AbstractContextManager
    from types import TracebackType

    from annexshell.key import Key
    from annexshell.repository import Repository
    from annexshell.uuid import UUID

IDLE_TIMEOUT = 60.0  # seconds


def key(own: UUID, target: UUID, version: int, bypass: Iterable[UUID]) -> Hashable:
    """What two requests must have in common to use the same connection.

    That is what the node is told when it is opened: OWN, which stands in front of TARGET, the VERSION of the
    protocol, and the repositories to bypass, in whatever order. Of the client it knows nothing.
    """
    return own, target, version, frozenset(bypass)


class _Idle:
    __slots__ = ("key", "repository", "since")

    def __init__(self, key: Hashable, repository: Repository, since: float) -> None:
        self.key = key
        self.repository = repository
        self.since = since


class Pool:
    """At most LIMIT idle connections, each for at most TIMEOUT seconds. Those that are in use do not count."""

    def __init__(
        self, limit: int, idle_timeout: float = IDLE_TIMEOUT, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = limit
        self._timeout = idle_timeout
        self._clock = clock
        # For everything below. Nothing is done while it is held that could take time.
        self._mutex = threading.Condition()
        # All of them, the one that has been idle for longest first; and of each key, in the same order.
        self._idle: OrderedDict[_Idle, None] = OrderedDict()
        self._by_key: dict[Hashable, deque[_Idle]] = {}
        self._janitor: threading.Thread | None = None
        self._closing: set[threading.Thread] = set()
        self._closed = False

    def __len__(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    # Using them.

    def take(self, key: Hashable, open: Callable[[], Repository]) -> Lease:
        """A repository for exclusive use in a ``with`` block: an idle one of this KEY, or what OPEN gives.

        Entering the block raises what OPEN raises, and RemoteUnavailable once the pool is closed.
        """
        return Lease(self, key, open)

    def lockcontent(
        self,
        key: Hashable,
        open: Callable[[], Repository],
        content: Key,
        meanwhile: Callable[[Repository], AbstractContextManager[object]] = nullcontext,
    ) -> ContentLock:
        """Lock content of such a repository, which is not put back before the lock is released.

        MEANWHILE gives a ``with`` block to lock it in. Raises NotLocked, and as :meth:`take` does.
        """
        lease = self.take(key, open)
        repository = lease.__enter__()
        try:
            with meanwhile(repository):
                lock = repository.lockcontent(content)
            return _PooledLock(lease, lock)
        except BaseException as error:
            lease.__exit__(type(error), error, error.__traceback__)
            raise

    def _borrow(self, key: Hashable, open: Callable[[], Repository]) -> Repository:
        while (repository := self._pop(key)) is not None:
            if repository.is_alive():
                return repository
            self._close_aside(repository)
        return open()

    def _pop(self, key: Hashable) -> Repository | None:
        """The one that was used last: it is the likeliest to live, and others get the chance to become too old."""
        with self._mutex:
            if self._closed:
                raise RemoteUnavailable("the server is being stopped")
            of_key = self._by_key.get(key)
            return None if of_key is None else self._remove(of_key[-1]).repository

    def _give_back(self, key: Hashable, repository: Repository) -> None:
        if not repository.is_alive():
            self._close_aside(repository)
            return
        with self._mutex:
            if not self._closed:
                entry = _Idle(key, repository, self._clock())
                self._idle[entry] = None
                self._by_key.setdefault(key, deque()).append(entry)
                evicted = self._remove(next(iter(self._idle))).repository if len(self._idle) > self._limit else None
                self._wake_janitor()
            else:
                evicted = repository
        if evicted is not None:
            self._close_aside(evicted)

    def _remove(self, entry: _Idle) -> _Idle:
        """Take out what is the oldest or the newest of its key; with the mutex held."""
        del self._idle[entry]
        of_key = self._by_key[entry.key]
        if of_key[-1] is entry:
            of_key.pop()
        else:
            assert of_key[0] is entry
            of_key.popleft()
        if not of_key:
            del self._by_key[entry.key]
        return entry

    # Closing them.

    def _close_aside(self, repository: Repository) -> None:
        """Close it in a thread of its own, as one that takes long must not be in the way of another either."""
        thread = threading.Thread(target=self._close, args=(repository,), name="close connection", daemon=True)
        with self._mutex:
            try:
                thread.start()
                self._closing.add(thread)
                return
            except RuntimeError:
                pass  # there are too many already
        self._close(repository)

    def _close(self, repository: Repository) -> None:
        try:
            repository.close()
        except (AnnexshellError, OSError) as reason:
            log.warn(f"closing the connection to {repository.uuid}: {reason}")
        finally:
            with self._mutex:  # which whoever started us held until we were in there
                self._closing.discard(threading.current_thread())

    def _wake_janitor(self) -> None:
        """With the mutex held. There is one while anything is idle."""
        if self._idle and self._janitor is None:
            self._janitor = threading.Thread(target=self._tidy, name="idle connections", daemon=True)
            self._janitor.start()

    def _tidy(self) -> None:
        while True:
            with self._mutex:
                left = self._seconds_left()
                if left is None:
                    self._janitor = None
                    return
                if left > 0:
                    self._mutex.wait(left)
                    continue
                repository = self._remove(next(iter(self._idle))).repository
            self._close_aside(repository)

    def _seconds_left(self) -> float | None:
        """Until the next one has been idle for too long; None if none is idle."""
        for entry in self._idle:
            return entry.since + self._timeout - self._clock()
        return None

    def close(self) -> None:
        """Close all idle connections, and wait for that. Those in use are closed when they are given back."""
        with self._mutex:
            self._closed = True
            idle = [entry.repository for entry in self._idle]
            self._idle.clear()
            self._by_key.clear()
            self._mutex.notify_all()  # the janitor is not needed any more
        for repository in idle:
            self._close_aside(repository)
        while True:
            with self._mutex:
                threads = [*self._closing, *((self._janitor,) if self._janitor is not None else ())]
            if not threads:
                return
            for thread in threads:
                thread.join()


class Lease:
    """One request's use of a repository."""

    __slots__ = ("_key", "_open", "_pool", "_repository")

    def __init__(self, pool: Pool, key: Hashable, open: Callable[[], Repository]) -> None:
        self._pool = pool
        self._key = key
        self._open = open

    def __enter__(self) -> Repository:
        self._repository = self._pool._borrow(self._key, self._open)
        return self._repository

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, AnnexshellError):
            self._pool._give_back(self._key, self._repository)
        else:
            # It came from anywhere, and may have left an exchange half done that thinks that it is not.
            self._pool._close_aside(self._repository)


class _PooledLock(ContentLock):
    """A lock, and the connection that has to stay open for it."""

    def __init__(self, lease: Lease, lock: ContentLock) -> None:
        self._lease = lease
        self._lock = lock

    def keep(self) -> None:
        self._lock.keep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._lock.__exit__(kind, error, trace)
        finally:
            self._lease.__exit__(kind, error, trace)
