"""Until when content must be kept, even if whoever locked it is gone (spec: objects §7).

``KF.rtm`` beside the object has the time, ``KF.rtl`` is locked while it is written. Both belong to holders of the
content lock: nobody may delete them who does not hold that exclusively.
"""

from __future__ import annotations

import errno
import os
import time

from annexshell.annex import lockfile
from annexshell.annex.othertmp import OtherTmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions

_SECOND = 10**9
_TOO_LONG = 1 << 16  # no time that anybody means has that many digits
_FAR_DIGITS = 20
_FAR = 10**_FAR_DIGITS  # seconds; what is later is as good as for ever


def parse(text: bytes) -> int | None:
    """The nanoseconds since the epoch that a retention file tells, None if it tells nothing.

    Digits beyond the nanosecond do not count. What is unparsable is neither honoured nor deleted.
    """
    sign = -1 if text[:1] == b"-" else 1
    if text[:1] in (b"-", b"+"):
        text = text[1:]
    if text[-1:] == b"s":
        text = text[:-1]
    seconds, dot, fraction = text.partition(b".")
    if not seconds.isdigit() or (dot and not fraction.isdigit()):
        return None
    seconds = seconds.lstrip(b"0") or b"0"
    whole = _FAR if len(seconds) > _FAR_DIGITS else int(seconds)
    return sign * (whole * _SECOND + int(fraction[:9].ljust(9, b"0")))


def format(nanoseconds: int) -> bytes:
    """A time as git-annex writes it: ``1795342349.4776s``, ``1795342349s``."""
    seconds, rest = divmod(nanoseconds, _SECOND)
    return b"%d%ss" % (seconds, (b".%09d" % rest).rstrip(b"0") if rest else b"")


def read(path: bytes) -> bytes | None:
    """The content of a retention file, None if there is none. Raises OSError when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _TOO_LONG)
    finally:
        os.close(fd)


class Retention:
    """The retention time of one object, whose path it is made from."""

    __slots__ = ("_lock", "_path")

    def __init__(self, object_path: bytes) -> None:
        self._path = object_path + b".rtm"
        self._lock = object_path + b".rtl"

    def until(self) -> int | None:
        """Nanoseconds since the epoch, None if there is no time. Raises OSError when that cannot be told."""
        content = read(self._path)
        return None if content is None else parse(content)

    def extend(self, repo: GitRepository, permissions: Permissions, seconds: int) -> bytes | None:
        """Retain the content for SECONDS from now; gives what was written, None where a later time stood already.

        For holders of the shared content lock, in the thawed object directory. Raises OSError, PermissionError
        among them when somebody froze the directory meanwhile.
        """
        with lockfile.waited_for(self._lock, lockfile.EXCLUSIVE) as lock:
            permissions.adjust_file(lock.fd)
            wanted = time.time_ns() + seconds * _SECOND
            content = format(wanted)
            try:
                # Written in place: whoever would be misled by half a time must first get the content lock
                # exclusively, which the one that we hold prevents, or the lock of this file, which we hold too.
                _write_new(self._path, content)
                return content
            except FileExistsError:
                pass
            standing = self.until()
            # Never lowered: another holder relies on it.
            if standing is not None and standing >= wanted:
                return None
            with OtherTmp(repo, permissions) as tmp:
                temporary = tmp.unique(b"rtm")
                _write_new(temporary, content)
                try:
                    # In one step: the standing time may be all that keeps the content, its writer being gone.
                    os.rename(temporary, self._path)
                except BaseException:
                    os.unlink(temporary)
                    raise
            return content

    def delete_if(self, content: bytes) -> None:
        """Delete the time if it is still the one that was written as CONTENT. For holders of the exclusive lock."""
        if read(self._path) == content:
            self.delete()

    def delete_if_past(self) -> bool:
        """Delete the time if it has passed; gives whether removal may go on. For holders of the exclusive lock."""
        until = self.until()
        if until is None:
            return True
        if time.time_ns() <= until:
            return False
        self.delete()
        return True

    def delete(self) -> None:
        """For holders of the exclusive content lock: nobody else waits for the lock file or has it open."""
        for path in (self._path, self._lock):
            try:
                os.unlink(path)
            except FileNotFoundError:
                pass

    def is_future(self) -> bool:
        """Whether removal is refused now."""
        until = self.until()
        return until is not None and time.time_ns() <= until


def _write_new(path: bytes, content: bytes) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        if os.write(fd, content) != len(content):
            raise OSError(errno.ENOSPC, "the retention time could not be written completely")
    except BaseException:
        os.unlink(path)
        raise
    finally:
        os.close(fd)
