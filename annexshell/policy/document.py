"""Reading a policy, and finding everything that could be wrong with it before it is used.

Whatever is wrong, there is no policy, and so nothing is served. A client is told what kind of thing is wrong and
where, but nothing of what is written there.
"""

from __future__ import annotations

import os
import sys

from annexshell.errors import AnnexshellError, UsageError, is_passing
from annexshell.policy.publickeys import Malformed, PublicKey
from annexshell.policy.rules import ACCESS, EVERYBODY, GIT, BadPattern, Pattern, Policy, Rule
from annexshell.process import read_all
from annexshell.serverwords import check_user

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, TypeAlias

    Path: TypeAlias = tuple[str | int, ...]

_WRITABLE_BY_OTHERS = 0o022
_IS_REGULAR, _KIND = 0o100000, 0o170000


class PolicyError(AnnexshellError):
    """The policy cannot be used. The message is for clients, DETAIL for whoever runs the server."""

    def __init__(self, path: bytes, problem: str, line: int | None = None, detail: str = "") -> None:
        where = path.decode("utf-8", "backslashreplace") + (f", line {line}" if line else "")
        super().__init__(f"the policy of this server cannot be used: {where}: {problem}")
        self.line = line
        self.detail = f"{where}: {problem}{f' ({detail})' if detail else ''}"


def load(path: bytes) -> Policy:
    """The policy in the file PATH. Raises PolicyError; OSError if it may be readable later."""
    path = os.path.abspath(path)
    return parse(_read(path), path)


def _read(path: bytes) -> bytes:
    try:
        # Somebody else's named pipe would make us wait.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as reason:
        if is_passing(reason):
            raise
        raise PolicyError(path, f"it cannot be read: {reason.strerror}") from reason
    try:
        status = os.fstat(fd)
        if status.st_mode & _KIND != _IS_REGULAR:
            raise PolicyError(path, "it is not a regular file")
        if status.st_mode & _WRITABLE_BY_OTHERS:
            raise PolicyError(path, "others than its owner can write to it (chmod go-w)")
        if status.st_uid not in (0, os.geteuid()):
            raise PolicyError(path, "it belongs neither to root nor to the account that it is for")
        return read_all(fd)
    finally:
        os.close(fd)


def parse(content: bytes, path: bytes) -> Policy:
    """Raises PolicyError."""
    try:
        # As tomllib has it for files: line ends are the same everywhere.
        text = content.decode().replace("\r\n", "\n")
    except UnicodeDecodeError as reason:
        line = content.count(b"\n", 0, reason.start) + 1
        raise PolicyError(path, "it is not UTF-8", line) from reason
    try:
        return _Reader(path, text, tomllib.loads(text)).policy()
    except tomllib.TOMLDecodeError as reason:
        # The reason may quote what is written there.
        raise PolicyError(path, "it is not TOML", _line_in(str(reason), text), str(reason)) from reason
    except RecursionError as reason:
        raise PolicyError(path, "it is nested too deeply") from reason


def line_of(text: str, place: Path) -> int | None:
    """The line where what is at PLACE is said, found by parsing what is in front of it.

    That is in the last statement that the shortest beginning of TEXT with something at PLACE has, and longer ones
    have too.
    """
    lines = text.split("\n")

    def longest(count: int) -> tuple[int, Any]:
        """How many of the first COUNT lines are whole statements, and what they say."""
        while count:
            try:
                return count, tomllib.loads("\n".join(lines[:count]))
            except tomllib.TOMLDecodeError:
                count -= 1
        return 0, {}

    low, high = 0, len(lines)  # the first LOW lines do not have it
    if not _has(longest(high)[1], place):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        if _has(longest(middle)[1], place):
            high = middle
        else:
            low = middle
    # Of a statement of several lines, the first one that says something.
    start = longest(low)[0]
    while start < high - 1 and lines[start].strip()[:1] in ("", "#"):
        start += 1
    return start + 1


def _has(value: Any, place: Path) -> bool:
    for step in place:
        try:
            value = value[step]
        except (KeyError, IndexError, TypeError):
            return False
    return True


def _line_in(message: str, text: str) -> int:
    number = message.partition("(at line ")[2].partition(",")[0]
    return int(number) if number.isdigit() else text.rstrip("\n").count("\n") + 1


