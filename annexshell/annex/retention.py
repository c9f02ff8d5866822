"""Until when content must be kept, even if whoever locked it is gone (spec: objects §7).

``KF.rtm`` beside the object has the time, ``KF.rtl`` is locked while it is written. Both belong to holders of the
content lock: nobody may delete them who does not hold that exclusively.

git-annex goes by ``KF.rtm`` alone, which has the latest time, and takes no notice of what is in ``KF.rtl``. There
each of our holders has a line with its time until it lets go of the content. So it does not matter in which order
they do, and one that was killed is not forgotten when others are done. A time with - before it stands in ``KF.rtm``
though its holder let go of the content, because others were there who may not write lines.
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

_GIVEN_UP = b"-"
_LIMIT = 1 << 20  # bytes; a time has some twenty


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

    def extend(self, repo: GitRepository, permissions: Permissions, seconds: int) -> bytes:
        """Retain the content for SECONDS from now; gives the time, which is to be given up in the end.

        For holders of the shared content lock, in the thawed object directory. Raises OSError, PermissionError
        among them when somebody froze the directory meanwhile.
        """
        with lockfile.waited_for(self._lock, lockfile.EXCLUSIVE) as lock:
            permissions.adjust_file(lock.fd)
            before = _lines(os.pread(lock.fd, _LIMIT, 0))
            wanted = _now() + seconds * clock.SECOND
            content = clock.render(wanted)
            # First, as what stands in the other file for no reason that is known would stay there.
            _write_lines(lock.fd, before | {content})
            try:
                self._raise(repo, permissions, wanted, content)
            except BaseException:
                _write_lines(lock.fd, before)
                raise
            return content

    def _raise(self, repo: GitRepository, permissions: Permissions, wanted: int, content: bytes) -> None:
        try:
            # Written in place: whoever would be misled by half a time must first get the content lock
            # exclusively, which the one that we hold prevents, or the lock of this file, which we hold too.
            _write_new(self._path, content)
        except FileExistsError:
            standing = self.until()
            # Never lowered: another holder relies on it.
            if standing is None or standing < wanted:
                self._replace(repo, permissions, content)

    def _replace(self, repo: GitRepository, permissions: Permissions, content: bytes) -> None:
        with OtherTmp(repo, permissions) as tmp:
            temporary = tmp.unique(b"rtm")
            _write_new(temporary, content)
            try:
                # In one step: the standing time may be all that keeps the content, its writer being gone.
                os.rename(temporary, self._path)
            except BaseException:
                os.unlink(temporary)
                raise

    def give_up(
        self, repo: GitRepository, permissions: Permissions, written: bytes | None, *, is_alone: bool = True
    ) -> None:
        """Leave the times of others only, where :meth:`extend` gave WRITTEN; nothing, if there are none.

        For holders of the content lock in the thawed object directory, who ARE ALONE if they have it exclusively.
        Raises OSError.
        """
        if is_alone and self._is_given_up(_lines(read(self._lock)), written) == (True, set()):
            self.delete()
            return
        with lockfile.waited_for(self._lock, lockfile.EXCLUSIVE) as lock:
            lines = _lines(os.pread(lock.fd, _LIMIT, 0))
            is_given_up, others = self._is_given_up(lines, written)
            if not is_given_up:
                _write_lines(lock.fd, lines - {written})
            elif others:
                self._replace(repo, permissions, max(others, key=_time))
                _write_lines(lock.fd, others)
            elif is_alone:
                self.delete()
            else:
                _write_lines(lock.fd, {_GIVEN_UP + (read(self._path) or b"")})

    def _is_given_up(self, lines: set[bytes], written: bytes | None) -> tuple[bool, set[bytes]]:
        """Whether nobody relies on the time that stands, WRITTEN being given up; and the times in LINES but for that.

        A later time than ours that is in no line is of somebody who does not write them, and still relies on it.
        """
        standing = read(self._path)
        others = {line for line in lines if line != written and not line.startswith(_GIVEN_UP)}
        return standing in (None, written) or _GIVEN_UP + standing in lines, others

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


def _lines(content: bytes | None) -> set[bytes]:
    """What a lock file says, but for times that have passed."""
    now = _now()
    return {line for line in (content or b"").split(b"\n") if _time(line.removeprefix(_GIVEN_UP)) >= now}


def _write_lines(fd: int, times: set[bytes]) -> None:
    content = b"".join(b"%s\n" % time for time in times)
    # At no moment are there less of them than there should be.
    if os.pwrite(fd, content, 0) != len(content):
        raise OSError(errno.ENOSPC, "the retention times could not be written completely")
    os.ftruncate(fd, len(content))


def _time(text: bytes) -> int:
    """On logs.clock; long ago for what is no time."""
    return clock.parse(text) or 0


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
