"""A p2pstdio server as a child process, driven byte by byte over pipes, and the repository that it serves.

Every wait has a deadline: a server that wedges fails the test within seconds instead of stopping the run.
"""

from __future__ import annotations

import hashlib
import os
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
DEADLINE = 20.0  # seconds; what a server answers, it answers at once
QUIET = 0.15  # seconds of silence that count as "no reply"
CLIENT_UUID = "11111111-2222-3333-4444-555555555555"


class Wedged(AssertionError):
    """The server did not do in time what it was waited for."""


class Programs:
    """Where the programs are, and how to start a p2pstdio server of either kind."""

    def __init__(self, path: Path, home: Path, kind: str) -> None:
        """PATH is a directory with the real programs; KIND, "ours" or "real", is what `server` starts."""
        self.path = path
        self.home = home
        self.kind = kind

    def environment(self, **extra: str) -> dict[str, str]:
        """A clean environment: no git config but the repository's, no variable of the person running the tests."""
        return {
            "PATH": f"{self.path}:{os.environ['PATH']}",
            "HOME": str(self.home),
            "LC_ALL": "C.UTF-8",
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_AUTHOR_NAME": "t",
            "GIT_AUTHOR_EMAIL": "t@example.com",
            "GIT_COMMITTER_NAME": "t",
            "GIT_COMMITTER_EMAIL": "t@example.com",
            "PYTHONPATH": str(ROOT),
            "PYTHONDONTWRITEBYTECODE": "1",
            **extra,
        }

    def command(self, kind: str) -> list[str]:
        if kind == "real":
            return [str(self.path / "git-annex-shell")]
        return [sys.executable, "-m", "annexshell"]

    def run(self, *words: str | bytes, cwd: Path, check: bool = True, **extra: str) -> bytes:
        done = subprocess.run(
            words, cwd=cwd, env=self.environment(**extra), stdin=subprocess.DEVNULL, capture_output=True, timeout=60
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done.stdout

    def server(
        self,
        repository: Repository,
        *,
        kind: str | None = None,
        client_uuid: str | bytes = CLIENT_UUID,
        env: dict[str, str] | None = None,
        words: tuple[str, ...] = (),
        **options: Any,
    ) -> Server:
        argv = [*self.command(kind or self.kind), "p2pstdio", str(repository.path), client_uuid, *words]
        return Server(argv, self.environment(**(env or {})), **options)


class Server:
    """A server process. Used in a ``with``, which kills what is still running."""

    def __init__(self, argv: list[str | bytes], env: dict[str, str], **options: Any) -> None:
        self.process = subprocess.Popen(
            argv, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0, **options
        )
        self.pid = self.process.pid
        assert self.process.stdin and self.process.stdout and self.process.stderr
        self.to = self.process.stdin.fileno()
        self.fro = self.process.stdout.fileno()
        self.err = self.process.stderr.fileno()
        for fd in (self.to, self.fro, self.err):
            os.set_blocking(fd, False)
        self.unread = b""
        self.errors = b""
        self.ended = False  # EOF was seen on its stdout
        self.err_ended = False

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream
            stream.close()

    # Sending ------------------------------------------------

    def send(self, data: bytes, *, deadline: float = DEADLINE) -> None:
        """Write DATA, reading meanwhile what comes back. A server that is gone is no error here."""
        end = time.monotonic() + deadline
        view = memoryview(data)
        while view:
            self._pump(end, writing=True, what=f"it took no more input, {len(view)} bytes to go")
            try:
                view = view[os.write(self.to, view[:65536]) :]
            except BlockingIOError:
                continue
            except BrokenPipeError:
                return

    def line(self, text: str | bytes) -> None:
        self.send((text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text) + b"\n")

    def close(self) -> None:
        """No more will be sent."""
        assert self.process.stdin
        self.process.stdin.close()

    # Receiving ------------------------------------------------

    def _pump(self, end: float, *, writing: bool = False, what: str) -> None:
        """Take in what there is, until there is something new or, when WRITING, the server takes input."""
        readers = ([] if self.err_ended else [self.err]) + ([] if self.ended else [self.fro])
        if time.monotonic() > end:
            raise Wedged(f"{what}; unread: {self.unread[-300:]!r}; stderr: {self.errors[-2000:]!r}")
        readable, _, _ = select.select(readers, [self.to] if writing else [], [], max(0, end - time.monotonic()))
        for fd in readable:
            try:
                got = os.read(fd, 1 << 20)
            except BlockingIOError:
                continue
            if fd == self.err:
                self.errors += got
                self.err_ended = not got
            elif got:
                self.unread += got
            else:
                self.ended = True

    def read_line(self, *, deadline: float = DEADLINE) -> bytes | None:
        """The next line without its LF, or None at the end."""
        end = time.monotonic() + deadline
        while b"\n" not in self.unread and not self.ended:
            self._pump(end, what="no line came")
        if b"\n" not in self.unread:
            assert not self.unread, f"half a line before the end: {self.unread!r}"
            return None
        line, self.unread = self.unread.split(b"\n", 1)
        return line

    def read(self, count: int, *, deadline: float = DEADLINE) -> bytes:
        """The next COUNT bytes; fewer when it ends before."""
        end = time.monotonic() + deadline
        while len(self.unread) < count and not self.ended:
            self._pump(end, what=f"{len(self.unread)} bytes of {count} came")
        got, self.unread = self.unread[:count], self.unread[count:]
        return got

    def read_all(self, *, deadline: float = DEADLINE) -> bytes:
        """Everything up to the end."""
        end = time.monotonic() + deadline
        while not self.ended:
            self._pump(end, what="it did not end")
        got, self.unread = self.unread, b""
        return got

    def expect(self, *lines: str | bytes) -> None:
        for line in lines:
            got = self.read_line()
            want = line.encode() if isinstance(line, str) else line
            assert got == want, f"{got!r} came instead of {want!r}; stderr: {self.errors[-2000:]!r}"

    def expect_nothing(self, seconds: float = QUIET) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.unread and not self.ended:
            select.select([self.fro], [], [], max(0, end - time.monotonic()))
            try:
                self._pump(time.monotonic() + 0.001, what="")
            except Wedged:
                break
        assert not self.unread and not self.ended, f"unasked: {self.unread!r}, ended: {self.ended}"

    def ask(self, line: str | bytes) -> bytes | None:
        self.line(line)
        return self.read_line()

    def exit_code(self, *, deadline: float = DEADLINE) -> int:
        """Wait for its end; negative when killed by a signal."""
        end = time.monotonic() + deadline
        while self.process.poll() is None:
            if not self.ended:
                try:
                    self._pump(min(end, time.monotonic() + 0.05), what="it did not exit")
                except Wedged:
                    pass
            else:
                time.sleep(0.005)
            if time.monotonic() > end:
                raise Wedged(f"it did not exit; unread: {self.unread[-300:]!r}; stderr: {self.errors[-2000:]!r}")
        return self.process.returncode

    def finish(self, *, deadline: float = DEADLINE) -> int:
        """Hang up; nothing more may come. Its exit status."""
        self.close()
        rest = self.read_all(deadline=deadline)
        assert rest == b"", f"unasked: {rest[-500:]!r}; stderr: {self.errors[-2000:]!r}"
        return self.exit_code(deadline=deadline)

    # Whole exchanges ------------------------------------------------

    def open(self, repository: Repository, version: int | None = 4) -> Server:
        self.expect(f"AUTH-SUCCESS {repository.uuid}")
        if version is not None:
            assert self.ask(f"VERSION {version}") == b"VERSION %d" % version
        return self

    def put(
        self, key: bytes, content: bytes, *, validity: bytes | None = b"VALID", file: bytes = b""
    ) -> bytes | None:
        """A whole PUT from whatever offset the server wants; the final line."""
        reply = self.ask(b"PUT " + file + b" " + key)
        if reply is None or not reply.startswith(b"PUT-FROM "):
            return reply
        rest = content[int(reply[9:]) :]
        self.send(b"DATA %d\n" % len(rest) + rest + (validity + b"\n" if validity else b""))
        return self.read_line()

    def get(self, key: bytes, offset: int = 0, *, file: bytes = b"", acknowledge: bytes = b"SUCCESS") -> bytes:
        """A whole GET at version 1 or higher of content that is there."""
        reply = self.ask(b"GET %d " % offset + file + b" " + key)
        assert reply is not None and reply.startswith(b"DATA "), reply
        data = self.read(int(reply[5:]))
        self.expect("VALID")
        self.line(acknowledge)
        return data

    # Looking at the process ------------------------------------------------

    def peak_memory(self) -> int:
        """Bytes, the highest resident size so far."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"VmHWM:\s+(\d+) kB", status)
        assert found
        return int(found[1]) * 1024

    def signal(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.exit_code()


# The repository ------------------------------------------------


def file_name(key: bytes) -> bytes:
    """The name that a key's object has (spec: objects §1.5)."""
    for plain, escaped in ((b"&", b"&a"), (b"%", b"&s"), (b":", b"&c"), (b"/", b"%")):
        key = key.replace(plain, escaped)
    return key


class Repository:
    """A repository on disk, looked at from outside with the eyes of git."""

    def __init__(self, path: Path, programs: Programs) -> None:
        self.path = path
        self.programs = programs
        git = path / ".git"
        self.git_dir = git if git.exists() else path
        self.annex = self.git_dir / "annex"
        self.uuid = self.git("config", "annex.uuid").decode().strip()

    def git(self, *words: str | bytes, check: bool = True) -> bytes:
        return self.programs.run("git", *words, cwd=self.path, check=check)

    def git_annex(self, *words: str | bytes, check: bool = True) -> bytes:
        return self.programs.run("git-annex", *words, cwd=self.path, check=check)

    def copy_to(self, path: Path) -> Repository:
        subprocess.run(["cp", "-a", str(self.path), str(path)], check=True)
        return Repository(path, self.programs)

    def set_config(self, name: str, value: str) -> None:
        self.git("config", name, value)

    def object(self, key: bytes) -> Path | None:
        """The key's object file, wherever it is."""
        name = file_name(key)
        for found, _, files in os.walk(os.fsencode(self.annex / "objects")):
            if name in files and os.path.basename(found) == name:
                return Path(os.fsdecode(os.path.join(found, name)))
        return None

    def beside(self, key: bytes, suffix: str) -> Path:
        """A file beside the key's object, which must be there: .lck, .rtm, .rtl."""
        here = self.object(key)
        assert here is not None
        return here.with_name(here.name + suffix)

    def tmp(self, key: bytes) -> Path:
        return self.annex / "tmp" / os.fsdecode(file_name(key))

    def put_tmp(self, key: bytes, content: bytes) -> None:
        self.tmp(key).parent.mkdir(exist_ok=True)
        self.tmp(key).write_bytes(content)

    def locations(self) -> dict[bytes, int]:
        """By file name of key: 1 or 0 where the repository's own uuid is logged, in the branch or the journal."""
        found = {}
        for entry in self.git("ls-tree", "-rz", "git-annex").split(b"\0")[:-1]:
            meta, name = entry.split(b"\t", 1)
            if name.endswith(b".log") and b"/" in name:
                self._own_line(found, os.path.basename(name), self.git("cat-file", "blob", meta.split()[2]))
        for name, text in self.journal().items():
            if name[3:4] == name[7:8] == b"_":
                self._own_line(found, name[8:].replace(b"__", b"_"), text)
        return found

    def _own_line(self, found: dict[bytes, int], name: bytes, text: bytes) -> None:
        for line in text.splitlines():
            fields = line.split(b" ")
            if len(fields) == 3 and fields[2] == self.uuid.encode():
                found[name[:-4]] = int(fields[1])

    def journal(self) -> dict[bytes, bytes]:
        directory = os.fsencode(self.annex / "journal")
        if not os.path.isdir(directory):
            return {}
        return {name: Path(os.fsdecode(os.path.join(directory, name))).read_bytes() for name in os.listdir(directory)}

    def files(self, *below: str) -> dict[str, tuple[int, str]]:
        """Relative path: size and SHA256 of every file below the annex directory's BELOW."""
        found = {}
        for top in below:
            for path in sorted((self.annex / top).rglob("*")):
                if path.is_file() and not path.is_symlink():
                    data = path.read_bytes()
                    found[str(path.relative_to(self.annex))] = (len(data), hashlib.sha256(data).hexdigest())
        return found

    def leftovers(self) -> list[str]:
        """Lock, retention and transfer files: there are none between orderly sessions."""
        names = [name for name in self.files("objects") if name.endswith((".lck", ".rtm", ".rtl"))]
        return names + [name for name in self.files("transfer") if not name.startswith("transfer/failed/")]

    def held_locks(self) -> list[str]:
        """Files below the annex directory on which somebody holds a lock, of either kind."""
        inodes = {}
        for path in self.annex.rglob("*"):
            try:
                inodes[path.stat().st_ino] = str(path)
            except FileNotFoundError:
                continue
        held = []
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            inode = int(next(f for f in fields if f.count(":") == 2).rsplit(":", 1)[1])
            if inode in inodes:
                held.append(f"{line}: {inodes[inode]}")
        return held


def make_content(spec: dict[str, Any]) -> bytes:
    """A content of protocol-server.json: a unit, repeated and cut to the length."""
    unit = spec["unit"].encode()
    return (unit * (spec["len"] // len(unit) + 1))[: spec["len"]]


def sha256e(content: bytes, extension: bytes = b"") -> bytes:
    return b"SHA256E-s%d--%s" % (len(content), hashlib.sha256(content).hexdigest().encode()) + extension