class _Reader:
    """From what TOML makes of the file to a policy. PLACE is where in that something is."""

    def __init__(self, path: bytes, text: str, content: dict[str, Any]) -> None:
        self._path = path
        self._text = text
        self._content = content

    def policy(self) -> Policy:
        content = self._content
        self._check_keys((), content, optional=("accounts", "log", "users", "groups", "rules"))
        accounts = self._strings(("accounts",), content.get("accounts", []))
        keys = self._users(("users",), content.get("users", {}))
        groups = self._groups(("groups",), content.get("groups", {}), keys)
        rules = content.get("rules", [])
        if not isinstance(rules, list):
            raise self._error(("rules",), "rules are written as [[rules]]")
        return Policy(
            self._path,
            self._text,
            accounts=accounts,
            log=self._log(("log",), content.get("log")),
            keys=keys,
            groups=groups,
            rules=[self._rule(("rules", number), rule, keys, groups) for number, rule in enumerate(rules)],
        )

    def _error(self, place: Path, problem: str, detail: object = "") -> PolicyError:
        name = "".join(f"[{step + 1}]" if isinstance(step, int) else f".{step}" for step in place).lstrip(".")
        more = ": ".join(filter(None, (name, str(detail))))
        return PolicyError(self._path, problem, line_of(self._text, place), more)

    def _check_keys(
        self, place: Path, value: object, *, optional: tuple[str, ...] = (), needed: tuple[str, ...] = ()
    ) -> None:
        if not isinstance(value, dict):
            raise self._error(place, "a table is expected here")
        for key in value:
            if key not in optional and key not in needed:
                known = ", ".join((*needed, *optional))
                raise self._error((*place, key), f"an unknown key; known here: {known}")
        for key in needed:
            if key not in value:
                raise self._error(place, f"{key} is missing")

    def _string(self, place: Path, value: object) -> str:
        if not isinstance(value, str):
            raise self._error(place, "a string is expected here")
        return value

    def _strings(self, place: Path, value: object) -> list[str]:
        if not isinstance(value, list):
            raise self._error(place, "a list of strings is expected here")
        return [self._string((*place, number), item) for number, item in enumerate(value)]

    def _one_of(self, place: Path, value: object, words: tuple[str, ...]) -> str:
        if value not in words:
            raise self._error(place, f"one of {', '.join(words)} is expected here", repr(value))
        return str(value)

    def _name(self, place: Path, name: str) -> None:
        try:
            check_user(name.encode("utf-8", "surrogateescape"))
        except UsageError as reason:
            raise self._error(place, "not a name; names are made of letters, digits and ._+@-", name) from reason

    def _log(self, place: Path, value: object) -> bytes | None:
        if value is None:
            return None
        log = self._string(place, value)
        if log != "syslog" and (not log.startswith("/") or not log.isprintable()):
            raise self._error(place, "the log is syslog or an absolute path", repr(log))
        return log.encode()

    def _users(self, place: Path, value: object) -> dict[str, list[PublicKey]]:
        if not isinstance(value, dict):
            raise self._error(place, "users are written as [users.NAME]")
        found: dict[str, list[PublicKey]] = {}
        owners: dict[PublicKey, str] = {}
        for name, user in value.items():
            here = (*place, name)
            self._name(here, name)
            self._check_keys(here, user, optional=("keys",))
            found[name] = []
            for number, line in enumerate(self._strings((*here, "keys"), user.get("keys", []))):
                this = (*here, "keys", number)
                try:
                    key = PublicKey.parse(line)
                except Malformed as reason:
                    raise self._error(this, f"not an ssh key: {reason}") from reason
                if key in owners:
                    raise self._error(this, "an ssh key that is there already", f"as one of {owners[key]}'s")
                owners[key] = name
                found[name].append(key)
        return found

    def _groups(self, place: Path, value: object, users: dict[str, list[PublicKey]]) -> dict[str, list[str]]:
        if not isinstance(value, dict):
            raise self._error(place, 'groups are written as NAME = ["USER", ...] below [groups]')
        found: dict[str, list[str]] = {}
        for name, members in value.items():
            here = (*place, name)
            self._name(here, name)
            found[name] = self._strings(here, members)
            for number, member in enumerate(found[name]):
                if member not in users:
                    raise self._error((*here, number), "an unknown user in a group", member)
        return found

    def _rule(
        self, place: tuple[str, int], value: object, users: dict[str, list[PublicKey]], groups: dict[str, list[str]]
    ) -> Rule:
        self._check_keys(place, value, needed=("users", "directories", "access"), optional=("git",))
        assert isinstance(value, dict)
        who: set[str] = set()
        for number, word in enumerate(self._some((*place, "users"), value["users"])):
            here = (*place, "users", number)
            if word[:1] == "@":
                if word[1:] not in groups:
                    raise self._error(here, "an unknown group in a rule", word)
                who.update(groups[word[1:]])
            elif word == EVERYBODY or word in users:
                who.add(word)
            else:
                raise self._error(here, "an unknown user in a rule", word)
        patterns = []
        for number, text in enumerate(self._some((*place, "directories"), value["directories"])):
            try:
                patterns.append(Pattern(text))
            except BadPattern as reason:
                raise self._error((*place, "directories", number), f"a bad directory: {reason}", text) from reason
        access = self._one_of((*place, "access"), value["access"], ACCESS)
        git = self._one_of((*place, "git"), value["git"], GIT) if "git" in value else None
        return Rule(place[1] + 1, frozenset(who), patterns, access, git)

    def _some(self, place: Path, value: object) -> list[str]:
        found = self._strings(place, value)
        if not found:
            raise self._error(place, "a list that is empty: the rule would never fit")
        return found
