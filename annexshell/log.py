"""Messages for people, on stderr. stdout belongs to the protocol (spec: shell §11)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.audit import Audit

_debugging = False
# Who is told of what is done and refused; None where nobody keeps an audit log (see annexshell.audit).
audit: Audit | None = None


def enable_debug() -> None:
    """Make :func:`debug` write; from --debug or annex.debug."""
    global _debugging
    _debugging = True


def debugging() -> bool:
    return _debugging


def warn(message: str | bytes) -> None:
    """Something the person at the other end should know, though the work goes on."""
    _write("  ", message)


def error(message: str | bytes, program: str = "annexshell") -> None:
    """Why what was asked is not being done."""
    _write(f"{program}: ", message)


def debug(message: str) -> None:
    """What is going on, for those who asked for it. Never give it content or secrets."""
    if _debugging:
        import time

        _write(time.strftime("[%Y-%m-%d %H:%M:%S] ", time.localtime()), message)


def printable(text: str | bytes) -> str:
    """TEXT on one line without control characters, which a terminal would obey."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else " " if c in "\t\n\r" else "?" for c in text)


def _write(prefix: str, message: str | bytes) -> None:
    line = f"{prefix}{printable(message)}\n".encode("utf-8", "backslashreplace")
    try:
        # One write per line, so that lines of several processes do not mix.
        os.write(2, line)
    except OSError:
        pass  # nobody is listening any more; the work is more important than the message
