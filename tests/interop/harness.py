"""Repositories and the programs that work on them, driven the way a user drives them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import annexshell

SOURCE_ROOT = Path(annexshell.__file__).parent.parent

# What the user running the tests has set must not leak into the programs under test.
FOREIGN_VARIABLES = ("GIT_", "SSH_", "XDG_", "ANNEX", "LC_", "PYTHON")


# Options to see what was said, and how it is shown. The server is not told of this debugging.
DEBUG = ("--debug", "--debugfilter=P2P.IO")
P2P_LINE = re.compile(r"P2P [<>] (.*)$", re.MULTILINE)


def environment(home: Path, *path: Path, **extra: str) -> dict[str, str]:
    """An environment in which everything of the user's is in HOME, with PATH in front of the usual PATH."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN_VARIABLES)}
    env |= {
        "HOME": str(home),
        "PATH": os.pathsep.join([*map(str, path), "/usr/local/bin", "/usr/bin", "/bin"]),
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_TERMINAL_PROMPT": "0",
    }
    return env | extra


def make_home(path: Path, config: str = "") -> Path:
    """A home directory with a git identity, settings that keep tests fast and steady, and CONFIG."""
    path.mkdir(parents=True)
    (path / ".gitconfig").write_text(
        "[user]\n\tname = Test\n\temail = test@example.com\n"
        "[init]\n\tdefaultBranch = main\n"
        "[advice]\n\tdetachedHead = false\n"
        "[gc]\n\tauto = 0\n"
        "[core]\n\tfsync = none\n"
        # A small reserve, for tests must also run where little is free.
        "[annex]\n\tdiskreserve = 1 MB\n\tautoupgraderepository = false\n" + config
    )
    return path


class Result:
    """What a program said, and how it ended."""

    def __init__(self, done: subprocess.CompletedProcess[bytes]) -> None:
        self.argv = done.args
        self.status = done.returncode
        self.out = done.stdout.decode(errors="surrogateescape")
        self.err = done.stderr.decode(errors="surrogateescape")

    def __bool__(self) -> bool:
        return self.status == 0

    def __repr__(self) -> str:
        argv = [os.fsdecode(word) for word in self.argv]
        text = f"$ {shlex.join(argv)}\n{self.out}\n--- stderr:\n{self.err}\n--- status {self.status}"
        return text.encode("utf-8", "backslashreplace").decode()

    @property
    def said(self) -> str:
        return self.out + self.err

    @property
    def records(self) -> list[dict[str, Any]]:
        """The lines of --json output."""
        return [json.loads(line) for line in self.out.splitlines() if line.startswith("{")]


def run(
    argv: Sequence[str | bytes | Path],
    env: Mapping[str, str],
    cwd: Path,
    *,
    check: bool = True,
    input: bytes = b"",
    timeout: float = 120,
) -> Result:
    """Run a program to its end. Its failure is the test's failure unless CHECK is false."""
    # A session of its own, so that nothing can ask a question at the terminal.
    done = subprocess.run(
        argv, env=env, cwd=cwd, input=input, capture_output=True, timeout=timeout, start_new_session=True
    )
    result = Result(done)
    assert result or not check, repr(result)
    return result


