"""dropkey: remove objects, whoever else may have them (spec: shell §7.6)."""

from __future__ import annotations

from annexshell import log, relay
from annexshell.annex.repository import LocalRepository
from annexshell.commands import keys
from annexshell.errors import AnnexshellError, Refused
from annexshell.termination import Terminated, Termination

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key
    from annexshell.repository import Repository

_STDIN, _STDOUT = 0, 1
_READ_SIZE = 1 << 16
_LONGEST = 1 << 16  # bytes of a line in a batch; no file name, and so no key that is here, is as long
_PREFIX = "annexshell: "


def run(repo: GitRepository, parameters: Sequence[bytes], flags: Mapping[bytes, bool]) -> int:
    """Remove the keys one after the other; one that fails does not keep the others. Raises Refused, OSError."""
    is_batch = flags.get(b"batch", False)
    words: Iterable[bytes] = parameters
    if is_batch and parameters:
        raise Refused("Cannot combine batch option with file or key options")
    with Termination() as termination:
        repository = LocalRepository(repo)
        try:
            # Not closed, which would commit: what is recorded in the journal stays there for whoever commits next.
            dropping = _Dropping(repository if log.audit is None else log.audit.watch(repository), flags, is_batch)
            if is_batch:
                words = _lines(termination, b"\0" if flags.get(b"null") else b"\n")
            return dropping.drop_all(words, termination)
        except Terminated as reason:
            if log.audit is not None:
                log.audit.end_by(reason)  # here, because the signal has its effect when this is over
            return 1
        finally:
            repository.abandon()


class _Dropping:
    """Removes keys from REPOSITORY, and tells of it in the form that FLAGS ask for."""

    __slots__ = ("_as_json", "_errors_in_json", "_is_batch", "_repository")

    def __init__(self, repository: Repository, flags: Mapping[bytes, bool], is_batch: bool) -> None:
        self._repository = repository
        self._is_batch = is_batch
        self._errors_in_json = flags.get(b"json-error-messages", False)
        # The last of those that say what is printed counts, and the flags are in their order.
        forms = [flag for flag in flags if flag in (b"quiet", b"json", b"json-error-messages")]
        self._as_json = forms[-1:] not in ([], [b"quiet"])

    def drop_all(self, words: Iterable[bytes], termination: Termination) -> int:
        failures = 0
        for word in words:
            if termination.received is not None:
                raise Terminated
            failures += not self._drop(word)
        if failures:
            log.error(f"{failures} failed", program="dropkey")
        return 1 if failures else 0

    def _drop(self, word: bytes) -> bool:
        """Whether the key's content is not here any more. Raises Refused where the rest is not to be done."""
        try:
            key = keys.parse(word)
        except Refused as reason:
            if self._is_batch:
                # Whoever writes the batch is out of step.
                raise Refused(f"Batch input parse failure: {reason}") from reason
            if self._as_json:
                raise  # there is no line for what is no key
            log.error(str(reason))
            return False
        error = ""
        try:
            if not self._repository.remove(key):
                error = "it was not removed"
        except (AnnexshellError, OSError) as reason:
            error = str(reason)
        if error and not (self._as_json and self._errors_in_json):
            log.error(error)
        if self._as_json:
            self._print(word, key, error)
        return not error

    def _print(self, word: bytes, key: Key, error: str) -> None:
        import json

        line = {
            "command": "dropkey",
            "error-messages": [_PREFIX + error] if error and self._errors_in_json else [],
            "input": [word.decode("utf-8", "replace")],
            "key": key.serialized.decode("utf-8", "replace"),
            "success": not error,
        }
        text = json.dumps(line, ensure_ascii=False, separators=(",", ":"))
        relay.write_all(_STDOUT, text.encode() + b"\n")


def _lines(termination: Termination, separator: bytes) -> Iterator[bytes]:
    """The keys on stdin, each as soon as it is there, without what separates them."""
    rest = b""
    while part := termination.read(_STDIN, _READ_SIZE):
        *lines, rest = (rest + part).split(separator)
        yield from lines
        if len(rest) > _LONGEST:
            raise Refused("Batch input parse failure: too long for a key")
    if rest:
        yield rest
