"""What ``git annex init`` installs in a repository with a work tree (spec: branch §10.2 step 8).

All of it runs git-annex, and does nothing where that is not installed.
"""

from __future__ import annotations

import os

from annexshell import log
from annexshell.annex.journal import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository

FILTER = {
    b"filter.annex.smudge": b"git-annex smudge -- %f",
    b"filter.annex.clean": b"git-annex smudge --clean -- %f",
    b"filter.annex.process": b"git-annex filter-process",
}
_ATTRIBUTES = b"\n* filter=annex\n"
# git-annex knows the hooks that it may change by their exact content.
_HOOK = b"#!/bin/sh\n# automatically configured by git-annex\n%s\n"
_HOOKS = {
    b"pre-commit": b"git annex pre-commit .",
    b"post-receive": b"if git annex post-receive --help >/dev/null 2>&1; then git annex post-receive; fi",
    b"post-checkout": b"git annex smudge --update",
    b"post-merge": b"git annex smudge --update",
    b"pre-push": b"if git annex pre-push --help >/dev/null 2>&1; then git annex pre-push; fi",
}


def install(repo: GitRepository) -> None:
    """Install hooks and attributes, leaving alone what others have put there. Raises OSError."""
    for name, command in _HOOKS.items():
        _install_hook(repo, name, _HOOK % command)
    os.makedirs(repo.commondir + b"/info", exist_ok=True)
    fd = os.open(repo.commondir + b"/info/attributes", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        content = read_file(fd)
        if _ATTRIBUTES.strip() not in content.splitlines():
            os.write(fd, _ATTRIBUTES)
    finally:
        os.close(fd)


def _install_hook(repo: GitRepository, name: bytes, content: bytes) -> None:
    directory = repo.commondir + b"/hooks"
    os.makedirs(directory, exist_ok=True)
    path = directory + b"/" + name
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o777)
    except FileExistsError:
        if not _has_content(path, content):
            log.warn(f"{name.decode()} hook ({os.fsdecode(path)}) already exists, not configuring")
        return
    try:
        os.write(fd, content)
    finally:
        os.close(fd)


def _has_content(path: bytes, content: bytes) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        return os.read(fd, len(content) + 1) == content
    finally:
        os.close(fd)
