"""Until when content must be kept, even if whoever locked it is gone (spec: objects §7).

``KF.rtm`` beside the object has the time, ``KF.rtl`` is locked while it is written. Both belong to holders of the
content lock: nobody may delete them who does not hold that exclusively.
"""

from __future__ import annotations

import errno
import os
import time

from annexshell.annex import lockfile
from annexshell.annex.logs import clock
from annexshell.annex.othertmp import OtherTmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions

_LIMIT = 1 << 12  # bytes; a retention file has some twenty


def read(path: bytes) -> bytes | None:
    """The content of a retention file, None if there is none. Raises OSError when it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        return os.read(fd, _LIMIT)
    finally:
        os.close(fd)


class Retention:
    """The retention time of one object, whose path it is made from."""

    __slots__ = ("_lock", "_path")

    def __init__(self, object_path: bytes) -> None:
        self._path = object_path + b".rtm"
        self._lock = object_path + b".rtl"

    def until(self) -> int | None:
        """The time on logs.clock, None if there is none. Raises OSError when that cannot be told.

        What is unparsable is neither honoured nor deleted.
        """
        content = read(self._path)
        return None if content is None else clock.parse(content)

    def extend(self, repo: GitRepository, permissions: Permissions, seconds: int) -> bytes | None:
        """Retain the content for SECONDS from now; gives what was written, None where a later time stood already.

        For holders of the shared content lock, in the thawed object directory. Raises OSError, PermissionError
        among them when somebody froze the directory meanwhile.
        """
        with lockfile.waited_for(self._lock, lockfile.EXCLUSIVE) as lock:
            permissions.adjust_file(lock.fd)
            wanted = _now() + seconds * clock.SECOND
            content = clock.render(wanted)
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

    def delete_own(self, written: bytes | None) -> None:
        """Delete what :meth:`extend` left unless another time stands there. For holders of the exclusive lock."""
        if read(self._path) in (None, written):
            self.delete()

    def delete_if_past(self) -> bool:
        """Delete the time if it has passed; gives whether removal may go on. For holders of the exclusive lock."""
        until = self.until()
        if until is None:
            return True
        if _now() <= until:
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
        return until is not None and _now() <= until


def _now() -> int:
    return time.time_ns() * 1000


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
