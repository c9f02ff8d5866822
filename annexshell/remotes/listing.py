"""The remotes of a repository, those to be tried first in front (spec: proxy §4).

Nothing is contacted for the list, and no process runs but the commands that are configured to tell a cost.
"""

from __future__ import annotations

import os

from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.logs import cluster as clusterlog
from annexshell.annex.logs import proxy as proxylog
from annexshell.annex.logs import remote as remotelog
from annexshell.errors import RepositoryError
from annexshell.remotes import cost, urls
from annexshell.remotes.remote import LocalPath, Location, Remote, Special
from annexshell.uuid import NO_UUID, UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from annexshell.annex.branch import Branch
    from annexshell.annex.config import Config

_GIT_LFS = b"git-lfs"

# The kinds of special remotes in git-annex's own order, with the setting that tells of one, and the costs of one on
# this machine and elsewhere. The latter is one whose setting contains a colon.
_SPECIAL_REMOTES = (
    (b"S3", b"annex-s3", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"bup", b"annex-buprepo", cost.NEARLY_LOCAL, cost.EXPENSIVE),
    (b"directory", b"annex-directory", cost.LOCAL, cost.LOCAL),
    (b"rsync", b"annex-rsyncurl", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"web", b"annex-web", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"webdav", b"annex-webdav", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"adb", b"annex-adb", cost.ANDROID, cost.ANDROID),
    (b"tahoe", b"annex-tahoe", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"glacier", b"annex-glacier", cost.VERY_EXPENSIVE, cost.VERY_EXPENSIVE),
    (b"ddar", b"annex-ddarrepo", cost.NEARLY_LOCAL, cost.EXPENSIVE),
    (b"httpalso", b"annex-httpalso", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"borg", b"annex-borgrepo", cost.NEARLY_LOCAL, cost.EXPENSIVE),
    (b"rclone", b"annex-rclone", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"hook", b"annex-hooktype", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"external", b"annex-externaltype", cost.EXPENSIVE, cost.EXPENSIVE),
    (b"compute", b"annex-compute", cost.VERY_EXPENSIVE, cost.VERY_EXPENSIVE),
    (b"mask", b"annex-mask", cost.MASKED, cost.MASKED),
)

# How much more the node of a cluster costs than the gateway it is behind: the cluster is to be used instead.
_BEHIND_CLUSTER = 0.1


def list_remotes(repo: GitRepository, branch: Branch) -> list[Remote]:
    """The remotes in the order in which they are to be tried. Raises RepositoryError, OSError."""
    return _Listing(repo, branch).ordered()


