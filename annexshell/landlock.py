"""Letting a program see only those files that it needs, where Linux has Landlock (5.13 and later).

A program that is not ours, talks to a client, and serves clients that are trusted with less than its user is, cannot
be relied upon to look at nothing else.
"""

from __future__ import annotations

import os
import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

# The same on all architectures that Linux has had Landlock for.
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION = 1  # for _CREATE_RULESET: tell which version of Landlock this is
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38  # for prctl(); what it takes to be let restrict oneself
_WRITE_FILE, _READ_FILE, _READ_DIR, _TRUNCATE = 1 << 1, 1 << 2, 1 << 3, 1 << 14
_EVERYTHING = (1 << 13) - 1
_EXECUTE = 1  # not restricted: what can be executed can also be loaded as a library
# What later versions can restrict in addition: renaming to other directories, truncating, ioctl() on devices.
_ADDED = ((2, 1 << 13), (3, _TRUNCATE), (5, 1 << 15))


class Ruleset:
    """Which files may be read, and which also written; everything else in the file system may be neither.

    Used in a ``with``. :attr:`exists` is false where the system has no Landlock; then nothing is restricted.
    """

    __slots__ = ("_fd", "_handled", "_prctl", "_syscall")

    _prctl: Callable[..., int]
    _syscall: Callable[..., int]

    def __init__(self) -> None:
        self._fd = -1
        self._handled = 0
        try:
            import ctypes

            libc = ctypes.CDLL(None, use_errno=True)
            self._prctl, self._syscall = libc.prctl, libc.syscall
        except (ImportError, OSError, AttributeError):
            return  # a Python without ctypes, or a system without these
        version = self._syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION)
        if version < 1:
            return
        self._handled = (_EVERYTHING & ~_EXECUTE) | sum(right for since, right in _ADDED if version >= since)
        attributes = struct.pack("=Q", self._handled)
        self._fd = self._syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(len(attributes)), 0)

    @property
    def exists(self) -> bool:
        return self._fd >= 0

    def let_read(self, paths: Iterable[bytes]) -> None:
        """Files, and directories with all that is below; those that do not exist are left out."""
        for path in paths:
            self._add(path, _READ_FILE | (_READ_DIR if os.path.isdir(path) else 0))

    def let_write(self, path: bytes) -> None:
        """A file that exists, to be read and overwritten."""
        self._add(path, _READ_FILE | _WRITE_FILE | _TRUNCATE)

    def _add(self, path: bytes, rights: int) -> None:
        if not self.exists:
            return
        try:
            fd = os.open(path, getattr(os, "O_PATH", os.O_RDONLY) | os.O_CLOEXEC)
        except OSError:
            return
        try:
            # A rule that cannot be added lets less be done, not more.
            self._syscall(_ADD_RULE, self._fd, _PATH_BENEATH, struct.pack("=Qi", rights & self._handled, fd), 0)
        finally:
            os.close(fd)

    def restrict(self) -> None:
        """From now on, this process and those that it starts are held to the rules. Raises OSError."""
        if self.exists and (self._prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) or self._syscall(_RESTRICT_SELF, self._fd, 0)):
            raise OSError("Landlock does not let itself be used")

    def __enter__(self) -> Ruleset:
        return self

    def __exit__(self, *_: object) -> None:
        if self.exists:
            os.close(self._fd)
            self._fd = -1
