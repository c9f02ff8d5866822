"""What a process uses, seen from outside."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

T = TypeVar("T")


class Footprint(NamedTuple):
    """Of a program, all of its processes together."""

    descriptors: int  # but not pipes to children
    children: int  # other programs
    threads: int
    memory: int  # bytes


def footprint(pid: int) -> Footprint:
    """Of a process, and of those that it has forked to do the same."""
    pids = processes(pid)
    found = [_footprint(one, pids) for one in pids]
    return Footprint(*(sum(figures) for figures in zip(*found, strict=True)))


def processes(pid: int) -> list[int]:
    """A process, and those of its children that are the same program."""
    return [pid, *(child for child in children(pid) if _command(child) == _command(pid))]


def children(pid: int) -> list[int]:
    found = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(child) for child in _unless_gone(path.read_text, "").split()]
    return found


def _footprint(pid: int, pids: list[int]) -> Footprint:
    others = [child for child in children(pid) if child not in pids]
    pipes = {_open_files(child).get(fd, "") for child in others for fd in "01"}
    status = Path(f"/proc/{pid}/status").read_text()
    memory = re.search(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert memory
    return Footprint(
        len([what for what in _open_files(pid).values() if what not in pipes]),
        len(others),
        len(os.listdir(f"/proc/{pid}/task")),
        int(memory[1]) << 10,
    )


def _command(pid: int) -> bytes:
    return _unless_gone(Path(f"/proc/{pid}/cmdline").read_bytes, b"")


def _open_files(pid: int) -> dict[str, str]:
    """What each descriptor is."""
    directory = f"/proc/{pid}/fd"
    fds: list[str] = _unless_gone(lambda: os.listdir(directory), [])
    return {fd: what for fd in fds if (what := _unless_gone(lambda fd=fd: os.readlink(f"{directory}/{fd}"), ""))}


def _unless_gone(look: Callable[[], T], otherwise: T) -> T:
    try:
        return look()
    except OSError:
        return otherwise
