"""The clock of log lines: exact decimal seconds, as integers of picoseconds (spec: branch §9.0).

Times are never floats: two lines whose times differ in the twelfth decimal are not a tie.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

SECOND = 10**12
_DECIMALS = 12
_VECTOR_CLOCK = b"GIT_ANNEX_VECTOR_CLOCK"


def parse(text: bytes) -> int | None:
    """Picoseconds of ``[+-]digits[.digits][s]``, decimals beyond the twelfth cut off; None for anything else."""
    digits = text[1:] if text[:1] in (b"+", b"-") else text
    if digits[-1:] == b"s":
        digits = digits[:-1]
    seconds, dot, fraction = digits.partition(b".")
    if not seconds.isdigit() or (dot and not fraction.isdigit()):
        return None
    try:
        value = int(seconds) * SECOND + int(fraction[:_DECIMALS].ljust(_DECIMALS, b"0"))
    except ValueError:  # thousands of digits: Python refuses them, and no clock has them
        return None
    if text[:1] != b"-":
        return value
    return -value - bool(fraction[_DECIMALS:].strip(b"0"))  # cutting off goes downwards


def render(clock: int) -> bytes:
    """The shortest decimal, followed by ``s``."""
    seconds, fraction = divmod(abs(clock), SECOND)
    text = b"%d.%012d" % (seconds, fraction) if fraction else b"%d" % seconds
    return (b"-" if clock < 0 else b"") + (text.rstrip(b"0") if fraction else text) + b"s"


def now(environ: Mapping[bytes, bytes] | None = None) -> int:
    """The candidate for a new line: whole seconds, or what GIT_ANNEX_VECTOR_CLOCK says if that is a time."""
    vector_clock = (os.environb if environ is None else environ).get(_VECTOR_CLOCK)
    if vector_clock is not None:
        value = parse(vector_clock)
        if value is not None:
            return value
    return int(time.time()) * SECOND


def advance(candidate: int, existing: Iterable[int | None]) -> int:
    """CANDIDATE, or a second past the newest of the existing times if it is not newer than that."""
    newest = max((clock for clock in existing if clock is not None), default=None)
    return candidate if newest is None or newest < candidate else newest + SECOND


def not_older(clock: int | None, than: int | None) -> bool:
    """Whether a line counts at least as much as another; an unknown time (None) is older than every known one."""
    return than is None or (clock is not None and clock >= than)
