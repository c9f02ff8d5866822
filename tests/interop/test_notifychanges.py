"""The daemon of a real client, which fetches when we say that something changed.

To git-annex-shell's words it does so in TOLD_BY_ALL only; see annexshell.commands.notifychanges.lines().
"""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.harness import Repo, running, wait_until

TOLD_BY_ALL = {"test_what_others_push_is_fetched", "test_the_client_goes"}


class Daemon:
    """``git annex remotedaemon`` in the foreground, as the assistant runs it."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.said: queue.SimpleQueue[str] = queue.SimpleQueue()
        self.listener = threading.Thread(target=self.listen, daemon=True)
        self.listener.start()

    def listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.put(line.rstrip("\n"))

    def wait_for(self, word: str) -> list[str]:
        """The words of all lines up to the next one that begins with WORD."""
        words = []
        deadline = time.monotonic() + 60
        while word not in words:
            words.append(self.said.get(timeout=max(0.01, deadline - time.monotonic())).partition(" ")[0])
        return words


@pytest.fixture
def start_daemon() -> Iterator[Callable[[Repo], Daemon]]:
    started = []

    def start(repo: Repo) -> Daemon:
        process = subprocess.Popen(
            ["git-annex", "remotedaemon", "--foreground"],
            cwd=repo.path,
            env=repo.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        daemon = Daemon(process)
        started.append(daemon)
        daemon.wait_for("CONNECTED")
        return daemon

    yield start
    for daemon in started:
        with running(daemon.process) as process:
            assert process.stdin is not None
            process.stdin.close()
            process.kill()
            daemon.listener.join(10)  # who reads shall not be disturbed by closing what is read from


def servers_of(repo: Repo) -> list[int]:
    """The processes that watch the repository for somebody."""
    found = []
    for process in Path("/proc").iterdir():
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
        except (OSError, ValueError):
            continue
        told = any(b"notifychanges" in word and os.fsencode(repo.path) in word for word in words)
        if told and not words[0].endswith(b"ssh"):
            found.append(int(process.name))
    return found


def push(repo: Repo, name: str) -> str:
    """A commit that is new on the server."""
    repo.git("commit", "--quiet", "--allow-empty", "--message", name)
    repo.git("push", "--quiet", "origin", "HEAD:main")
    return repo.git("rev-parse", "HEAD").out.strip()


def fetched(repo: Repo, branch: str = "main") -> str:
    return repo.git("rev-parse", f"refs/remotes/origin/{branch}").out.strip()


def wait_for(repo: Repo, commit: str, branch: str = "main") -> None:
    """Until REPO has fetched a branch that is there."""
    wait_until(lambda: fetched(repo, branch) == commit)


@pytest.fixture
def world(make_server: Callable[..., Repo], make_client: Callable[..., Repo]) -> tuple[Repo, Repo, Repo]:
    """A server's repository, with work tree, the client whose daemon it is about, and another client."""
    server = make_server(bare=False)
    server.git("config", "receive.denyCurrentBranch", "ignore")
    watching, other = make_client(server, "watching"), make_client(server, "other")
    watching.annex("sync", "--no-content")  # so that the daemon knows whom it has to do with
    return server, watching, other


def test_what_others_push_is_fetched(world: tuple[Repo, Repo, Repo], start_daemon: Callable[[Repo], Daemon]) -> None:
    _, watching, other = world
    daemon = start_daemon(watching)
    for number in range(3):
        wait_for(watching, push(other, f"commit {number}"))
        daemon.wait_for("DONESYNCING")


def test_what_is_committed_on_the_server_is_fetched(
    world: tuple[Repo, Repo, Repo], start_daemon: Callable[[Repo], Daemon]
) -> None:
    server, watching, _ = world
    start_daemon(watching)
    server.git("commit", "--quiet", "--allow-empty", "--message", "here")
    wait_for(watching, server.git("rev-parse", "HEAD").out.strip())
    server.add("file", b"content")
    server.commit()
    server.annex("sync", "--no-content")
    wait_for(watching, server.git("rev-parse", "git-annex").out.strip(), "git-annex")


def test_a_branch_that_changes_beside_one_that_is_known(
    world: tuple[Repo, Repo, Repo], start_daemon: Callable[[Repo], Daemon]
) -> None:
    """For which alone a client would not fetch, nor for a line in which it is mentioned."""
    server, watching, _ = world
    start_daemon(watching)
    known = fetched(watching)
    new = server.git("commit-tree", "-p", known, "-m", "new", f"{known}^{{tree}}").out.strip()
    server.git("update-ref", "--stdin", input=f"create refs/heads/a {known}\nupdate refs/heads/main {new}\n".encode())
    wait_for(watching, new)


def test_the_connection_is_lost(world: tuple[Repo, Repo, Repo], start_daemon: Callable[[Repo], Daemon]) -> None:
    """What changes meanwhile is fetched when there is a new one."""
    server, watching, other = world
    daemon = start_daemon(watching)
    wait_until(lambda: len(servers_of(server)) == 1)
    for number in range(2):
        (process,) = servers_of(server)
        os.kill(process, signal.SIGKILL)
        daemon.wait_for("DISCONNECTED")
        missed = push(other, f"missed {number}")
        daemon.wait_for("CONNECTED")
        wait_for(watching, missed)
        wait_until(lambda: len(servers_of(server)) == 1)


def test_the_client_goes(world: tuple[Repo, Repo, Repo], start_daemon: Callable[[Repo], Daemon]) -> None:
    server, watching, _ = world
    daemon = start_daemon(watching)
    wait_until(lambda: len(servers_of(server)) == 1)
    os.killpg(daemon.process.pid, signal.SIGKILL)
    wait_until(lambda: not servers_of(server))
