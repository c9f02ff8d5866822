"""Hooks and configured commands that git-annex users expect to run (spec: shell §8, objects §4, branch §6.3-6.4).

A hook never sees the protocol: its stdin is /dev/null and its stdout our stderr.
"""

from __future__ import annotations

import os

from annexshell import log, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository


def find_hook(repo: GitRepository, name: bytes) -> bytes | None:
    """The path of an executable hook; core.hooksPath does not count for git-annex's hooks."""
    path = repo.commondir + b"/hooks/" + name
    try:
        executable = os.stat(path).st_mode & 0o111
    except OSError:
        return None
    return path if executable else None


def command(repo: GitRepository, hook: bytes, setting: bytes, *arguments: bytes) -> list[bytes] | None:
    """The argv for an action: its hook file, else its config setting run by sh, else None.

    In the setting's value, ``%path`` and ``%file`` become the (quoted) first argument.
    """
    path = find_hook(repo, hook)
    if path is not None:
        return [path, *arguments]
    value = repo.config.get(setting)
    if not value:
        return None
    for argument in arguments[:1]:
        quoted = b"'" + argument.replace(b"'", b"'\"'\"'") + b"'"
        value = value.replace(b"%path", quoted).replace(b"%file", quoted)
    return [b"sh", b"-c", value]


def run(argv: list[bytes]) -> int:
    """Run a hook, its output going to stderr; gives its exit status, 127 when it cannot be started."""
    try:
        return process.wait(process.spawn(argv, stdout=process.STDERR))
    except OSError as reason:
        log.warn(f"cannot run {os.fsdecode(argv[0])}: {reason.strerror}")
        return 127


def output(argv: list[bytes]) -> bytes | None:
    """What a hook prints, or None when it fails."""
    try:
        done = process.run(argv)
    except OSError as reason:
        log.warn(f"cannot run {os.fsdecode(argv[0])}: {reason.strerror}")
        return None
    return done.output if done.status == 0 else None
