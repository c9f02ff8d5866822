"""What one client has by a policy: a user, and for a directory that it names, what may be done with it.

What is not there is refused in the same words as what is not allowed, so that nobody learns from us which
directories there are.
"""

from __future__ import annotations

import os

from annexshell import access, directories
from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE, Access
from annexshell.annex.gitrepo import looks_bare
from annexshell.errors import Refused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.policy.rules import Pattern, Policy, Rule

_MODES = {"read": READ_ONLY, "append": APPEND_ONLY, "write": READ_WRITE}
_FETCH = (b"git-upload-pack", b"git-upload-archive")
_SERVICES = {"none": (), "fetch": _FETCH, "push": (*_FETCH, b"git-receive-pack")}


class Place:
    """A directory as it was asked for, with what was found out about it on the way to a decision."""

    __slots__ = ("asked", "enclosing", "exists", "path", "pattern", "rule")

    def __init__(self, asked: bytes, path: bytes) -> None:
        self.asked = asked
        self.path = path  # without symlinks: what is compared, and then opened
        self.exists = os.path.isdir(path) and os.access(path, os.X_OK)
        self.rule: Rule | None = None
        self.pattern: Pattern | None = None  # the one of the rule that fits
        self.enclosing: bytes | None = None  # a repository around it that can be pushed to


class Permissions:
    """Those of the client that the server calls USER."""

    __slots__ = ("_home", "policy", "user")

    def __init__(self, policy: Policy, user: str, environ: Mapping[bytes, bytes]) -> None:
        """Raises Refused."""
        self.policy = policy
        self.user = user
        self._home = directories.home_directory(environ)
        if user not in policy.keys:
            raise Refused(f"{user} is not a user in the policy of this server")

    def annex_access(self, asked: bytes, path: bytes, mode: Access) -> tuple[bytes, Access]:
        """The directory to open for the repository at PATH, and what of MODE is left there. Raises Refused."""
        place = self.find(asked, path)
        rule = self.admitted(place)
        if rule.access == "none":
            raise Refused(f"{self.user} may use git in {_text(asked)}, but not git-annex")
        narrowed = access.narrower(mode, _MODES[rule.access])
        restriction = {"read": "read, but not change anything", "append": "add, but not remove anything"}
        return place.path, Access(
            narrowed.name,
            may_write=narrowed.may_write,
            may_remove=narrowed.may_remove,
            blocked=mode.blocked
            if narrowed is mode
            else f"{self.user} may {restriction.get(rule.access)} in {_text(asked)}",
            services=_SERVICES[rule.git],
        )

    def git_directory(self, service: bytes, asked: bytes, path: bytes) -> bytes:
        """The directory in which git may do SERVICE, a way of writing it that leads nowhere else. Raises Refused."""
        place = self.find(asked, path)
        rule = self.admitted(place)
        if service not in _SERVICES[rule.git]:
            allowed = "fetch from" if rule.git == "fetch" else "use git-annex in"
            raise Refused(f"{self.user} may {allowed} {_text(asked)}, but not use {service.decode()} there")
        # Git would also try the path with .git behind it, which was not compared.
        return place.path.rstrip(b"/") + b"/."

    def find(self, asked: bytes, path: bytes) -> Place:
        """What the policy says of the repository at PATH, which is absolute; nothing is refused yet."""
        place = Place(asked, os.path.realpath(path))
        decision = self.policy.decide(self.user, place.path, self._home)
        if decision is not None:
            place.rule, place.pattern = decision
            place.enclosing = self._repository_around(place.path)
        return place

    def admitted(self, place: Place) -> Rule:
        """The rule that lets the user do anything there. Raises Refused."""
        rule = place.rule
        if rule is None or place.enclosing or not place.exists or rule.access == rule.git == "none":
            raise Refused(f"{self.user} may not use {_text(place.asked)} on this server, or it does not exist")
        return rule

    def _repository_around(self, path: bytes) -> bytes | None:
        """The repository that PATH is inside of, if somebody may push to that.

        A push can put all the files of another repository into a work tree, with hooks of the client's choice, and
        refs that look like one into a bare repository.
        """
        above = os.path.dirname(path)
        while above != b"/":
            is_repository = os.path.lexists(above + b"/.git") or looks_bare(above)
            if is_repository and self.policy.may_be_pushed_to(above, self._home):
                return above
            above = os.path.dirname(above)
        return None


def _text(directory: bytes) -> str:
    return directory.decode("utf-8", "backslashreplace")
