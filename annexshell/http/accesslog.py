"""A line about each request, for people (``combined``, as other web servers write it) or for programs (``json``).

Nothing in a line is what the client wants it to be: what is no plain text is escaped, and what could be a secret is
left out. That is the id of a lock, which is all that it takes to release it; the values of parameters that are not
ours, as somebody may have mistaken them for a way to log in; and the Authorization header.
"""

from __future__ import annotations

import json
import os
import re
import select
import stat
import threading
import time
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, NamedTuple

from annexshell import log
from annexshell.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable

_PLAIN_PARAMETERS = "associatedfile|bypass|clientuuid|data-present|key|offset|timestamp"
_SECRET = re.compile(rf"([?&;](?!(?:{_PLAIN_PARAMETERS})=)[^=&;]*=)[^&;]*")
_LOGIN = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*://)[^/?#]*@")  # in the target of a request to a proxy
_SPECIAL = re.compile(rb"[^ !#-\[\]-~]")
_LONGEST = 2000  # characters of what a client says; longer ones fill disks
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_DELAY = 0.1  # seconds for which lines are collected
_MOST_PENDING = 20_000  # lines that wait for a disk, or for somebody who reads the pipe
_AT_ONCE = 1 << 16  # bytes
_CLOSING = 2.0  # seconds


class Entry(NamedTuple):
    """What is known of a request that has ended. Texts are as the client said them."""

    time: float  # when it began
    remote: str | None
    user: bytes | None
    method: str
    target: str
    protocol: str  # of what was no request, this and the two before it are empty
    status: int
    received: int  # bytes of the request's body
    sent: int  # and of the answer's
    complete: bool  # the answer was given to its end
    duration: float  # seconds
    referer: str
    agent: str


def combined(entry: Entry) -> bytes:
    """As Apache's and nginx's format of that name."""
    user = "-" if entry.user is None else _escaped(entry.user.decode("utf-8", "surrogateescape"))
    request = "-"
    if entry.protocol:
        request = f"{_escaped(entry.method)} {_escaped(without_secrets(entry.target))} {entry.protocol}"
    return (
        f"{_escaped(entry.remote or '-')} - {user.replace(' ', '_') or '-'} [{_date(int(entry.time))}]"
        f' "{request}" {entry.status} {entry.sent}'
        f' "{_escaped(entry.referer) or "-"}" "{_escaped(entry.agent) or "-"}"\n'
    ).encode("ascii")


def as_json(entry: Entry) -> bytes:
    """One object."""
    moment = datetime.fromtimestamp(entry.time, timezone.utc).isoformat(timespec="milliseconds")
    values = {
        "time": moment.replace("+00:00", "Z"),
        "remote": entry.remote,
        "user": None if entry.user is None else entry.user.decode("utf-8", "backslashreplace"),
        "method": _text(entry.method) or None,
        "target": _text(without_secrets(entry.target)) or None,
        "protocol": entry.protocol or None,
        "status": entry.status,
        "received": entry.received,
        "sent": entry.sent,
        "complete": entry.complete,
        "duration": round(entry.duration, 6),
        "referer": _text(entry.referer) or None,
        "agent": _text(entry.agent) or None,
    }
    # DEL is the one control character that JSON lets pass.
    return json.dumps(values, separators=(",", ":")).replace("\x7f", "\\u007f").encode("ascii") + b"\n"


FORMATS: dict[str, Callable[[Entry], bytes]] = {"combined": combined, "json": as_json}


def without_secrets(target: str) -> str:
    """The target of a request line without what nobody else should know."""
    target = _LOGIN.sub(r"\1", target)
    return _SECRET.sub(r"\1...", target) if "?" in target else target


def _text(said: str) -> str:
    """What a client said, for JSON: bytes that are no UTF-8 as ``\\xff``."""
    return _short(said).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escaped(said: str) -> str:
    """What a client said, with everything but plain ASCII as ``\\xff``: there are too many ways to draw nothing."""
    raw = _short(said).encode("utf-8", "surrogateescape")
    return _SPECIAL.sub(lambda match: b"\\x%02x" % match[0][0], raw).decode("ascii")


def _short(said: str) -> str:
    return said if len(said) <= _LONGEST else said[:_LONGEST] + "..."


_last_date = (0, "")


