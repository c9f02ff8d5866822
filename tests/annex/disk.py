"""A repository on disk for tests: the parts below LocalRepository, and other processes that meddle."""

from __future__ import annotations

import fcntl
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from annexshell.annex.contentlock import ContentLocks
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.objects import Objects
from annexshell.annex.permissions import Permissions
from annexshell.annex.transfers import Transfers
from annexshell.key import Key

KEY = Key(b"SHA256E-s6--5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03.txt")
CONTENT = b"hello\n"
NOBODY = 65534


class Disk:
    """A fresh repository, with as much of git-annex's initialization as these tests need."""

    def __init__(self, path: Path, version: int | None = 10, *, bare: bool = False, **settings: str) -> None:
        self.path = path
        self.gitdir = path if bare else path / ".git"
        self.annexdir = self.gitdir / "annex"
        # What git needs to take it for a repository; git init would take longer than most tests.
        for name in ("objects", "refs", "annex"):
            (self.gitdir / name).mkdir(parents=True)
        (self.gitdir / "HEAD").write_text("ref: refs/heads/main\n")
        (self.annexdir / "sentinal").touch()
        self.config("core.repositoryformatversion", "0")
        self.config("core.bare", "true" if bare else "false")
        if version is not None:
            settings["annex.version"] = str(version)
        for name, value in settings.items():
            self.config(name, value)

    def config(self, name: str, value: str) -> None:
        """Add a setting; like git, by renaming the changed file into place."""
        file = self.gitdir / "config"
        section, _, variable = name.rpartition(".")
        quoted = value.replace("\\", "\\\\").replace('"', '\\"')
        changed = (file.read_text() if file.exists() else "") + f'[{section}]\n\t{variable} = "{quoted}"\n'
        (self.gitdir / "config.lock").write_text(changed)
        (self.gitdir / "config.lock").rename(file)

    def open(self) -> Opened:
        """The repository as one more process sees it."""
        return Opened(self)

    def store(self, key: Key = KEY, content: bytes = CONTENT) -> Path:
        """Put an object in its place, frozen as git-annex leaves it; gives its path."""
        opened = self.open()
        path = Path(os.fsdecode(opened.objects.locate(key)))
        opened.permissions.make_directory(os.fsencode(path.parent))
        path.write_bytes(content)
        opened.permissions.freeze_object(os.fsencode(path))
        opened.permissions.freeze_directory(os.fsencode(path.parent))
        return path

    def traces(self) -> set[str]:
        """The names of the files in the object directories, without those of the objects."""
        return {path.suffix for path in self.annexdir.glob("objects/*/*/*/*") if path.suffix in SUFFIXES}


SUFFIXES = (".lck", ".rtm", ".rtl")


class Opened:
    def __init__(self, disk: Disk) -> None:
        self.repo = GitRepository(os.fsencode(disk.path))
        self.permissions = Permissions(self.repo)
        self.objects = Objects(self.repo)
        self.locks = ContentLocks(self.repo, self.objects, self.permissions)
        self.transfers = Transfers(self.repo, self.permissions)

    def is_present(self) -> bool:
        return os.path.exists(self.objects.locate(KEY))

    def lock(self) -> Any:
        return self.locks.lock_shared(KEY, self.is_present)


def posix_lock(fd: int, kind: int) -> None:
    """The classic lock that git-annex takes."""
    fcntl.fcntl(fd, fcntl.F_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


@contextmanager
def in_child(action: Callable[[], Any]) -> Iterator[int]:
    """Another process that has done ACTION, keeps what it gave (locks, say), and is killed at the end."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = action()
            os.write(write_fd, b"done")
            signal.pause()
            del kept
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    os.close(write_fd)
    try:
        assert os.read(read_fd, 4) == b"done", "the other process failed"
        yield pid
    finally:
        os.close(read_fd)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def as_unprivileged(action: Callable[[], Any]) -> Any:
    """What ACTION gives in another process, which is not root and owns nothing (chmod fails)."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.getuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)

            def denied(*arguments: object, **more: object) -> None:
                raise PermissionError(1, "Operation not permitted")

            os.chmod = denied
            try:
                result = (True, action())
            except Exception as error:
                result = (False, (type(error).__name__, str(error)))
            with open(write_fd, "wb") as stream:
                stream.write(pickle.dumps(result))
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(0)
    os.close(write_fd)
    with open(read_fd, "rb") as stream:
        done, value = pickle.loads(stream.read())
    os.waitpid(pid, 0)
    if not done:
        raise Failed(*value)
    return value


class Failed(Exception):
    """What the other process raised: the name of the exception, and its message."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


def let_others_in(path: Path) -> None:
    """Let every user reach PATH, which pytest keeps to ours."""
    for parent in (path, *path.parents):
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o055)
