"""Pointer files: what an unlocked file holds while its content is not here (spec: objects §14.1-14.2)."""

from __future__ import annotations

import os
import stat

from annexshell.key import BadKey, Key

MAX_SIZE = 32768  # bytes; anything longer is content
_OBJECTS = b"/annex/objects/"
_ANNEX = b"/annex/"
# Not waiting for the writer of a FIFO that somebody put in the file's place.
_OPEN_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY


def parse_pointer(content: bytes) -> Key | None:
    """The key that a pointer file, a git blob or a symlink target stands for; None if it is something else."""
    if len(content) > MAX_SIZE:
        return None
    first_line, newline, rest = content.partition(b"\n")
    if newline and rest and not _is_annotation(rest):
        return None
    first_line = first_line.removesuffix(b"\r")
    if _OBJECTS not in first_line:
        return None
    try:
        return Key.from_filename(first_line.rpartition(b"/")[2])
    except BadKey:
        return None


def _is_annotation(rest: bytes) -> bool:
    """Whether every line after the first is one that a pointer may have, for later extensions of the format."""
    *lines, unfinished = rest.split(b"\n")
    return not unfinished and all(_ANNEX in line for line in lines)


def format_pointer(key: Key) -> bytes:
    """The content of a new pointer file."""
    return _OBJECTS + key.filename + b"\n"


class Pointer:
    """A pointer file in the work tree: its key, and its status at the moment it was read."""

    __slots__ = ("key", "status")

    def __init__(self, key: Key, status: os.stat_result) -> None:
        self.key = key
        self.status = status


def read_pointer(path: bytes, dir_fd: int | None = None) -> Pointer | None:
    """The pointer file at PATH; None if there is none, or it is not a pointer, or it cannot be read."""
    try:
        fd = os.open(path, _OPEN_FLAGS, dir_fd=dir_fd)
    except OSError:
        return None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_SIZE:
            return None
        content = _read(fd)
    except OSError:
        return None
    finally:
        os.close(fd)
    key = parse_pointer(content)
    return None if key is None else Pointer(key, status)


def _read(fd: int) -> bytes:
    """At most one byte more than a pointer can have."""
    content = b""
    while len(content) <= MAX_SIZE and (part := os.read(fd, MAX_SIZE + 1 - len(content))):
        content += part
    return content
