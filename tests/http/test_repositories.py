"""Which uuids are served, as repositories come and go."""

from __future__ import annotations

import asyncio
import itertools
import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell import process
from annexshell.annex import gitrepo
from annexshell.errors import RepositoryError, TemporaryFailure
from annexshell.http import pace, repositories, scanning
from annexshell.http.repositories import Repositories, Served
from annexshell.uuid import UUID
from tests.proxying import write_branch
from tests.shell import git, make_annex

SOON = 0.02  # seconds between scans


def uuid(number: int) -> UUID:
    return UUID(b"%08d-1111-4111-8111-111111111111" % number)


NONE = uuid(0)


def make(path: Path, number: int | None = None, *, bare: bool = False, version: str | None = "10") -> Path:
    """A repository as far as it is looked at before content is asked for, in a millisecond."""
    gitdir = path if bare else path / ".git"
    gitdir.mkdir(parents=True)
    (gitdir / "objects").mkdir()
    (gitdir / "refs").mkdir()
    (gitdir / "HEAD").write_text("ref: refs/heads/main\n")
    config = f"[core]\n\trepositoryformatversion = 0\n\tbare = {str(bare).lower()}\n"
    if number is not None:
        config += f"[annex]\n\tuuid = {uuid(number).decode()}\n"
        if version is not None:
            config += f"\tversion = {version}\n"
    (gitdir / "config").write_text(config)
    return path


def let_proxy(path: Path, own: int, **nodes: int) -> None:
    """What ``git annex updateproxy`` records."""
    listed = " ".join(f"{uuid(number).decode()}:{name}" for name, number in nodes.items())
    write_branch(path, {"proxy.log": f"1795342684s {uuid(own).decode()} {listed}\n"})


def below(*directories: Path, interval: float = SOON) -> Repositories:
    return Repositories.below(map(os.fsencode, directories), interval)


def single(directory: Path) -> Repositories:
    return Repositories.single(os.fsencode(directory))


def find(served: Repositories, *numbers: int) -> list[Served | None]:
    """What serves these uuids, all of which are asked for at once."""

    async def ask() -> list[Served | None]:
        return list(await asyncio.gather(*(served.find(uuid(number)) for number in numbers)))

    return asyncio.run(ask())


def where(served: Repositories, number: int) -> Path | None:
    """The repository that serves a uuid."""
    (found,) = find(served, number)
    return None if found is None else Path(os.fsdecode(found.repo.path))


@pytest.fixture(autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path_factory.mktemp("home")))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


COMMANDS = (b"config", b"cat-file", b"rev-parse")


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The git commands that are run."""
    commands: list[str] = []
    spawn = process.spawn

    def note(argv: list[bytes], **how: object) -> int:
        commands.append(next(word.decode() for word in argv if word in COMMANDS))
        return spawn(argv, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(process, "spawn", note)
    return commands


@pytest.fixture
def scans(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When directories were searched."""
    times: list[float] = []
    search = repositories.find_repositories

    def note(directories: list[bytes], is_stopped: Callable[[], bool]) -> list[scanning.Found]:
        times.append(time.monotonic())
        return search(directories, is_stopped)

    monkeypatch.setattr(repositories, "find_repositories", note)
    return times


