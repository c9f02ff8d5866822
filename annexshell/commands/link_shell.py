"""link-shell: put annexshell under the name that clients run (spec: shell §1)."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import annexshell
from annexshell.errors import AnnexshellError

# A line that every program written here has, to know our own again.
_MARK = "# Made by annexshell link-shell."
# Older Linux kernels take no more of the first line, and break it at the first blank.
_SHEBANG_LIMIT = 127
_LAUNCHER = """\
{start}
{mark}
import sys

sys.path += {path!r}
from annexshell.__main__ import main

sys.exit(main())
"""
# For sh, the first line of the body is a command; for Python, the beginning of a string.
_SH_START = """\
#!/bin/sh
'''exec' {python} -IS "$0" "$@"
'''"""


class Report:
    """What was done, and what the person should know besides."""

    __slots__ = ("done", "warnings")

    def __init__(self, done: str, warnings: list[str]) -> None:
        self.done = done
        self.warnings = warnings


def run(directory: str, name: str = "git-annex-shell", *, symlink: bool = False, force: bool = False) -> Report:
    """Create DIRECTORY/NAME. Raises AnnexshellError, OSError."""
    if not name or "/" in name or name in (".", ".."):
        raise AnnexshellError(f"{name!r} cannot be the name of a program")
    target = Path(directory).absolute() / name
    if not force and not is_ours(target):
        raise AnnexshellError(f"{target} is there already and is not annexshell; use --force to replace it")
    if symlink:
        program = installed_program()
        if target.exists() and target.samefile(program) and not target.is_symlink():
            raise AnnexshellError(f"{target} is the annexshell program itself")
        _put(target, lambda temporary: os.symlink(program, temporary))
        done = f"{target} is a symlink to {program} now."
    else:
        text = launcher(sys.executable, import_path())
        _put(target, lambda temporary: _write_program(temporary, text))
        done = f"{target} runs annexshell {annexshell.__version__} with {sys.executable} now."
    return Report(done, _path_warnings(target))


def is_ours(target: Path) -> bool:
    """Whether TARGET may be replaced without asking: there is nothing, or something that link-shell made."""
    if target.is_symlink():
        return os.path.basename(os.readlink(target)) == "annexshell"
    try:
        with target.open("rb") as file:
            return _MARK.encode() in file.read(4096).splitlines()
    except FileNotFoundError:
        return True
    except OSError:
        return False


def installed_program() -> Path:
    """The annexshell program to link to. Raises AnnexshellError."""
    candidates = [Path(sys.argv[0]).absolute(), Path(sys.executable).parent / "annexshell"]
    found = shutil.which("annexshell")
    if found:
        candidates.append(Path(found).absolute())
    for candidate in candidates:
        if candidate.name == "annexshell" and candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate
    raise AnnexshellError("no installed annexshell program to link to; leave out --symlink")


def import_path() -> list[str]:
    """Where the launcher finds annexshell and the libraries that it uses, as it starts without any."""
    places = [Path(annexshell.__file__).parent.parent]
    for library in ("blake3", "xxhash", "tomli"):
        spec = find_spec(library)
        if spec is not None and spec.origin:
            origin = Path(spec.origin).parent
            places.append(origin.parent if spec.submodule_search_locations else origin)
    return list(dict.fromkeys(str(place.absolute()) for place in places))


def launcher(python: str, path: list[str]) -> str:
    """The text of a program that starts annexshell.

    ``-I`` keeps the client's PYTHON... variables and the current directory out, ``-S`` saves the time that setting
    up site-packages takes.
    """
    if not python:
        raise AnnexshellError("this Python does not know where it is, so that nothing can start it")
    start = f"#!{python} -IS"
    if len(os.fsencode(start)) > _SHEBANG_LIMIT or any(blank in python for blank in " \t\n"):
        start = _SH_START.format(python=_sh_quote(python))
    return _LAUNCHER.format(start=start, mark=_MARK, path=path)


def _sh_quote(word: str) -> str:
    # Double quotes, as three single ones in a row would end the string that this is for Python.
    if any(letter in word for letter in '"\\$`\n') or "'''" in word:
        raise AnnexshellError(f"cannot write a program that starts {word!r}; use --symlink")
    return f'"{word}"'


def _write_program(temporary: str, text: str) -> None:
    # Executable by whom the umask lets, as any program that is installed.
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o777)
    with open(fd, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(text)


def _put(target: Path, create: Callable[[str], None]) -> None:
    """Let CREATE make a file and rename it to TARGET: clients that start meanwhile find the old or the new one."""
    if target.is_dir() and not target.is_symlink():
        raise AnnexshellError(f"{target} is a directory")
    with tempfile.TemporaryDirectory(prefix=".link-shell.", dir=target.parent) as temporary:
        made = os.path.join(temporary, "new")
        create(made)
        os.replace(made, target)


def _path_warnings(target: Path) -> list[str]:
    """Why a client that logs in here could run something else; sshd's PATH may differ from ours, though."""
    search = [Path(entry).absolute() for entry in os.get_exec_path() if entry]
    if target.parent not in search and not any(_same(target.parent, entry) for entry in search):
        return [f"{target.parent} is not in PATH, so that clients may not find {target.name}."]
    found = shutil.which(target.name)
    if found and not _same(Path(found), target):
        return [f"{found} comes first in PATH, so that clients may run that one."]
    return []


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False
