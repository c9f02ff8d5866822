"""``demo``: the whole thing once through, on a repository of its own, checked and shown.

The server is a child process that is started with a forced-command line, as sshd would, and talked to with the
project's own client. Where the real git-annex is installed, it is made a client too.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import sh
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn
from rich.table import Table

from annexshell.commands.demo_client import GitAnnexClient
from annexshell.errors import AnnexshellError
from annexshell.key import Key
from annexshell.p2p.client import P2PRepository
from annexshell.p2p.wire import Connection
from annexshell.relay import BytesSource, Source, to_callable
from annexshell.repository import AlreadyHave
from annexshell.uuid import UUID

CLIENT = "00000000-0000-4000-8000-00000000d3e0"
MIB = 1 << 20


@dataclass
class Step:
    """One line of the report."""

    asked: str
    answered: str = ""
    bytes: int = 0
    seconds: float = 0.0
    ok: bool = False


@dataclass
class Report:
    steps: list[Step] = field(default_factory=list)

    @contextmanager
    def step(self, asked: str, expected: str, size: int = 0) -> Iterator[Callable[[str], None]]:
        """Time a request; the block calls what it is given with the answer, which has to be the expected one."""
        step = Step(asked, "no answer", size)
        self.steps.append(step)
        started = time.perf_counter()

        def answer(text: str) -> None:
            step.seconds = time.perf_counter() - started
            step.answered = text
            step.ok = text == expected

        try:
            yield answer
        except sh.ErrorReturnCode as reason:
            answer(f"failed: {reason.full_cmd}: {reason.stderr.decode(errors='replace').strip()}")
        except (AnnexshellError, OSError, subprocess.CalledProcessError) as reason:
            answer(f"failed: {reason}")

    @property
    def ok(self) -> bool:
        return all(step.ok for step in self.steps)


class Server:
    """Starts annexshell the way that sshd does: with what the client asked for in one string."""

    def __init__(self, repository: Path, log: Path) -> None:
        self.repository = repository
        self.log = log
        # The child finds this very package, installed or not.
        package = Path(__file__).parents[2]
        path = os.pathsep.join((str(package), *sys.path[1:]))
        self.environment = {**_unrestricted_environment(), "PYTHONPATH": path}

    def argv(self, command: str) -> list[str]:
        return [sys.executable, "-m", "annexshell", "-c", command]

    def ask(self, command: str) -> str:
        """What a command prints."""
        with self.log.open("ab") as log:
            run = subprocess.run(
                self.argv(command),
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=self.environment,
            )
        return run.stdout.decode()

    @contextmanager
    def session(self, uuid: str, **environment: str) -> Iterator[P2PRepository]:
        """A p2pstdio session; its process has ended when the block is left."""
        command = f"git-annex-shell 'p2pstdio' '{self.repository}' '{CLIENT}' --uuid {uuid}"
        with (
            self.log.open("ab") as log,
            subprocess.Popen(
                self.argv(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                bufsize=0,
                env={**self.environment, **environment},
            ) as process,
        ):
            assert process.stdin and process.stdout
            yield P2PRepository(Connection(process.stdout.fileno(), process.stdin.fileno()), UUID(uuid.encode()))
        if process.returncode != 0:
            raise AnnexshellError(f"the server ended with exit status {process.returncode}")


def _unrestricted_environment() -> dict[str, str]:
    """The environment without what would make our server refuse the demo."""
    return {name: value for name, value in os.environ.items() if not name.startswith("GIT_ANNEX_SHELL_")}


class Pattern(Source):
    """Content that is long, cheap to make, and not all the same."""

    def __init__(self, length: int) -> None:
        self.length = length
        self._block = hashlib.sha256(b"annexshell").digest() * (MIB // 32)
        self._position = 0

    def readinto(self, view: memoryview) -> int:
        start = self._position % MIB
        piece = self._block[start : start + min(len(view), self.length - self._position)]
        view[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


class Watched(Source):
    """A source whose progress somebody looks at."""

    def __init__(self, source: Source, advance: Callable[[int], None]) -> None:
        self._source = source
        self._advance = advance

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self._advance(count)
        return count


def key_of(source: Source, length: int) -> Key:
    """The SHA256E key of content."""
    digest = hashlib.sha256()
    to_callable(source, length, digest.update)
    return Key(f"SHA256E-s{length}--{digest.hexdigest()}.dat".encode())


def run(size: int, *, keep: bool, as_json: bool) -> int:
    """Show everything with SIZE MiB of content as the large file; gives the exit status."""
    console = Console(stderr=as_json)
    if shutil.which("git") is None:
        console.print("annexshell demo needs git, which is not in PATH. Install it and try again.")
        return 1
    directory = Path(tempfile.mkdtemp(prefix="annexshell-demo-"))
    report = Report()
    try:
        _demonstrate(directory, size * MIB, report, console)
        if not report.ok:
            console.print((directory / "server.log").read_text(errors="replace"), style="dim")
    finally:
        if keep:
            console.print(f"Everything is left in {directory}")
        else:
            _remove(directory)
    if as_json:
        import json

        print(json.dumps({"ok": report.ok, "steps": [vars(step) for step in report.steps]}))
    else:
        _show(report, console)
    return 0 if report.ok else 1


def _demonstrate(directory: Path, size: int, report: Report, console: Console) -> None:
    repository = directory / "server.git"
    sh.git("init", "--quiet", "--bare", str(repository))
    server = Server(repository, directory / "server.log")
    uuid = _initialise(server, report)
    if not uuid:
        return
    with server.session(uuid) as remote:
        _small(server, uuid, remote, report)
        _large(remote, size, report, console)
    _read_only(server, uuid, report)
    _committed(repository, uuid, report)
    git_annex = shutil.which("git-annex")
    if git_annex is not None:
        with report.step("real git-annex: clone, copy, drop, get", "content is the same") as answer:
            client = GitAnnexClient(directory, server.environment, server.argv('"$last"'), git_annex)
            answer(client.round_trip(repository))


def _initialise(server: Server, report: Report) -> str:
    with report.step("configlist, autoinit", "a new uuid") as answer:
        printed = server.ask(f"git-annex-shell 'configlist' '{server.repository}' '--' 'autoinit=1' '--'")
        name, _, uuid = printed.partition("\n")[0].partition("=")
        answer("a new uuid" if name == "annex.uuid" and uuid else f"unexpected: {printed!r}")
        return uuid
    return ""


def _small(server: Server, uuid: str, remote: P2PRepository, report: Report) -> None:
    data = b"hello, annex\n"
    key = key_of(BytesSource(data), len(data))
    with report.step("CHECKPRESENT", "not present") as answer:
        answer("present" if remote.checkpresent(key) else "not present")
    with report.step("PUT, bad content", "refused", len(data)) as answer:
        answer("stored" if _put(remote, key, BytesSource(data.upper()), len(data)) else "refused")
    with report.step("PUT", "stored", len(data)) as answer:
        answer("stored" if _put(remote, key, BytesSource(data), len(data)) else "refused")
    with report.step("CHECKPRESENT", "present") as answer:
        answer("present" if remote.checkpresent(key) else "not present")
    with report.step("PUT, again", "already have it") as answer:
        answer("already have it" if isinstance(remote.put(key, None), AlreadyHave) else "wants it again")
    with report.step("GET from byte 7", "annex", len(data) - 7) as answer, remote.get(key, 7, None) as content:
        pieces: list[bytes] = []
        to_callable(content.source, content.length, lambda view: pieces.append(bytes(view)))
        content.acknowledge(content.still_valid())
        answer(b"".join(pieces).decode().strip())
    asked = "LOCKCONTENT, then REMOVE by another"
    with remote.lockcontent(key), server.session(uuid) as other, report.step(asked, "refused") as answer:
        answer("removed" if other.remove(key) else "refused")
    with report.step("UNLOCKCONTENT, then REMOVE", "removed") as answer:
        answer("removed" if remote.remove(key) else "refused")
    with report.step("CHECKPRESENT", "not present") as answer:
        answer("present" if remote.checkpresent(key) else "not present")


def _large(remote: P2PRepository, size: int, report: Report, console: Console) -> None:
    key = key_of(Pattern(size), size)
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console) as progress:

        def watched(source: Source, what: str) -> Source:
            task = progress.add_task(what, total=size)
            return Watched(source, lambda count: progress.advance(task, count))

        with report.step("PUT, large", "stored", size) as answer:
            answer("stored" if _put(remote, key, watched(Pattern(size), "PUT"), size) else "refused")
        with report.step("GET, large", "content is the same", size) as answer, remote.get(key, 0, None) as content:
            got = key_of(watched(content.source, "GET"), content.length)
            same = content.still_valid() and got == key
            content.acknowledge(same)
            answer("content is the same" if same else "content differs")


def _read_only(server: Server, uuid: str, report: Report) -> None:
    denied = "this repository is read-only; write access denied"
    with server.session(uuid, GIT_ANNEX_SHELL_READONLY="1") as remote:
        for asked, request in (
            ("PUT, read-only", lambda: remote.put(Key(b"SHA256-s1--x"), None)),
            ("REMOVE, read-only", lambda: remote.remove(Key(b"SHA256-s1--x"))),
        ):
            with report.step(asked, denied) as answer:
                try:
                    request()
                    answer("done")
                except AnnexshellError as reason:
                    answer(str(reason))


def _committed(repository: Path, uuid: str, report: Report) -> None:
    with report.step("git-annex branch", "2 keys logged") as answer:
        git = sh.git.bake("--git-dir", str(repository))
        files = str(git("ls-tree", "-r", "--name-only", "git-annex")).split()
        logs = [str(git("show", f"git-annex:{name}")) for name in files if name.endswith(".dat.log")]
        answer(f"{sum(uuid in log for log in logs)} keys logged")


def _put(remote: P2PRepository, key: Key, source: Source, length: int) -> bool:
    with remote.put(key, b"demo/file.dat") as upload:
        if isinstance(upload, AlreadyHave):
            return True
        return upload.receive(length, source, lambda: True).done


def _show(report: Report, console: Console) -> None:
    table = Table(title="annexshell demo")
    for column in ("asked", "answered"):
        table.add_column(column)
    for column in ("bytes", "ms", ""):
        table.add_column(column, justify="right")
    for step in report.steps:
        mark = "[green]ok[/]" if step.ok else "[bold red]WRONG[/]"
        table.add_row(
            step.asked, step.answered, f"{step.bytes:,}" if step.bytes else "", f"{step.seconds * 1000:.1f}", mark
        )
    console.print(table)
    wrong = sum(not step.ok for step in report.steps)
    console.print(
        "[green]Everything is as it should be.[/]" if not wrong else f"[bold red]{wrong} steps went wrong.[/]"
    )


def _remove(directory: Path) -> None:
    # Objects and their directories are write-protected.
    for parent, _, _ in os.walk(directory):
        Path(parent).chmod(0o700)
    shutil.rmtree(directory, ignore_errors=True)
