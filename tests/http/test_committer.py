"""When the git-annex branch is committed while requests come and go."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from annexshell.annex.repository import LocalRepository
from annexshell.errors import RepositoryError
from annexshell.http.committer import LATEST, QUIET, RETRY, Committer
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.annex.local import Local
from tests.http.faketime import FakeTimeLoop, Inline

KEY = Key(b"WORM--x")
ELSEWHERE = UUID(b"44444444-4444-4444-8444-444444444444")


class Case:
    """A committer, and when it committed, in seconds from the beginning."""

    def __init__(self, loop: FakeTimeLoop) -> None:
        self.loop = loop
        self.start = loop.now
        self.executor = Inline()
        self.commits: list[float] = []
        self.failures: list[Exception] = []  # of the commits to come
        self.committer = Committer(self.commit, self.executor, "repo")

    def commit(self) -> None:
        self.commits.append(round(self.loop.now - self.start, 3))
        if self.failures:
            raise self.failures.pop(0)

    def begin(self):
        async def begin():
            change = self.committer.change()
            change.__enter__()
            return change

        change = self.loop.run_until_complete(begin())
        self.loop.settle()
        return change

    def end(self, change) -> None:
        change.__exit__(None, None, None)
        self.loop.settle()

    def change(self, seconds: float = 0) -> None:
        change = self.begin()
        self.wait(seconds)
        self.end(change)

    def wait(self, seconds: float) -> None:
        self.loop.pass_time(seconds)

    def close(self) -> None:
        self.loop.run_until_complete(self.committer.close())


@pytest.fixture
def case() -> Iterator[Case]:
    loop = FakeTimeLoop()
    yield Case(loop)
    assert not [task for task in asyncio.all_tasks(loop) if not task.done()]
    loop.close()


def test_a_moment_after_the_last_request(case: Case) -> None:
    case.change(0.5)
    case.wait(QUIET - 0.1)
    assert case.commits == []
    case.change()
    case.wait(QUIET - 0.1)
    assert case.commits == []
    case.wait(0.2)
    assert case.commits == [2.4]
    case.wait(200)
    assert case.commits == [2.4]


def test_requests_that_overlap(case: Case) -> None:
    first = case.begin()
    second = case.begin()
    case.end(first)
    case.wait(5)
    assert case.commits == []
    case.end(second)
    case.wait(5)
    assert case.commits == [6.0]


def test_nothing_is_done_when_nothing_happens(case: Case) -> None:
    case.wait(1000)
    case.close()
    assert case.commits == []


def test_requests_that_leave_no_moment(case: Case) -> None:
    for _ in range(62):
        case.change(0.1)
        case.wait(0.4)
    assert case.commits == [10.0, 20.0, 30.0]
    case.wait(QUIET)
    assert case.commits == [10.0, 20.0, 30.0, 31.6]


def test_a_stalled_upload_does_not_keep_others_from_being_committed(case: Case) -> None:
    stalled = case.begin()
    case.wait(3)
    case.change()
    case.wait(LATEST)
    assert case.commits == [LATEST]
    case.wait(LATEST)
    assert case.commits == [LATEST, 2 * LATEST]
    case.end(stalled)
    case.wait(100)
    assert case.commits == [LATEST, 2 * LATEST, 3 + 2 * LATEST + QUIET]


def test_one_at_a_time(case: Case) -> None:
    case.executor.held = True
    case.change()
    case.wait(QUIET)
    assert len(case.executor.waiting) == 1
    case.change()
    case.wait(100)
    assert len(case.executor.waiting) == 1
    case.executor.let_go()
    case.loop.settle()
    assert len(case.commits) == 2  # what was changed meanwhile, too
    case.wait(100)
    assert len(case.commits) == 2


def test_shutdown_commits_what_is_left(case: Case) -> None:
    case.change()
    case.close()
    case.close()
    assert case.commits == [0.0]
    case.wait(100)
    assert case.commits == [0.0]


def test_shutdown_when_all_is_committed(case: Case) -> None:
    case.change()
    case.wait(2)
    case.close()
    assert case.commits == [1.0]


def test_shutdown_waits_for_a_commit_that_goes_on_and_commits_what_came_since(case: Case) -> None:
    case.executor.held = True
    case.change()
    case.wait(QUIET)
    case.change()
    closing = case.loop.create_task(case.committer.close())
    case.wait(5)
    assert not closing.done()
    case.executor.let_go()
    case.loop.run_until_complete(closing)
    assert case.commits == [6.0, 6.0]


def test_a_request_that_outlasts_the_shutdown(case: Case) -> None:
    late = case.begin()
    case.close()
    assert case.commits == [0.0]
    case.end(late)
    case.wait(100)
    assert case.commits == [0.0]


@pytest.mark.parametrize(
    "reason", [RepositoryError("the disk is full"), OSError(28, "the disk is full"), ZeroDivisionError()]
)
def test_a_failure_is_told_once_and_tried_again(
    reason: Exception, case: Case, capfd: pytest.CaptureFixture[str]
) -> None:
    case.failures = [reason, reason]
    case.change()
    case.wait(500)
    assert case.commits == [1.0, 1 + RETRY, 1 + 2 * RETRY]
    said = capfd.readouterr().err
    assert said.count("cannot commit to the git-annex branch of repo, will try again: ") == 1 == said.count("\n")


def test_the_next_change_tries_again_earlier(case: Case) -> None:
    case.failures = [OSError(28, "no")] * 2
    case.change()
    case.wait(5)
    case.change()
    case.wait(2)
    assert case.commits == [1.0, 6.0]
    stalled = case.begin()
    case.wait(LATEST)
    assert case.commits == [1.0, 6.0, 7.0 + LATEST]
    case.end(stalled)
    case.wait(500)
    assert case.commits == [1.0, 6.0, 7.0 + LATEST, 8.0 + LATEST]


def test_shutdown_after_a_failure_tries_once_more(case: Case) -> None:
    case.failures = [OSError(28, "no")] * 2
    case.change()
    case.wait(2)
    case.close()
    assert case.commits == [1.0, 2.0]


def test_an_exception_ends_a_request_too(case: Case) -> None:
    async def request() -> None:
        with case.committer.change():
            raise ValueError

    with pytest.raises(ValueError):
        case.loop.run_until_complete(request())
    case.wait(2)
    assert case.commits == [1.0]


def test_work_that_goes_on_when_its_request_is_cancelled(case: Case) -> None:
    """The thread ends the request, not the handler, and before the server stops or after."""
    for _ in range(2):
        begun, over = threading.Event(), threading.Event()

        def work(change, begun=begun, over=over) -> None:
            with change:
                begun.set()
                over.wait(10)

        async def start(work=work):
            thread = threading.Thread(target=work, args=(case.committer.change(),))
            thread.start()
            return thread

        thread = case.loop.run_until_complete(start())
        assert begun.wait(10)
        case.wait(5)
        before = list(case.commits)
        over.set()
        thread.join()
        case.wait(1.5)
        assert case.commits == [*before, round(case.loop.now - case.start - 0.5, 3)]


def test_a_thread_that_outlasts_the_loop() -> None:
    loop = FakeTimeLoop()
    case = Case(loop)
    change = case.begin()
    case.close()
    loop.close()
    change.__exit__(None, None, None)
    assert case.commits == [0.0]


def test_a_repository_on_disk(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what Branch.commit says: real threads, and real if shorter time."""
    monkeypatch.setattr("annexshell.http.committer.QUIET", 0.01)
    local = Local(tmp_path / "repo", **{"user.name": "Tester", "user.email": "tester@example.com"})
    repository: LocalRepository = local.open()

    async def serve() -> None:
        with ThreadPoolExecutor(1) as executor:
            committer = Committer(repository.branch.commit, executor)
            with committer.change():
                repository.record_presence_elsewhere(KEY, ELSEWHERE, True)
            assert local.journal() != {}
            for _ in range(500):
                await asyncio.sleep(0.01)
                if not os.listdir(local.annex / "journal"):  # without reading what is just being deleted
                    break
            assert local.journal() == {}
            repository.record_presence_elsewhere(KEY, ELSEWHERE, False)
            await committer.close()  # it was told of no change, and does nothing
            assert local.journal() != {}

    try:
        asyncio.run(serve())
    finally:
        repository.close()
    assert local.journal() == {}
