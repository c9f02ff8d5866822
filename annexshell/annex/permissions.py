"""Modes of the files and directories of the annex, as core.sharedRepository wants them (spec: objects §3)."""

from __future__ import annotations

import os
import stat

from annexshell.annex import hooks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import TypeVar

    from annexshell.annex.gitrepo import GitRepository

    T = TypeVar("T")

_WRITE = 0o222
_GROUP = frozenset((b"1", b"true", b"group"))
_ALL = frozenset((b"2", b"all", b"world", b"everybody"))
_ATTEMPTS = 20  # somebody may prune the empty directory we have just made, or freeze it, again and again
_LOCKED_DOWN_VERSION = (
    10  # up to version 9 the object itself is what gets locked, so sharers must be able to write it
)


class Permissions:
    """Sets modes in one repository. A mode is set only if it changes, and not at all on a crippled file system."""

    __slots__ = ("_crippled", "_explicit", "_hooks", "_repo", "_shared")

    def __init__(self, repo: GitRepository) -> None:
        config = repo.config
        self._repo = repo
        self._crippled = config.get_bool(b"annex.crippledfilesystem")
        self._shared, self._explicit = parse_shared(config.get(b"core.sharedrepository"))
        self._hooks = {
            action: hooks.find_hook(repo, action + b"content-annex") is not None
            or bool(config.get(b"annex." + action + b"content-command"))
            for action in (b"freeze", b"thaw")
        }

    @property
    def is_shared(self) -> bool:
        return bool(self._shared) or self._explicit is not None

    @property
    def _locked_down(self) -> bool:
        # Asked each time: another process may upgrade the repository while it is being served.
        version = self._repo.version
        return version is not None and version >= _LOCKED_DOWN_VERSION

    # Directories and files that are not content.

    def directory_mode(self, mode: int) -> int:
        """The mode of a directory that the umask gave MODE."""
        if self._explicit is not None:
            n = self._explicit
            execute = (n & 0o444) >> 2
            setgid = stat.S_ISGID if n & 0o060 else 0
            return n | execute | setgid
        return mode | {b"": 0, b"group": 0o770, b"all": 0o775}[self._shared]

    def file_mode(self, mode: int) -> int:
        """The mode of a lock, log or info file that the umask gave MODE."""
        if self._explicit is not None:
            return self._explicit
        return mode | {b"": 0, b"group": 0o660, b"all": 0o664}[self._shared]

    def adjust_directory(self, path: bytes) -> None:
        if self.is_shared:
            self._chmod(path, self.directory_mode)

    def adjust_file(self, file: bytes | int) -> None:
        """Set the mode of a new lock, log or info file, given by path or descriptor."""
        if self.is_shared:
            self._chmod(file, self.file_mode)

    def make_directory(self, path: bytes) -> None:
        """Create PATH, a directory below the annex directory, with its parents; existing ones are left alone.

        Raises FileNotFoundError when the git directory itself is gone.
        """
        for _ in range(_ATTEMPTS):
            try:
                self._make_directory(path)
                return
            except FileNotFoundError:
                continue  # a parent was pruned between its creation and ours
        self._make_directory(path)

    def _make_directory(self, path: bytes) -> None:
        try:
            os.mkdir(path)
        except FileExistsError:
            return
        except FileNotFoundError:
            if path == self._repo.annexdir:
                raise  # the repository was moved or unmounted: not a place to start a new one
            self._make_directory(os.path.dirname(path))
            try:
                os.mkdir(path)
            except FileExistsError:
                return
        self.adjust_directory(path)

    # Content: objects and the directories that hold one each.

    def freeze_object(self, path: bytes) -> None:
        """Take write permission from an object; its executable bits stay."""

        def frozen(mode: int) -> int:
            if self._explicit is not None:
                wanted = self._explicit & ~_WRITE if self._locked_down else self._explicit
                return wanted | mode & 0o111
            if not self._shared:
                return mode & ~_WRITE | 0o400
            if self._locked_down:
                return mode & ~_WRITE | (0o440 if self._shared == b"group" else 0o444)
            return mode | (0o660 if self._shared == b"group" else 0o666)

        self._chmod(path, frozen)
        self._run_hook(b"freeze", path)

    def thaw_object(self, path: bytes) -> None:
        """Make an object writable, for its removal or for locking it in old repository versions."""

        def thawed(mode: int) -> int:
            if self._explicit is not None:
                return self._explicit | 0o200 | mode & 0o111
            return mode | (0o660 if self._shared else 0o200)

        self._chmod(path, thawed)
        self._run_hook(b"thaw", path)

    def freeze_directory(self, path: bytes, found_mode: int | None = None) -> None:
        """Make an object directory read-only again; FOUND_MODE is its mode where that is known."""

        def frozen(mode: int) -> int:
            if self._explicit is not None:
                return self.directory_mode(mode) & ~0o200
            return mode | 0o660 if self._shared else mode & ~_WRITE

        self._chmod(path, frozen, found_mode)
        self._run_hook(b"freeze", path)

    def thaw_directory(self, path: bytes) -> int | None:
        """Make an object directory writable; gives its mode now, None where modes are not used."""

        def thawed(mode: int) -> int:
            # git-annex itself sets the bare file mode here, which locks everybody but root out of the directory.
            return self.directory_mode(mode) | 0o200 if self._explicit is not None else mode | 0o200

        mode = self._chmod(path, thawed)
        self._run_hook(b"thaw", path)
        return mode

    @property
    def has_thaw_hook(self) -> bool:
        return self._hooks[b"thaw"]

    def thawed(self, path: bytes) -> ThawedDirectory:
        """A ``with`` block in which the object directory PATH can be changed; it is frozen again in any case."""
        return ThawedDirectory(self, path)

    def _chmod(self, path: bytes | int, change: Callable[[int], int], mode: int | None = None) -> int | None:
        """Change the mode of PATH, which is MODE if that is given; gives what it is now (None: no modes)."""
        if self._crippled:
            return None
        if mode is None:
            mode = stat.S_IMODE(os.stat(path).st_mode)
        wanted = change(mode)
        if wanted == mode:
            return mode
        try:
            os.chmod(path, wanted)
        except FileNotFoundError:
            raise
        except OSError:
            # With sharing, the file is often another user's, who has made it right already.
            if not self.is_shared:
                raise
            return mode
        return wanted

    def _run_hook(self, action: bytes, path: bytes) -> None:
        if self._hooks[action]:
            argv = hooks.command(self._repo, action + b"content-annex", b"annex." + action + b"content-command", path)
            if argv is not None:
                hooks.run(argv)


