"""Where the url of a remote leads to (spec: proxy §4.1).

Rules where git and git-annex agree are theirs. Where they do not, git's are used if git-annex makes no sense of the
url: a ``:`` after a ``/`` is part of a path, and ``host:a//b`` is a path at that host.
"""

from __future__ import annotations

import os

from annexshell.remotes.remote import AnnexHttp, LocalPath, Location, Special, Ssh, Unreachable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.config import Config
    from annexshell.annex.gitrepo import GitRepository

GCRYPT = b"gcrypt"
P2P = b"p2p"

_ANNEX_HTTP = (b"annex+http://", b"annex+https://")
_SSH = (b"ssh://", b"git+ssh://", b"ssh+git://")
_FILE = b"file://"
_SPECIAL_KINDS = ((b"gcrypt::", GCRYPT), (b"tor-annex::", P2P), (b"p2p-annex::", P2P))

_SCHEME = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+-.")
_NOT_IN_HOSTS = frozenset(b"[]?#")
_HEX = frozenset(b"0123456789abcdefABCDEF")
_MAX_PORT_DIGITS = 5


class Urls:
    """The urls of one repository's remotes, as its git config rewrites them."""

    __slots__ = ("_annex_instead_of", "_config", "_instead_of", "_top")

    def __init__(self, repo: GitRepository) -> None:
        self._config = repo.config
        self._top = _top(repo)
        self._instead_of = _replacements(repo.config, b".insteadof")
        self._annex_instead_of = _replacements(repo.config, b".annexinsteadof")

    def of(self, name: bytes) -> bytes:
        """The url by which the remote NAME is reached.

        That of a git-annex HTTP server is only used if the ordinary one leads nowhere: the server of a repository
        that we reach by itself has nothing to add.
        """
        url = _replace(self._config.get(b"remote.%s.url" % name) or b"", self._instead_of)
        configured = self._config.get(b"remote.%s.annexurl" % name)
        annexurl = _replace(configured, self._instead_of) if configured else _replace(url, self._annex_instead_of)
        if annexurl.startswith(_ANNEX_HTTP) and not isinstance(self.parse(url), Unreachable):
            return url
        return annexurl

    def parse(self, url: bytes) -> Location:
        """Where URL leads to, rewritten as it is. Never raises."""
        for prefix, kind in _SPECIAL_KINDS:
            if url.startswith(prefix):
                return Special(kind)
        if url.startswith(_ANNEX_HTTP):
            return AnnexHttp(url)
        if url.startswith(_SSH):
            authority, slash, path = url.partition(b"://")[2].partition(b"/")
            return _ssh(url, authority, slash + path)
        if url.startswith(_FILE):
            _, slash, path = url.removeprefix(_FILE).partition(b"/")
            path = percent_decode((slash + path).partition(b"?")[0].partition(b"#")[0])
            return _local(url, path)
        if _has_scheme(url):
            return Unreachable(url, "content cannot be transferred by this kind of url")
        scp = _split_scp(url)
        return _local(url, self._absolute(url)) if scp is None else _ssh(url, *scp)

    def _absolute(self, path: bytes) -> bytes:
        path = os.path.expanduser(path)
        if path.startswith(b"/"):
            return path
        slash = b"/" if path.endswith(b"/") else b""  # says that the directory has exactly this name
        return os.path.normpath(os.path.join(self._top, path)) + slash


def local_repository(path: bytes) -> bytes:
    """The directory that PATH names: ``repo`` may be said for ``repo.git``, and ``repo/.git`` for ``repo``."""
    directory = path.rstrip(b"/") or b"/"
    if directory.endswith(b"/.git") and not os.path.lexists(directory + b"/.git"):
        return directory.removesuffix(b"/.git") or b"/"
    if path.endswith(b"/") or os.path.isdir(directory):
        return directory
    return directory + b".git"


def is_special_remote(url: bytes) -> bool:
    """Whether URL is that of the git repository inside a special remote, which is in the list by itself."""
    return url.startswith(b"annex::")


def percent_decode(text: bytes) -> bytes:
    """TEXT with every ``%XX`` as the byte it stands for; other percent signs stand for themselves."""
    first, *parts = text.split(b"%")
    return first + b"".join(map(_decode_part, parts))


