from __future__ import annotations

import builtins
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell import landlock
from tests.leftovers import left_open


def restricted(rules: landlock.Ruleset, action: Callable[[], object]) -> type[BaseException] | None:
    """What ACTION raises in a child that is held to RULES."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            rules.restrict()
            action()
            os.write(write_fd, b"-")
        except BaseException as reason:
            os.write(write_fd, type(reason).__name__.encode())
        finally:
            os._exit(0)
    os.close(write_fd)
    os.waitpid(pid, 0)
    name = os.read(read_fd, 100).decode()
    os.close(read_fd)
    return None if name == "-" else getattr(builtins, name)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    for name in ("readable", "writable", "other", "directory/inside"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("content")
    return tmp_path


ACTIONS: dict[str, tuple[Callable[[Path], object], bool]] = {
    "read a file": (lambda top: (top / "readable").read_text(), True),
    "read the file to be written": (lambda top: (top / "writable").read_text(), True),
    "read in a directory": (lambda top: (top / "directory/inside").read_text(), True),
    "list a directory": (lambda top: os.listdir(top / "directory"), True),
    "write the file": (lambda top: (top / "writable").write_text("more"), True),
    "look at another file": (lambda top: (top / "other").stat(), True),
    "read another file": (lambda top: (top / "other").read_text(), False),
    "list another directory": (lambda top: os.listdir(top), False),
    "write a file to be read": (lambda top: (top / "readable").write_text("more"), False),
    "write another file": (lambda top: (top / "other").write_text("more"), False),
    "write in a directory": (lambda top: (top / "directory/inside").write_text("more"), False),
    "make a file": (lambda top: (top / "directory/new").touch(), False),
    "make a directory": (lambda top: (top / "new").mkdir(), False),
    "make a symlink": (lambda top: (top / "new").symlink_to("other"), False),
    "make a FIFO": (lambda top: os.mkfifo(top / "new"), False),
    "delete the file": (lambda top: (top / "writable").unlink(), False),
    "rename the file": (lambda top: (top / "writable").rename(top / "new"), False),
    "read what a process has": (lambda top: Path("/proc/self/environ").read_text(), False),
}


@pytest.mark.parametrize("name", ACTIONS)
def test_what_can_be_done(name: str, files: Path) -> None:
    action, allowed = ACTIONS[name]
    before = left_open()
    with landlock.Ruleset() as rules:
        rules.let_read(os.fsencode(files / path) for path in ("readable", "directory", "missing"))
        rules.let_write(os.fsencode(files / "writable"))
        error = restricted(rules, lambda: action(files))
        assert error is None if allowed or not rules.exists else issubclass(error, PermissionError)
    assert left_open() <= before


def test_without_it_nothing_is_restricted(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ctypes

    def missing(*words: object, **more: object) -> None:
        raise OSError("no such library")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    with landlock.Ruleset() as rules:
        assert not rules.exists
        rules.let_read([b"/"])
        assert restricted(rules, (files / "other").read_text) is None
