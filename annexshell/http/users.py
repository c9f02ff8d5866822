"""Who can log in, and what each may do: the environment, password files, tokens (spec: http §8.1).

The environment names users with ``GIT_ANNEX_P2PHTTP_PASSWORD_<name>`` and ``GIT_ANNEX_P2PHTTP_PERMISSIONS_<name>``.
Besides there are three files, each of lines of fields with colons between them. Empty lines, and those that start
with #, say nothing. A file that changes is read again; while it makes no sense, what it said before stands.

========================  ===========  =============================================================================
``NAME:HASH``             passwords    as ``htpasswd -B FILE NAME`` writes it (``-C 10`` or more makes guessing slow)
``NAME:SHA256``           tokens       as :func:`new_token` makes it; a name may have several tokens, or a password
                                       and tokens. A token is sent as Bearer, or as the password of its name
``NAME:ROLE``,            permissions  ROLE is readonly, appendonly or full, on all repositories or those that are
``NAME:ROLE:UUID UUID``                listed. Who is not named may do nothing. Without such a file all may do all
========================  ===========  =============================================================================

Permissions have a file of their own, as htpasswd throws away what it does not know when it changes a password: a
user with few permissions would have all of them after that.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import stat
import threading
import time
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import bcrypt

from annexshell import log
from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE, Access
from annexshell.errors import UsageError
from annexshell.uuid import UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping

T = TypeVar("T")

ROLES = {b"readonly": READ_ONLY, b"appendonly": APPEND_ONLY, b"full": READ_WRITE}

_PASSWORD = b"GIT_ANNEX_P2PHTTP_PASSWORD_"
_PERMISSIONS = b"GIT_ANNEX_P2PHTTP_PERMISSIONS_"

_BCRYPT = re.compile(rb"\$2[aby]\$([0-9]{2})\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")
_COSTS = range(4, 17)  # from what bcrypt knows to about 5 s for each look at a password
_BCRYPT_LENGTH = 72  # bytes of a password that count; htpasswd, too, ignores the others
_WEAK = ((b"$apr1$", "MD5"), (b"$1$", "MD5"), (b"{SHA}", "SHA1"), (b"$5$", "SHA256"), (b"$6$", "SHA512"))
_SHA256 = re.compile(rb"[0-9a-f]{64}")

_INTERVAL = 1.0  # seconds between looks at whether a file changed
_SETTLED = 2.0  # seconds after which another change of a file is sure to have another time stamp

# Passwords are compared, and remembered once they were found right, as hashes with a key that nobody knows: of
# one length, so that comparing them takes the same time, and of no use outside this process.
_KEY = secrets.token_bytes(32)


def _keyed(*parts: bytes) -> bytes:
    return hmac.digest(_KEY, b"".join(len(part).to_bytes(8, "big") + part for part in parts), "sha256")


class Credentials:
    """What a client sent. The user is None if it was a token alone."""

    __slots__ = ("secret", "user")

    def __init__(self, user: bytes | None, secret: bytes) -> None:
        self.user = user
        self.secret = secret


class Permission(NamedTuple):
    """What somebody who logged in may do."""

    access: Access | None  # None: nothing
    repositories: frozenset[UUID] | None = None  # None: all of them


EVERYTHING = Permission(READ_WRITE)
NOTHING = Permission(None)


class Users:
    """All who can log in.

    ENVIRON is the environment, or empty if it is not to be asked. Raises UsageError if anything makes no sense.
    Can be used by several threads at once.
    """

    def __init__(
        self,
        environ: Mapping[bytes, bytes],
        *,
        passwords: bytes | None = None,
        tokens: bytes | None = None,
        permissions: bytes | None = None,
        interval: float = _INTERVAL,
    ) -> None:
        known = {name: Password(_keyed(name, value)) for name, value in _variables(environ, _PASSWORD)}
        roles = _roles_from_environment(environ)
        self.has_passwords = passwords is not None  # those of a file, at least
        self.has_tokens = tokens is not None
        self._unnamed = EVERYTHING if permissions is None else NOTHING
        self._passwords = _Watched(passwords, lambda lines: parse_passwords(lines, known), interval)
        self._tokens = _Watched(tokens, parse_tokens, interval)
        self._permissions = _Watched(permissions, lambda lines: parse_permissions(lines, roles), interval)

    def is_slow(self, credentials: Credentials) -> bool:
        """Whether :meth:`who` may have to compute for long (bcrypt): then call it in a worker thread."""
        if credentials.user is None or self._owner(credentials) is not None:
            return False
        passwords = self._passwords.get()
        return passwords.highest_cost > 0 and not passwords.is_known(credentials.user, credentials.secret)

    def who(self, credentials: Credentials) -> bytes | None:
        """The name of whom these are the credentials of; None if they are wrong."""
        owner = self._owner(credentials)
        if owner is not None or credentials.user is None:
            return owner
        return credentials.user if self._passwords.get().check(credentials.user, credentials.secret) else None

    def _owner(self, credentials: Credentials) -> bytes | None:
        """Whose token it is. git-annex sends nothing but user and password, so a token may stand for a password."""
        # Not even the time it takes to find a keyed hash says anything about the token.
        owner = self._tokens.get().get(_keyed(hashlib.sha256(credentials.secret).digest()))
        return owner if credentials.user in (None, owner) else None

    def permission(self, name: bytes) -> Permission:
        return self._permissions.get().get(name, self._unnamed)


def forget_passwords(environ: MutableMapping[bytes, bytes]) -> None:
    """Take the passwords out of the environment, so that hooks and other programs do not inherit them."""
    for variable in [v for v in environ if v.startswith(_PASSWORD)]:
        del environ[variable]


def new_token(name: str) -> tuple[str, str]:
    """A new token for NAME, and the line for the file of tokens.

    ``python3 -c 'from annexshell.http.users import new_token; print(*new_token("NAME"), sep="\\n")'``
    """
    token = secrets.token_urlsafe(32)
    return token, f"{name}:{hashlib.sha256(token.encode()).hexdigest()}"


# Passwords


class Password:
    """The password of one user, never itself."""

    __slots__ = ("cost", "hash", "known")

    def __init__(self, known: bytes, hash: bytes | None = None, cost: int = 0) -> None:
        self.known = known  # keyed hash of the user and the right password, or random until that has been seen
        self.hash = hash  # of bcrypt; None if the password itself was known, from the environment
        self.cost = cost  # of bcrypt: the work doubles with each


_NOBODY = Password(secrets.token_bytes(32))


class Passwords:
    """Those of all users."""

    def __init__(self, passwords: dict[bytes, Password]) -> None:
        self._passwords = passwords
        self.highest_cost = max((password.cost for password in passwords.values()), default=0)

    def is_known(self, user: bytes, password: bytes) -> bool:
        """Whether this is right for sure; takes no time."""
        return hmac.compare_digest(self._passwords.get(user, _NOBODY).known, _keyed(user, password))

    def check(self, user: bytes, password: bytes) -> bool:
        """Whether this is right. If not, finding out took the same time for every user, also those there are not."""
        if self.is_known(user, password):
            return True
        mine = self._passwords.get(user, _NOBODY)
        significant = password[:_BCRYPT_LENGTH]
        if mine.hash is None:
            if self.highest_cost:
                _work(significant, (self.highest_cost,))
            return False
        if bcrypt.checkpw(significant, mine.hash):
            mine.known = _keyed(user, password)
            return True
        # 2^n + (2^n + 2^(n+1) + ... + 2^(max-1)) = 2^max
        _work(significant, range(mine.cost, self.highest_cost))
        return False


def _work(password: bytes, costs: Iterable[int]) -> None:
    for cost in costs:
        bcrypt.hashpw(password, b"$2b$%02d$......................" % cost)


# The environment


def _variables(environ: Mapping[bytes, bytes], prefix: bytes) -> list[tuple[bytes, bytes]]:
    return [(variable[len(prefix) :], value) for variable, value in environ.items() if variable.startswith(prefix)]


def _roles_from_environment(environ: Mapping[bytes, bytes]) -> dict[bytes, Permission]:
    """What git-annex takes for full access if it does not know the word is refused, as it is hardly meant so."""
    found = {}
    for name, word in _variables(environ, _PERMISSIONS):
        if word not in ROLES:
            raise UsageError(
                f"{_text(_PERMISSIONS + name)} is {_text(word)!r}, which is none of readonly, appendonly and full"
            )
        found[name] = Permission(ROLES[word])
    # A user without permissions is not taken in: a file may have some for it.
    return found


# The files


class Line:
    """One that says something. Never shows itself, as it may be a password that somebody wrote down."""

    __slots__ = ("fields", "number", "path")

    def __init__(self, path: str, number: int, text: bytes) -> None:
        self.path = path
        self.number = number
        self.fields = text.split(b":")

    def error(self, problem: str) -> UsageError:
        return UsageError(f"{self.path}, line {self.number}: {problem}")

    def name(self, taken: Mapping[bytes, object], wanted: str) -> bytes:
        """The first field, of at least two. Raises UsageError if it is TAKEN."""
        if len(self.fields) < 2 or not self.fields[0]:
            raise self.error(f"not {wanted}")
        if self.fields[0] in taken:
            raise self.error(f"{_text(self.fields[0])!r} is there already, above or in the environment")
        return self.fields[0]


def _lines(path: bytes, content: bytes) -> Iterator[Line]:
    for number, text in enumerate(content.split(b"\n"), 1):
        text = text.strip()
        if text and not text.startswith(b"#"):
            yield Line(_text(path), number, text)


def parse_passwords(lines: Iterable[Line], known: Mapping[bytes, Password]) -> Passwords:
    """Those that are KNOWN from the environment, and those of the lines."""
    found = dict(known)
    for line in lines:
        name = line.name(found, "NAME:HASH as written by htpasswd -B")
        if len(line.fields) > 2:
            raise line.error("more than NAME:HASH; permissions have a file of their own")
        hash = line.fields[1]
        bcrypt_hash = _BCRYPT.fullmatch(hash)
        if bcrypt_hash is None:
            kind = next((kind for start, kind in _WEAK if hash.startswith(start)), "plain text, crypt or unknown")
            raise line.error(
                f"only bcrypt hashes are accepted, and this is {kind}; set the password anew with htpasswd -B"
            )
        cost = int(bcrypt_hash[1])
        if cost not in _COSTS:
            raise line.error(f"a bcrypt cost of {cost} is not in {_COSTS[0]} to {_COSTS[-1]}; see htpasswd -C")
        found[name] = Password(secrets.token_bytes(32), hash, cost)
    return Passwords(found)


def parse_tokens(lines: Iterable[Line]) -> dict[bytes, bytes]:
    """Names by keyed hash."""
    found: dict[bytes, bytes] = {}
    for line in lines:
        name = line.name({}, "NAME:SHA256")
        digest = line.fields[1].lower()
        if len(line.fields) > 2 or _SHA256.fullmatch(digest) is None:
            raise line.error("not NAME:SHA256, with the hash of the token as 64 hexadecimal digits")
        key = _keyed(bytes.fromhex(digest.decode()))
        if key in found:
            raise line.error("this token is there already")
        found[key] = name
    return found


def parse_permissions(lines: Iterable[Line], roles: Mapping[bytes, Permission]) -> dict[bytes, Permission]:
    """Those of the lines, besides ROLES from the environment."""
    found = dict(roles)
    for line in lines:
        name = line.name(found, "NAME:ROLE or NAME:ROLE:UUID UUID...")
        role = line.fields[1].strip()
        if role not in ROLES:
            raise line.error("the role is none of readonly, appendonly and full")
        repositories = None
        if len(line.fields) > 2:
            # A uuid may have a colon in it: it is any text.
            repositories = frozenset(UUID(uuid) for uuid in b":".join(line.fields[2:]).split())
            if not repositories:
                raise line.error("no uuid after the second colon; leave that out to mean all repositories")
        found[name] = Permission(ROLES[role], repositories)
    return found


class _Watched(Generic[T]):
    """What a file says at the moment, or no file at all."""

    def __init__(self, path: bytes | None, parse: Callable[[Iterable[Line]], T], interval: float) -> None:
        self._path = path
        self._parse = parse
        self._interval = interval
        self._mutex = threading.Lock()  # held by who reads the file again; nobody waits for it
        self._complaint = ""
        self._looked = time.monotonic()
        if path is None:
            self._value = parse(())
            return
        try:
            self._content, self._stamp = _read(path)
        except OSError as reason:
            raise UsageError(f"cannot read {_text(path)}: {reason.strerror}") from reason
        self._value = parse(_lines(path, self._content))

    def get(self) -> T:
        if (
            self._path is not None
            and time.monotonic() - self._looked >= self._interval
            and self._mutex.acquire(blocking=False)
        ):
            try:
                self._looked = time.monotonic()
                self._look(self._path)
            finally:
                self._mutex.release()
        return self._value

    def _look(self, path: bytes) -> None:
        """An error leaves everything as it was; it is told once, not each second."""
        complaint = ""
        try:
            status = os.stat(path)
            # What is no file, as a pipe of the shell's, can be read once only.
            if _stamp(status) == self._stamp or not stat.S_ISREG(status.st_mode):
                return
            content, self._stamp = _read(path)
            # The same content is not taken anew, so that passwords that were found right stay known.
            if content != self._content:
                self._value = self._parse(_lines(path, content))
                self._content = content
                log.debug(f"read {_text(path)} again")
        except OSError as reason:
            complaint = f"cannot read {_text(path)}: {reason.strerror}"
        except UsageError as reason:
            complaint = str(reason)
        if complaint and complaint != self._complaint:
            log.warn(f"{complaint}; going on with what that file said before")
        self._complaint = complaint


_Stamp = tuple[int, int, int, int]


def _read(path: bytes) -> tuple[bytes, _Stamp | None]:
    """Content and stamp of a file; no stamp if it changed just now, and might again without another stamp."""
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        content = file.read()
    return content, _stamp(status) if time.time() - status.st_mtime > _SETTLED else None


def _stamp(status: os.stat_result) -> _Stamp:
    return status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")