class _Listing:
    """One reading of git config and the git-annex branch."""

    __slots__ = ("_branch", "_config", "_costs", "_recorded", "_urls")

    def __init__(self, repo: GitRepository, branch: Branch) -> None:
        self._config = repo.config
        self._branch = branch
        self._costs = cost.Costs()
        self._urls = urls.Urls(repo)
        self._recorded: dict[UUID, dict[bytes, bytes]] | None = None

    def ordered(self) -> list[Remote]:
        """Of those that cost the same, the last one first; as git-annex has it."""
        git = list(self._git_remotes())
        remotes = [*self._instantiated(git), *git, *self._special_remotes()]
        remotes.reverse()
        remotes.sort(key=lambda remote: remote.cost)
        return remotes

    def _git_remotes(self) -> Iterator[Remote]:
        for name in _names_with(self._config, b"url"):
            url = self._urls.of(name)
            if not urls.is_special_remote(url):
                location = self._urls.parse(url)
                if self._config.get_bool(b"remote.%s.annex-git-lfs" % name):
                    location = Special(_GIT_LFS)
                yield self._remote(name, location, self._git_cost(location, url))

    def _git_cost(self, location: Location, url: bytes) -> float:
        """The cost of a remote with a url unless it is configured."""
        if isinstance(location, LocalPath):
            return cost.LOCAL
        if isinstance(location, Special) and location.kind == urls.P2P:
            return cost.VERY_EXPENSIVE
        if isinstance(location, Special) and location.kind == urls.GCRYPT:
            inner = self._urls.parse(url.removeprefix(b"gcrypt::"))
            return cost.NEARLY_LOCAL if isinstance(inner, LocalPath) else cost.EXPENSIVE
        return cost.EXPENSIVE

    def _special_remotes(self) -> Iterator[Remote]:
        for kind, setting, near, far in _SPECIAL_REMOTES:
            for name in _names_with(self._config, setting):
                value = self._config.get(b"remote.%s.%s" % (name, setting)) or b""
                yield self._remote(name, Special(kind), far if b":" in value else near)

    def _remote(self, name: bytes, location: Location, default_cost: float) -> Remote:
        recorded = self._recorded_settings(_recorded_uuid(self._config, name))
        if isinstance(location, Special) and recorded.get(b"type") != location.kind:
            recorded = {}  # it is about something else
        remote = Remote(
            self._config, name, location, default_cost, read_uuid=lambda: _uuid_of(self._config, name, location)
        )
        remote.cost = self._costs.of(remote, default_cost, recorded.get(b"cost"))
        if isinstance(location, Special):
            remote.cost += cost.surcharge(recorded)
        return remote

    def _recorded_settings(self, uuid: UUID) -> Mapping[bytes, bytes]:
        """What remote.log has of a remote; nothing for most git remotes."""
        if not uuid:
            return {}
        if self._recorded is None:
            self._recorded = remotelog.parse(self._branch.read(remotelog.FILE))
        return remotelog.effective(self._recorded, uuid)[1] if uuid in self._recorded else {}

    def _instantiated(self, git: list[Remote]) -> Iterator[Remote]:
        """The remotes that are reached through others that proxy for them (spec: proxy §4.5)."""
        proxies = [
            (proxy, uuid)
            for proxy in git
            if not isinstance(proxy.location, (LocalPath, Special))
            and (uuid := _recorded_uuid(self._config, proxy.name))
        ]
        if not proxies:
            return
        proxied = proxylog.parse(self._branch.read(proxylog.FILE))
        if not proxied:
            return
        clusters = clusterlog.parse(self._branch.read(clusterlog.FILE))
        configured = _configured_names(self._config)
        for proxy, proxy_uuid in proxies:
            entries = sorted(set(proxied.get(proxy_uuid, ())))
            offered = {uuid for uuid, _ in entries}
            nodes = {node for cluster in offered if cluster in clusters for node in clusters[cluster]}
            for uuid, name in entries:
                if proxy.name + b"-" + name not in configured:
                    yield self._through(proxy, uuid, name, in_cluster=uuid in nodes)

    def _through(self, proxy: Remote, uuid: UUID, name: bytes, *, in_cluster: bool) -> Remote:
        """The remote that PROXY calls NAME."""
        full_name = proxy.name + b"-" + name
        remote = Remote(self._config, full_name, proxy.location, cost.EXPENSIVE, read_uuid=lambda: uuid, proxy=proxy)
        recorded = self._recorded_settings(uuid).get(b"cost")
        # The proxy's annex-cost is inherited, but not by the nodes of a cluster, who would compete with the cluster.
        setting = b"%.1f" % (cost.EXPENSIVE + _BEHIND_CLUSTER) if in_cluster else None
        remote.cost = self._costs.of(remote, cost.EXPENSIVE, recorded, setting=setting)
        return remote


def _names_with(config: Config, setting: bytes) -> list[bytes]:
    """The remotes that have SETTING, in the order of the settings' full names."""
    start, end = b"remote.", b"." + setting
    found = [name for name in config.names() if name.startswith(start) and name.endswith(end)]
    return [name[len(start) : -len(end)] for name in sorted(found) if len(name) > len(start) + len(end)]


def _configured_names(config: Config) -> set[bytes]:
    """Everything that could be the name of a remote that some setting is about."""
    start = b"remote."
    found: set[bytes] = set()
    for name in config.names():
        if name.startswith(start):
            words = name.removeprefix(start).split(b".")
            found.update(b".".join(words[:count]) for count in range(1, len(words)))
    return found


def _recorded_uuid(config: Config, name: bytes) -> UUID:
    """The uuid under which the git-annex branch has the configuration of a remote, as far as git config knows it."""
    return UUID(config.get(b"remote.%s.annex-config-uuid" % name) or _cached_uuid(config, name))


def _cached_uuid(config: Config, name: bytes) -> UUID:
    return UUID(config.get(b"remote.%s.annex-uuid" % name) or b"")


def _uuid_of(config: Config, name: bytes, location: Location) -> UUID:
    """The uuid of the repository at LOCATION: what it says itself if it is on this machine (spec: proxy §4.2)."""
    check = config.get_bool(b"remote.%s.annex-checkuuid" % name, config.get_bool(b"annex.checkuuid", True))
    own = _own_uuid(location.path) if check and isinstance(location, LocalPath) else NO_UUID
    return own or _cached_uuid(config, name)


def _own_uuid(path: bytes) -> UUID:
    """The uuid in the config of the repository at PATH; empty if there is none, or it cannot be read."""
    try:
        return GitRepository(path).uuid if os.path.isdir(path) else NO_UUID
    except (RepositoryError, OSError):
        return NO_UUID