def _decode_part(part: bytes) -> bytes:
    digits = part[:2]
    if len(digits) == 2 and _HEX.issuperset(digits):
        return bytes([int(digits, 16)]) + part[2:]
    return b"%" + part


def _top(repo: GitRepository) -> bytes:
    """The directory that relative paths are relative to, without symlinks, so that ``..`` means its real parent."""
    if repo.worktree is not None:
        top = repo.worktree
    elif not repo.bare and repo.gitdir.endswith(b"/.git"):
        top = repo.gitdir.removesuffix(b"/.git")  # the client named the .git of a repository with a work tree
    else:
        top = repo.gitdir
    return os.path.realpath(top)


def _replacements(config: Config, variable: bytes) -> list[tuple[bytes, bytes]]:
    """Each beginning of urls that ``url.BASE.VARIABLE`` replaces, with the base."""
    start = b"url."
    return [
        (prefix, name[len(start) : -len(variable)])
        for name in config.names()
        if name.startswith(start) and name.endswith(variable) and len(name) >= len(start) + len(variable)
        for prefix in config.get_all(name)
    ]


def _replace(url: bytes, replacements: list[tuple[bytes, bytes]]) -> bytes:
    """URL with the longest beginning that there is a replacement for replaced, as git does it."""
    matching = [replacement for replacement in replacements if url.startswith(replacement[0])]
    if not matching:
        return url
    prefix, base = max(matching, key=lambda replacement: len(replacement[0]))
    return base + url[len(prefix) :]


def _has_scheme(url: bytes) -> bool:
    """Whether URL begins like ``git://`` or, naming a remote helper, like ``foo::``."""
    scheme, _, rest = url.partition(b":")
    return rest.startswith((b"//", b":")) and bool(scheme) and _SCHEME.issuperset(scheme)


def _split_scp(url: bytes) -> tuple[bytes, bytes] | None:
    """The host and the url path of ``host:path``; None for a path on this machine."""
    host, colon, path = url.partition(b":")
    if not colon or b"/" in host:
        return None
    if host.startswith(b"["):
        host, bracket, path = url.partition(b"]:")
        host += bracket[:1]
    if path.startswith(b"/"):
        return host, path
    return host, (b"/" if path.startswith(b"~") else b"/~/") + path


def _local(url: bytes, path: bytes) -> Location:
    if not path:
        return Unreachable(url, "the url has no path")
    if b"\0" in path:
        return Unreachable(url, "the path contains a null byte")
    return LocalPath(local_repository(path))


def _ssh(url: bytes, authority: bytes, path: bytes) -> Location:
    """What ``[USER@]HOST[:PORT]`` and PATH make, percent-encoded as they still are."""
    user, at, rest = authority.rpartition(b"@")
    host, port = _split_port(rest)
    if not host or (port and not _is_port(port)) or b"[" in user:
        return Unreachable(url, "the host in the url makes no sense")
    host, path = percent_decode(host), percent_decode(path)
    destination = percent_decode(user) + at + host
    if destination.startswith(b"-") or host.startswith(b"-"):
        # It would be an option of ssh, which can be made to run anything.
        shown = destination.decode("utf-8", "backslashreplace")
        return Unreachable(url, f"rejecting ssh hostname that starts with '-' : {shown}")
    if b"\0" in destination + path:
        return Unreachable(url, "the url contains a null byte")
    return Ssh(destination, int(port) if port else None, path)


def _split_port(authority: bytes) -> tuple[bytes, bytes]:
    """Host and port; an IPv6 address has brackets around it. The host is empty if it is not a legal one."""
    if not authority.startswith(b"["):
        host, _, port = authority.partition(b":")
        return (host if _NOT_IN_HOSTS.isdisjoint(host) else b""), port
    address, bracket, rest = authority[1:].partition(b"]")
    digits = address.partition(b"%")[0]  # what follows is the network interface
    is_address = digits.count(b":") >= 2 and _HEX.issuperset(digits.replace(b":", b"").replace(b".", b""))
    if not bracket or not is_address or (rest and not rest.startswith(b":")):
        return b"", b""
    return address, rest[1:]


def _is_port(text: bytes) -> bool:
    return text.isdigit() and len(text) <= _MAX_PORT_DIGITS
