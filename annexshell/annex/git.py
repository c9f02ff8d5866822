"""Running git commands on a repository for what they print."""

from __future__ import annotations

import os

from annexshell import process
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.annex.gitrepo import GitRepository


class GitFailed(RepositoryError):
    """A git command ended with a status other than 0; it has said why on stderr."""


def output(
    repo: GitRepository,
    *arguments: bytes,
    input: bytes = b"",
    env: Mapping[bytes, bytes] | None = None,
    quiet: bool = False,
) -> bytes:
    """What ``git ARGUMENTS`` prints. Raises GitFailed, RepositoryError."""
    return _run(repo.git(*arguments), arguments[0], input, env, None if quiet else process.STDERR)


def run_in(directory: bytes, *arguments: bytes) -> bytes:
    """What ``git ARGUMENTS`` prints when it looks for the repository itself, its complaints being dropped."""
    return _run([b"git", b"-C", directory, *arguments], b"in a directory", b"", None, None)


def _run(
    argv: list[bytes], name: bytes, input: bytes, env: Mapping[bytes, bytes] | None, stderr: int | None
) -> bytes:
    try:
        done = process.run(argv, input, env=env, stderr=stderr)
    except process.ProgramNotFound as reason:
        raise RepositoryError(f"cannot run git: {reason.strerror}") from reason
    if done.status != 0:
        raise GitFailed(f"git {os.fsdecode(name)} failed with status {done.status}")
    return done.output


def object_id(printed: bytes, command: str) -> bytes:
    """The object id that a command printed on a line of its own; raises RepositoryError if it is none."""
    text = printed.removesuffix(b"\n")
    if not is_object_id(text):
        raise RepositoryError(f"git {command} printed something that is no object id")
    return text


def is_object_id(text: bytes) -> bool:
    """Whether TEXT is a full SHA-1 or SHA-256 object id."""
    return len(text) in (40, 64) and not text.strip(b"0123456789abcdef")
