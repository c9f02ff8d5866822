"""A remote as git config and the git-annex branch tell of it (spec: proxy §4)."""

from __future__ import annotations

from annexshell.uuid import NO_UUID, UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.annex.config import Config

# What a remote that was learnt of from another proxy has in common with that proxy (spec: proxy §4.5).
_INHERITED = frozenset(
    b"""
    annex-cost annex-cost-command annex-ignore annex-ignore-auto annex-ignore-command annex-sync annex-sync-command
    annex-pull annex-push annex-readonly annex-verify annex-fastcopy annex-speculate-present annex-bare annex-retry
    annex-forward-retry annex-retrydelay annex-stalldetection annex-stalldetection-upload
    annex-stalldetection-download annex-bwlimit annex-bwlimit-upload annex-security-allow-unverified-downloads
    annex-web-options annex-max-git-bundles annex-allow-encrypted-gitrepo annex-proxy annex-shell annex-ssh-options
    annex-rsync-options annex-rsync-upload-options annex-rsync-download-options annex-rsync-transport
    annex-gnupg-options annex-gnupg-decrypt-options annex-shared-sop-command annex-shared-sop-profile annexurl
    """.split()
)


class Location:
    """Where a remote is, once its url was rewritten."""

    __slots__ = ()


class LocalPath(Location):
    """A repository on this machine."""

    __slots__ = ("path",)

    def __init__(self, path: bytes) -> None:
        self.path = path  # absolute


class Ssh(Location):
    """A repository behind ssh."""

    __slots__ = ("host", "path", "port")

    def __init__(self, host: bytes, port: int | None, path: bytes) -> None:
        self.host = host  # with "user@" in front if there is one
        self.port = port
        self.path = path  # as the far side is told; it may begin with /~/


class AnnexHttp(Location):
    """A repository that a git-annex HTTP server serves."""

    __slots__ = ("url",)

    def __init__(self, url: bytes) -> None:
        self.url = url  # annex+http://... or annex+https://...


class Special(Location):
    """A special remote."""

    __slots__ = ("kind",)

    def __init__(self, kind: bytes) -> None:
        self.kind = kind  # its type, as in "directory"


class Unreachable(Location):
    """Something that no content can be sent to or had from."""

    __slots__ = ("reason", "url")

    def __init__(self, url: bytes, reason: str) -> None:
        self.url = url
        self.reason = reason


class Remote:
    """One remote. Nothing is contacted before it is opened."""

    __slots__ = ("_config", "_read_uuid", "_uuid", "cost", "location", "name", "proxy")

    def __init__(
        self,
        config: Config,
        name: bytes,
        location: Location,
        cost: float,
        *,
        read_uuid: Callable[[], UUID],
        proxy: Remote | None = None,
    ) -> None:
        self._config = config
        self._read_uuid = read_uuid
        self._uuid: UUID | None = None
        self.name = name
        self.location = location
        self.cost = cost
        self.proxy = proxy  # the remote through which it is reached, for one that was learnt of from that

    @property
    def uuid(self) -> UUID:
        """Empty if it is not known. For a repository on this machine it is asked for when it is first needed."""
        if self._uuid is None:
            self._uuid = self._read_uuid()
        return self._uuid

    @property
    def proxied_by(self) -> UUID:
        """The uuid of the proxy through which it is reached; empty for an ordinary remote."""
        return self.proxy.uuid if self.proxy is not None else NO_UUID

    def setting(self, name: bytes) -> bytes | None:
        """The git config of the remote, NAME being like ``annex-shell``; what is set for all remotes otherwise."""
        place = self._place_of(name)
        return None if place is None else self._config.get(place)

    def flag(self, name: bytes, default: bool = False) -> bool:
        """:meth:`setting` as a boolean."""
        place = self._place_of(name)
        return default if place is None else self._config.get_bool(place, default)

    def _place_of(self, name: bytes) -> bytes | None:
        """The full name of the setting that counts."""
        places = [b"remote.%s.%s" % (self.name, name)]
        if self.proxy is not None and name in _INHERITED:
            places.append(b"remote.%s.%s" % (self.proxy.name, name))
        if name.startswith(b"annex-"):
            places.append(b"annex." + name.removeprefix(b"annex-"))
        return next((place for place in places if place in self._config), None)

    def __str__(self) -> str:
        return self.name.decode("utf-8", "backslashreplace")
