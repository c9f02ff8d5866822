"""Changing a repository's git config: several settings at once, or none of them (spec: shell §7.1).

``git config`` sets one at a time, and a repository that has some of annex.uuid and annex.version is of no use to
git-annex.
"""

from __future__ import annotations

import os
import time

from annexshell import relay
from annexshell.annex.journal import read_file
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository

_PATIENCE = 10.0  # seconds; git holds the lock for some milliseconds
_PAUSE = 0.02  # seconds
_ESCAPES = {b"\\": b"\\\\", b'"': b'\\"', b"\n": b"\\n", b"\t": b"\\t"}


class ConfigLock:
    """Git's own lock on a repository's config file, held for the length of a ``with`` block."""

    __slots__ = ("_fd", "_lockfile", "_path")

    def __init__(self, repo: GitRepository) -> None:
        # Like git, change the file that a symlink leads to.
        self._path = os.path.realpath(repo.commondir + b"/config")
        self._lockfile = self._path + b".lock"
        self._fd = -1

    def __enter__(self) -> ConfigLock:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._fd = os.open(self._lockfile, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
                return self
            except FileExistsError as reason:
                if time.monotonic() > deadline:
                    raise RepositoryError(
                        f"cannot change the git config: {os.fsdecode(self._lockfile)} exists. Another process may be "
                        "changing it; if none is, one has died doing so, and the file is to be deleted."
                    ) from reason
                time.sleep(_PAUSE)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            os.unlink(self._lockfile)

    def add(self, settings: Mapping[bytes, bytes]) -> None:
        """Add SETTINGS, by full name, all at once, and end the lock. A setting's last value counts."""
        fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            content = read_file(fd)
            mode = os.fstat(fd).st_mode & 0o7777
        finally:
            os.close(fd)
        relay.write_all(self._fd, content + _separator(content) + render(settings))
        os.fchmod(self._fd, mode)
        # Otherwise a power failure could leave an empty config: the end of the repository.
        os.fsync(self._fd)
        os.rename(self._lockfile, self._path)
        fd, self._fd = self._fd, -1
        os.close(fd)


def render(settings: Mapping[bytes, bytes]) -> bytes:
    """SETTINGS as sections of a config file."""
    lines = []
    current = None
    for name, value in settings.items():
        section, _, rest = name.partition(b".")
        subsection, _, variable = rest.rpartition(b".")
        if (section, subsection) != current:
            current = section, subsection
            lines.append(b'[%s "%s"]' % (section, _escape(subsection)) if subsection else b"[%s]" % section)
        lines.append(
            b'\t%s = "%s"' % (variable, _escape(value)) if _needs_quotes(value) else b"\t%s = %s" % (variable, value)
        )
    return b"".join(line + b"\n" for line in lines)


def _needs_quotes(value: bytes) -> bool:
    return value.strip() != value or any(c in value for c in b'#;"\\\n\t')


def _escape(text: bytes) -> bytes:
    for character, escaped in _ESCAPES.items():
        text = text.replace(character, escaped)
    return text


def _separator(content: bytes) -> bytes:
    """What keeps additions from becoming part of the last line, which a backslash would continue."""
    whole = not content or content.endswith(b"\n")
    return b"" if whole and not content.endswith(b"\\\n") else b"\n\n"
