"""Everything that is not ours goes to git-shell, which decides what it lets through (spec: shell §5).

git-shell replaces this process, so that the client talks to it alone and gets its exit status.
"""

from __future__ import annotations

import os

from annexshell import directories, forced, log
from annexshell.errors import AnnexshellError, Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import NoReturn

    from annexshell.policy.permission import Permissions

_SERVICES = (b"upload-pack", b"receive-pack", b"upload-archive")


def run(words: Sequence[bytes], permissions: Permissions | None = None) -> NoReturn:
    """Become git-shell. Raises Refused, AnnexshellError."""
    if log.audit is not None:
        service = parse_service(words[0]) if len(words) == 1 else None
        command, directory = service or (b" ".join(words), None)
        log.audit.describe(command=command, directory=directory)
    arguments = admitted(words, os.environb, permissions)
    if permissions is not None:
        from annexshell.checks import drop_git_variables

        drop_git_variables()
    if log.audit is not None:
        log.audit.hand_over()
    try:
        os.execvp(b"git-shell", [b"git-shell", b"-c", *arguments])
    except FileNotFoundError as reason:
        raise AnnexshellError("cannot run git-shell: it is not in PATH on this server") from reason


def admitted(
    words: Sequence[bytes], environ: Mapping[bytes, bytes], permissions: Permissions | None = None
) -> list[bytes]:
    """What git-shell is given after ``-c`` for WORDS. Raises Refused."""
    restriction = environ.get(directories.RESTRICTION)
    if restriction is None:
        end = words.index(b"--") if b"--" in words else len(words)
        arguments = list(words[:end])
    else:
        arguments = [_restricted(words, restriction, environ)]
    if permissions is not None:
        arguments = [_permitted(words, permissions, environ)]
    if environ.get(b"GIT_ANNEX_SHELL_LIMITED"):
        raise Refused("Action blocked by GIT_ANNEX_SHELL_LIMITED")
    return arguments


def _restricted(words: Sequence[bytes], restriction: bytes, environ: Mapping[bytes, bytes]) -> bytes:
    """The one command string that may run under GIT_ANNEX_SHELL_DIRECTORY.

    Only a git service with one quoted directory: of anything else, we could not tell which directory git-shell
    would use.
    """
    last_words = forced.unquote(words[-1])
    if not last_words:
        raise Refused(
            f"Only allowed to access {os.fsdecode(restriction)} and could not determine directory from command line"
        )
    service = parse_service(words[0]) if len(words) == 1 else None
    home = directories.home_directory(environ)
    directories.check(restriction, last_words[-1] if service is None else service[1], home)
    if service is None:
        wanted = os.fsdecode(directories.comparable(restriction, home))
        raise Refused(
            f"Only allowed to access {wanted}, by git-upload-pack, git-receive-pack or git-upload-archive"
            " with exactly one quoted directory"
        )
    prefix, directory = service
    allowed = directories.normalise(directories.expand(directory, home))
    if b".." in directory.split(b"/") or directories.normalise(_as_git_opens(directory, home)) != allowed:
        # Git would resolve ".." behind symlinks, and relative paths from the current directory.
        directory = allowed
    return prefix + b" " + quote(directory)


def _permitted(words: Sequence[bytes], permissions: Permissions, environ: Mapping[bytes, bytes]) -> bytes:
    """The one command string that may run with a policy, for the directory that the policy was asked about."""
    service = parse_service(words[0]) if len(words) == 1 else None
    if service is None:
        raise Refused(
            "Only git-upload-pack, git-receive-pack and git-upload-archive with exactly one quoted directory are"
            " allowed on this server, besides what git-annex-shell does"
        )
    prefix, asked = service
    name = b"git-" + prefix[4:]
    path = directories.repository_path(directories.opened_path(asked, environ))
    return name + b" " + quote(permissions.git_directory(name, asked, path))


def _as_git_opens(directory: bytes, home: bytes) -> bytes:
    if directory[:1] == b"~":
        return directories.expand(directory, home)
    return os.path.join(os.getcwdb(), directory)


def parse_service(command: bytes) -> tuple[bytes, bytes] | None:
    """``git-upload-pack 'DIR'`` as (``git-upload-pack``, DIR); None for whatever is not just that."""
    position = command.find(b" '")
    prefix = command[:position]
    if position < 0 or prefix[:4] not in (b"git-", b"git ") or prefix[4:] not in _SERVICES:
        return None
    directory = dequote(command[position + 1 :])
    return None if directory is None else (prefix, directory)


def quote(word: bytes) -> bytes:
    """WORD in quotes as git writes them."""
    return b"'" + word.replace(b"'", b"'\\''").replace(b"!", b"'\\!'") + b"'"


def dequote(quoted: bytes) -> bytes | None:
    """The inverse of :func:`quote`; None for anything that it could not have made."""
    if len(quoted) < 2 or quoted[:1] != b"'" or quoted[-1:] != b"'":
        return None
    inside = quoted[1:-1]
    word = inside.replace(b"'\\''", b"\0").replace(b"'\\!'", b"!")
    if b"'" in word or b"\0" in inside:
        return None
    return word.replace(b"\0", b"'")
