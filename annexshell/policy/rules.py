"""The rules of a policy, and which one decides: the first that fits the user and the directory.

Directories are compared after symlinks were resolved, on both sides: in a pattern, those in front of the first
wildcard.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from annexshell.policy.publickeys import PublicKey

EVERYBODY = "*"
ACCESS = ("none", "read", "append", "write")
GIT = ("none", "fetch", "push")
# Somebody who may not remove content should have to be allowed to overwrite branches.
GIT_BY_ACCESS = {"none": "none", "read": "fetch", "append": "fetch", "write": "push"}

_DEEP = "**"
_WILDCARDS = frozenset("*?[")


class BadPattern(ValueError):
    """What is wrong with a pattern, without the pattern."""


class Pattern:
    """A glob for absolute paths: ``*``, ``?`` and ``[...]`` within a component, ``**`` for any number of them.

    As in a shell, wildcards leave alone what begins with a dot. ``**`` at the end stands for at least one component.
    Raises BadPattern.
    """

    __slots__ = ("_literal", "_rest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        components = [part for part in text.split("/") if part]
        if text[:1] not in ("/", "~") or (text[:1] == "~" and components[0] != "~"):
            raise BadPattern("it has to begin with / or ~/")
        if not text.isprintable():
            raise BadPattern("it has control characters in it")
        if {".", ".."}.intersection(components):
            raise BadPattern("it has . or .. in it, which no path has that it is compared with")
        if components and components[-1] == ".git":
            raise BadPattern("it ends in /.git; a repository is named by the directory that has the .git in it")
        first = next((n for n, part in enumerate(components) if _WILDCARDS.intersection(part)), len(components))
        self._literal = components[:first]
        self._rest: list[str | Callable[[str], object]] = []
        for part in components[first:]:
            if part == _DEEP and self._rest[-1:] == [_DEEP]:
                continue
            self._rest.append(part if part == _DEEP or not _WILDCARDS.intersection(part) else _wildcard(part))
        if self._rest[-1:] == [_DEEP]:
            self._rest.insert(-1, _wildcard("*"))

    def base(self, home: str) -> str:
        """What is in front of the wildcards, absolute, as it is written."""
        literal = self._literal
        if literal[:1] == ["~"]:
            return "/".join([home.rstrip("/"), *literal[1:]]) or "/"
        return "/" + "/".join(literal)

    def fits(self, base: str, path: str) -> bool:
        """Whether PATH, absolute and without symlinks, is meant; BASE is :meth:`base` without symlinks."""
        if not self._rest:
            return path == base
        above = base.rstrip("/") + "/"
        return path.startswith(above) and path != above and _fits(self._rest, path[len(above) :].split("/"))


def _fits(wanted: Sequence[str | Callable[[str], object]], names: Sequence[str]) -> bool:
    """All places in WANTED where one could be are followed at once: what names are there is a client's choice."""
    places = _skip(wanted, {0})
    for name in names:
        following = set()
        for place in places:
            if place == len(wanted):
                continue
            part = wanted[place]
            if part == _DEEP:
                if name[:1] != ".":
                    following.add(place)
            elif name == part if isinstance(part, str) else part(name):
                following.add(place + 1)
        places = _skip(wanted, following)
    return len(wanted) in places


def _skip(wanted: Sequence[object], places: set[int]) -> set[int]:
    """Also those behind ``**``, which may stand for nothing. There never are two in a row."""
    return places | {place + 1 for place in places if place < len(wanted) and wanted[place] == _DEEP}


def _wildcard(part: str) -> Callable[[str], object]:
    """Whether a name fits PART, a component with wildcards."""
    # Both were imported already for reading the policy.
    import fnmatch
    import re

    if _DEEP in part:
        raise BadPattern("it has ** next to other characters; ** stands for whole components")
    if "[" in part:
        position = 0
        while (position := part.find("[", position)) >= 0:
            # The first character of a set may be the bracket itself.
            end = part.find("]", position + (3 if part[position + 1 : position + 2] == "!" else 2))
            if end < 0:
                raise BadPattern("a [ in it is not closed; [[] stands for the character")
            position = end + 1
    fits = re.compile(fnmatch.translate(part)).fullmatch
    if part[0] == ".":
        return fits
    return lambda name: name[:1] != "." and fits(name)


class Rule:
    """One of a policy's. The number counts from 1."""

    __slots__ = ("access", "git", "number", "patterns", "users")

    def __init__(
        self, number: int, users: frozenset[str], patterns: Sequence[Pattern], access: str, git: str | None
    ) -> None:
        self.number = number
        self.users = users  # with EVERYBODY among them, all
        self.patterns = patterns
        self.access = access
        self.git = GIT_BY_ACCESS[access] if git is None else git

    def is_for(self, user: str) -> bool:
        return EVERYBODY in self.users or user in self.users


class Policy:
    """All that a policy says."""

    __slots__ = ("_real", "accounts", "groups", "keys", "log", "path", "rules", "text")

    def __init__(
        self,
        path: bytes,
        text: str = "",
        *,
        accounts: Sequence[str],
        log: bytes | None,
        keys: Mapping[str, Sequence[PublicKey]],
        groups: Mapping[str, Sequence[str]],
        rules: Sequence[Rule],
    ) -> None:
        self.path = path
        self.text = text  # all of the file, to find lines in it
        self.accounts = accounts
        self.log = log  # where to record what is done: a file or "syslog"
        self.keys = keys  # of each user; who is not in there is nobody
        self.groups = groups
        self.rules = rules
        self._real: dict[str, str] = {}

    def decide(self, user: str, path: bytes, home: bytes) -> tuple[Rule, Pattern] | None:
        """The rule, and what in it fits; PATH is absolute and without symlinks. None if there is none."""
        if user not in self.keys:
            return None
        for rule in self.rules:
            if rule.is_for(user):
                pattern = self._fitting(rule, path, home)
                if pattern is not None:
                    return rule, pattern
        return None

    def may_be_pushed_to(self, path: bytes, home: bytes) -> bool:
        """Whether some rule lets anybody push to PATH."""
        return any(rule.git == "push" and self._fitting(rule, path, home) is not None for rule in self.rules)

    def _fitting(self, rule: Rule, path: bytes, home: bytes) -> Pattern | None:
        text, home_text = _text(path), _text(home)
        for pattern in rule.patterns:
            base = pattern.base(home_text)
            if base not in self._real:
                self._real[base] = _text(os.path.realpath(base.encode("utf-8", "surrogateescape")))
            if pattern.fits(self._real[base], text):
                return pattern
        return None


def _text(path: bytes) -> str:
    # Not by the locale: what the policy says is UTF-8 everywhere.
    return path.decode("utf-8", "surrogateescape")
