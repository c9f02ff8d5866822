"""What a client is told, and when that ends; how changes are noticed is tested in tests/annex/test_refwatch.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex.refwatch import Changes
from annexshell.commands import link_shell, notifychanges
from tests import vectors
from tests.proxying import NODE, Proxy
from tests.shell import Shell, git, make_annex, make_ref, make_repository

LONGEST_LINE = 32768  # at which clients stop listening for good


class Watcher:
    """A running command, killed if it does not end by itself."""

    def __init__(self, *words: str, program: str = "git-annex-shell", **streams: Any) -> None:
        code = f"import sys; sys.path += {link_shell.import_path()}; sys.argv[0] = {program!r}\n"
        code += "from annexshell.__main__ import main; sys.exit(main())"
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE} | streams
        self.process = subprocess.Popen(
            [sys.executable, "-IS", "-c", code, *words], stderr=subprocess.PIPE, **streams
        )

    def __enter__(self) -> Watcher:
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        with self.process:
            pass  # which closes its streams and waits for it

    def line(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.endswith(b"\n")
        assert len(line) < LONGEST_LINE
        return line.decode().removesuffix("\n")

    def told_until(self, last: str) -> set[str]:
        """All objects in the lines up to one that is about LAST alone, as the last line about a branch always is."""
        told: set[str] = set()
        while True:
            word, *ids = self.line().split(" ")
            assert word == "CHANGED"
            told.update(ids)
            if ids == [last]:
                return told

    def ended(self) -> tuple[int, str]:
        """The exit status, and what stderr has to say; the streams stay open until then."""
        status = self.process.wait(20)
        assert self.process.stderr is not None
        return status, self.process.stderr.read().decode()


@pytest.fixture
def repo(shell: Shell) -> Path:
    return make_annex(shell.home / "repo", bare=True)


def write_refs(repo: Path, ids: Iterable[int], directory: str = "heads") -> set[str]:
    """Refs to objects with these numbers for ids."""
    written = set()
    for number in ids:
        (repo / "refs" / directory / str(number)).write_text(f"{number:040x}\n")
        written.add(f"{number:040x}")
    return written


# Against what git-annex-shell did.


class Steps:
    """What was done in the vectors, done to a repository."""

    def __init__(self, repo: Path) -> None:
        self.repo = repo
        self.objects = {name: self.commit(name) for name in ("NEW1", "NEW2")}

    def commit(self, message: str) -> str:
        tree = git(self.repo, "hash-object", "-w", "-t", "tree", "/dev/null")
        return git(self.repo, "commit-tree", tree, "-m", message)

    def start(self, refs: str) -> set[str]:
        """Make what is there at the start; gives the objects that are to be reported."""
        objects = {ref: self.commit(ref) for ref in refs.split()}
        for ref, object_id in objects.items():
            git(self.repo, "update-ref", ref, object_id)
        return set(objects.values())

    def do(self, step: str, watcher: Watcher) -> set[str]:
        """The same for a later step."""
        told = set()
        for command in step.partition(" (")[0].split("; "):
            match command.split():
                case ["update-ref", ref, name]:
                    git(self.repo, "update-ref", ref, self.objects[name])
                    if "unchanged" not in step:
                        told.add(self.objects[name])
                case ["git", "tag", name]:
                    git(self.repo, "tag", name, "refs/heads/main")
                    told.add(git(self.repo, "rev-parse", "refs/heads/main"))
                case ["delete", ref]:
                    git(self.repo, "update-ref", "-d", ref)
                case ["git", "pack-refs", "--all"] | ["symbolic-ref", _, _]:
                    git(self.repo, *command.removeprefix("git ").split())
                case ["client", "writes", *_]:
                    assert watcher.process.stdin is not None
                    watcher.process.stdin.write(b"foo bar\n")
                    watcher.process.stdin.flush()
                case _:
                    raise AssertionError(f"unknown step: {command}")
        return told


@pytest.mark.parametrize(
    "case", vectors.load("shell-notifychanges"), ids=lambda case: f"{case['repository']}-{case['version']}"
)
def test_recorded_steps(case: dict[str, Any], shell: Shell) -> None:
    repo = make_annex(shell.home / "repo", bare=case["repository"] == "bare")
    steps = Steps(repo)
    first, *others, last = case["steps"]
    assert [output["line"].split()[0] for output in first["output"]] == ["READY", "CHANGED"]
    assert last["do"] == "client closes stdin"
    at_first = steps.start(first["do"].partition("refs: ")[2])
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        for number, step in enumerate([first, *others]):
            expected = at_first if number == 0 else steps.do(step["do"], watcher)
            assert bool(step["output"]) == bool(expected), "the recording says so"
            # What has not been reported before this will not be.
            after = steps.commit(f"after step {number}")
            git(repo, "update-ref", "refs/heads/after", after)
            assert watcher.told_until(after) == {*expected, after}, step
        assert watcher.process.stdin is not None
        watcher.process.stdin.close()
        assert watcher.ended() == (0, "")


# What is said.


def changes(ids: dict[str, bool], *, unnamed: bool = False) -> Changes:
    made = Changes()
    made.ids = {object_id.encode(): of_branch for object_id, of_branch in ids.items()}
    made.unnamed = unnamed
    return made


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (changes({}), ""),
        (changes({"a": True}), "CHANGED a\n"),
        (changes({"a": False}), "CHANGED a\n"),
        (changes({"a": False, "b": False}), "CHANGED a b\n"),
        # A client that has "a" would not fetch for the first line.
        (changes({"a": True, "b": False, "c": True}), "CHANGED a b c\nCHANGED a\nCHANGED c\n"),
        (changes({}, unnamed=True), "CHANGED\n"),
        (changes({"a": True}, unnamed=True), "CHANGED a\nCHANGED\n"),
    ],
)
def test_lines(told: Changes, said: str) -> None:
    assert notifychanges.lines(told) == said.encode()


@pytest.mark.parametrize("length", [40, 64])
@pytest.mark.parametrize("count", [499, 500, 501, 1000, 3333])
def test_no_line_is_too_long(length: int, count: int) -> None:
    ids = [f"{number:0{length}x}" for number in range(count)]
    lines = notifychanges.lines(changes(dict.fromkeys(ids, False))).decode().splitlines(keepends=True)
    assert max(map(len, lines)) < LONGEST_LINE
    assert [object_id for line in lines for object_id in line.split()[1:]] == ids
    assert len(lines) == -(-count // 500)


def test_changes_within_a_moment_share_a_line(shell: Shell, repo: Path) -> None:
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        watcher.process.send_signal(signal.SIGSTOP)
        ids = write_refs(repo, range(1, 4))
        watcher.process.send_signal(signal.SIGCONT)
        assert set(watcher.line().split()[1:]) == ids


def test_a_burst_is_not_lost(shell: Shell, repo: Path) -> None:
    """Of these git-annex-shell tells a few hundred."""
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        ids = write_refs(repo, range(1, 2000)) | write_refs(repo, [2000])
        assert watcher.told_until(f"{2000:040x}") == ids


def test_a_client_that_does_not_read_gets_it_later(shell: Shell, repo: Path) -> None:
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        ids: set[str] = set()
        for start in range(0, 3000, 1000):  # several times what a pipe takes
            ids |= write_refs(repo, range(start, start + 1000))
        last = write_refs(repo, [3000], "tags") | write_refs(repo, [3000])
        told: set[str] = set()
        while not told >= ids | last:
            told |= set(watcher.line().split()[1:])
        assert told == ids | last


# When it ends.


def test_the_end_of_stdin_counts_for_a_client_that_does_not_read(shell: Shell, repo: Path) -> None:
    write_refs(repo, range(3000))
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        assert watcher.line().startswith("CHANGED ")
        assert watcher.process.stdin is not None
        watcher.process.stdin.write(b"x" * 1_000_000)  # it is read all the time
        watcher.process.stdin.close()
        assert watcher.ended() == (0, "")


def test_nobody_reads_any_more(shell: Shell, repo: Path) -> None:
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        assert watcher.process.stdout is not None
        watcher.process.stdout.close()
        assert watcher.ended() == (0, "")


@pytest.mark.parametrize("gone", [False, True])
def test_one_socket_for_both_ways(gone: bool, shell: Shell, repo: Path) -> None:
    """As sshd has it on some systems."""
    ours, theirs = socket.socketpair()
    with ours, theirs, Watcher("notifychanges", "repo", stdin=theirs, stdout=theirs) as watcher:
        theirs.close()
        assert ours.recv(100) == b"READY\n"
        write_refs(repo, [1])
        assert ours.recv(100) == b"CHANGED %040x\n" % 1
        if gone:
            ours.close()
        else:
            ours.shutdown(socket.SHUT_WR)
        assert watcher.ended() == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals(number: signal.Signals, shell: Shell, repo: Path) -> None:
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        watcher.process.send_signal(number)
        assert watcher.ended() == (-number, "")


def test_a_signal_is_an_end_that_the_audit_log_tells_of(shell: Shell, repo: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    words = ["--log", str(log), "--user", "alice", "-c", "git-annex-shell 'notifychanges' 'repo'"]
    with Watcher(*words, program="annexshell") as watcher:
        assert watcher.line() == "READY"
        watcher.process.terminate()
        assert watcher.ended() == (-signal.SIGTERM, "")
    told = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["action"], line["outcome"]) for line in told] == [("session", "begun"), ("session", "incomplete")]
    assert told[1]["reason"] == "a signal ended the session"


def test_the_repository_is_removed(shell: Shell, repo: Path) -> None:
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        os.rename(repo, repo.with_name("elsewhere"))
        message = f"annexshell: The repository {repo} has been removed or moved away.\n"
        assert watcher.ended() == (1, message)


# Whom it serves, and where.


@pytest.mark.parametrize("mode", ["READONLY", "APPENDONLY", "LIMITED"])
def test_restricted_clients(mode: str, shell: Shell, repo: Path) -> None:
    before = sorted(os.walk(shell.home))
    result = shell("notifychanges", "repo", **{f"GIT_ANNEX_SHELL_{mode}": "1"})
    assert (result.status, result.stdout, result.stderr) == (0, b"READY\n", "")
    assert sorted(os.walk(shell.home)) == before


def test_a_repository_without_refs_is_none(shell: Shell, repo: Path) -> None:
    """Neither to git nor to git-annex-shell, so there is no reason to make them."""
    (repo / "refs/heads").rmdir()
    (repo / "refs/tags").rmdir()
    (repo / "refs").rmdir()
    result = shell("notifychanges", "repo")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint == "Not a git-annex or gcrypt repository."
    assert not (repo / "refs").exists()


def test_an_encrypted_repository(shell: Shell) -> None:
    make_ref(make_repository(shell.home / "repo", bare=True, **{"core_gcrypt-id": ":id:abcdef"}), "refs/heads/main")
    with Watcher("notifychanges", "repo") as watcher:
        assert watcher.line() == "READY"
        assert watcher.line() == f"CHANGED {git(shell.home / 'repo', 'rev-parse', 'refs/heads/main')}"


def test_what_is_behind_a_proxy(shell: Shell, tmp_path: Path) -> None:
    """The proxy's own refs are watched, and nothing waits for the other repository."""
    proxy = Proxy(tmp_path / "proxy")
    with Watcher("notifychanges", str(proxy.directory), "--uuid", NODE.decode()) as watcher:
        assert watcher.line() == "READY"
        make_ref(proxy.directory, "refs/heads/after")
        watcher.told_until(git(proxy.directory, "rev-parse", "refs/heads/after"))
        children = Path(f"/proc/{watcher.process.pid}/task/{watcher.process.pid}/children").read_text()
        assert children == ""


def test_without_inotify(shell: Shell, repo: Path) -> None:
    """As on other systems than Linux."""
    shell.monkeypatch.delitem(sys.modules, "annexshell.annex.refwatch", raising=False)
    shell.monkeypatch.delattr("annexshell.annex.refwatch", raising=False)
    shell.monkeypatch.setitem(sys.modules, "inotify_simple", None)
    result = shell("notifychanges", "repo")
    assert (result.status, result.stdout) == (1, b"")
    assert "lack of inotify" in result.complaint