class Repo:
    """A repository on this disk, and the environment in which its owner works."""

    def __init__(self, path: Path, env: Mapping[str, str]) -> None:
        self.path = path
        self.env = dict(env)

    def git(self, *args: str | bytes | Path, **how: Any) -> Result:
        return run(["git", *args], self.env, self.path, **how)

    def annex(self, *args: str | bytes | Path, **how: Any) -> Result:
        return run(["git-annex", *args], self.env, self.path, **how)

    def start_annex(self, *args: str | bytes | Path) -> subprocess.Popen[bytes]:
        """A running git-annex, leader of a process group that holds whatever it starts (but ssh's masters)."""
        return subprocess.Popen(
            ["git-annex", *args],
            env=self.env,
            cwd=self.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def config(self, **settings: str) -> None:
        """Set annex.NAME = VALUE, "_" in NAME standing for "-"."""
        for name, value in settings.items():
            self.git("config", f"annex.{name.replace('_', '-')}", value)

    @property
    def uuid(self) -> str:
        return self.git("config", "annex.uuid").out.strip()

    @property
    def git_dir(self) -> Path:
        inner = self.path / ".git"
        return inner if inner.exists() else self.path

    def add(self, name: str | bytes, content: bytes, *, backend: str = "SHA256E", unlocked: bool = False) -> str:
        """Add a file; gives its key."""
        file = os.path.join(os.fsencode(self.path), os.fsencode(name))
        os.makedirs(os.path.dirname(file), exist_ok=True)
        with open(file, "wb") as stream:
            stream.write(content)
        mode = "annex.addunlocked=true" if unlocked else "annex.addunlocked=false"
        self.annex("add", "-c", mode, "--quiet", f"--backend={backend}", "--", name)
        return self.key_of(name)

    def key_of(self, name: str | bytes) -> str:
        return self.annex("lookupkey", "--", name).out.rstrip("\n")

    def commit(self, message: str = "change") -> None:
        self.git("commit", "--quiet", "--message", message)

    def object(self, key: str) -> Path | None:
        """Where the content is, None where it is not."""
        found = self.annex("contentlocation", key, check=False)
        return self.path / found.out.rstrip("\n") if found else None

    def place_for(self, key: str) -> Path:
        """Where this repository puts a key's content."""
        directory = "${hashdirlower}" if self.git_dir == self.path else "${hashdirmixed}"
        place = self.annex("examinekey", f"--format={directory}${{key}}/${{key}}", key).out
        return self.git_dir / "annex" / "objects" / place

    def content(self, key: str) -> bytes | None:
        place = self.object(key)
        return None if place is None else place.read_bytes()

    def locations(self, key: str) -> set[str]:
        """The uuids of all repositories that are known to have it."""
        return self.all_locations("--key", key).get(key, set())

    def all_locations(self, *which: str) -> dict[str, set[str]]:
        """The same of all keys (by default), each a key of the dict."""
        records = self.annex("whereis", "--json", *(which or ("--all",)), check=False).records
        return {
            record["key"]: {place["uuid"] for place in record["whereis"] + record["untrusted"]} for record in records
        }

    def temporary(self, key: str) -> Path:
        """Where received bytes of a key are kept until they are complete."""
        return self.git_dir / "annex" / "tmp" / key_file(key)

    def leftovers(self) -> list[Path]:
        """Files that only a transfer or lock in progress may have."""
        annex = self.git_dir / "annex"
        found = [path for name in ("transfer", "tmp", "othertmp") for path in (annex / name).rglob("*")]
        found += [path for path in (annex / "objects").rglob("*") if path.suffix in {".lck", ".rtm", ".rtl"}]
        return [path for path in found if path.is_file() and "failed" not in path.parts]


def key_file(key: str) -> str:
    """The file name of a key."""
    for plain, escaped in (("&", "&a"), ("%", "&s"), (":", "&c"), ("/", "%")):
        key = key.replace(plain, escaped)
    return key


class Program:
    """A git-annex-shell: what runs it, with what in its environment."""

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.argv = list(argv)
        self.env = dict(env)

    @property
    def is_real(self) -> bool:
        return Path(self.argv[0]).resolve().name == "git-annex"

    def forced_command(
        self, extra: Mapping[str, str] | None = None, prefix: Sequence[str] = (), words: Sequence[str] = ()
    ) -> str:
        """The command= of authorized_keys, for a sh: with EXTRA variables, run by PREFIX, WORDS in front of -c."""
        program = shlex.join([*prefix, *self.argv, *words])
        return f'cd /; exec {self.settings(extra)} {program} -c "$SSH_ORIGINAL_COMMAND"'

    def login_command(self, first_in_path: Path) -> str:
        """A login without restrictions, that finds a git-annex-shell in PATH."""
        path = f"{first_in_path}{os.pathsep}{self.env['PATH']}"
        return f'exec {self.settings({"PATH": path})} sh -c "cd; $SSH_ORIGINAL_COMMAND"'

    def settings(self, extra: Mapping[str, str] | None) -> str:
        """The env command that has our variables, whatever sshd and the login shell have set."""
        names = ("HOME", "PATH", "LC_ALL", "GIT_CONFIG_NOSYSTEM", "PYTHONPATH")
        wanted = {name: self.env[name] for name in names if name in self.env} | dict(extra or {})
        return shlex.join(["env", *(f"{name}={value}" for name, value in wanted.items())])

    def linked(self, directory: Path) -> Program:
        """The same program as DIRECTORY/git-annex-shell."""
        link = directory / "git-annex-shell"
        if len(self.argv) == 1:
            link.symlink_to(self.argv[0])
        else:
            script = (SOURCE_ROOT / "scripts" / "annexshell").read_text()
            program = directory / "annexshell"
            program.write_text(script.replace("#!python", f"#!{sys.executable}", 1))  # as the installer does
            program.chmod(0o755)
            link.symlink_to(program)
        return Program([str(link)], self.env)

    def p2p(self, repo: Repo, **env: str) -> P2P:
        """A conversation with the server in REPO, as if over ssh."""
        command = f"git-annex-shell 'p2pstdio' '{repo.path}' '{uuid.uuid4()}' --uuid {repo.uuid}"
        return P2P([*self.argv, "-c", command], self.env | env)


def annexshell_program(home: Path, git_annex_path: Path) -> Program:
    """Ours, from this source tree or wherever it is installed, with a git-annex in PATH for git's hooks only."""
    tools = home / "tools"
    if not tools.exists():
        tools.mkdir()
        (tools / "git-annex").symlink_to((git_annex_path / "git-annex").resolve())
    env = environment(home, tools, PYTHONPATH=str(SOURCE_ROOT))
    return Program([sys.executable, "-m", "annexshell"], env)


def real_program(home: Path, git_annex_path: Path) -> Program:
    """The git-annex-shell that comes with git-annex."""
    return Program([str(git_annex_path / "git-annex-shell")], environment(home, git_annex_path))


class P2P:
    """A conversation in the P2P protocol with a server process, line by line; used in a ``with``.

    ``version`` is at least 1, so content is followed by VALID or INVALID.
    """

    version: int

    def __init__(self, argv: Sequence[str], env: Mapping[str, str]) -> None:
        self.stderr = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            argv, env=env, cwd="/", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr
        )
        assert self.process.stdin is not None and self.process.stdout is not None
        self.stdin, self.stdout = self.process.stdin, self.process.stdout

    def __enter__(self) -> P2P:
        greeting = self.receive()
        assert greeting.startswith("AUTH-SUCCESS "), greeting
        answer = self.ask("VERSION 4")
        assert answer.startswith("VERSION "), answer
        self.version = int(answer.split()[1])
        return self

    def __exit__(self, *exception: object) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            try:
                stream.close()
            except BrokenPipeError:
                pass

    def send(self, *lines: str) -> None:
        self.stdin.write("".join(f"{line}\n" for line in lines).encode(errors="surrogateescape"))
        self.stdin.flush()

    def receive(self) -> str:
        """The next line; "" at the end of the stream."""
        return self.stdout.readline().decode(errors="surrogateescape").removesuffix("\n")

    def ask(self, *lines: str) -> str:
        """The answer to LINES, "" where the server has hung up."""
        try:
            self.send(*lines)
        except BrokenPipeError:
            pass
        return self.receive()

    def put(self, key: str, content: bytes) -> str:
        """PUT all of it; gives the last answer, "" where the server hung up."""
        answer = self.ask(f"PUT  {key}")
        if not answer.startswith("PUT-FROM "):
            return answer
        rest = content[int(answer.split()[1]) :]
        try:
            self.send(f"DATA {len(rest)}")
            self.stdin.write(rest)
        except BrokenPipeError:
            pass
        return self.ask("VALID")

    @property
    def said(self) -> str:
        """What went to stderr."""
        self.stderr.seek(0)
        return self.stderr.read().decode(errors="replace")

    def close(self) -> int:
        """Hang up; gives the exit status."""
        self.stdin.close()
        return self.process.wait(60)


@contextmanager
def running(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """A process with a group of its own, of which nothing is left afterwards."""
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def pseudorandom(size: int, seed: int = 1) -> bytes:
    """Content that neither compresses nor repeats, and is the same every time."""
    import random

    return random.Random(seed).randbytes(size)


def file_size(path: Path) -> int:
    """0 as long as there is no such file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def wait_until(condition: Callable[[], bool], timeout: float = 60) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
