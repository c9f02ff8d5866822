"""A repository's git config, as git itself reads it (spec: shell §4.3)."""

from __future__ import annotations

import os

from annexshell import process
from annexshell.errors import RepositoryError, TemporaryFailure, is_passing

_TRUE = frozenset((b"true", b"yes", b"on"))
_FALSE = frozenset((b"false", b"no", b"off", b""))


class Config:
    """Settings by full name, section and variable in lower case: ``annex.uuid``, ``remote.NAME.annex-cost``."""

    __slots__ = ("_values",)

    def __init__(self, values: dict[bytes, list[bytes | None]] | None = None) -> None:
        self._values = values if values is not None else {}

    @classmethod
    def parse(cls, listing: bytes) -> Config:
        """From the output of ``git config --null --list``."""
        values: dict[bytes, list[bytes | None]] = {}
        for entry in listing.split(b"\0")[:-1]:
            name, newline, value = entry.partition(b"\n")
            # No newline: a variable without "=", which is true as a boolean and empty as a string.
            values.setdefault(name, []).append(value if newline else None)
        return cls(values)

    def __contains__(self, name: bytes) -> bool:
        return name in self._values

    def names(self) -> list[bytes]:
        """Every setting's name, in the order of the files."""
        return list(self._values)

    def get(self, name: bytes) -> bytes | None:
        """The last value of NAME; empty for a variable without ``=``, None if unset."""
        values = self._values.get(name)
        return None if not values else values[-1] or b""

    def get_all(self, name: bytes) -> list[bytes]:
        """Every value of NAME, in the order of the files."""
        return [value or b"" for value in self._values.get(name, ())]

    def get_bool(self, name: bytes, default: bool = False) -> bool:
        """The last value as git understands booleans; DEFAULT if unset or not a boolean."""
        values = self._values.get(name)
        if not values:
            return default
        value = values[-1]
        if value is None:
            return True
        value = value.lower()
        if value in _TRUE:
            return True
        if value in _FALSE:
            return False
        try:
            return int(value) != 0
        except ValueError:
            return default


class ConfigReader:
    """``git config`` running beside us: started early, collected when the answer is needed."""

    __slots__ = ("_pid", "_pipe")

    def __init__(self, gitdir: bytes) -> None:
        """Start reading. Naming the git directory is the user's consent to read another owner's repository."""
        argv = [
            b"git",
            b"-c",
            b"safe.directory=*",
            b"-c",
            b"safe.bareRepository=all",
            b"--git-dir=" + gitdir,
            b"config",
            b"--null",
            b"--list",
        ]
        self._pipe = process.Pipe()
        try:
            self._pid = process.spawn(argv, stdout=self._pipe.write_fd, stderr=None)
        except OSError as reason:
            self._pipe.__exit__(None, None, None)
            kind = TemporaryFailure if is_passing(reason) else RepositoryError
            raise kind(f"cannot run git: {reason.strerror}") from reason
        self._pipe.close_write()

    def result(self) -> Config:
        """The config; raises RepositoryError when git could not read it, TemporaryFailure when it was killed."""
        with self._pipe:
            listing = process.read_all(self._pipe.read_fd)
            status = process.wait(self._pid)
        if status < 0:
            raise TemporaryFailure(f"git config was killed by signal {-status}")
        if status != 0:
            raise RepositoryError(f"git config failed with status {status}")
        return Config.parse(listing)


def file_signature(path: bytes) -> tuple[int, int, int] | None:
    """What changes when a config file is replaced or rewritten; None for a missing file."""
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