def _date(second: int) -> str:
    """In English, whatever the locale is."""
    global _last_date
    known, text = _last_date
    if known != second:
        now = time.localtime(second)
        text = time.strftime(f"%d/{_MONTHS[now.tm_mon - 1]}/%Y:%H:%M:%S %z", now)
        _last_date = second, text
    return text


class LogFile:
    """A file that lines are appended to, in a thread of its own: neither disks nor readers of pipes are in a hurry.

    Several processes may append to the same one. It is made anew after it was moved away. Raises UsageError if it
    cannot be opened.
    """

    def __init__(self, path: bytes | None, delay: float = _DELAY) -> None:
        """PATH is None for standard output."""
        # It may be another directory by the time that the file is opened again.
        self._path = None if path is None else os.path.abspath(path)
        try:
            self._fd = os.dup(1) if self._path is None else _open(self._path)
        except OSError as reason:
            raise UsageError(f"cannot write the access log: {_explained(self._path, reason)}") from reason
        self._delay = delay
        self._pending: deque[bytes] = deque()
        self._wake = threading.Event()
        self._thread: threading.Thread | None = None  # started late, as a process with threads cannot fork
        self._closed = False
        self._dropped = 0  # lines, because too many were waiting
        self._failed = 0  # lines, because of errors
        self._told_lost = 0
        self._is_broken = False  # what was written last is not the end of a line
        self._complaint = ""

    def write(self, line: bytes) -> None:
        """Takes no time; on one thread."""
        if len(self._pending) >= _MOST_PENDING:
            self._dropped += 1
            return
        self._pending.append(line)
        if not self._wake.is_set():
            self._wake.set()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="access log", daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Write what is left, unless that takes long."""
        self._closed = True
        self._wake.set()
        if self._thread is not None:
            self._thread.join(_CLOSING)
            if self._thread.is_alive():
                return  # it is still using the file
        os.close(self._fd)

    # In the thread.

    def _run(self) -> None:
        while True:
            self._wake.wait()
            if not self._closed:
                time.sleep(self._delay)
                self._wake.clear()
            is_last = self._closed
            self._write_pending()
            if is_last:
                return

    def _write_pending(self) -> None:
        self._follow()
        # What is no longer than that arrives at a pipe in one piece, whoever else writes to it.
        limit = _AT_ONCE if stat.S_ISREG(os.fstat(self._fd).st_mode) else select.PIPE_BUF
        while self._pending:
            lines = [self._pending.popleft()]
            length = len(lines[0])
            while self._pending and length + len(self._pending[0]) <= limit:
                lines.append(self._pending.popleft())
                length += len(lines[-1])
            try:
                self._write_whole(b"".join(lines))
            except OSError as reason:
                self._failed += len(lines)
                self._complain(_explained(self._path, reason))
            else:
                self._tell_lost()

    def _write_whole(self, data: bytes) -> None:
        if self._is_broken:
            data = b"\n" + data
        rest = memoryview(data)
        while rest:
            try:
                count = os.write(self._fd, rest)
            except BlockingIOError:
                select.select([], [self._fd], [])
                continue
            rest = rest[count:]
            self._is_broken = bool(rest)

    def _follow(self) -> None:
        """Open a new file if ours was moved away, or removed."""
        if self._path is None:
            return
        try:
            if not _is_same(self._path, self._fd):
                new = _open(self._path)
                os.close(self._fd)
                self._fd = new
                self._is_broken = False
        except OSError as reason:
            self._complain(f"{_explained(self._path, reason)}; going on with the file that was moved away")

    def _tell_lost(self) -> None:
        lost = self._dropped + self._failed
        if lost > self._told_lost:
            log.warn(f"{lost - self._told_lost} lines of the access log were lost")
            self._told_lost = lost
        self._complaint = ""

    def _complain(self, complaint: str) -> None:
        """Once, as it is going to happen again."""
        if complaint != self._complaint:
            log.warn(f"cannot write the access log: {complaint}")
        self._complaint = complaint


def _open(path: bytes) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o640)


def _is_same(path: bytes, fd: int) -> bool:
    ours = os.fstat(fd)
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return False
    return (found.st_dev, found.st_ino) == (ours.st_dev, ours.st_ino)


def _explained(path: bytes | None, reason: OSError) -> str:
    where = "standard output" if path is None else log.printable(path)
    return f"{where}: {reason.strerror}"
