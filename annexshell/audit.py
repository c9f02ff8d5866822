"""The audit log: a line for each session, and for each key that was stored, sent, removed or locked, or was not.

Imported only where such a log is wanted: :func:`start` then sets ``log.audit``, which is None everywhere else, and
that is all that whoever has something to tell looks at.

A line is one JSON object in ASCII, so that nothing a client says can end the line, forge another one, or do anything
to the terminal of its reader. Content, and what gives access, is never in it. annexshell-audit(5) has the fields.
"""

from __future__ import annotations

import os
import time

# What the json module, which takes longer to import than all of this file, has its strings from.
from _json import encode_basestring_ascii

from annexshell import log
from annexshell.errors import AnnexshellError, Hangup, Refused, TemporaryFailure, TransferRefused
from annexshell.termination import Terminated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    from annexshell.key import Key
    from annexshell.p2p.server import GitService
    from annexshell.p2p.wire import Connection
    from annexshell.repository import Repository

    class Sink(Protocol):
        """Where lines go."""

        def write(self, line: bytes, is_notable: bool) -> None:
            """Add a line, given without its LF. Raises OSError."""


SYSLOG = b"syslog"
# Outcomes.
OK = "ok"
BEGUN = "begun"
HANDED_OVER = "handed-over"
PRESENT = "present"
REFUSED = "refused"
FAILED = "failed"
INCOMPLETE = "incomplete"
_ORDINARY = (OK, BEGUN, HANDED_OVER, PRESENT)

# Characters of anything that a client says. No key that can be stored is longer, since its file name would be.
_LONGEST = 512
_LARGEST = (1 << 63) - 1


def start(where: bytes, user: bytes | None = None) -> Audit:
    """Keep an audit log of this process from now on, in the file WHERE, or in syslog if it is that word.

    USER is the name that the policy has for the client. Raises TemporaryFailure.
    """
    from annexshell.auditsinks import File, Syslog

    try:
        sink: Sink = Syslog() if where == SYSLOG else File(where)
    except OSError as reason:
        raise _unusable("cannot be opened", reason) from reason
    log.audit = Audit(sink, user)
    return log.audit


def _unusable(what: str, reason: OSError) -> TemporaryFailure:
    # It may pass, as a full disk or a wrong line of the server's configuration does. Any other exit status would make
    # clients give up the remote for good (spec: shell §10.3). Where the log is, is the server's own affair.
    return TemporaryFailure(
        f"the audit log of this server {what} ({reason.strerror or reason}), and nothing is done without;"
        " its administrator can mend that"
    )


