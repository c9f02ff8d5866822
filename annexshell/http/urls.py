"""The url of a git-annex HTTP server, and what is written into the urls of requests (spec: http §3.1, §3.2, §9.2)."""

from __future__ import annotations

import base64
import binascii
import ipaddress
from urllib.parse import quote, unquote_to_bytes, urlsplit

from annexshell.errors import RemoteUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

DEFAULT_PORT = 9417
_TLS = {"annex+http": False, "annex+https": True}
_PORTS = {"http": 80, "https": 443}
_PATH_CHARACTERS = "/%:@!$&'()*+,;=~"


class Base:
    """Where a server's API begins. Printed without the user and password that a url may have in it."""

    __slots__ = ("host", "password", "path", "port", "tls", "user")

    def __init__(
        self, tls: bool, host: str, port: int, path: str, user: bytes | None = None, password: bytes | None = None
    ) -> None:
        self.tls = tls
        self.host = host  # an IPv6 address is without its brackets
        self.port = port
        self.path = path  # empty or beginning with a slash, never ending with one
        self.user = user
        self.password = password

    @property
    def origin(self) -> tuple[bool, str, int]:
        """What connections are made to."""
        return self.tls, self.host, self.port

    @property
    def netloc(self) -> str:
        """As the Host header has it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    @property
    def web_url(self) -> str:
        """The same place in the words of the web, for git's settings that are made by url."""
        return f"{'https' if self.tls else 'http'}://{self.netloc}{self.path}/"

    def __str__(self) -> str:
        return f"annex+{self.web_url}"


def parse(url: bytes) -> Base:
    """The base that an ``annex+http`` url stands for. Raises RemoteUnavailable, which tells no password."""
    try:
        parts = urlsplit(_text(url))
        tls = _TLS[parts.scheme if url.startswith(b"annex+http") else ""]  # in lower case only
        port = parts.port if parts.port is not None else DEFAULT_PORT
        user, password = parts.username, parts.password
        path = _path(parts.path)
        return Base(
            tls,
            _host(parts.hostname),
            port,
            "" if path == "/git-annex" else path,
            None if user is None else unquote_to_bytes(user),
            None if password is None else unquote_to_bytes(password),
        )
    except (ValueError, KeyError):
        # Without its reason, which may quote all of the url.
        raise RemoteUnavailable("its annexUrl is not a url of the form annex+http://HOST:PORT/") from None


def redirected(base: Base, location: str, target: str) -> tuple[Base, str]:
    """Where the request for TARGET below BASE is to be sent when it was answered with LOCATION.

    If that ends with the same TARGET, all of the API is there. Raises ValueError: it leads nowhere, or away from TLS.
    """
    absolute = location
    if location.startswith("//"):
        absolute = f"{'https' if base.tls else 'http'}:{location}"
    elif location.startswith("/"):
        absolute = base.web_url.removesuffix(f"{base.path}/") + location
    parts = urlsplit(absolute)
    if parts.scheme not in _PORTS:
        raise ValueError("not a web address")
    tls = parts.scheme == "https"
    if base.tls and not tls:
        raise ValueError("it leads from https to http")
    port = parts.port if parts.port is not None else _PORTS[parts.scheme]
    whole = quote(parts.path, safe=_PATH_CHARACTERS) + (
        f"?{quote(parts.query, safe='%=&;+[]')}" if parts.query else ""
    )
    stays = whole.endswith(target)
    path = whole.removesuffix(target) if stays else ""
    new = Base(tls, _host(parts.hostname), port, path.rstrip("/"), base.user, base.password)
    return new, target if stays else whole


def _text(url: bytes) -> str:
    text = url.decode()
    if not text.isprintable():
        raise ValueError("control characters")
    return text


def _host(name: str | None) -> str:
    if not name:
        raise ValueError("no host")
    if ":" in name:
        ipaddress.IPv6Address(name.partition("%")[0])
        return name
    return name.encode("idna").decode("ascii")


def _path(path: str) -> str:
    return quote(path, safe=_PATH_CHARACTERS).rstrip("/")


def encode_value(value: bytes) -> str:
    """A uuid, key, file name or lock id, ready to be part of a path or query (spec: http §3.2)."""
    try:
        value.decode()
        plain = not (value.startswith(b"[") and value.endswith(b"]"))
    except UnicodeDecodeError:
        plain = False
    return quote(value if plain else b"[" + base64.urlsafe_b64encode(value) + b"]", safe="")


def decode_value(text: str) -> bytes:
    """The inverse, of text that is not percent-encoded. Raises ValueError."""
    value = text.encode()
    if not (value.startswith(b"[") and value.endswith(b"]")):
        return value
    try:
        return base64.b64decode(value[1:-1] + b"=" * (-(len(value) - 2) % 4), b"-_", validate=True)
    except binascii.Error as reason:
        raise ValueError(str(reason)) from reason


def query(parameters: Iterable[tuple[str, bytes | int]]) -> str:
    return "&".join(
        f"{name}={value}" if isinstance(value, int) else f"{name}={encode_value(value)}" for name, value in parameters
    )
