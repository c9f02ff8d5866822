"""git-annex-shell and annexshell, in turn, at the same work over stdin and stdout.

    python bench/stdio.py [--rounds 5] [--large 256] [--json]

Each row is measured several times with the two programs alternating, so that whatever else the machine does hits
both. The table has the medians and the ratio (annexshell by git-annex) that the budget is about.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TypeAlias

CLIENT = "11111111-2222-3333-4444-555555555555"
SMALL = 1000  # bytes
MIB = 1 << 20


def real_program(directory: Path, choice: str | None) -> Path:
    """A git-annex-shell: the one asked for, the PyPI package's, or the one in PATH."""
    if choice is None:
        try:
            import git_annex

            choice = str(Path(git_annex.__file__).with_name("git-annex"))
        except ImportError:
            choice = shutil.which("git-annex")
    if choice is None or not Path(choice).exists():
        sys.exit("bench: no git-annex found; pip install git-annex, or name one with --git-annex")
    for name in ("git-annex", "git-annex-shell"):
        (directory / name).symlink_to(Path(choice).resolve())
    return directory / "git-annex-shell"


def our_program(directory: Path) -> Path:
    """annexshell the way it is installed for clients."""
    where = directory / "ours"
    where.mkdir()
    command = [sys.executable, "-m", "annexshell", "link-shell", where]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return where / "git-annex-shell"


class Session:
    """One p2pstdio process and the talk with it."""

    def __init__(self, program: Path, repository: Path, *options: str, env: Mapping[str, str] | None = None) -> None:
        self._started = time.perf_counter()
        self.process = subprocess.Popen(
            [program, "p2pstdio", repository, CLIENT, *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            env=env,
        )
        assert self.process.stdin and self.process.stdout
        self._in, self._out = self.process.stdin.fileno(), self.process.stdout.fileno()
        self._buffer = b""
        assert self.line().startswith(b"AUTH-SUCCESS")
        self.seconds_to_greeting = time.perf_counter() - self._started
        self.say(b"VERSION 4\n")
        assert self.line() == b"VERSION 4"

    def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._in, view) :]

    def line(self) -> bytes:
        while b"\n" not in self._buffer:
            piece = os.read(self._out, 65536)
            assert piece, "the server is gone"
            self._buffer += piece
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def skip(self, count: int) -> None:
        taken = min(count, len(self._buffer))
        self._buffer, count = self._buffer[taken:], count - taken
        buffer = bytearray(MIB)
        while count:
            read = os.readv(self._out, [memoryview(buffer)[: min(count, MIB)]])
            assert read, "the server is gone"
            count -= read

    def ask(self, request: bytes, expected: bytes) -> None:
        self.say(request)
        answer = self.line()
        assert answer.startswith(expected), (request[:80], answer)

    def finish(self) -> int:
        """Hang up; gives the process's peak memory in bytes."""
        # Of the program alone: what wait4() tells starts with the memory of the process that forked.
        peak = peak_memory(self.process.pid)
        assert self.process.stdin and self.process.stdout
        self.process.stdin.close()
        assert self.process.wait() == 0
        self.process.stdout.close()
        return peak


