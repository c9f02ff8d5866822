"""What a remote costs: those that cost less are tried first (spec: proxy §4.4)."""

from __future__ import annotations

from annexshell import log, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.remotes.remote import Remote

LOCAL = 100.0
NEARLY_LOCAL = 110.0
ANDROID = 175.0
EXPENSIVE = 200.0
MASKED = 225.0
VERY_EXPENSIVE = 1000.0

_ENCRYPTION = 50.0
_ENCRYPTED = frozenset((b"shared", b"hybrid", b"pubkey", b"sharedpubkey"))
_DIGITS = b"0123456789"


class Costs:
    """What remotes cost. A command that tells the costs of several remotes is only run once."""

    __slots__ = ("_outputs",)

    def __init__(self) -> None:
        self._outputs: dict[bytes, bytes | None] = {}

    def of(
        self, remote: Remote, default: float, recorded: bytes | None = None, *, setting: bytes | None = None
    ) -> float:
        """The cost of REMOTE by git config, else the one RECORDED in remote.log, else DEFAULT.

        SETTING, if given, counts instead of the remote's annex-cost.
        """
        command = remote.setting(b"annex-cost-command")
        if command:
            configured = self._output(command, remote)  # annex-cost does not count then, whatever the command says
        else:
            configured = remote.setting(b"annex-cost") if setting is None else setting
        for text in (configured, recorded):
            cost = None if text is None else parse(text)
            if cost is not None:
                return cost
        return default

    def _output(self, command: bytes, remote: Remote) -> bytes | None:
        if command not in self._outputs:
            self._outputs[command] = _run(command, remote)
        return self._outputs[command]


def surcharge(settings: Mapping[bytes, bytes]) -> float:
    """What is added for encryption with these settings of a special remote, whatever the cost is due to."""
    return _ENCRYPTION if settings.get(b"encryption") in _ENCRYPTED and settings.get(b"cipher") else 0.0


def parse(text: bytes) -> float | None:
    """The number that TEXT begins with, which has a digit before the point; None if there is none."""
    text = text.lstrip()
    sign = text[:1] if text.startswith(b"-") else b""
    number, rest = _digits(text.removeprefix(b"-").lstrip())
    if not number:
        return None
    fraction, after = _digits(rest[1:])
    if rest.startswith(b".") and fraction:
        number, rest = number + b"." + fraction, after
    if rest[:1] in (b"e", b"E"):
        exponent_sign = rest[1:2] if rest[1:2] in (b"+", b"-") else b""
        exponent, _ = _digits(rest[1 + len(exponent_sign) :])
        if exponent:
            number += b"e" + exponent_sign + exponent
    return float(sign + number)


def _digits(text: bytes) -> tuple[bytes, bytes]:
    rest = text.lstrip(_DIGITS)
    return text[: len(text) - len(rest)], rest


def _run(command: bytes, remote: Remote) -> bytes | None:
    """What the shell command says; None if it fails, which is not to keep anybody from using the remote."""
    try:
        done = process.run((b"sh", b"-c", command))
    except OSError as reason:
        failure = reason.strerror
    else:
        if done.status == 0:
            return done.output
        failure = f"status {done.status}"
    log.warn(f"the annex-cost-command of {remote} failed ({failure}); it counts as not set")
    return None