class Audit:
    """What happens in this process, which serves one client, as it is told to a log."""

    __slots__ = ("_began", "_ended", "_facts", "_lost", "_sink", "_who")

    def __init__(self, sink: Sink, user: bytes | None = None) -> None:
        self._sink = sink
        self._began = time.monotonic()
        self._ended = False
        self._lost = 0  # lines in a row that could not be written
        address, port = _peer()
        self._facts: dict[str, bytes | str | int | None] = {
            "session": os.urandom(6).hex(),
            "user": user,
            "account": _account(),
            "address": address,
            "port": port,
        }
        self._who = b""  # the facts, as every line has them; empty when there are new ones

    def describe(self, **facts: bytes | str | None) -> None:
        """What the lines from now on tell of the session: command, directory, client, repository."""
        self._facts.update(facts)
        self._who = b""

    # The session.

    def begin(self) -> None:
        """The session passed all checks, and is going to do something. Raises TemporaryFailure."""
        self._begin(BEGUN)

    def hand_over(self) -> None:
        """The same, but it is another program that is going to, of which nothing can be told. Raises likewise."""
        self._begin(HANDED_OVER)

    def _begin(self, outcome: str) -> None:
        try:
            self._sink.write(self._line("session", outcome, b""), False)
        except OSError as reason:
            self._ended = True  # it is no use to try to tell of that
            raise _unusable("cannot be written", reason) from reason

    def end(self, outcome: str = OK, reason: str = "") -> None:
        """The session is over; what is told of that afterwards does not count."""
        if not self._ended:
            self._ended = True
            self.event("session", outcome, since=self._began, reason=reason)

    def end_with(self, status: int) -> None:
        """The same for one that has this exit status."""
        self.end(*((FAILED, f"exit status {status}") if status else (OK, "")))

    def end_by(self, error: BaseException) -> None:
        """The same for one that an error has ended."""
        self.end(*verdict(error))

    # What happens in it.

    def event(
        self,
        action: str,
        outcome: str,
        *,
        key: Key | None = None,
        count: int | None = None,
        offset: int = 0,
        since: float | None = None,
        reason: str | bytes = b"",
    ) -> None:
        """ACTION had this OUTCOME; COUNT bytes from OFFSET on were moved, SINCE this time.monotonic()."""
        rest = b""
        if key is not None:
            rest = b',"key":%b' % quoted(key.serialized)
        if count is not None:
            rest += b',"bytes":%d' % count
        if offset:
            # Clients may ask for any, and numbers with more than 4300 digits cannot be written in decimal.
            rest += b',"offset":%d' % min(offset, _LARGEST)
        if since is not None:
            rest += b',"seconds":%.6f' % (time.monotonic() - since)
        if reason:
            rest += b',"reason":%b' % quoted(reason)
        if self._lost:
            rest += b',"lost":%d' % self._lost
        try:
            self._sink.write(self._line(action, outcome, rest), outcome not in _ORDINARY)
        except OSError as error:
            self._lost += 1
            if self._lost == 1:
                # What is served now was begun in good order, and to end it in the middle would cost content.
                log.warn(f"the audit log of this server cannot be written any more: {error.strerror or error}")
        else:
            self._lost = 0

    def event_by(
        self,
        action: str,
        error: BaseException,
        *,
        key: Key | None = None,
        count: int | None = None,
        offset: int = 0,
        since: float | None = None,
    ) -> None:
        """The same for what ERROR has prevented."""
        outcome, reason = verdict(error)
        self.event(action, outcome, key=key, count=count, offset=offset, since=since, reason=reason)

    def refuse(self, action: str, reason: bytes, key: Key | None = None) -> None:
        """ACTION is what the client may not do."""
        self.event(action, REFUSED, key=key, reason=reason)

    def watch(self, repository: Repository) -> Repository:
        """REPOSITORY, used so that the log is told of it."""
        from annexshell.audited import AuditedRepository

        return AuditedRepository(repository, self)

    def watch_git(self, service: GitService) -> GitService:
        """The same for git's services inside a session."""

        def serve(connection: Connection, name: bytes) -> None:
            began = time.monotonic()
            try:
                service(connection, name)
            except BaseException as error:
                self.event_by(name.decode(), error, since=began)
                raise
            self.event(name.decode(), OK, since=began)

        return serve

    def _line(self, action: str, outcome: str, rest: bytes) -> bytes:
        if not self._who:
            self._who = b"".join(_field(name, value) for name, value in self._facts.items() if value)
        now = time.time()
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now))
        said = f'{{"time":"{moment}.{int(now % 1 * 1000):03}Z","action":"{action}","outcome":"{outcome}"'
        return b"%b%b%b}" % (said.encode(), rest, self._who)


def verdict(error: BaseException) -> tuple[str, str]:
    """The outcome that ERROR means for what it has ended, and its reason in words."""
    if isinstance(error, Refused | TransferRefused):
        return REFUSED, why(error)
    if isinstance(error, Hangup | BrokenPipeError | Terminated):
        return INCOMPLETE, why(error)
    if isinstance(error, AnnexshellError | OSError):
        return FAILED, why(error)
    return FAILED, f"internal error: {type(error).__name__}: {error}"


def why(error: BaseException) -> str:
    """What ERROR says, without paths, which are not always what a client asked for."""
    if isinstance(error, Terminated):
        return "a signal ended the session"
    if isinstance(error, BrokenPipeError):
        return "the client closed its end"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or "the client ended the session"


def quoted(text: bytes | str) -> bytes:
    """TEXT as a JSON string in ASCII, at most so long; what is not UTF-8 looks like this in it: \\xff."""
    if isinstance(text, str):
        text = text.encode("utf-8", "backslashreplace")
    words = text[: _LONGEST * 4 + 4].decode("utf-8", "backslashreplace")
    if len(words) > _LONGEST:
        words = words[: _LONGEST - 1] + "…"
    # The one control character that JSON allows in ASCII.
    return encode_basestring_ascii(words).encode("ascii").replace(b"\x7f", b"\\u007f")


def _field(name: str, value: bytes | str | int) -> bytes:
    return b',"%b":%b' % (name.encode(), b"%d" % value if isinstance(value, int) else quoted(value))


def _account() -> str:
    """The account that sshd let the client in to."""
    import pwd

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _peer() -> tuple[bytes | None, int | None]:
    """The client's address and port, as sshd tells them; None where it is not sshd that runs us."""
    words = os.environb.get(b"SSH_CONNECTION", b"").split()
    is_complete = len(words) == 4 and words[1].isdigit() and len(words[1]) <= 5
    return (words[0], int(words[1])) if is_complete else (None, None)