def peak_memory(pid: int) -> int:
    """Of a process that runs, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM:")).split()[1]) * 1024


class Workload:
    """A repository for one program, and the keys in it."""

    def __init__(self, program: Path, git_annex: Path, directory: Path) -> None:
        self.program = program
        self.repository = directory
        environment = dict(os.environ, PATH=f"{git_annex.parent}:{os.environ['PATH']}")
        for command in (
            ["git", "init", "-q", "--bare", directory],
            ["git", "-C", directory, "config", "user.name", "bench"],
            ["git", "-C", directory, "config", "user.email", "bench@localhost"],
            ["git", "-C", directory, "annex", "init", "-q", "bench"],
        ):
            subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
        self.count = 0

    def session(self) -> Session:
        return Session(self.program, self.repository)

    def content(self, size: int) -> tuple[bytes, bytes]:
        """Content that is not there yet, and its key."""
        self.count += 1
        data = (b"%d " % self.count).ljust(64)[:64] * (size // 64) + b"x" * (size % 64)
        return b"SHA256E-s%d--%s.dat" % (size, hashlib.sha256(data).hexdigest().encode()), data

    def put(self, session: Session, key: bytes, data: bytes) -> None:
        session.ask(b"PUT  %s\n" % key, b"PUT-FROM 0")
        session.say(b"DATA %d\n" % len(data))
        session.say(data)
        session.ask(b"VALID\n", b"SUCCESS")


# What, unit, budget, whether less is better, measurement.
Row: TypeAlias = tuple[str, str, str, bool, Callable[[Workload], float]]


def rate(count: int, action: Callable[[int], None]) -> float:
    """How often a second the action can be done."""
    started = time.perf_counter()
    for number in range(count):
        action(number)
    return count / (time.perf_counter() - started)


def start(load: Workload) -> float:
    session = load.session()
    session.finish()
    return session.seconds_to_greeting * 1000


def checkpresent(load: Workload) -> float:
    session = load.session()
    key, data = load.content(SMALL)
    load.put(session, key, data)
    result = rate(3000, lambda _: session.ask(b"CHECKPRESENT %s\n" % key, b"SUCCESS"))
    session.finish()
    return result


def lockcontent(load: Workload) -> float:
    session = load.session()
    key, data = load.content(SMALL)
    load.put(session, key, data)

    def lock(_: int) -> None:
        session.ask(b"LOCKCONTENT %s\n" % key, b"SUCCESS")
        session.say(b"UNLOCKCONTENT\n")

    result = rate(500, lock)
    session.finish()
    return result


def small(load: Workload, which: str) -> float:
    session = load.session()
    contents = [load.content(SMALL) for _ in range(200)]
    rates = {"put": rate(200, lambda n: load.put(session, *contents[n]))}

    def get(number: int) -> None:
        session.ask(b"GET 0  %s\n" % contents[number][0], b"DATA")
        session.skip(SMALL)
        assert session.line() == b"VALID"
        session.say(b"SUCCESS\n")

    rates["get"] = rate(200, get)
    # Content is removed long after it came, when it is on the disk and its log in the git-annex branch.
    session.finish()
    os.sync()
    session = load.session()
    rates["remove"] = rate(200, lambda n: session.ask(b"REMOVE %s\n" % contents[n][0], b"SUCCESS"))
    session.finish()
    return rates[which]


def large(load: Workload, size: int, which: str) -> float:
    """MiB a second, or the peak memory in MiB."""
    session = load.session()
    key, data = load.content(size)
    rates = {}
    rates["put"] = size / MIB * rate(1, lambda _: load.put(session, key, data))

    def get(_: int) -> None:
        session.ask(b"GET 0  %s\n" % key, b"DATA")
        session.skip(size)
        assert session.line() == b"VALID"
        session.say(b"SUCCESS\n")

    rates["get"] = size / MIB * rate(2, get)
    session.ask(b"REMOVE %s\n" % key, b"SUCCESS")
    rates["memory"] = session.finish() / MIB
    return rates[which]


def rows(large_size: int) -> list[Row]:
    return [
        ("time to AUTH-SUCCESS", "ms", "<= 4x", True, start),
        ("CHECKPRESENT", "/s", ">= 1x", False, checkpresent),
        ("LOCKCONTENT + UNLOCKCONTENT", "/s", ">= 1x", False, lockcontent),
        ("GET of 1 kB keys", "/s", ">= 1.5x", False, lambda load: small(load, "get")),
        ("PUT of 1 kB keys", "/s", ">= 1.5x", False, lambda load: small(load, "put")),
        ("REMOVE of 1 kB keys", "/s", ">= 1.5x", False, lambda load: small(load, "remove")),
        ("GET of a large key", "MiB/s", ">= 2x", False, lambda load: large(load, large_size, "get")),
        ("PUT of a large SHA256E key", "MiB/s", ">= 2x", False, lambda load: large(load, large_size, "put")),
        ("peak memory", "MiB", "<= 0.6x", True, lambda load: large(load, large_size, "memory")),
    ]


def measure(rounds: int, rows: Iterable[Row], real: Workload, ours: Workload) -> list[dict[str, object]]:
    results: list[dict[str, object]] = []
    for name, unit, budget, less_is_better, action in rows:
        times = rounds * 4 if action is start else rounds
        pairs = []
        for turn in range(times):
            # Each is first as often as the other: what one leaves to the disk to do, the next one feels.
            first, second = (real, ours) if turn % 2 == 0 else (ours, real)
            results_of = {load.program: action(load) for load in (first, second)}
            pairs.append((results_of[real.program], results_of[ours.program]))
        theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
        limit = float(budget.split()[1].rstrip("x"))
        ratio = statistics.median(b / a for a, b in pairs)
        met = ratio <= limit if less_is_better else ratio >= limit
        results.append(
            {"what": name, "unit": unit, "git-annex": theirs, "annexshell": mine, "ratio": ratio}
            | {"budget": budget, "met": met}
        )
        print(".", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return results


def show(results: list[dict[str, object]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{title}, medians")
    for column, value in results[0].items():
        table.add_column(column, justify="left" if isinstance(value, str) and column != "budget" else "right")
    for row in results:
        table.add_row(*(f"{value:.2f}" if isinstance(value, float) else str(value) for value in row.values()))
    Console(width=120).print(table)


def arguments(description: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured (default 5)")
    parser.add_argument("--large", type=int, default=256, help="MiB of the large key (default 256)")
    parser.add_argument("--git-annex", help="the git-annex program to compare with")
    parser.add_argument("--json", action="store_true", help="print JSON lines instead of a table")
    return parser


def report(results: list[dict[str, object]], title: str, *, as_json: bool) -> int:
    """Gives the exit status."""
    if as_json:
        for row in results:
            print(json.dumps(row))
    else:
        show(results, title)
    return 0 if all(row["met"] for row in results) else 1


def main() -> int:
    options = arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        program = real_program(directory, options.git_annex)
        real = Workload(program, program, directory / "real.git")
        ours = Workload(our_program(directory), program, directory / "ours.git")
        results = measure(options.rounds, rows(options.large * MIB), real, ours)
    return report(results, "annexshell against git-annex-shell", as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
