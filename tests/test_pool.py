"""Connections kept for the next request: who gets which, how many stay, and that none is forgotten."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.repository import LocalRepository
from annexshell.errors import Hangup, NotLocked, NotPresent, PeerError, RemoteUnavailable, RepositoryError
from annexshell.key import Key
from annexshell.pool import Lease, Pool, key
from annexshell.proxy import ProxiedRepository, check_can_proxy
from annexshell.relay import BytesSource
from annexshell.repository import AlreadyHave, Content, ContentLock, Outcome, Repository, Upload
from annexshell.uuid import UUID
from tests.leftovers import left_open
from tests.proxying import DEADLINE, NODE, OTHER, OWN, Link, Nodes, Proxy, RealNode, nodes

__all__ = ["nodes"]

KEY = Key(b"SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
CONTENT = b"hello"


class FakeLock(ContentLock):
    def __init__(self) -> None:
        self.kept = self.ended = False

    def keep(self) -> None:
        self.kept = True

    def __exit__(self, *_: object) -> None:
        self.ended = True


class FakeRepository(Repository):
    uuid = NODE

    def __init__(self, name: object = None) -> None:
        self.name = name
        self.closed = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()
        self.alive = True
        self.lock = FakeLock()
        self.users = 0

    def is_alive(self) -> bool:
        assert not self.closed.is_set()
        return self.alive

    def lockcontent(self, key: Key) -> ContentLock:
        return self.lock

    def close(self) -> None:
        assert not self.closed.is_set() and not self.users
        assert self.may_close.wait(DEADLINE)
        self.closed.set()

    def checkpresent(self, key: Key) -> bool:
        raise NotImplementedError

    def remove(self, key: Key, before: int | None = None) -> Outcome:
        raise NotImplementedError

    def gettimestamp(self) -> int:
        raise NotImplementedError

    def get(self, key: Key, offset: int, file: bytes | None) -> Content:
        raise NotImplementedError

    def put(self, key: Key, file: bytes | None) -> Upload | AlreadyHave:
        raise NotImplementedError


class Opened:
    """Repositories that were opened for the pool."""

    def __init__(self) -> None:
        self.all: list[FakeRepository] = []

    def __call__(self) -> FakeRepository:
        self.all.append(FakeRepository(len(self.all)))
        return self.all[-1]


@pytest.fixture
def opened() -> Opened:
    return Opened()


@pytest.fixture
def pools() -> Iterator[Callable[..., Pool]]:
    made: list[Pool] = []

    def make(limit: int, *arguments: Any) -> Pool:
        made.append(Pool(limit, *arguments))
        return made[-1]

    yield make
    for pool in made:
        pool.close()
        assert len(pool) == 0 and pool._janitor is None and not pool._closing


def use(pool: Pool, key: object, open: Callable[[], Repository]) -> Any:
    with pool.take(key, open) as repository:
        return repository


class TestTaking:
    def test_the_next_request_gets_it(self, pools: Any, opened: Opened) -> None:
        pool = pools(2)
        first = use(pool, "a", opened)
        assert len(pool) == 1
        assert use(pool, "a", opened) is first
        assert use(pool, "b", opened) is not first
        assert (len(pool), len(opened.all)) == (2, 2)

    def test_it_is_for_one_at_a_time(self, pools: Any, opened: Opened) -> None:
        pool = pools(2)
        with pool.take("a", opened) as first, pool.take("a", opened) as second:
            assert first is not second and len(pool) == 0
        assert len(pool) == 2

    def test_the_one_used_last_comes_first(self, pools: Any, opened: Opened) -> None:
        pool = pools(3)
        leases = [pool.take("a", opened) for _ in range(3)]
        for lease in leases:
            lease.__enter__()
        for number in (1, 2, 0):
            leases[number].__exit__(None, None, None)
        assert use(pool, "a", opened) is opened.all[0]

    def test_what_fails_to_open(self, pools: Any) -> None:
        pool = pools(2)

        def fail() -> Repository:
            raise RemoteUnavailable("no")

        with pytest.raises(RemoteUnavailable), pool.take("a", fail):
            pytest.fail("entered")
        assert len(pool) == 0

    def test_a_dead_one_is_replaced(self, pools: Any, opened: Opened) -> None:
        pool = pools(5)
        with pool.take("a", opened), pool.take("a", opened):
            pass
        for repository in opened.all:
            repository.alive = False
        new = use(pool, "a", opened)
        assert new is opened.all[2]
        assert all(dead.closed.wait(DEADLINE) for dead in opened.all[:2])
        assert len(pool) == 1

    @pytest.mark.parametrize("order", [(), (OWN,), (OWN, OTHER), (OTHER, OWN, OTHER)])
    def test_keys(self, order: tuple[UUID, ...]) -> None:
        assert key(OWN, NODE, 4, order) == key(OWN, NODE, 4, set(order))
        assert hash(key(OWN, NODE, 4, order)) == hash(key(OWN, NODE, 4, reversed(order)))
        others = [key(OTHER, NODE, 4, order), key(OWN, OTHER, 4, order), key(OWN, NODE, 3, order)]
        assert key(OWN, NODE, 4, order) not in [*others, key(OWN, NODE, 4, (*order, NODE))]


class TestGivingBack:
    def test_an_unusable_one_is_closed(self, pools: Any, opened: Opened) -> None:
        pool = pools(2)
        with pool.take("a", opened) as repository:
            repository.alive = False
        assert opened.all[0].closed.wait(DEADLINE)
        assert len(pool) == 0

    @pytest.mark.parametrize("reason", [NotPresent("x"), PeerError("x"), NotLocked("x"), Hangup("x")])
    def test_a_failure_that_has_an_explanation(self, reason: Exception, pools: Any, opened: Opened) -> None:
        """The repository knows whether it can still be used."""
        pool = pools(2)
        with pytest.raises(type(reason)), pool.take("a", opened):
            raise reason
        assert len(pool) == 1

    @pytest.mark.parametrize("reason", [ZeroDivisionError(), BrokenPipeError(), KeyboardInterrupt()])
    def test_any_other(self, reason: BaseException, pools: Any, opened: Opened) -> None:
        pool = pools(2)
        with pytest.raises(type(reason)), pool.take("a", opened):
            raise reason
        assert opened.all[0].closed.wait(DEADLINE)
        assert len(pool) == 0

    def test_the_one_idle_for_longest_goes(self, pools: Any, opened: Opened) -> None:
        pool = pools(2)
        a, b = use(pool, "a", opened), use(pool, "b", opened)
        use(pool, "a", opened)
        c = use(pool, "c", opened)
        assert b.closed.wait(DEADLINE)
        assert not a.closed.is_set() and not c.closed.is_set()
        assert use(pool, "a", opened) is a and use(pool, "c", opened) is c

    def test_none_is_kept(self, pools: Any, opened: Opened) -> None:
        pool = pools(0)
        repository = use(pool, "a", opened)
        assert repository.closed.wait(DEADLINE)
        assert len(pool) == 0

    def test_closing_is_in_nobody_s_way(self, pools: Any, opened: Opened) -> None:
        pool = pools(1)
        slow = use(pool, "a", opened)
        slow.may_close.clear()
        second = use(pool, "b", opened)  # which has the first one closed
        third = use(pool, "c", opened)
        assert second.closed.wait(DEADLINE) and not slow.closed.is_set()
        assert use(pool, "c", opened) is third
        slow.may_close.set()
        pool.close()
        assert slow.closed.is_set()

    @pytest.mark.parametrize("reason", [RepositoryError("cannot commit"), OSError(5, "no")])
    def test_one_that_fails_to_close(
        self, reason: Exception, pools: Any, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        def fail(repository: FakeRepository) -> None:
            raise reason

        monkeypatch.setattr(FakeRepository, "close", fail)
        pool = pools(0)
        use(pool, "a", FakeRepository)
        pool.close()
        assert capfd.readouterr().err == f"  closing the connection to {NODE}: {reason}\n"

    def test_when_no_thread_can_be_started(self, pools: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(thread: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        pool = pools(1)
        first = use(pool, "a", opened)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", fail)
            second = use(pool, "b", opened)
            assert first.closed.is_set()
        assert use(pool, "b", opened) is second


class TestTime:
    def test_idle_for_too_long(self, pools: Any, opened: Opened) -> None:
        pool = pools(5, 0.02)
        first = use(pool, "a", opened)
        assert first.closed.wait(DEADLINE)
        assert len(pool) == 0
        second = use(pool, "a", opened)  # and again, after a pause
        assert second is not first and second.closed.wait(DEADLINE)

    def test_being_used_is_not_being_idle(self, pools: Any, opened: Opened) -> None:
        pool = pools(5, 0.05)
        with pool.take("a", opened) as repository:
            time.sleep(0.1)
            assert not repository.closed.is_set()

    def test_each_has_its_own_time(self, pools: Any, opened: Opened) -> None:
        now = 0.0
        pool = pools(5, 100, lambda: now)
        old, new = use(pool, "a", opened), None
        now = 60.0
        new = use(pool, "b", opened)
        with pool._mutex:
            now = 101.0
            pool._mutex.notify_all()
        assert old.closed.wait(DEADLINE)
        assert not new.closed.is_set() and len(pool) == 1


class TestClosing:
    def test_all_are_closed(self, pools: Any, opened: Opened) -> None:
        pool = pools(9)
        with pool.take("a", opened), pool.take("a", opened), pool.take("b", opened):
            pass
        pool.close()
        pool.close()
        assert all(repository.closed.is_set() for repository in opened.all) and len(opened.all) == 3

    def test_those_in_use_when_they_come_back(self, pools: Any, opened: Opened) -> None:
        pool = pools(9)
        with pool.take("a", opened) as repository:
            pool.close()
            assert not repository.closed.is_set()
        assert repository.closed.wait(DEADLINE)
        assert len(pool) == 0

    def test_no_new_ones(self, pools: Any) -> None:
        pool = pools(9)
        pool.close()
        with pytest.raises(RemoteUnavailable), pool.take("a", lambda: pytest.fail("opened")):
            pass

    def test_they_are_closed_at_the_same_time(self, pools: Any, opened: Opened) -> None:
        pool = pools(9)
        barrier = threading.Barrier(3, timeout=DEADLINE)

        class Patient(FakeRepository):
            def close(self) -> None:
                barrier.wait()
                super().close()

        with pool.take(1, Patient), pool.take(2, Patient), pool.take(3, Patient):
            pass
        pool.close()
        assert not barrier.broken


class TestLocks:
    def test_a_lock_holds_its_connection(self, pools: Any, opened: Opened) -> None:
        pool = pools(9)
        with pool.lockcontent("a", opened, KEY):
            assert len(pool) == 0
            other = use(pool, "a", opened)
            assert other is opened.all[1]
        assert opened.all[0].lock.ended and not opened.all[0].lock.kept
        assert len(pool) == 2

    def test_one_that_is_kept(self, pools: Any, opened: Opened) -> None:
        with pools(9).lockcontent("a", opened, KEY) as lock:
            lock.keep()
        assert opened.all[0].lock.kept

    def test_what_cannot_be_locked(self, pools: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(repository: FakeRepository, key: Key) -> ContentLock:
            raise NotLocked("absent")

        monkeypatch.setattr(FakeRepository, "lockcontent", fail)
        pool = pools(9)
        for _ in range(3):
            with pytest.raises(NotLocked):
                pool.lockcontent("a", opened, KEY)
        assert (len(pool), len(opened.all)) == (1, 1)

    def test_one_that_cannot_be_released(self, pools: Any, opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(lock: FakeLock, *_: object) -> None:
            raise RemoteUnavailable("gone")

        monkeypatch.setattr(FakeLock, "__exit__", fail)
        pool = pools(9)
        with pytest.raises(RemoteUnavailable), pool.lockcontent("a", opened, KEY):
            opened.all[0].alive = False
        assert opened.all[0].closed.wait(DEADLINE)


def test_many_threads(pools: Any) -> None:
    """Nobody shares, nothing leaks, the bound holds."""
    pool = pools(3, 0.01)
    mutex = threading.Lock()
    made: list[FakeRepository] = []
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        chance = random.Random(seed)

        def open() -> FakeRepository:
            repository = FakeRepository(name)
            with mutex:
                made.append(repository)
            return repository

        try:
            for _ in range(60):
                name = chance.randrange(4)
                with pool.take(name, open) as repository:
                    assert isinstance(repository, FakeRepository)
                    assert repository.name == name and not repository.closed.is_set()
                    repository.users += 1
                    assert repository.users == 1
                    time.sleep(chance.choice((0, 0, 0.0005)))
                    repository.alive = chance.random() > 0.1
                    repository.users -= 1
                assert len(pool) <= 3
        except BaseException as reason:
            failures.append(reason)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pool.close()
    assert failures == []
    assert all(repository.closed.is_set() for repository in made)


class PoolMachine(RuleBasedStateMachine):
    """Requests that come and go on a few keys, connections that die, and time that passes."""

    @initialize(limit=st.integers(0, 4))
    def start(self, limit: int) -> None:
        self.now = 0.0
        self.limit = limit
        self.pool = Pool(limit, 10, lambda: self.now)
        self.opened = Opened()
        self.in_use: list[tuple[Lease, FakeRepository]] = []
        self.idle: list[tuple[int, FakeRepository]] = []  # as it should be, the oldest first
        self.is_closed = False

    @rule(key=st.integers(0, 3))
    def take(self, key: int) -> None:
        lease = self.pool.take(key, self.opened)
        count = len(self.opened.all)
        try:
            repository = lease.__enter__()
        except RemoteUnavailable:
            assert self.is_closed
            return
        assert isinstance(repository, FakeRepository) and repository.alive
        candidates = [one for its_key, one in self.idle if its_key == key]
        living = [one for one in candidates if one.alive]
        if living:
            assert repository is living[-1]
            tried = candidates[candidates.index(repository) :]
        else:
            assert len(self.opened.all) == count + 1
            repository.name = key
            tried = candidates
        self.idle = [(its_key, one) for its_key, one in self.idle if one not in tried]
        assert repository.name == key
        self.in_use.append((lease, repository))

    @rule(number=st.integers(0, 9), failure=st.sampled_from([None, None, NotPresent("x"), OSError("x")]))
    def give_back(self, number: int, failure: Exception | None) -> None:
        if not self.in_use:
            return
        lease, repository = self.in_use.pop(number % len(self.in_use))
        lease.__exit__(type(failure) if failure else None, failure, None)
        if repository.alive and not isinstance(failure, OSError) and not self.is_closed:
            assert isinstance(repository.name, int)
            self.idle.append((repository.name, repository))
            if len(self.idle) > self.limit:
                del self.idle[0]

    @rule(number=st.integers(0, 9))
    def die(self, number: int) -> None:
        living = [one for one in self.opened.all if one.alive]
        if living:
            living[number % len(living)].alive = False

    @rule(seconds=st.sampled_from([1, 4, 11]))
    def wait(self, seconds: float) -> None:
        """Those that came back before the last two rounds were idle for too long."""
        with self.pool._mutex:
            since = {entry.repository: entry.since for entry in self.pool._idle}
            self.now += seconds
            self.pool._mutex.notify_all()
        self.idle = [(key, one) for key, one in self.idle if since[one] + 10 > self.now]
        deadline = time.monotonic() + DEADLINE
        while len(self.pool) > len(self.idle):
            assert time.monotonic() < deadline
            time.sleep(0.0005)

    @rule(really=st.integers(0, 15))
    def close(self, really: int) -> None:
        if not really:
            self.pool.close()
            self.is_closed = True
            self.idle = []

    @invariant()
    def what_should_be_idle_is(self) -> None:
        if hasattr(self, "pool"):
            assert [(entry.key, entry.repository) for entry in self.pool._idle] == self.idle
            assert sum(map(len, self.pool._by_key.values())) == len(self.pool) <= self.limit
            assert all(self.pool._by_key.values())

    @invariant()
    def nobody_s_connection_is_closed(self) -> None:
        if hasattr(self, "pool"):
            assert not any(one.closed.is_set() for _, one in (*self.in_use, *self.idle))

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            self.pool.close()
            for lease, _ in self.in_use:
                lease.__exit__(None, None, None)
            self.pool.close()  # waits for these
            assert all(one.closed.is_set() for one in self.opened.all)


PoolMachine.TestCase.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)
TestAnyRequests = PoolMachine.TestCase


class TestProxied:
    """With targets that are reached over pipes."""

    @pytest.fixture
    def shared(self, proxy: Proxy) -> Iterator[LocalRepository]:
        shared = LocalRepository(GitRepository(os.fsencode(proxy.directory)))
        shared.share()
        yield shared
        shared.close()

    @pytest.fixture
    def proxy(self, tmp_path: Path) -> Proxy:
        return Proxy(tmp_path / "proxy")

    @pytest.fixture
    def open(self, shared: LocalRepository, nodes: Nodes) -> Callable[[], ProxiedRepository]:
        def open() -> ProxiedRepository:
            target = check_can_proxy(shared.repo, NODE, shared)
            target.agree(4)
            return target

        return open

    @pytest.fixture
    def pool(self, nodes: Nodes) -> Iterator[Pool]:
        pool = Pool(2)
        yield pool
        pool.close()

    @pytest.fixture
    def node(self, tmp_path: Path, nodes: Nodes) -> RealNode:
        node = RealNode(tmp_path / "node")
        node.store(KEY, CONTENT)
        nodes.scripts = [node]
        return node

    def test_one_connection_for_many_requests(
        self, pool: Pool, open: Any, node: RealNode, nodes: Nodes, proxy: Proxy
    ) -> None:
        for _ in range(5):
            with pool.take("node", open) as repository:
                assert repository.checkpresent(KEY)
        with pool.take("node", open) as repository:
            assert repository.remove(KEY)
        with pool.take("node", open) as repository, repository.put(KEY, None) as upload:
            assert isinstance(upload, Upload)
            assert upload.receive(len(CONTENT), BytesSource(CONTENT), lambda: True)
        with pool.take("node", open) as repository, repository.get(KEY, 0, None) as content:
            data = bytearray(5)
            assert content.source.readinto(memoryview(data)) == 5 and data == CONTENT
            assert content.still_valid()
        with pytest.raises(NotPresent), pool.take("node", open) as repository:
            repository.get(Key(b"WORM-s3--absent"), 0, None)
        assert len(nodes.links) == 1
        assert proxy.logged(KEY) == {NODE: b"1"}

    def test_interrupted_exchanges(self, pool: Pool, open: Any, node: RealNode, nodes: Nodes) -> None:
        with pool.take("node", open) as repository, repository.get(KEY, 0, None):
            pass  # the client went away
        assert len(pool) == 0
        absent = Key(b"WORM-s9--absent")
        with (
            pytest.raises(Hangup),
            pool.take("node", open) as repository,
            repository.put(absent, None) as upload,
        ):
            assert isinstance(upload, Upload)

            def no_more() -> bool | None:
                raise Hangup("gone")

            upload.receive(9, BytesSource(b"x" * 9), no_more)
        assert len(pool) == 0
        with pool.take("node", open) as repository:
            assert repository.checkpresent(KEY)
        assert len(nodes.links) == 3

    def test_a_node_that_ended_meanwhile(self, pool: Pool, open: Any, nodes: Nodes) -> None:
        over = threading.Event()

        def once(link: Link) -> None:
            link.greet()
            link.line()
            link.say(b"SUCCESS\n")
            over.wait(DEADLINE)

        nodes.scripts = [once]
        with pool.take("node", open) as first:
            assert first.checkpresent(KEY)
        assert len(pool) == 1
        over.set()
        deadline = time.monotonic() + DEADLINE
        while first.is_alive() and time.monotonic() < deadline:
            time.sleep(0.001)
        with pool.take("node", open) as second:
            assert second is not first
            assert second.checkpresent(KEY)
        assert len(nodes.links) == 2

    def test_a_lock(self, pool: Pool, open: Any, node: RealNode, nodes: Nodes) -> None:
        lock = pool.lockcontent("node", open, KEY)
        with pool.take("node", open) as repository:
            assert not repository.remove(KEY)
        assert len(nodes.links) == 2
        lock.__exit__(None, None, None)
        with pool.take("node", open) as repository:
            assert repository.remove(KEY)

    def test_a_lock_that_is_kept(self, pool: Pool, open: Any, node: RealNode) -> None:
        """As at the server's end: the node keeps its promise when its connection ends."""
        with pool.lockcontent("node", open, KEY) as lock:
            lock.keep()
        assert len(pool) == 0
        pool.close()
        with pytest.raises(NotLocked):
            node.open().locks.lock_for_removal(KEY)

    def test_nothing_is_left(self, pool: Pool, open: Any, node: RealNode, shared: LocalRepository) -> None:
        shared.branch.read(b"proxy.log")
        before = left_open()
        for name in "abc":
            with pool.take(name, open) as repository:
                assert repository.checkpresent(KEY)
        pool.close()
        assert left_open() <= before
