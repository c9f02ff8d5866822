"""A small git-annex repository on disk, and shortcuts for using it as one client."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.repository import LocalRepository
from annexshell.key import Key
from annexshell.relay import BytesSource, to_callable
from annexshell.repository import AlreadyHave, Outcome
from annexshell.uuid import UUID

CLIENT = UUID(b"33333333-3333-4333-8333-333333333333")
UUID_HERE = "11111111-1111-4111-8111-111111111111"


def sha256_key(data: bytes, variety: str = "SHA256E") -> Key:
    return Key(f"{variety}-s{len(data)}--{hashlib.sha256(data).hexdigest()}.dat".encode())


OPENED: list[LocalRepository] = []  # for the fixture that ends what the tests leave open


class Local:
    """A repository, and its path; ``config`` is applied before it is opened."""

    def __init__(self, path: Path, *, bare: bool = False, version: int = 10, **config: str) -> None:
        self.path = path
        self.bare = bare
        self.gitdir = path if bare else path / ".git"
        self.annex = self.gitdir / "annex"
        subprocess.run(["git", "init", "-q", *(["--bare"] if bare else []), path], check=True)
        self.config(**{"annex.uuid": UUID_HERE, "annex.version": str(version), **config})

    def config(self, **settings: str) -> None:
        for name, value in settings.items():
            subprocess.run(["git", "-C", self.path, "config", name, value], check=True)

    def open(self, client: UUID = CLIENT) -> LocalRepository:
        repository = LocalRepository(GitRepository(os.fsencode(self.path)), client)
        OPENED.append(repository)
        return repository

    def object(self, key: Key) -> Path:
        with_client = LocalRepository(GitRepository(os.fsencode(self.path)))
        return Path(os.fsdecode(with_client.objects.locate(key)))

    def temp(self, key: Key) -> Path:
        return self.annex / "tmp" / os.fsdecode(key.filename)

    def set_temp(self, key: Key, data: bytes) -> None:
        self.temp(key).parent.mkdir(parents=True, exist_ok=True)
        self.temp(key).write_bytes(data)

    def place(self, key: Key, data: bytes) -> Path:
        """Put content in place by hand, as another process might have."""
        path = self.object(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    def journal(self) -> dict[str, str]:
        directory = self.annex / "journal"
        return {p.name: p.read_text() for p in directory.iterdir()} if directory.is_dir() else {}

    def logged(self, key: Key) -> str | None:
        """The status that the journal has for this repository and the key."""
        for name, content in self.journal().items():
            if name.endswith(f"_{os.fsdecode(key.filename).replace('_', '__')}.log"):
                return content.split()[1]
        return None

    def leftovers(self) -> list[str]:
        """Files of transfers and locks that should be gone when nothing goes on."""
        found = []
        for parent, _, names in os.walk(self.annex):
            found += [
                os.path.relpath(os.path.join(parent, name), self.annex)
                for name in names
                if name.startswith("lck.") or (name.endswith((".lck", ".rtm", ".rtl")) and "objects" in parent)
            ]
            if "/transfer/upload" in parent or "/transfer/download" in parent:
                found += [name for name in names if not name.startswith("lck.")]
        return found


def put(repository: LocalRepository, key: Key, data: bytes, valid: bool | None = True) -> bool | str:
    """Store DATA from the offset that the repository wants; whether it was stored."""
    with repository.put(key, b"some/file") as upload:
        if isinstance(upload, AlreadyHave):
            return "already"
        rest = data[upload.offset :]
        outcome: Outcome = upload.receive(len(rest), BytesSource(rest), lambda: valid)
        return outcome.done


def get(repository: LocalRepository, key: Key, offset: int = 0) -> tuple[bytes, bool]:
    """The content, and whether it was still valid afterwards."""
    with repository.get(key, offset, None) as content:
        pieces: list[bytes] = []
        to_callable(content.source, content.length, lambda view: pieces.append(bytes(view)))
        valid = content.still_valid()
        content.acknowledge(valid)
        return b"".join(pieces), valid
