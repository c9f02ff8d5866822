"""Clients of sendkey and recvkey: the real rsync, with annexshell where it expects ssh, and one that breaks rules."""

from __future__ import annotations

import os
import shlex
import signal
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from annexshell import __main__

CLIENT = "11111111-2222-3333-4444-555555555555"
# What git-annex gives to rsync, in front of the files.
OPTIONS = ("--progress", "--inplace", "--perms")
DEADLINE = 60  # seconds
PROTOCOL = 29  # the last version of rsync's protocol in which little is negotiated
PACKAGE = str(Path(__main__.__file__).parents[1])


def command(*words: str | bytes, code: str = "") -> list[str]:
    """The argv of git-annex-shell with these words, which runs the Python CODE first."""
    start = f"import sys; sys.path.append({PACKAGE!r}); sys.argv[0] = 'git-annex-shell'"
    run = "from annexshell.__main__ import main; sys.exit(main())"
    return [sys.executable, "-IS", "-c", f"{start}\n{code}\n{run}", *(os.fsdecode(word) for word in words)]


class Transfer:
    """What came of a transfer: how the two ended, and what the server said."""

    def __init__(self, client: subprocess.CompletedProcess[bytes], directory: Path) -> None:
        self.client_status = client.returncode
        self.client_said = client.stdout.decode(errors="replace")
        status = (directory / "status").read_text() if (directory / "status").exists() else ""
        self.status = int(status) if status else None
        self.stderr = (directory / "stderr").read_text(errors="surrogateescape")

    def __repr__(self) -> str:
        return f"<client {self.client_status}, server {self.status}: {self.stderr!r} {self.client_said!r}>"


class RsyncClient:
    """Runs the real rsync in DIRECTORY, with the repository REPO at the other end."""

    def __init__(self, directory: Path, repo: Path, **environment: str) -> None:
        self.directory = directory
        self.repo = repo
        self.environment = os.environ | environment

    def argv(
        self, name: str, key: str | bytes, files: Sequence[str | Path], options: Sequence[str], words: Sequence[str]
    ) -> list[str]:
        shell = self.directory / "ssh"
        words = shlex.join(command(name, str(self.repo), key, *words))
        # Not by exec: an rsync that fails sends SIGUSR1 to what it takes for ssh.
        script = (
            f'#!/bin/sh\ntrap : USR1\ncd {self.directory}\n{words} "$@" 2>stderr\n'
            "status=$?; echo $status >status.new; mv status.new status; exit $status\n"
        )
        shell.write_bytes(os.fsencode(script))
        shell.chmod(0o755)
        for left in ("status", "stderr"):
            (self.directory / left).unlink(missing_ok=True)
        (self.directory / "stderr").touch()
        ends = [*files, "dummy:"] if name == "recvkey" else ["dummy:", *files]
        return ["rsync", *options, "-e", str(shell), *map(str, ends)]

    def run(
        self,
        name: str,
        key: str | bytes,
        *files: str | Path,
        options: Sequence[str] = OPTIONS,
        words: Sequence[str] = ("--", f"remoteuuid={CLIENT}", "--"),
    ) -> Transfer:
        argv = self.argv(name, key, files, options, words)
        done = subprocess.run(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.environment,
            timeout=DEADLINE,
        )
        # It goes without waiting for the other end.
        wait_for(lambda: (self.directory / "status").exists())
        return Transfer(done, self.directory)

    def send(self, key: str | bytes, *files: str | Path, **how: Sequence[str]) -> Transfer:
        """Have FILES received as the content of KEY."""
        return self.run("recvkey", key, *files, **how)

    def fetch(self, key: str | bytes, file: str | Path, **how: Sequence[str]) -> Transfer:
        """Have the content of KEY sent, to become FILE."""
        return self.run("sendkey", key, file, **how)


def wait_for(condition, seconds: float = 20) -> None:
    import time

    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited for too long"
        time.sleep(0.01)


def kill(client: subprocess.Popen[bytes]) -> None:
    """End a client all at once, which may have two processes, but not what it has started instead of ssh."""
    for pid in children(client.pid):
        if arguments(pid).startswith(b"rsync\0"):
            os.kill(pid, signal.SIGKILL)
    client.kill()
    client.wait()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class RawClient:
    """Says to rsync's server whatever a test wants."""

    def __init__(self, *words: str | bytes, code: str = "", **environment: str) -> None:
        self.process = subprocess.Popen(
            command(*words, code=code),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | environment,
        )

    def greet(self) -> None:
        self.say(struct.pack("<i", PROTOCOL))

    def say(self, data: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(data)
        self.process.stdin.flush()

    def filter(self, rule: bytes) -> None:
        """A rule of the kind that --filter takes; an empty one ends them."""
        self.say(struct.pack("<i", len(rule)) + rule)

    def end(self) -> tuple[bytes, str]:
        """Hang up, and read what there is to read: from stdout, stderr."""
        out, said = self.process.communicate(timeout=DEADLINE)
        return out, said.decode(errors="replace")

    def rsync(self) -> int:
        """The pid of its rsync, once it runs."""

        def running() -> list[int]:
            return [pid for pid in children(self.process.pid) if arguments(pid).startswith(b"rsync\0--server")]

        wait_for(running)
        return running()[0]
