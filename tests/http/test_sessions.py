"""What the requests to one repository share, and when it is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.repository import LocalRepository
from annexshell.errors import RepositoryError
from annexshell.http import routes
from annexshell.http.pace import Pace
from annexshell.http.repositories import Served
from annexshell.http.sessions import Sessions
from annexshell.pool import Pool
from tests.http.doors import ABSENT, HELLO, SERVED, Place, target

IDLE = 0.2


class Case:
    def __init__(self, place: Place, sessions: Sessions) -> None:
        self.sessions = sessions
        self.served = Served(SERVED, GitRepository(str(place.directory).encode()), Pace(()), False)
        _ = self.served.repo.config

    async def ask(self, question: Callable[[LocalRepository], Any], *, changes: bool = False) -> Any:
        session = self.sessions.open(
            routes.parse("POST", target("checkpresent", key=HELLO), {}), self.served, changes=changes
        )

        def work() -> Any:
            with session as repository:
                assert isinstance(repository, LocalRepository)
                return question(repository)

        return await asyncio.to_thread(work)


def with_sessions(place: Place, test: Callable[[Case], Awaitable[None]]) -> None:
    async def run() -> None:
        with ThreadPoolExecutor(1) as executor:
            sessions = Sessions(Pool(1), executor, idle_timeout=IDLE)
            try:
                await test(Case(place, sessions))
            finally:
                await sessions.close()

    asyncio.run(run())


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[LocalRepository]:
    """The repositories that all was closed of that they had open."""
    closed: list[LocalRepository] = []
    abandon = LocalRepository.abandon

    def remembered(self: LocalRepository) -> None:
        if not self._uses_parts:
            closed.append(self)
        abandon(self)

    monkeypatch.setattr(LocalRepository, "abandon", remembered)
    return closed


def test_everything_is_shared_until_nobody_has_used_it_for_a_while(place: Place, closed: list[Any]) -> None:
    async def test(case: Case) -> None:
        branches = [await case.ask(lambda repository: repository.branch) for _ in range(2)]
        assert branches[0] is branches[1]
        assert (len(case.sessions), closed) == (1, [])
        await asyncio.sleep(3 * IDLE)
        assert (len(case.sessions), len(closed)) == (0, 1)
        assert await case.ask(lambda repository: repository.branch) is not branches[0]
        assert await case.ask(lambda repository: repository.checkpresent(HELLO)) is True

    with_sessions(place, test)
    assert len(closed) == 2


def test_what_is_in_use_is_not_closed(place: Place, closed: list[Any]) -> None:
    async def test(case: Case) -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wait(repository: LocalRepository) -> None:
            asyncio.run_coroutine_threadsafe(over.wait(), loop).result(10)

        using = asyncio.ensure_future(case.ask(wait))
        await asyncio.sleep(4 * IDLE)
        assert (len(case.sessions), closed) == (1, [])
        over.set()
        await using

    with_sessions(place, test)


def test_what_was_changed_is_committed_before(place: Place, closed: list[Any]) -> None:
    async def test(case: Case) -> None:
        await case.ask(lambda repository: repository.remove(HELLO), changes=True)
        await asyncio.sleep(4 * IDLE)
        assert len(closed) == 1
        assert not list((place.git_dir / "annex" / "journal").glob("*.log"))

    with_sessions(place, test)


def test_what_cannot_be_closed_is_told(
    place: Place, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    async def test(case: Case) -> None:
        assert await case.ask(lambda repository: repository.checkpresent(ABSENT)) is False

    def fail(self: LocalRepository) -> None:
        if not self._uses_parts:
            raise RepositoryError("it is stuck")

    monkeypatch.setattr(LocalRepository, "abandon", fail)
    with_sessions(place, test)
    assert "it is stuck" in capfd.readouterr().err
