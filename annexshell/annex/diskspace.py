"""Not filling the disk (spec: objects §11)."""

from __future__ import annotations

import os

from annexshell.errors import TransferRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.transfers import Transfers
    from annexshell.key import Key

_DEFAULT_RESERVE = 100_000_000
_DIGITS = "0123456789"
_LARGEST_POWER = 100
_LARGEST_SIZE = 10**36  # bytes; keys may claim to have more digits than numbers can be printed with
_LETTERS = "BkMGTPEZYRQ"
_DECIMAL = ("", "kilo", "mega", "giga", "tera", "peta", "exa", "zetta", "yotta", "ronna", "quetta")
_BINARY = ("kibi", "mebi", "gibi", "tebi", "pebi", "exbi", "zebi", "yobi")


def _units() -> dict[str, tuple[int, int]]:
    """Every name of a unit, in lower case, and how many bytes it has, as a fraction."""
    units = {"": (1, 1), "b": (1, 1)}
    for power, name in enumerate(_DECIMAL):
        units[name + "byte"] = units[name + "bytes"] = (1000**power, 1)
        if power:
            letter = _LETTERS[power].lower()
            units[letter] = units[letter + "b"] = (1000**power, 1)
            units[letter + "bit"] = units[name + "bit"] = units[name + "bits"] = (1000**power, 8)
    for power, name in enumerate(_BINARY, 1):
        letter = _LETTERS[power].lower() + "i"
        units[letter] = units[letter + "b"] = units[name + "byte"] = units[name + "bytes"] = (1024**power, 1)
    return units


def require_space(repo: GitRepository, key: Key, *, already: int, transfers: Transfers) -> None:
    """Refuse KEY, of which ALREADY bytes are on the disk, when the rest does not fit. Raises TransferRefused."""
    free = _beyond_reserve(repo)
    if free is None:
        return  # who cannot tell does not refuse; the disk itself will
    size = 1 if key.size is None else key.size
    missing = size - free - already
    # What others are about to write counts as written. Looked at only if it may change the answer.
    if missing <= 0:
        missing += _in_progress(transfers, key)
    if missing > 0:
        raise TransferRefused(
            f"not enough free space, need {rough_size(missing)} more"
            " (use --force to override this check or adjust annex.diskreserve)"
        )


def most_that_fits(repo: GitRepository, key: Key, *, already: int, transfers: Transfers) -> int | None:
    """How large KEY, of which ALREADY bytes are on the disk, may get; None where that cannot be told."""
    free = _beyond_reserve(repo)
    return None if free is None else already + max(0, free - _in_progress(transfers, key))


def _beyond_reserve(repo: GitRepository) -> int | None:
    """The free space in bytes, negative when it is less than what is reserved; None where that cannot be told."""
    try:
        status = os.statvfs(repo.annexdir)
    except OSError:
        return None
    return status.f_bavail * status.f_frsize - parse_reserve(repo.config.get(b"annex.diskreserve"))


def _in_progress(transfers: Transfers, key: Key) -> int:
    return sum(
        max(0, running.key.size - (running.bytes_complete() or 0))
        for running in transfers.running(b"download", other_than=key)
        if running.key.size is not None
    )


def parse_reserve(value: bytes | None) -> int:
    """annex.diskreserve in bytes: a decimal number and perhaps a unit; the default for anything else."""
    if not value:
        return _DEFAULT_RESERVE
    text = value.decode("utf-8", "replace").strip().lower()
    end = _number_length(text)
    rest = text[end:].lstrip()
    name = rest[: _span(rest, "abcdefghijklmnopqrstuvwxyz", 0)]
    unit = _units().get(name)
    if not end or unit is None or (rest and not name):
        return _DEFAULT_RESERVE
    whole, _, exponent = text[:end].partition("e")
    whole, _, fraction = whole.partition(".")
    try:
        power = int(exponent or "0") - len(fraction)
        if abs(power) > _LARGEST_POWER:
            return _DEFAULT_RESERVE
        # In integers, because a float is not exact enough for large disks.
        count = int(whole + fraction) * unit[0] * int("1" + "0" * power)
    except ValueError:  # thousands of digits
        return _DEFAULT_RESERVE
    return count // (unit[1] * int("1" + "0" * -power))


def _number_length(text: str) -> int:
    """How much of the start of TEXT is a number such as ``12``, ``1.5`` or ``1e3``."""
    end = _span(text, _DIGITS, 0)
    if not end:
        return 0
    if text[end : end + 1] == ".":
        end = _span(text, _DIGITS, end + 1)
        if text[end - 1] == ".":
            return 0
    if text[end : end + 1] == "e":
        start = end + 1 + (text[end + 1 : end + 2] in ("+", "-"))
        exponent_end = _span(text, _DIGITS, start)
        if exponent_end > start:
            return exponent_end
    return end


def _span(text: str, characters: str, start: int) -> int:
    """The end of the run of CHARACTERS that begins at START."""
    while start < len(text) and text[start] in characters:
        start += 1
    return start


def rough_size(size: int) -> str:
    """SIZE bytes for people, as git-annex says it: ``1.25 GB``."""
    power = 0
    size = min(size, _LARGEST_SIZE)
    while power + 1 < len(_LETTERS) and size >= 1000 ** (power + 1):
        power += 1
    number = f"{size / 1000**power:.2f}".rstrip("0").rstrip(".") if power else str(size)
    return f"{number} {_LETTERS[power]}{'B' if power else ''}"