class TestWhatIsFound:
    def test_at_any_depth_bare_hidden_and_behind_a_symlink(self, tmp_path):
        top = tmp_path / "top"
        expected = {
            1: make(top / "a", 1),
            2: make(top / "a b" / "c" / "d" / "e" / "f", 2),
            3: make(top / "bare.git", 3, bare=True),
            4: make(top / ".hidden" / ".also", 4),
            5: top / "link",
        }
        expected[5].symlink_to(make(tmp_path / "elsewhere" / "repo", 5))
        (tmp_path / "elsewhere" / "file").touch()
        (top / "dangling").symlink_to("nowhere")
        (top / "link to a file").symlink_to(tmp_path / "elsewhere" / "file")
        make(tmp_path / "outside", 6)
        with below(top) as served:
            assert {number: where(served, number) for number in expected} == expected
            assert where(served, 6) is None
            assert len(served) == 5

    def test_not_what_is_inside_of_a_repository(self, tmp_path):
        make(tmp_path / "outer", 1)
        make(tmp_path / "outer" / "sub" / "inner", 2)
        make(tmp_path / "plain")  # not used with git-annex
        make(tmp_path / "plain" / "inner", 3)
        make(tmp_path / "outer" / ".git" / "annex" / "tmp" / "x", 4)
        with below(tmp_path) as served:
            assert find(served, 2, 3, 4) == [None] * 3
            assert len(served) == 1

    def test_symlinks_to_other_directories_are_not_followed(self, tmp_path):
        make(tmp_path / "elsewhere" / "repo", 1)
        top = make(tmp_path / "top" / "x", 2).parent
        (top / "link").symlink_to(tmp_path / "elsewhere")
        (top / "circle").symlink_to(top)
        with below(top) as served:
            assert where(served, 1) is None
            assert len(served) == 1

    def test_the_directory_itself_may_be_a_symlink(self, tmp_path):
        repo = make(tmp_path / "real" / "repo", 1)
        link = tmp_path / "link"
        link.symlink_to("real")
        with below(link) as served:
            assert where(served, 1) == repo
            # As is usual for deploying a new version of everything.
            other = make(tmp_path / "new" / "repo", 2)
            link.unlink()
            link.symlink_to("new")
            assert where(served, 2) == other
            assert where(served, 1) is None

    def test_the_directory_itself_may_be_relative(self, tmp_path, monkeypatch):
        repo = make(tmp_path / "real" / "repo", 1)
        monkeypatch.chdir(tmp_path / "real")
        for relative in (".", "", "../real", "repo"):
            with below(Path(relative)) as served:
                monkeypatch.chdir("/")
                assert where(served, 1) == repo
                monkeypatch.chdir(tmp_path / "real")

    @pytest.mark.parametrize("bare", [False, True])
    def test_the_directory_itself_may_be_a_repository(self, tmp_path, bare):
        repo = make(tmp_path / "repo", 1, bare=bare)
        with below(repo) as served:
            assert where(served, 1) == repo

    @pytest.mark.parametrize("name", ["missing", "file", "missing/deeper"])
    def test_a_missing_directory_is_an_error(self, tmp_path, name):
        (tmp_path / "file").touch()
        make(tmp_path / "a", 1)
        with pytest.raises(RepositoryError, match=f"cannot look for repositories in {tmp_path}/{name}: N"):
            below(tmp_path, tmp_path / name)

    def test_linked_worktrees(self, tmp_path, capfd):
        """They share everything with the main one, so there is only one repository, and no reason to complain."""
        main = make_annex(tmp_path / "b" / "main", uuid(1).decode())
        git(main, "commit", "-q", "--allow-empty", "-m", "x")
        git(main, "worktree", "add", "-q", str(tmp_path / "a" / "linked"))
        with below(tmp_path) as served:
            assert where(served, 1) == main
        # As git-annex leaves the .git of a linked one.
        dotgit = tmp_path / "a" / "linked" / ".git"
        gitdir = dotgit.read_text().removeprefix("gitdir: ").rstrip("\n")
        for make_it_a_symlink in (False, True):
            if make_it_a_symlink:
                dotgit.unlink()
                dotgit.symlink_to(gitdir)
            with below(tmp_path / "a") as served:
                (found,) = find(served, 1)
                assert found is not None and found.repo.path == os.fsencode(tmp_path / "a" / "linked")
                assert found.repo.commondir == os.fsencode(main / ".git")
        assert capfd.readouterr().err == ""

    def test_two_ways_to_one_repository(self, tmp_path, capfd):
        repo = make(tmp_path / "repo", 1)
        (tmp_path / "link").symlink_to("repo")
        with below(tmp_path, tmp_path, repo) as served:
            found = where(served, 1)
            assert found is not None and found.samefile(repo)
        assert capfd.readouterr().err == ""

    def test_git_repositories_without_annex_are_skipped_silently(self, tmp_path, capfd):
        make(tmp_path / "plain")
        (tmp_path / "broken" / ".git").mkdir(parents=True)
        (tmp_path / "nowhere").mkdir()
        (tmp_path / "nowhere" / ".git").write_text("gitdir: /nonexistent\n")
        (tmp_path / "odd").mkdir()
        (tmp_path / "odd" / ".git").write_text("something else\n")
        with below(tmp_path) as served:
            assert len(served) == 0
        assert capfd.readouterr().err == ""

    def test_what_only_looks_like_a_repository_is_looked_into(self, tmp_path):
        (tmp_path / "broken" / ".git").mkdir(parents=True)
        repo = make(tmp_path / "broken" / "repo", 1)
        with below(tmp_path) as served:
            assert where(served, 1) == repo

    def test_unsupported_versions_are_skipped_with_a_warning(self, tmp_path, capfd):
        make(tmp_path / "future", 1, version="99")
        repo = make(tmp_path / "unknown", 2, version=None)  # as after setting annex.uuid by hand
        with below(tmp_path) as served:
            assert where(served, 1) is None
            assert where(served, 2) == repo
            assert find(served, 0) == [None]
        (warning,) = capfd.readouterr().err.splitlines()
        assert f"{tmp_path}/future is not served: The repository has annex.version 99" in warning

    def test_a_config_that_git_cannot_read(self, tmp_path, capfd):
        good = make(tmp_path / "good", 1)
        bad = make(tmp_path / "bad", 2)
        config = (bad / ".git" / "config").read_text()
        (bad / ".git" / "config").write_text("[" + config)
        with below(tmp_path) as served:
            assert where(served, 1) == good
            assert where(served, 2) is None
            assert f"{bad} is not served: git config failed" in capfd.readouterr().err
            (bad / ".git" / "config").write_text(config)
            assert where(served, 2) == bad

    def test_unreadable_directories_are_ignored(self, tmp_path, monkeypatch):
        make(tmp_path / "a" / "secret" / "repo", 1)
        repo = make(tmp_path / "b", 2)
        deny(monkeypatch, tmp_path / "a" / "secret", PermissionError(13, "Permission denied"))
        with below(tmp_path) as served:
            assert where(served, 1) is None
            assert where(served, 2) == repo

    def test_names_that_are_no_text(self, tmp_path):
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff\n\x1b[1m"))
        make(odd, 1)
        with below(tmp_path) as served:
            assert where(served, 1) == odd


def deny(monkeypatch: pytest.MonkeyPatch, directory: Path, reason: OSError) -> None:
    scandir = os.scandir

    def scan(path: bytes) -> object:
        if path == os.fsencode(directory):
            raise reason
        return scandir(path)

    monkeypatch.setattr(os, "scandir", scan)


class TestOwner:
    """What somebody else has put there could have us run anything, by its git config."""

    @pytest.fixture(autouse=True)
    def other_owner(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "geteuid", lambda: 12345)
        monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")

    @pytest.mark.parametrize("bare", [False, True])
    def test_it_is_served_when_git_has_been_told_to_trust_it(self, tmp_path, capfd, spawned, bare):
        repo = make(tmp_path / "repo", 1, bare=bare)
        with below(tmp_path) as served:
            for _ in range(3):
                assert where(served, 1) is None
            assert spawned == ["rev-parse"]
            (warning,) = capfd.readouterr().err.splitlines()
            assert f"{repo} is not served: Git refuses to operate in this repository" in warning
            advice = warning.partition("call: git ")[2].split()
            git(tmp_path, *advice)
            assert where(served, 1) == repo
            assert spawned == ["rev-parse"] * 2 + ["config"]

    def test_a_single_one(self, tmp_path):
        make(tmp_path / "repo", 1)
        with pytest.raises(RepositoryError, match="Git refuses to operate in this repository"):
            single(tmp_path / "repo")


class TestSameUuid:
    def test_the_first_is_served_and_the_others_complained_of_once(self, tmp_path, capfd):
        b = make(tmp_path / "b", 1)
        for name in ("c", "d"):
            shutil.copytree(b, tmp_path / name)
        with below(tmp_path) as served:
            for _ in range(3):
                assert where(served, 1) == b
                assert where(served, 0) is None
            warnings = capfd.readouterr().err.splitlines()
            assert [line.split()[0] for line in warnings] == [str(tmp_path / "c"), str(tmp_path / "d")]
            assert all(f"it has the same annex.uuid as {b} ({uuid(1).decode()})" in line for line in warnings)
            shutil.rmtree(b)
            assert where(served, 1) == tmp_path / "c"

    def test_the_order_of_directories_counts_before_their_names(self, tmp_path):
        make(tmp_path / "a" / "x", 1)
        first = make(tmp_path / "b" / "x", 1)
        with below(tmp_path / "b", tmp_path / "a") as served:
            assert where(served, 1) == first


class TestChanges:
    def test_new_and_newly_initialised_repositories_are_served_at_the_first_request(self, tmp_path):
        first = make(tmp_path / "first", 1)
        plain = make(tmp_path / "plain")
        with below(tmp_path) as served:
            assert where(served, 1) == first
            second = make(tmp_path / "deep" / "second", 2)
            assert where(served, 2) == second
            with (plain / ".git" / "config").open("a") as config:
                config.write(f"[annex]\n\tuuid = {uuid(3).decode()}\n\tversion = 10\n")
            assert where(served, 3) == plain
            assert where(served, 1) == first

    def test_right_after_another_scan_too(self, tmp_path):
        """However often unknown uuids are asked for, what is there is found."""
        with below(tmp_path, interval=0.3) as served:

            async def ask() -> None:
                assert await served.find(NONE) is None
                repo = make(tmp_path / "new", 1)
                found = await served.find(uuid(1))
                assert found is not None and found.repo.path == os.fsencode(repo)

            asyncio.run(ask())

    def test_what_came_while_directories_were_searched_is_found(self, tmp_path, monkeypatch):
        search = repositories.find_repositories

        def search_and_then_make(*arguments: object) -> object:
            found = search(*arguments)  # type: ignore[arg-type]
            if not (tmp_path / "late").exists():
                make(tmp_path / "late", 1)
                made.set()
                time.sleep(0.1)
            return found

        with below(tmp_path) as served:
            monkeypatch.setattr(repositories, "find_repositories", search_and_then_make)

            async def ask() -> Served | None:
                nonlocal made
                made = Made(asyncio.get_running_loop())
                first = asyncio.ensure_future(served.find(NONE))
                await made.wait()
                found = await served.find(uuid(1))
                assert await first is None
                return found

            made: Made
            assert asyncio.run(ask()) is not None

    def test_a_removed_repository_is_unknown_at_once(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            assert where(served, 1) == repo
            shutil.rmtree(repo)
            assert where(served, 1) is None
            assert len(served) == 0
            assert served.repos() == []

    def test_a_moved_repository_is_found_where_it_is_now(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            new = repo.rename(tmp_path / "renamed")
            assert where(served, 1) == new

    def test_a_changed_uuid(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            (old,) = find(served, 1)
            git(repo, "config", "annex.uuid", uuid(2).decode())
            assert where(served, 1) is None
            (new,) = find(served, 2)
            assert old is not None and new is not None
            assert old.repo is new.repo

    def test_another_repository_in_its_place(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            (old,) = find(served, 1)
            shutil.rmtree(repo)
            make(repo, 2, bare=True)
            assert where(served, 1) is None
            (new,) = find(served, 2)
            assert old is not None and new is not None
            assert old.repo is not new.repo
            assert new.repo.bare

    def test_the_same_repository_is_the_same_object(self, tmp_path):
        make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            (before,) = find(served, 1)
            make(tmp_path / "other", 2)
            (_, after) = find(served, 2, 1)
            assert before is not None and after is not None
            assert before.repo is after.repo
            assert {repo.path for repo in served.repos()} == {os.fsencode(tmp_path / n) for n in ("repo", "other")}

    def test_a_directory_that_vanished_altogether(self, tmp_path):
        top = tmp_path / "top"
        make(top / "a", 1)
        with below(top) as served:
            top.rename(tmp_path / "gone")
            assert where(served, 1) is None
            (tmp_path / "gone").rename(top)
            assert where(served, 1) == top / "a"


class Made:
    """An event that a thread sets."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._event = asyncio.Event()
        self.wait = self._event.wait

    def set(self) -> None:
        self._loop.call_soon_threadsafe(self._event.set)


class TestCost:
    def test_one_git_process_per_repository_and_none_when_nothing_changed(self, tmp_path, spawned):
        for number in range(20):
            make(tmp_path / str(number % 3) / str(number), number + 1)
        for number in range(50):
            (tmp_path / "no repository" / str(number)).mkdir(parents=True)
        make(tmp_path / "plain")
        with below(tmp_path) as served:
            assert spawned == ["config"] * 21
            assert find(served, 0) == [None]
            assert find(served, *range(1, 21)).count(None) == 0
            assert len(spawned) == 21
            git(tmp_path / "0" / "0", "config", "some.thing", "x")
            assert find(served, 0, 1, 2)[1] is not None
            assert len(spawned) == 22

    def test_thousands_of_directories(self, tmp_path):
        """No limit on time, but for that of a scan that runs something for each of them."""
        for number in range(2000):
            (tmp_path / f"{number:04}" / "sub").mkdir(parents=True)
        repo = make(tmp_path / "1999" / "repo", 1)
        with below(tmp_path) as served:
            assert where(served, 1) == repo

    def test_unknown_uuids_make_us_look_once_per_interval(self, tmp_path, scans):
        make(tmp_path / "repo", 1)
        with below(tmp_path, interval=0.2) as served:

            async def ask() -> int:
                asked = 0
                end = time.monotonic() + 0.7
                while time.monotonic() < end:
                    answers = await asyncio.gather(*(served.find(uuid(100 + n)) for n in range(50)))
                    assert answers == [None] * 50
                    asked += 50
                return asked

            assert asyncio.run(ask()) >= 100
            gaps = [after - before for before, after in itertools.pairwise(scans)]
            assert len(scans) <= 6
            assert min(gaps) >= 0.19

    def test_a_client_that_falls_back_is_kept_waiting_once(self, tmp_path, scans):
        make(tmp_path / "repo", 1)
        with below(tmp_path, interval=1.0) as served:

            async def ask(number: int) -> list[Served | None]:
                """As a client does: each version after the one before it was not found."""
                return [await served.find(uuid(number), is_fallback=version < 4) for version in range(4, -1, -1)]

            start = time.monotonic()
            assert asyncio.run(ask(0)) == [None] * 5
            assert time.monotonic() - start < 3.5
            assert len(scans) == 2  # one of them at the start
            # What has come meanwhile is found as soon as somebody really asks for it.
            make(tmp_path / "late", 2)
            assert asyncio.run(ask(0)) == [None] * 5
            assert None not in asyncio.run(ask(2))
            make(tmp_path / "later", 3)
            assert None not in asyncio.run(ask(3))

    def test_who_falls_back_without_having_asked_before_is_answered_like_others(self, tmp_path):
        with below(tmp_path, interval=0.05) as served:
            make(tmp_path / "repo", 1)

            async def ask(number: int) -> Served | None:
                return await served.find(uuid(number), is_fallback=True)

            assert asyncio.run(ask(1)) is not None
            assert asyncio.run(ask(2)) is None

    def test_looking_long_makes_for_a_long_pause(self, tmp_path, monkeypatch):
        """Whoever asks meanwhile is told so at once, and is not kept waiting."""
        make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            search = repositories.find_repositories

            def search_long(*arguments: object) -> object:
                time.sleep(1.5)
                return search(*arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(repositories, "find_repositories", search_long)
            assert find(served, 0) == [None]
            start = time.monotonic()
            assert find(served, *range(100, 200)) == [None] * 100
            assert time.monotonic() - start < 1.4

    def test_known_ones_are_served_while_directories_are_searched(self, tmp_path, monkeypatch):
        make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            search, found = repositories.find_repositories, threading.Event()

            def search_long(*arguments: object) -> object:
                found.wait(10)
                return search(*arguments)  # type: ignore[arg-type]

            monkeypatch.setattr(repositories, "find_repositories", search_long)

            async def ask() -> None:
                slow = asyncio.ensure_future(served.find(NONE))
                await asyncio.sleep(0.1)
                # Also one that has to be read again.
                git(tmp_path / "repo", "config", "some.thing", "x")
                known = await served.find(uuid(1))
                assert known is not None and known.repo.config.get(b"some.thing") == b"x"
                assert not slow.done()
                found.set()
                assert await slow is None

            asyncio.run(ask())


class DeadDisk:
    """What is on it answers once it is mended."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._path = os.fsencode(path)
        self.mended = threading.Event()
        self.waiting = 0
        self._look = repositories._signature
        monkeypatch.setattr(repositories, "_signature", self._signature)
        monkeypatch.setattr(pace, "is_local", lambda directory, *_: not directory.startswith(self._path))

    def _signature(self, path: bytes) -> repositories.Signature:
        if path.startswith(self._path):
            self.waiting += 1
            assert self.mended.wait(10)
        return self._look(path)


class TestDisksThatDoNotAnswer:
    @pytest.fixture
    def disk(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DeadDisk:
        (tmp_path / "disk").mkdir()
        disk = DeadDisk(tmp_path / "disk", monkeypatch)
        disk.mended.set()
        return disk

    def test_others_are_served_meanwhile(self, tmp_path, disk):
        make(tmp_path / "disk" / "repo", 1)
        make(tmp_path / "disk" / "other", 2)
        make(tmp_path / "here", 3)
        with below(tmp_path) as served:
            assert None not in find(served, 1, 2, 3)
            disk.mended.clear()
            disk.waiting = 0

            async def ask() -> None:
                hanging = [asyncio.ensure_future(served.find(uuid(1 + n % 2))) for n in range(200)]
                unknown = asyncio.ensure_future(served.find(NONE))
                await asyncio.sleep(0.1)
                for _ in range(10):
                    start = time.monotonic()
                    git(tmp_path / "here", "config", "some.thing", str(start))
                    here = await served.find(uuid(3))
                    assert here is not None and not here.is_elsewhere
                    assert here.repo.config.get(b"some.thing") == str(start).encode()
                    assert served.at_hand(uuid(3)) is not None
                    assert time.monotonic() - start < 10
                assert served.at_hand(uuid(1)) is None
                assert not any(one.done() for one in (*hanging, unknown))
                assert disk.waiting <= 4  # by each, and by who looks for what is not known
                for one in hanging[::3]:
                    one.cancel()
                disk.mended.set()
                assert await unknown is None
                for one in hanging:
                    if not one.cancelled():
                        found = await one
                        assert found is not None and found.is_elsewhere

            asyncio.run(ask())
            assert None not in find(served, 1, 2)

    def test_what_is_new_is_not_waited_for_for_ever(self, tmp_path, disk, monkeypatch):
        monkeypatch.setattr(repositories, "_LONGEST_SCAN", 0.5)
        make(tmp_path / "disk" / "repo", 1)
        with below(tmp_path) as served:
            disk.mended.clear()

            async def ask() -> None:
                for longest in (10.0, 0.45):  # for the first one there may be hope
                    start = time.monotonic()
                    assert await served.find(NONE) is None
                    assert time.monotonic() - start < longest
                disk.mended.set()
                make(tmp_path / "late", 2)
                end = time.monotonic() + 60  # after so long a scan the next one is a while away
                while await served.find(uuid(2)) is None:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.05)

            asyncio.run(ask())

    def test_changes_there_are_noticed(self, tmp_path, disk):
        repo = make(tmp_path / "disk" / "repo", 1)
        for served in (below(tmp_path / "disk"), single(repo)):
            with served:
                assert where(served, 1) == repo
                git(repo, "config", "annex.uuid", uuid(2).decode())
                assert where(served, 1) is None
                assert where(served, 2) == repo
                shutil.move(repo, tmp_path / "gone")
                assert where(served, 2) is None
                shutil.move(tmp_path / "gone", repo)
                git(repo, "config", "annex.uuid", uuid(1).decode())


class TestFailure:
    def test_a_client_that_is_gone_does_not_keep_others_from_their_answer(self, tmp_path):
        with below(tmp_path, interval=0.1) as served:

            async def ask() -> Served | None:
                gone = asyncio.ensure_future(served.find(NONE))
                stays = asyncio.ensure_future(served.find(uuid(1)))
                await asyncio.sleep(0.01)
                make(tmp_path / "repo", 1)
                gone.cancel()
                return await stays

            assert asyncio.run(ask()) is not None

    def test_without_descriptors_everything_known_is_still_served(self, tmp_path, monkeypatch, capfd):
        (tmp_path / "sub").mkdir()
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            with monkeypatch.context() as patch:
                deny(patch, tmp_path / "sub", OSError(24, "Too many open files"))
                assert where(served, 2) is None
                assert where(served, 1) == repo
            assert "cannot look for new repositories" in capfd.readouterr().err
            make(tmp_path / "sub" / "late", 2)
            assert where(served, 2) == tmp_path / "sub" / "late"

    def test_a_failure_that_passes_is_no_reason_to_forget_a_repository(self, tmp_path, monkeypatch):
        repo = make(tmp_path / "repo", 1)

        def fail(gitdir: bytes) -> object:
            raise TemporaryFailure("cannot run git: Resource temporarily unavailable")

        with below(tmp_path) as served:
            git(repo, "config", "some.thing", "x")
            with monkeypatch.context() as patch:
                patch.setattr(gitrepo, "ConfigReader", fail)
                assert where(served, 1) == repo
            (found,) = find(served, 1)
            assert found is not None and found.repo.config.get(b"some.thing") == b"x"

    def test_a_bug_is_not_waited_for_for_ever(self, tmp_path, monkeypatch):
        repo = make(tmp_path / "repo", 1)
        with below(tmp_path) as served:
            with monkeypatch.context() as patch:
                patch.setattr(repositories, "find_repositories", lambda *_: 1 / 0)
                with pytest.raises(ZeroDivisionError):
                    find(served, 0, 2)
            assert where(served, 1) == repo
            assert where(served, 0) is None

    def test_closing_ends_the_waiting(self, tmp_path):
        make(tmp_path / "repo", 1)
        served = below(tmp_path, interval=60)

        async def ask() -> None:
            waiting = asyncio.ensure_future(served.find(NONE))
            await asyncio.sleep(0.05)
            assert not waiting.done()
            served.close()
            assert await asyncio.wait_for(waiting, 5) is None
            assert await served.find(NONE) is None
            assert await served.find(uuid(1)) is not None

        asyncio.run(ask())


class TestProxied:
    def test_what_the_proxy_log_lists_is_served_too(self, tmp_path):
        proxy = make(tmp_path / "proxy", 1, bare=True)
        let_proxy(proxy, 1, node=2, other=3)
        with below(tmp_path) as served:
            own, node, other, unknown = find(served, 1, 2, 3, 4)
            assert own is not None and node is not None and other is not None
            assert (own.proxied, node.proxied, other.proxied) == (False, True, True)
            assert own.repo is node.repo is other.repo
            assert (own.uuid, node.uuid) == (uuid(1), uuid(2))
            assert unknown is None
            assert len(served) == 1

    def test_only_what_is_listed_for_the_repository_itself(self, tmp_path):
        """A log is merged from everywhere; it does not say that we proxy for what others proxy for."""
        proxy = make(tmp_path / "proxy", 1)
        let_proxy(proxy, 9, node=2)
        with below(tmp_path) as served:
            assert find(served, 2) == [None]

    def test_they_are_still_served_after_other_scans(self, tmp_path):
        let_proxy(make(tmp_path / "proxy", 1), 1, node=2)
        with below(tmp_path) as served:
            assert where(served, 2) == tmp_path / "proxy"
            assert where(served, 5) is None
            make(tmp_path / "new", 3)
            assert where(served, 3) == tmp_path / "new"
            assert where(served, 2) == tmp_path / "proxy"

    @pytest.mark.parametrize("pack", [False, True])
    def test_updateproxy_is_noticed(self, tmp_path, pack):
        proxy = make(tmp_path / "proxy", 1)
        let_proxy(proxy, 1, node=2)
        with below(tmp_path) as served:
            assert where(served, 2) == proxy
            let_proxy(proxy, 1, other=3)
            if pack:
                git(proxy, "pack-refs", "--all")
                assert not (proxy / ".git/refs/heads/git-annex").exists()
            assert where(served, 3) == proxy
            assert where(served, 2) is None

    def test_what_is_still_in_the_journal_counts(self, tmp_path):
        proxy = make(tmp_path / "proxy", 1)
        with below(tmp_path) as served:
            assert where(served, 2) is None
            journal = proxy / ".git" / "annex" / "journal"
            journal.mkdir(parents=True)
            listed = f"{uuid(1).decode()} {uuid(2).decode()}:node"
            (journal / "proxy.log").write_text(f"1795342684s {listed}\n")
            assert where(served, 2) == proxy

    def test_a_real_repository_wins(self, tmp_path):
        let_proxy(make(tmp_path / "a", 1), 1, node=2)
        real = make(tmp_path / "b", 2)
        with below(tmp_path) as served:
            assert where(served, 0) is None
            (found,) = find(served, 2)
            assert found is not None and not found.proxied
            assert found.repo.path == os.fsencode(real)
            shutil.rmtree(real)
            (found,) = find(served, 2)
            assert found is not None and found.proxied

    def test_several_proxies(self, tmp_path):
        """The first one is used, and the next one if that is gone."""
        for name, number in (("b", 1), ("a", 2)):
            let_proxy(make(tmp_path / name, number), number, node=3)
        with below(tmp_path) as served:
            assert where(served, 3) == tmp_path / "a"
            shutil.rmtree(tmp_path / "a")
            assert where(served, 3) == tmp_path / "b"

    def test_git_is_run_for_a_proxy_log_only_when_it_is_needed(self, tmp_path, spawned):
        let_proxy(make(tmp_path / "a", 1), 1, node=2)
        write_branch(make(tmp_path / "b", 3), {"uuid.log": ""})
        packed = make(tmp_path / "packed", 6)
        write_branch(packed, {"uuid.log": ""})
        git(packed, "pack-refs", "--all")
        make(tmp_path / "c", 4)
        with below(tmp_path) as served:
            make(tmp_path / "new", 5)
            assert find(served, 1, 3, 5).count(None) == 0
            assert spawned == ["config"] * 5
            assert find(served, 0) == [None]
            assert spawned == ["config"] * 5 + ["cat-file"] * 3
            assert find(served, 0, 2)[1] is not None
            assert len(spawned) == 8
            write_branch(tmp_path / "b", {"uuid.log": "x"})
            assert find(served, 0) == [None]
            assert len(spawned) == 9

    def test_a_branch_that_cannot_be_read(self, tmp_path):
        good = make(tmp_path / "good", 1)
        let_proxy(good, 1, node=2)
        bad = make(tmp_path / "bad", 3)
        (bad / ".git" / "refs" / "heads").mkdir()
        (bad / ".git" / "refs" / "heads" / "git-annex").write_text("f" * 40 + "\n")
        with below(tmp_path) as served:
            assert where(served, 4) is None
            assert where(served, 2) == good
            assert where(served, 3) == bad


class TestSingle:
    @pytest.mark.parametrize("bare", [False, True])
    def test_the_repository_that_the_directory_is_in(self, tmp_path, bare):
        repo = make(tmp_path / "repo", 1, bare=bare)
        inside = repo / "some" / "where"
        inside.mkdir(parents=True)
        for start in (repo, inside, repo / ("objects" if bare else ".git")):
            with single(start) as served:
                assert where(served, 1) == repo
                assert len(served) == 1
                assert find(served, 0) == [None]

    @pytest.mark.parametrize("kind", ["no repository", "without annex"])
    def test_nothing_to_serve(self, tmp_path, kind):
        if kind == "without annex":
            make(tmp_path / "repo")
        else:
            (tmp_path / "repo").mkdir()
        with pytest.raises(RepositoryError) as caught:
            single(tmp_path / "repo")
        assert str(caught.value) == "Use the --directory option to specify which git-annex repositories to serve."
        assert not (tmp_path / "repo" / ".git" / "annex").exists()

    def test_of_an_unsupported_version(self, tmp_path):
        with pytest.raises(RepositoryError, match=r"has annex\.version 99"):
            single(make(tmp_path / "repo", 1, version="99"))

    def test_inside_of_another_one(self, tmp_path):
        make(tmp_path / "outer", 1)
        inner = make(tmp_path / "outer" / "inner", 2)
        with single(inner) as served:
            assert where(served, 2) == inner
            assert where(served, 1) is None

    def test_proxied(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        let_proxy(repo, 1, node=2)
        with single(repo) as served:
            assert where(served, 2) == repo
            let_proxy(repo, 1, node=2, other=3)
            assert where(served, 3) == repo
            assert where(served, 2) == repo

    def test_unknown_uuids_cost_nothing(self, tmp_path, spawned):
        repo = make(tmp_path / "repo", 1)
        let_proxy(repo, 1, node=2)
        with single(repo) as served:
            assert find(served, 3, 4, 5) == [None] * 3
            assert spawned == ["config", "cat-file"]
            start = time.monotonic()
            for _ in range(20):
                assert find(served, 3, 4, 5) == [None] * 3
            assert time.monotonic() - start < 5
            assert spawned == ["config", "cat-file"]

    def test_unknown_uuids_while_the_branch_changes(self, tmp_path, spawned):
        """Every request that stores something changes it."""
        repo = make(tmp_path / "repo", 1)
        let_proxy(repo, 1, node=2)
        with Repositories.single(os.fsencode(repo), 0.2) as served:
            start = time.monotonic()
            for number in range(3):
                let_proxy(repo, 1, node=2, other=10 + number)
                assert find(served, *range(20, 50)) == [None] * 30
            assert time.monotonic() - start >= 0.4
            assert spawned == ["config", *["cat-file"] * 3]

    def test_a_changed_uuid(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with single(repo) as served:
            git(repo, "config", "annex.uuid", uuid(2).decode())
            assert where(served, 2) == repo
            assert where(served, 1) is None

    def test_gone(self, tmp_path):
        repo = make(tmp_path / "repo", 1)
        with single(repo) as served:
            shutil.move(repo, tmp_path / "gone")
            assert where(served, 1) is None
            shutil.move(tmp_path / "gone", repo)
            assert where(served, 1) == repo


def test_no_threads_are_left_after_the_start(tmp_path):
    """So that worker processes can be forked."""
    for number in range(5):
        make(tmp_path / str(number), number)
    before = threading.active_count()
    with below(tmp_path):
        assert threading.active_count() == before
