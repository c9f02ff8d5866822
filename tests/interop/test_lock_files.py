"""Our locks and those of the real git-annex, on the same files at the same moment."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell.annex.contentlock import ContentLocks
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.objects import Objects
from annexshell.annex.permissions import Permissions
from annexshell.annex.transfers import Transfers
from annexshell.errors import ContentLocked, NotLocked, TransferRefused
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.interop.harness import Program, Repo, run, running, wait_until

CLIENT = UUID(b"11111111-1111-4111-8111-111111111111")


class Ours:
    """The repository through our own code."""

    def __init__(self, repo: Repo) -> None:
        self.repo = GitRepository(os.fsencode(repo.path))
        self.permissions = Permissions(self.repo)
        self.objects = Objects(self.repo)
        self.locks = ContentLocks(self.repo, self.objects, self.permissions)
        self.transfers = Transfers(self.repo, self.permissions)

    def lock(self, key: Key):
        return self.locks.lock_shared(key, lambda: os.path.exists(self.objects.locate(key)))

    def remove(self, key: Key) -> None:
        with self.locks.lock_for_removal(key) as lock:
            path = lock.path
            self.permissions.thaw_directory(os.path.dirname(path))
            os.unlink(path)
            self.objects.prune(os.path.dirname(path))


@pytest.fixture(params=[10, 9])
def repo(request: pytest.FixtureRequest, make_server: Callable[..., Repo]) -> Repo:
    return make_server(bare=False, version=request.param)


@pytest.fixture
def key(repo: Repo) -> Key:
    key = Key(repo.add("file", b"content").encode())
    repo.commit()
    return key


def test_git_annex_does_not_drop_what_we_lock(repo: Repo, key: Key) -> None:
    ours = Ours(repo)
    with ours.lock(key):
        dropped = repo.annex("drop", "--force", "file", check=False)
        assert not dropped
        assert "lock" in dropped.said
        assert repo.content(str(key)) == b"content"
    assert repo.annex("drop", "--force", "file")
    assert repo.content(str(key)) is None
    assert repo.leftovers() == []


def test_git_annex_honours_our_retention_time(make_server: Callable[..., Repo]) -> None:
    repo = make_server(bare=False)
    key = Key(repo.add("file", b"content").encode())
    repo.commit()
    with Ours(repo).lock(key) as lock:
        lock.keep()
    assert not repo.annex("drop", "--force", "file", check=False)
    (retention,) = [path for path in repo.leftovers() if path.suffix == ".rtm"]
    retention.write_text(f"{time.time() - 5}s")
    assert repo.annex("drop", "--force", "file")
    assert repo.leftovers() == []
    assert list((repo.git_dir / "annex" / "objects").iterdir()) == []


def test_we_do_not_remove_what_git_annex_locks(repo: Repo, key: Key, real_shell: Program) -> None:
    ours = Ours(repo)
    with real_shell.p2p(repo) as conversation:
        assert conversation.ask("VERSION 3") == "VERSION 3"
        assert conversation.ask(f"LOCKCONTENT {key}") == "SUCCESS"
        with pytest.raises(ContentLocked):
            ours.remove(key)
        assert not ours.locks.is_locked_for_removal(key)
        with ours.lock(key):
            pass
        with pytest.raises(ContentLocked):
            ours.remove(key)
        conversation.send("UNLOCKCONTENT")
        assert conversation.ask(f"CHECKPRESENT {key}") == "SUCCESS"
        retained = [path for path in repo.leftovers() if path.suffix == ".rtm"]
        for path in retained:
            path.unlink()  # ours was later, and the real program leaves that
        ours.remove(key)
        assert conversation.ask(f"CHECKPRESENT {key}") == "FAILURE"


def test_git_annex_sees_our_removal(repo: Repo, key: Key, real_shell: Program) -> None:
    ours = Ours(repo)
    inannex = ["git-annex-shell", "inannex", str(repo.path), str(key)]

    def status() -> int:
        return run(inannex, repo.env, repo.path, check=False).status

    with ours.lock(key):
        assert status() == 0
    with ours.locks.lock_for_removal(key):
        assert status() == 100
        with real_shell.p2p(repo) as conversation:
            assert conversation.ask(f"LOCKCONTENT {key}") == "FAILURE"
    assert status() == 0
    ours.remove(key)
    assert status() == 1


def test_we_see_the_removal_of_git_annex(repo: Repo, key: Key, tmp_path: Path) -> None:
    begun, go_on = tmp_path / "begun", tmp_path / "go-on"
    repo.config(secure_erase_command=f"touch {begun}; while ! test -e {go_on}; do sleep 0.02; done")
    ours = Ours(repo)
    with running(repo.start_annex("drop", "--force", "file")) as drop:
        wait_until(begun.exists)
        assert ours.locks.is_locked_for_removal(key)
        with pytest.raises(NotLocked):
            ours.lock(key)
        with pytest.raises(ContentLocked):
            ours.remove(key)
        go_on.touch()
        assert drop.wait(60) == 0
    assert not ours.locks.is_locked_for_removal(key)
    with pytest.raises(NotLocked):
        ours.lock(key)
    assert repo.leftovers() == []


def test_a_real_upgrade_while_we_serve(make_server: Callable[..., Repo]) -> None:
    """It waits for locks of the old kind; after it, the same process takes locks of the new kind."""
    repo = make_server(bare=False, version=9)
    key = Key(repo.add("file", b"content").encode())
    repo.commit()

    def version() -> str:
        return repo.git("config", "annex.version").out.strip()

    ours = Ours(repo)
    assert ours.repo.version == 9
    with ours.lock(key) as lock, running(repo.start_annex("upgrade")) as upgrade:
        time.sleep(0.5)
        assert upgrade.poll() is None
        assert version() == "9"
        lock.release()
        assert upgrade.wait(60) == 0
    assert version() == "10"
    with ours.lock(key):
        assert {path.suffix for path in repo.leftovers()} == {".lck", ".rtm", ".rtl"}
        assert not repo.annex("drop", "--force", "file", check=False)
    assert repo.annex("drop", "--force", "file")


def test_git_annex_sees_our_download(repo: Repo, key: Key, real_shell: Program) -> None:
    ours = Ours(repo)
    other = Key(b"SHA256E-s7--ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73.x")
    with ours.transfers.download(other, CLIENT, b"a file") as transfer:
        assert "a file" in repo.annex("info", "--fast").out
        with real_shell.p2p(repo) as conversation:
            assert conversation.put(str(other), b"content") == ""
            assert conversation.process.wait(60) == 1
            assert "transfer already in progress" in conversation.said
        transfer.succeed()
    assert "a file" not in repo.annex("info", "--fast").out
    with real_shell.p2p(repo) as conversation:
        assert conversation.put(str(other), b"content") == "SUCCESS"
    assert repo.leftovers() == []


def test_git_annex_get_meets_our_download(repo: Repo, key: Key, make_server: Callable[..., Repo]) -> None:
    clone = make_server("clone", bare=False, init=False)
    clone.git("remote", "add", "origin", repo.path)
    clone.git("fetch", "--quiet", "origin")
    clone.git("reset", "--quiet", "--hard", "origin/main")
    clone.annex("init", "--quiet", "clone")
    with Ours(clone).transfers.download(key, CLIENT, None) as transfer:
        got = clone.annex("get", "file", check=False)
        assert not got
        assert "transfer already in progress" in got.said
        transfer.succeed()
    assert clone.annex("get", "file")


def test_we_see_the_download_of_git_annex(repo: Repo, real_shell: Program) -> None:
    ours = Ours(repo)
    small = Key(b"SHA256E-s7--ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")
    with real_shell.p2p(repo) as conversation:
        assert conversation.ask(f"PUT  {small}") == "PUT-FROM 0"
        conversation.send("DATA 7")
        conversation.stdin.write(b"con")
        conversation.stdin.flush()
        wait_until(lambda: bool(list(ours.transfers.running(b"download"))))
        (seen,) = ours.transfers.running(b"download")
        assert seen.key == small
        with pytest.raises(TransferRefused):
            ours.transfers.download(small, CLIENT, None)
    wait_until(lambda: not list(ours.transfers.running(b"download")))
    ours.transfers.download(small, CLIENT, None).cancel()


def test_git_annex_counts_the_space_of_our_downloads(repo: Repo, real_shell: Program) -> None:
    ours = Ours(repo)
    huge = Key(b"SHA256E-s3000000000000000--ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73")
    small = "SHA256E-s7--ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73"
    with ours.transfers.download(huge, CLIENT, None), real_shell.p2p(repo) as conversation:
        assert conversation.put(small, b"content") == ""
        conversation.process.wait(60)
        assert "not enough free space" in conversation.said
    with real_shell.p2p(repo) as conversation:
        assert conversation.put(small, b"content") == "SUCCESS"


def test_lockers_and_droppers_on_one_key(repo: Repo, key: Key) -> None:
    """Who holds a lock finds the content, whatever git-annex does meanwhile."""
    ours = Ours(repo)
    lost: list[str] = []
    stop = threading.Event()

    def lock() -> None:
        while not stop.is_set():
            try:
                with ours.lock(key):
                    path = ours.objects.locate(key)
                    if not os.path.exists(path):
                        lost.append("content")
                    time.sleep(0.002)
                    if not os.path.exists(path):
                        lost.append("locked content")
            except NotLocked:
                pass
            time.sleep(0.01)

    threads = [threading.Thread(target=lock) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(5):
            if repo.annex("drop", "--force", "file", check=False):
                repo.annex("setpresentkey", str(key), repo.uuid, "0")
                (repo.path / "again").write_bytes(b"content")
                repo.annex("reinject", "--known", "again")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not lost
