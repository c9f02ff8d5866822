"""The locks that clients hold over HTTP: for how long, and what ends them."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from annexshell.errors import ContentLocked, NotLocked, RemoteUnavailable
from annexshell.http import locks as module
from annexshell.http.locks import LEASE, PERIOD, Locks, Stream, worker_of
from annexshell.repository import ContentLock
from annexshell.uuid import NO_UUID, UUID
from tests.annex.local import Local, sha256_key
from tests.http.faketime import FakeTimeLoop, Inline
from tests.leftovers import left_open

HERE = UUID(b"11111111-1111-4111-8111-111111111111")
ELSEWHERE = UUID(b"22222222-2222-4222-8222-222222222222")


class FakeLock(ContentLock):
    def __init__(self, failure: Exception | None = None) -> None:
        self.releases = 0
        self.kept = False
        self.failure = failure

    def keep(self) -> None:
        assert not self.releases
        self.kept = True

    def __exit__(self, *_: object) -> None:
        self.releases += 1
        if self.failure is not None:
            raise self.failure

    @property
    def is_held(self) -> bool:
        return not self.releases


class Case:
    def __init__(self, loop: FakeTimeLoop, limit: int = 100) -> None:
        self.loop = loop
        self.executor = Inline()
        self.locks = Locks(self.executor, limit, 3, loop.boot_time)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(work)

    def begin(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self.loop.create_task(work)
        self.loop.settle()
        return task

    def lock(self, lock: FakeLock | None = None) -> tuple[UUID, FakeLock]:
        lock = lock or FakeLock()
        lockid = self.run(self.locks.acquire(HERE, lambda: lock))
        assert lockid is not None
        return lockid, lock

    def open(self, lockid: bytes, repository: UUID = HERE) -> Stream:
        stream = self.locks.stream(repository, lockid)
        self.call(stream.__enter__)
        return stream

    def end(self, stream: Stream) -> None:
        self.call(stream.__exit__, None, None, None)
        self.loop.settle()

    def call(self, function: Callable[..., Any], *arguments: Any) -> None:
        async def call() -> None:
            function(*arguments)

        self.run(call())

    def wait(self, seconds: float) -> None:
        self.loop.pass_time(seconds)

    def close(self) -> None:
        self.run(self.locks.close())


@pytest.fixture
def loop() -> Iterator[FakeTimeLoop]:
    loop = FakeTimeLoop()
    yield loop
    assert not [task for task in asyncio.all_tasks(loop) if not task.done()]
    loop.close()


@pytest.fixture
def case(loop: FakeTimeLoop) -> Iterator[Case]:
    case = Case(loop)
    yield case
    case.close()
    assert case.locks.count == 0


class TestIds:
    def test_they_look_like_uuids_and_tell_the_worker(self, case: Case) -> None:
        ids = [case.lock()[0] for _ in range(50)]
        assert len(set(ids)) == 50
        for lockid in ids:
            parsed = uuid.UUID(str(lockid))
            assert (parsed.version, str(parsed).encode(), worker_of(lockid)) == (4, lockid, 3)

    @pytest.mark.parametrize("worker", [0, 1, 255, 65535])
    def test_workers(self, worker: int, loop: FakeTimeLoop) -> None:
        locks = Locks(Inline(), worker=worker)

        async def hold() -> UUID | None:
            return locks.hold(HERE, FakeLock())

        lockid = loop.run_until_complete(hold())
        assert lockid is not None and worker_of(lockid) == worker
        loop.run_until_complete(locks.close())

    @pytest.mark.parametrize("worker", [-1, 65536])
    def test_a_worker_that_cannot_be_told(self, worker: int) -> None:
        with pytest.raises(ValueError):
            Locks(Inline(), worker=worker)

    @pytest.mark.parametrize("text", [b"", b"x", b"\xff" * 36, b"11111111-1111-4111-8111-11111111111g"])
    def test_what_is_no_id(self, text: bytes, case: Case) -> None:
        assert worker_of(text) is None
        stream = case.open(text)
        assert not stream.is_known
        case.run(stream.unlock())
        case.end(stream)


class TestLease:
    """Without a stream, a lock lasts for ten minutes and a little."""

    def test_its_end(self, case: Case) -> None:
        _, lock = case.lock()
        case.wait(LEASE - 0.01)
        assert lock.is_held
        case.wait(PERIOD + 0.02)
        assert lock.releases == 1 and not lock.kept
        assert case.locks.count == 0

    def test_ten_minutes_are_in_it(self) -> None:
        assert 602 <= LEASE < LEASE + PERIOD <= 620

    def test_each_has_its_own(self, case: Case) -> None:
        first = case.lock()[1]
        case.wait(100)
        second = case.lock()[1]
        case.wait(LEASE - 50)
        assert (first.is_held, second.is_held) == (False, True)
        case.wait(100)
        assert not second.is_held

    def test_the_time_that_the_machine_sleeps_counts(self, case: Case) -> None:
        _, lock = case.lock()
        case.wait(10)
        case.loop.asleep += 3600
        case.wait(PERIOD)
        assert not lock.is_held

    def test_the_time_that_it_sleeps_is_not_counted_twice(self, case: Case) -> None:
        _, lock = case.lock()
        case.wait(10)
        case.loop.asleep += 500
        case.wait(90)
        assert lock.is_held
        case.wait(10)
        assert not lock.is_held

    def test_nothing_is_looked_for_when_nothing_is_held(self, case: Case) -> None:
        lockid, _ = case.lock()
        case.run(case.open(lockid).unlock())
        case.wait(PERIOD)
        assert case.locks._timer is None
        case.lock()
        assert case.locks._timer is not None


class TestStreams:
    def test_unlock_is_at_once(self, case: Case) -> None:
        lockid, lock = case.lock()
        stream = case.open(lockid)
        assert stream.is_known
        case.wait(5)
        case.run(stream.unlock())
        assert lock.releases == 1 and not lock.kept and case.locks.count == 0
        case.run(stream.unlock())
        case.end(stream)
        assert lock.releases == 1
        again = case.open(lockid)
        assert not again.is_known
        case.end(again)

    def test_unlock_returns_when_it_is_released(self, case: Case) -> None:
        lockid, lock = case.lock()
        stream = case.open(lockid)
        case.executor.held = True
        unlocking = case.begin(stream.unlock())
        assert not unlocking.done() and lock.is_held and case.locks.count == 1
        unlocking.cancel()  # the client goes away; what it has said counts
        case.loop.settle()
        case.executor.let_go()
        case.loop.settle()
        assert not lock.is_held and case.locks.count == 0
        case.end(stream)

    def test_an_open_one_keeps_it_for_hours(self, case: Case) -> None:
        lockid, lock = case.lock()
        stream = case.open(lockid)
        case.wait(4 * 3600)
        assert lock.is_held
        case.end(stream)
        assert not lock.is_held  # nobody counts on it any more

    def test_its_end_without_unlocking(self, case: Case) -> None:
        lockid, lock = case.lock()
        case.wait(0.1)
        stream = case.open(lockid)
        case.wait(30)
        case.end(stream)
        case.wait(600 - 30)
        assert lock.is_held
        case.wait(LEASE - 600 + PERIOD)
        assert not lock.is_held

    def test_the_client_s_ten_minutes_begin_with_the_stream(self, case: Case) -> None:
        """It counts on them even if the answer to lockcontent took long to get there."""
        lockid, lock = case.lock()
        case.wait(300)
        case.end(case.open(lockid))
        case.wait(600)
        assert lock.is_held
        case.wait(LEASE - 600 + PERIOD)
        assert not lock.is_held

    def test_two_at_once(self, case: Case) -> None:
        lockid, lock = case.lock()
        first, second = case.open(lockid), case.open(lockid)
        case.wait(2000)
        case.end(first)
        case.wait(2000)
        assert lock.is_held
        case.end(second)
        assert not lock.is_held

    def test_either_of_two_can_unlock(self, case: Case) -> None:
        lockid, lock = case.lock()
        first, second = case.open(lockid), case.open(lockid)
        case.run(second.unlock())
        assert not lock.is_held
        case.end(first)
        case.end(second)
        case.run(first.unlock())
        assert lock.releases == 1

    def test_another_repository_s_lock_is_unknown(self, case: Case) -> None:
        lockid, lock = case.lock()
        stream = case.open(lockid, ELSEWHERE)
        assert not stream.is_known
        case.run(stream.unlock())
        case.end(stream)
        assert lock.is_held

    def test_one_that_comes_in_the_last_moment_keeps_it(self, case: Case) -> None:
        """Whatever the clock says: what was not released yet has been locked all the time."""
        lockid, lock = case.lock()
        case.loop.asleep += 10 * LEASE
        stream = case.open(lockid)
        assert stream.is_known
        case.wait(3600)
        assert lock.is_held
        case.end(stream)

    def test_one_that_comes_too_late(self, case: Case) -> None:
        lockid, _ = case.lock()
        case.wait(LEASE + PERIOD)
        stream = case.open(lockid)
        assert not stream.is_known
        case.end(stream)


class TestLimit:
    @pytest.fixture
    def case(self, loop: FakeTimeLoop) -> Iterator[Case]:
        case = Case(loop, limit=2)
        yield case
        case.close()

    def acquire(self, case: Case, take: Callable[[], ContentLock]) -> Any:
        return case.run(case.locks.acquire(HERE, take))

    def test_at_the_limit_nothing_is_locked(self, case: Case) -> None:
        lockid, _ = case.lock()
        case.lock()
        assert case.locks.is_full
        assert self.acquire(case, lambda: pytest.fail("tried")) is None
        case.run(case.open(lockid).unlock())
        assert self.acquire(case, FakeLock) is not None

    @pytest.mark.parametrize(
        "reason", [NotLocked("absent"), ContentLocked("locked"), RemoteUnavailable("x"), OSError()]
    )
    def test_failures_do_not_count(self, reason: Exception, case: Case) -> None:
        def fail() -> ContentLock:
            raise reason

        for _ in range(200):
            with pytest.raises(type(reason)):
                self.acquire(case, fail)
        assert case.locks.count == 0
        case.lock()
        case.lock()

    def test_too_many_at_the_same_time(self, case: Case) -> None:
        case.executor.held = True
        taken = [FakeLock() for _ in range(5)]
        asking = [case.begin(case.locks.acquire(HERE, lambda lock=lock: lock)) for lock in taken]
        case.executor.let_go()
        answers = [case.run(one) for one in asking]
        assert [answer is not None for answer in answers] == [lock.is_held for lock in taken]
        assert sum(lock.is_held for lock in taken) == 2 == case.locks.count

    def test_one_counts_until_it_is_released(self, case: Case) -> None:
        lockid, _ = case.lock()
        case.lock()
        case.executor.held = True
        stream = case.open(lockid)
        unlocking = case.begin(stream.unlock())
        assert case.locks.is_full
        case.executor.let_go()
        case.run(unlocking)
        assert not case.locks.is_full
        case.end(stream)

    def test_a_lock_that_fails_to_be_released_does_not_count_for_ever(
        self, case: Case, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for reason in (RemoteUnavailable("gone"), OSError(5, "broken")):
            lockid, _ = case.lock(FakeLock(reason))
            case.run(case.open(lockid).unlock())
        assert case.locks.count == 0
        assert capfd.readouterr().err.splitlines() == [
            "  cannot unlock content: gone",
            "  cannot unlock content: [Errno 5] broken",
        ]


class TestClientsThatGo:
    """They were told of no lock, so there is none."""

    def test_while_it_is_taken(self, case: Case) -> None:
        case.executor.held = True
        lock = FakeLock()
        asking = case.begin(case.locks.acquire(HERE, lambda: lock))
        asking.cancel()
        case.loop.settle()
        assert asking.cancelled()
        case.executor.let_go()
        case.loop.settle()
        assert lock.releases == 1 and case.locks.count == 0

    def test_just_when_it_was_taken(self, case: Case) -> None:
        async def give_up_after(steps: int, lock: FakeLock) -> UUID | None:
            asking = asyncio.get_running_loop().create_task(case.locks.acquire(HERE, lambda: lock))
            for _ in range(steps):
                await asyncio.sleep(0)
            asking.cancel()
            try:
                return await asking
            except asyncio.CancelledError:
                return None

        told = []
        for steps in range(12):
            lock = FakeLock()
            told.append(case.run(give_up_after(steps, lock)) is not None)
            case.loop.settle()
            assert lock.is_held == told[-1] or not (told[-1] or case.executor.waiting)
        assert told[-1] and not told[0]
        assert case.locks.count == sum(told)

    def test_while_it_fails_to_be_taken(self, case: Case) -> None:
        def fail() -> ContentLock:
            raise NotLocked("absent")

        complaints: list[Any] = []
        case.loop.set_exception_handler(lambda loop, context: complaints.append(context))
        case.executor.held = True
        asking = case.begin(case.locks.acquire(HERE, fail))
        asking.cancel()
        case.loop.settle()
        case.executor.let_go()
        case.loop.settle()
        del asking
        assert complaints == [] and case.locks.count == 0


class TestStop:
    def test_retention_stays(self, case: Case) -> None:
        lockid, lock = case.lock()
        other = case.lock()[1]
        stream = case.open(lockid)
        case.close()
        assert (lock.kept, lock.releases, other.kept, other.releases) == (True, 1, True, 1)
        case.run(stream.unlock())
        case.end(stream)
        assert lock.releases == 1

    def test_no_new_ones(self, case: Case) -> None:
        case.executor.held = True
        lock = FakeLock()
        asking = case.begin(case.locks.acquire(HERE, lambda: lock))
        closing = case.begin(case.locks.close())
        assert not closing.done()
        case.executor.let_go()
        assert case.run(asking) is None and lock.releases == 1
        case.run(closing)
        assert case.run(case.locks.acquire(HERE, lambda: pytest.fail("tried"))) is None

    def test_a_release_that_goes_on_is_waited_for(self, case: Case) -> None:
        lockid, lock = case.lock()
        stream = case.open(lockid)
        case.executor.held = True
        case.begin(stream.unlock())
        closing = case.begin(case.locks.close())
        assert not closing.done()
        case.executor.let_go()
        case.run(closing)
        assert lock.releases == 1 and not lock.kept
        case.end(stream)


def test_the_clock() -> None:
    with open("/proc/uptime") as file:
        uptime = float(file.read().split()[0])
    assert abs(module.clock() - uptime) < 1


class TestOnDisk:
    """Content locks of a repository, taken and released in threads."""

    DATA = b"content"
    KEY = sha256_key(DATA)

    @pytest.fixture
    def local(self, tmp_path: Any) -> Local:
        local = Local(tmp_path / "repo")
        local.place(self.KEY, self.DATA)
        return local

    def removable(self, local: Local) -> bool:
        try:
            local.open(NO_UUID).locks.lock_for_removal(self.KEY).release()
        except ContentLocked:
            return False
        return True

    def test_unlocking(self, local: Local) -> None:
        repository = local.open()

        async def serve() -> None:
            with ThreadPoolExecutor(2) as executor:
                locks = Locks(executor)
                before = left_open()
                for _ in range(3):
                    lockid = await locks.acquire(HERE, lambda: repository.lockcontent(self.KEY))
                    assert lockid is not None
                    assert not self.removable(local)
                    with locks.stream(HERE, lockid) as stream:
                        await stream.unlock()
                    assert self.removable(local)
                for _ in range(3):
                    with pytest.raises(NotLocked):
                        await locks.acquire(HERE, lambda: repository.lockcontent(sha256_key(b"absent")))
                assert (locks.count, left_open() - before) == (0, set())
                await locks.close()

        asyncio.run(serve())
        assert local.leftovers() == []

    def test_stopping(self, local: Local) -> None:
        repository = local.open()

        async def serve() -> None:
            with ThreadPoolExecutor(2) as executor:
                locks = Locks(executor)
                before = left_open()
                assert await locks.acquire(HERE, lambda: repository.lockcontent(self.KEY)) is not None
                await locks.close()
                assert left_open() - before == set()

        asyncio.run(serve())
        assert not self.removable(local)  # before its time has passed


class LocksMachine(RuleBasedStateMachine):
    """Clients that do anything at any time; the model knows for how long each counts on its lock."""

    ids = Bundle("ids")
    streams = Bundle("streams")

    @initialize(limit=st.integers(1, 4))
    def start(self, limit: int) -> None:
        self.loop = FakeTimeLoop()
        self.case = Case(self.loop, limit)
        self.limit = limit
        self.taken: dict[UUID, FakeLock] = {}
        self.relied_upon: dict[UUID, float] = {}  # until when a client counts on it
        self.all: list[FakeLock] = []  # that were ever taken
        self.open_streams: dict[UUID, set[Stream]] = {}

    @property
    def now(self) -> float:
        return self.loop.boot_time()

    def taking(self, lock: FakeLock) -> Callable[[], ContentLock]:
        def take() -> ContentLock:
            self.all.append(lock)
            return lock

        return take

    @rule(target=ids, fails=st.booleans())
    def lock(self, fails: bool) -> Any:
        lock = FakeLock(OSError(5, "no") if fails else None)
        was_full = self.case.locks.count >= self.limit
        lockid = self.case.run(self.case.locks.acquire(HERE, self.taking(lock)))
        assert (lockid is None) == was_full
        if lockid is None:
            return multiple()
        self.taken[lockid] = lock
        self.relied_upon[lockid] = self.now + 600
        return lockid

    @rule()
    def fail_to_lock(self) -> None:
        def fail() -> ContentLock:
            raise NotLocked("absent")

        before = self.case.locks.count
        try:
            assert self.case.run(self.case.locks.acquire(HERE, fail)) is None and before == self.limit
        except NotLocked:
            pass
        assert self.case.locks.count == before

    @rule(steps=st.integers(0, 8))
    def go_away_while_locking(self, steps: int) -> None:
        lock = FakeLock()

        async def go_away() -> bool:
            asking = asyncio.get_running_loop().create_task(self.case.locks.acquire(HERE, self.taking(lock)))
            for _ in range(steps):
                await asyncio.sleep(0)
            return asking.cancel()

        if self.case.run(go_away()):
            self.loop.settle()
            assert lock not in self.all or lock.releases == 1
        # Else it was answered before; nobody keeps it, and it has to end by itself.

    @rule(target=streams, lockid=ids)
    def begin_stream(self, lockid: UUID) -> tuple[UUID, Stream]:
        stream = self.case.open(lockid)
        if stream.is_known:
            assert self.taken[lockid].is_held
            self.open_streams.setdefault(lockid, set()).add(stream)
            self.relied_upon[lockid] = max(self.relied_upon[lockid], self.now + 600)
        return lockid, stream

    @rule(stream=consumes(streams))
    def end_stream(self, stream: tuple[UUID, Stream]) -> None:
        lockid, it = stream
        self.open_streams.get(lockid, set()).discard(it)
        self.case.end(it)

    @rule(stream=streams)
    def unlock(self, stream: tuple[UUID, Stream]) -> None:
        lockid, it = stream
        self.case.run(it.unlock())
        if it.is_known:
            self.open_streams.pop(lockid, None)
            self.relied_upon.pop(lockid, None)
            assert self.taken[lockid].releases == 1

    @rule(seconds=st.sampled_from([0.5, 300, 599, 611]))
    def wait(self, seconds: float) -> None:
        self.case.wait(seconds)

    @rule(seconds=st.sampled_from([1, 300, 590]))
    def sleep(self, seconds: float) -> None:
        self.loop.asleep += seconds
        self.case.wait(PERIOD)

    @invariant()
    def never_early_never_for_ever(self) -> None:
        for lockid, lock in self.taken.items():
            until = self.relied_upon.get(lockid)
            is_kept_open = bool(self.open_streams.get(lockid))
            if until is not None and (is_kept_open or self.now < until):
                assert lock.is_held
            elif until is None or self.now > until + LEASE - 600 + PERIOD:
                assert lock.releases == 1
            assert lock.releases <= 1

    @invariant()
    def the_bound_holds(self) -> None:
        held = sum(lock.is_held for lock in self.all)
        assert held == self.case.locks.count <= self.limit

    def teardown(self) -> None:
        if hasattr(self, "case"):
            held = [lock for lock in self.all if lock.is_held]
            self.case.close()
            assert all(lock.kept for lock in held)
            assert all(lock.releases == 1 for lock in self.all)
            assert self.case.locks.count == 0
            self.loop.close()


LocksMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestAnyClients = LocksMachine.TestCase
