"""Standing in front of other repositories: who may be stood for, and doing it (spec: proxy §3, §7, §10).

A client that asks for another repository's uuid is given that repository, if both this repository's git config and
the proxy log of its git-annex branch say so. What becomes of content there is recorded in our branch too.
"""

from __future__ import annotations

from annexshell import log
from annexshell.annex.logs import cluster, uuidmap
from annexshell.annex.logs import proxy as proxylog
from annexshell.annex.repository import LocalRepository
from annexshell.errors import AnnexshellError, NotAsked, Refused, RemoteUnavailable, RepositoryError
from annexshell.remotes.listing import list_remotes
from annexshell.remotes.opening import open_remote
from annexshell.remotes.patience import Lifeline, Patience
from annexshell.repository import AlreadyHave, Content, ContentLock, Outcome, Repository, Upload
from annexshell.uuid import NO_UUID, UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import TypeVar

    from annexshell.annex.branch import Branch
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key
    from annexshell.relay import Source
    from annexshell.remotes.remote import Remote
    from annexshell.repository import AssociatedFile, Timestamp

    _T = TypeVar("_T")


class CannotProxy(Refused):
    """Why a uuid is not stood for, in the spec's words; empty where nothing is to be said."""


def check_can_proxy(repo: GitRepository, uuid: UUID, shared: LocalRepository | None = None) -> ProxiedRepository:
    """The repository that REPO stands in front of under UUID (spec: proxy §3.1). Raises CannotProxy.

    SHARED is REPO where many use it, so that what is recorded goes by way of its branch; committing that, and closing
    the branch, then is left to the one who shares it.
    """
    local = LocalRepository(repo) if shared is None else shared.for_client(NO_UUID)
    try:
        return ProxiedRepository(local, uuid, _chosen(repo, local.branch, uuid))
    except BaseException:
        local.abandon()
        raise


def _chosen(repo: GitRepository, branch: Branch, uuid: UUID) -> Remote:
    update(branch)
    names = logged_names(repo, branch, uuid)
    if names is None:
        raise CannotProxy("")
    if names and cluster.is_cluster(uuid):
        if uuid in cluster.parse(branch.read(cluster.FILE)):
            raise Refused(f"{uuid} is a cluster, and this version of annexshell does not serve clusters")
    elif names:
        remotes = list_remotes(repo, branch)
        for remote in remotes:
            if why_not(repo, remote, uuid, names, remotes) is None:
                return remote
    description = uuidmap.values(branch.read(uuidmap.UUIDS)).get(uuid)
    raise CannotProxy("" if description is None else f"not configured to proxy for repository {_text(description)}")


def update(branch: Branch) -> None:
    """Have what was pushed to other git-annex refs in the branch, if that can be done."""
    try:
        branch.update()
    except (RepositoryError, OSError) as reason:
        log.debug(f"cannot merge other git-annex refs: {reason}")


def logged_names(repo: GitRepository, branch: Branch, uuid: UUID) -> frozenset[bytes] | None:
    """The names under which the proxy log allows REPO to stand for UUID; None if it is not a proxy at all."""
    proxied = proxylog.parse(branch.read(proxylog.FILE)).get(repo.uuid)
    return None if proxied is None else frozenset(name for entry, name in proxied if entry == uuid)


def why_not(
    repo: GitRepository, remote: Remote, uuid: UUID, names: frozenset[bytes], remotes: Sequence[Remote]
) -> str | None:
    """Why REMOTE, one of REPO's REMOTES, is not used for UUID; None if it can be.

    NAMES are those that the proxy log has for it. What is looked up first is what takes the least time.
    """
    if remote.name not in names:
        return "the proxy log does not have it under this name for the uuid (git annex updateproxy records it)"
    if not _is_configured(repo, remote, remotes):
        return f"git config does not allow it (git config remote.{remote}.annex-proxy true)"
    if remote.uuid != uuid:
        return f"its uuid is {remote.uuid}" if remote.uuid else "its uuid is not known"
    return None


def _is_configured(repo: GitRepository, remote: Remote, remotes: Sequence[Remote]) -> bool:
    if remote.flag(b"annex-proxy"):
        return True
    for name in (remote.setting(b"annex-cluster-node") or b"").split():
        value = repo.config.get(b"annex.cluster." + name)
        if proxylog.is_legal_name(name) and value is not None and cluster.is_cluster(value):
            return True
    if remote.proxy is None:
        return False
    return any(
        other.uuid == remote.proxied_by
        and any(map(cluster.is_cluster, (other.setting(b"annex-cluster-gateway") or b"").split()))
        for other in remotes
        if other.proxy is None
    )


