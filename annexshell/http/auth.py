"""Who may do what over HTTP (spec: http §8).

A visitor may do what ``--wideopen``, ``--unauth-appendonly`` or ``--unauth-readonly`` leave open, the first of them
that is given. Who logs in may do what the permissions of that user are, and nothing that visitors may do besides:
neither more than that role, nor anything on repositories other than those the user is limited to (403).

Differences to git-annex p2phttp (spec: http §8.4):

- wrong passwords get 401 instead of 403, so that the client forgets them;
- ``--unauth-nolocking`` also means those who may only append;
- users who may only read may lock content when visitors may;
- ``--authenv-http`` is about TLS, too.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, NamedTuple

from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE, Access
from annexshell.http.api import Kind, Refusal
from annexshell.http.users import Credentials, Permission, Users

if TYPE_CHECKING:
    from collections.abc import Mapping

    from annexshell.uuid import UUID

CHALLENGE = 'Basic realm="git-annex", charset="UTF-8"'

# What each mode serves; locking is decided apart.
_SERVED = {
    READ_ONLY: {Kind.READ},
    APPEND_ONLY: {Kind.READ, Kind.WRITE},
    READ_WRITE: {Kind.READ, Kind.WRITE, Kind.REMOVE},
}


class Options(NamedTuple):
    """Those of the command line that are about this; paths of files are None if not given."""

    authenv: bool = False
    authenv_http: bool = False
    unauth_readonly: bool = False
    unauth_appendonly: bool = False
    unauth_nolocking: bool = False
    wideopen: bool = False
    htpasswd: bytes | None = None
    tokens: bytes | None = None
    permissions: bytes | None = None


def open_gate(options: Options, environ: Mapping[bytes, bytes] = os.environb) -> Gate:
    """The gate of these options. Raises UsageError if users, in the environment or a file, make no sense."""
    users = Users(
        environ if options.authenv or options.authenv_http else {},
        passwords=options.htpasswd,
        tokens=options.tokens,
        permissions=options.permissions,
    )
    return Gate(options, users)


class Gate:
    """Decides about each request. Can be used by several threads at once."""

    def __init__(self, options: Options, users: Users) -> None:
        self._users = users
        self._login_is_offered = options.authenv or options.authenv_http or users.has_passwords or users.has_tokens
        self._login_needs_tls = not options.authenv_http
        self._visitors = _access_of_visitors(options)
        self._visitors_may_lock = options.wideopen or (self._visitors is not None and not options.unauth_nolocking)

    def is_slow(self, authorization: str | None, over_tls: bool) -> bool:
        """Whether :meth:`access` may have to compute for long: then call it in a worker thread.

        Raises Refusal (400) if the header makes no sense.
        """
        credentials = parse_authorization(authorization, self._users.has_tokens)
        return credentials is not None and self._considers_login(over_tls) and self._users.is_slow(credentials)

    def access(self, kind: Kind, authorization: str | None, over_tls: bool, uuid: UUID) -> Access:
        """The mode in which a request of this kind to the repository is served.

        AUTHORIZATION is the header of that name. Raises Refusal: 400 if it makes no sense, 401 if logging in (again)
        might help, else 403.
        """
        credentials = parse_authorization(authorization, self._users.has_tokens)
        is_wrong = False
        if credentials is not None and self._considers_login(over_tls):
            name = self._users.who(credentials)
            if name is not None:
                return self._access_of_user(self._users.permission(name), kind, uuid)
            is_wrong = True
        visitors = self._visitors
        if visitors is not None and _serves(visitors, kind, self._visitors_may_lock):
            return visitors
        # A client asks its user for a password after 401: not if there is nothing to log in to (spec: http §8.5).
        can_log_in = visitors is None or is_wrong or (credentials is None and self._login_is_offered)
        raise unauthorized() if can_log_in else Refusal(403)

    def user(self, authorization: str, over_tls: bool) -> bytes | None:
        """Whose header this is, after :meth:`access`; None if nobody's, or what it says was not considered."""
        try:
            credentials = parse_authorization(authorization, self._users.has_tokens)
        except Refusal:
            return None
        if credentials is None or not self._considers_login(over_tls) or self._users.is_slow(credentials):
            return None  # a password that was found right does not have to be computed again
        return self._users.who(credentials)

    def _considers_login(self, over_tls: bool) -> bool:
        return self._login_is_offered and (over_tls or not self._login_needs_tls)

    def _access_of_user(self, permission: Permission, kind: Kind, uuid: UUID) -> Access:
        access, repositories = permission
        if access is None or (repositories is not None and uuid not in repositories):
            raise Refusal(403)
        if not _serves(access, kind, access is not READ_ONLY or self._visitors_may_lock):
            raise Refusal(403)
        return access


def _serves(access: Access, kind: Kind, may_lock: bool) -> bool:
    return may_lock if kind is Kind.LOCK else kind in _SERVED[access]


def _access_of_visitors(options: Options) -> Access | None:
    if options.wideopen:
        return READ_WRITE
    if options.unauth_appendonly:
        return APPEND_ONLY
    return READ_ONLY if options.unauth_readonly else None


def unauthorized() -> Refusal:
    return Refusal(401, headers={"WWW-Authenticate": CHALLENGE})


# The header (spec: http §8.2)

# Both alphabets: git-annex has the URL-safe one, everybody else the standard one.
_BASE64 = re.compile(r"(?:[\w+/-]{4})*(?:[\w+/-]{2}==|[\w+/-]{3}=)?", re.ASCII)
_TOKEN = re.compile(r"[\w.~+/-]+=*", re.ASCII)


def parse_authorization(header: str | None, takes_tokens: bool) -> Credentials | None:
    """What the Authorization header says; None if there is none.

    Raises Refusal (400) if it makes no sense; a bare token makes none if this server TAKES no TOKENS.
    """
    if header is None:
        return None
    scheme, *rest = header.split(None, 1) or [""]
    value = rest[0].strip() if rest else ""
    if scheme.lower() == "basic" and value and _BASE64.fullmatch(value):
        user, _, password = base64.urlsafe_b64decode(value.replace("+", "-").replace("/", "_")).partition(b":")
        return Credentials(user, password)
    if scheme.lower() == "bearer" and takes_tokens and _TOKEN.fullmatch(value):
        return Credentials(None, value.encode())
    raise Refusal(400, "Error parsing header Authorization failed: invalid basic auth header")
