"""From the directory that a client names to the path that is opened (spec: shell §3).

With GIT_ANNEX_SHELL_DIRECTORY the path that is compared is the path that is opened, ``..`` taken out of it as text:
what a symlink or a second spelling could make of the client's own words never counts (spec: shell §3.4).
"""

from __future__ import annotations

import os

from annexshell.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

RESTRICTION = b"GIT_ANNEX_SHELL_DIRECTORY"


def opened_path(directory: bytes, environ: Mapping[bytes, bytes] | None = None) -> bytes:
    """The absolute path to open for DIRECTORY, which keeps a trailing slash. Raises Refused."""
    environ = os.environb if environ is None else environ
    home = home_directory(environ)
    path = expand(directory, home)
    restriction = environ.get(RESTRICTION)
    if restriction is None:
        return path
    check(restriction, directory, home)
    slash = b"/" if path.endswith(b"/") else b""
    return normalise(path).rstrip(b"/") + slash or b"/"


def repository_path(path: bytes) -> bytes:
    """The directory of the repository that PATH stands for, which may not exist (spec: shell §3.2)."""
    stripped = path.rstrip(b"/") or b"/"
    parent, _, name = stripped.rpartition(b"/")
    if name == b".git":
        return stripped if os.path.isdir(stripped + b"/.git") else parent or b"/"
    if not os.path.lexists(stripped) and not path.endswith(b"/"):
        return stripped + b".git"
    return stripped


def home_directory(environ: Mapping[bytes, bytes]) -> bytes:
    """$HOME, else the home directory of the effective user; absolute, without a trailing slash."""
    home = environ.get(b"HOME") or _passwd_home(None) or b"/"
    return normalise(os.path.join(os.getcwdb(), home)) if home[:1] != b"/" else normalise(home)


def expand(directory: bytes, home: bytes) -> bytes:
    """DIRECTORY with its first ``~`` or ``~user`` replaced, absolute; nothing else about it changes."""
    start = 0 if directory[:1] == b"~" else directory.find(b"/~") + 1
    if start or directory[:1] == b"~":
        before, after = directory[:start], directory[start + 1 :]
        user, slash, rest = after.partition(b"/")
        found = _passwd_home(user) if user else home
        if found is not None:
            # A rest that starts with a slash stands for itself, as everywhere where paths are joined.
            directory = before + (os.path.join(found, rest) if slash else found)
    return os.path.join(home, directory)


def check(restriction: bytes, directory: bytes, home: bytes) -> None:
    """Refuse any directory but the one that RESTRICTION names (spec: shell §3.3). Raises Refused."""
    wanted, asked = comparable(restriction, home), comparable(directory, home)
    if _same(restriction, directory) or _same(wanted, asked):
        # The comparison takes some words for equal that lead to different places, so the places are compared too.
        below_home = os.path.join(home, wanted[2:].lstrip(b"/")) if wanted[:2] == b"~/" else wanted
        allowed = (normalise(expand(restriction, home)), normalise(below_home))
        if normalise(expand(directory, home)) in allowed:
            return
    raise Refused(f"Only allowed to access {os.fsdecode(wanted)} not {os.fsdecode(asked)}")


def comparable(directory: bytes, home: bytes) -> bytes:
    """DIRECTORY as the comparison and its message see it: ``~/`` and what follows, or an absolute path."""
    if directory[:2] == b"~/":
        return directory
    if directory[:3] == b"/~/":
        return directory[1:]
    path = normalise(os.path.join(home, directory))
    if path == home:
        return b"~/"
    below = home.rstrip(b"/") + b"/"
    return b"~/" + path[len(below) :] if path.startswith(below) else path


def normalise(path: bytes) -> bytes:
    """An absolute path without ``.``, ``..``, doubled and trailing slashes, as text."""
    return b"/" + os.path.normpath(path).lstrip(b"/")


def _same(one: bytes, other: bytes) -> bool:
    return _components(one) == _components(other)


def _components(path: bytes) -> tuple[bool, list[bytes]]:
    return path[:1] == b"/", [name for name in path.split(b"/") if name not in (b"", b".")]


def _passwd_home(user: bytes | None) -> bytes | None:
    import pwd

    try:
        entry = pwd.getpwuid(os.geteuid()) if user is None else pwd.getpwnam(os.fsdecode(user))
    except (KeyError, ValueError):
        return None
    return os.fsencode(entry.pw_dir)