class ProxiedRepository(Repository):
    """A remote, used by way of this repository. It is contacted when a version has to be agreed on.

    A connection that has got out of step is closed at once, and the next request opens another one.
    """

    def __init__(self, local: LocalRepository, uuid: UUID, remote: Remote) -> None:
        self.local = local
        self.uuid = uuid
        self.remote = remote
        self.patience = Patience()
        self.lifeline: Lifeline | None = None  # once it is cut the connection can only be closed
        self.bypassed: Sequence[UUID] = ()  # what the remote is told each time that it is opened
        self.protocol_version = 0
        self._node: Repository | None = None

    def abandon(self) -> None:
        """Nothing will be asked of it: let go of what finding it took."""
        self._disconnect()
        try:
            self.local.abandon()
        finally:
            self._drop_lifeline()

    def watch_lifeline(self) -> None:
        """Let another thread end the waiting for the remote, whenever that is."""
        self.lifeline = Lifeline()
        self.patience.for_whom = self.lifeline.fd

    def _drop_lifeline(self) -> None:
        if self.lifeline is not None:
            self.lifeline.close()

    def agree(self, highest: int) -> int:
        self.protocol_version = highest
        self.protocol_version = min(highest, self._connected().protocol_version)
        return self.protocol_version

    def _connected(self) -> Repository:
        if self._node is not None and not self._node.is_alive():
            self._disconnect()  # it has ended since it was last asked
        if self._node is None:
            # At the client's version, also when it is opened again: what follows content differs between versions.
            highest = self.protocol_version
            self._node = open_remote(self.local.repo, self.remote, self.uuid, highest, self.patience)
            if self.bypassed:
                self._node.bypass(self.bypassed)
        return self._node

    def __enter__(self) -> Repository:
        return self._connected()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.settle()

    def settle(self) -> None:
        """After a request or an exchange: close a connection that is out of step."""
        if self._node is not None and not self._node.usable:
            self._disconnect()

    def _disconnect(self) -> None:
        node, self._node = self._node, None
        if node is not None:
            try:
                node.close()
            except (AnnexshellError, OSError) as reason:
                # What it could not commit it has in its journal.
                log.warn(f"remote {self.remote}: {reason}")

    def record(self, key: Key, uuids: Sequence[UUID], is_present: bool) -> None:
        """Record in our branch what became of the content elsewhere (spec: proxy §10).

        A failure of ours does not change what was done there, and that is what the client has to hear of.
        """
        try:
            for uuid in dict.fromkeys(uuids):
                if uuid != self.local.uuid:  # of what we have ourselves, nobody can tell us
                    self.local.record_presence_elsewhere(key, uuid, is_present)
        except (AnnexshellError, OSError) as reason:
            log.warn(f"cannot record where the content of {key} is: {reason}")

    def _ask(self, request: Callable[[Repository], _T]) -> _T:
        """What REQUEST gives, which is asked again, of a new connection, if the one there was ended unnoticed."""
        try:
            with self as node:
                return request(node)
        except NotAsked as reason:
            log.debug(f"remote {self.remote}: {reason}")
        with self as node:
            return request(node)

    # What a Repository does.

    def is_alive(self) -> bool:
        if self.lifeline is not None and self.lifeline.is_cut:
            return False
        return self._node is not None and self._node.is_alive()

    def checkpresent(self, key: Key) -> bool:
        return self._ask(lambda node: node.checkpresent(key))

    def lockcontent(self, key: Key) -> ContentLock:
        return _ProxiedLock(self, self._ask(lambda node: node.lockcontent(key)))

    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        try:
            outcome = self._ask(lambda node: node.remove(key, before))
        except RemoteUnavailable as reason:
            # How git-annex-shell answers when the content is locked is to end.
            log.warn(f"cannot remove {key}: {reason}")
            return Outcome(False, why=str(reason))
        uuids = (self.uuid, *outcome.uuids) if outcome.done else outcome.uuids
        self.record(key, uuids, False)
        return Outcome(outcome.done, uuids if outcome.uuids else ())

    def gettimestamp(self) -> Timestamp:
        return self._ask(lambda node: node.gettimestamp())

    def get(self, key: Key, offset: int, file: AssociatedFile) -> Content:
        return _ProxiedContent(self, self._ask(lambda node: node.get(key, offset, file)))

    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        answer = self._ask(lambda node: node.put(key, file))
        return answer if isinstance(answer, AlreadyHave) else _ProxiedUpload(self, key, answer)

    def close(self) -> None:
        """End the connection, and commit what was recorded. Raises RepositoryError, OSError."""
        try:
            self._disconnect()
        finally:
            self._drop_lifeline()
            self.local.close()


class _ProxiedLock(ContentLock):
    def __init__(self, repository: ProxiedRepository, lock: ContentLock) -> None:
        self._repository = repository
        self._lock = lock

    def keep(self) -> None:
        self._lock.keep()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._lock.__exit__(kind, error, trace)
        except RemoteUnavailable as reason:
            log.warn(f"cannot unlock: {reason}")  # to which the protocol has no answer
        finally:
            self._repository.settle()


class _ProxiedContent(Content):
    def __init__(self, repository: ProxiedRepository, content: Content) -> None:
        self._repository = repository
        self._content = content
        self.length = content.length
        self.source = content.source

    def still_valid(self) -> bool:
        return self._content.still_valid()

    def acknowledge(self, received: bool) -> None:
        try:
            self._content.acknowledge(received)
        except RemoteUnavailable as reason:
            log.debug(str(reason))  # the client has got what it wanted

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._content.__exit__(kind, error, trace)
        except RemoteUnavailable as reason:
            log.debug(str(reason))
        finally:
            self._repository.settle()


class _ProxiedUpload(Upload):
    def __init__(self, repository: ProxiedRepository, key: Key, upload: Upload) -> None:
        self._repository = repository
        self._key = key
        self._upload = upload
        self.offset = upload.offset

    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        return self._recorded(self._upload.receive(length, source, validity))

    def check_stored(self) -> Outcome:
        return self._recorded(self._upload.check_stored())

    def _recorded(self, outcome: Outcome) -> Outcome:
        if outcome.done:
            self._repository.record(self._key, (self._repository.uuid, *outcome.uuids), True)
        return outcome

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._upload.__exit__(kind, error, trace)
        except AnnexshellError as reason:
            log.debug(str(reason))
        finally:
            self._repository.settle()


def _text(description: bytes) -> str:
    return description.decode("utf-8", "backslashreplace")