class ThawedDirectory:
    """An object directory that is writable for the length of a ``with`` block (spec: objects §3.4)."""

    __slots__ = ("_mode", "_path", "_permissions")

    def __init__(self, permissions: Permissions, path: bytes) -> None:
        self._permissions = permissions
        self._path = path

    def __enter__(self) -> None:
        self._mode = self._permissions.thaw_directory(self._path)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._permissions.freeze_directory(self._path, self._mode)
        except FileNotFoundError:
            pass  # what was done in the block ended with the directory being pruned


def retry_thawed(permissions: Permissions, directory: bytes, action: Callable[[], T]) -> T:
    """Do ACTION, which may be begun anew, in an object directory, and give its result.

    Another process may freeze the directory under us, so EACCES is a reason to try again (spec: objects §3.4).
    Raises OSError, FileNotFoundError among them when there is no such directory.
    """
    for _ in range(_ATTEMPTS - 1):
        with permissions.thawed(directory):
            try:
                return action()
            except PermissionError:
                pass  # EACCES or EPERM
    with permissions.thawed(directory):
        return action()


def parse_shared(value: bytes | None) -> tuple[bytes, int | None]:
    """core.sharedRepository as (``b""``, ``b"group"`` or ``b"all"``; explicit mode or None).

    ``0`` means unshared, as in git; git-annex takes it as mode 0000 (spec: objects §3.1).
    """
    text = (value or b"").strip().lower()
    if text in _GROUP:
        return b"group", None
    if text in _ALL:
        return b"all", None
    try:
        mode = int(text, 8)
    except ValueError:
        return b"", None
    return b"", (mode & 0o7777) or None
