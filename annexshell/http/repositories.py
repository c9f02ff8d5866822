"""Which repositories are served, and by which uuids (spec: http §10.1, §10.3, §12.1, proxy §11.1).

Requests come with any uuid, and before anybody asked for a password. So what is known is answered from memory, and
what is not makes us look again only once in a while, once for all that wait for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.annex import branchref
from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository, check_annex
from annexshell.annex.init import check_ownership
from annexshell.annex.logs import proxy as proxylog
from annexshell.annex.permissions import Permissions
from annexshell.errors import AnnexshellError, RepositoryError, TemporaryFailure
from annexshell.http.pace import Pace
from annexshell.http.scanning import Found, ScanStopped, check_directory, enclosing_repository, find_repositories
from annexshell.uuid import NO_UUID, UUID

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

    # Of a file: what changes when it is replaced, rewritten, or has its permissions changed. None if it is not there.
    Signature: TypeAlias = tuple[int, ...] | None

# Seconds. Long enough that asking for what there is not, again and again, makes no work worth mentioning.
SCAN_INTERVAL = 0.1
_JUST_NOW = 0.002  # seconds; who asks may have asked that much earlier
# Searching never takes more than a fifth of the time, but somebody who adds a repository gets it within a minute.
_PAUSE_PER_SCAN = 4
_LONGEST_PAUSE = 60.0
# How long a request for an unknown uuid may be kept waiting for the next scan to begin.
_PATIENCE = 1.0
# Seconds after which a scan is not waited for any more, as of a disk that does not answer.
_LONGEST_SCAN = 10.0
# Seconds in which a client that was told 404 comes back with an older version.
_FALLBACK = 1.0
# How many git processes run at once while many repositories are looked into.
_READERS = 4
_LOOKERS = 32  # threads

_NOTHING_TO_SERVE = "Use the --directory option to specify which git-annex repositories to serve."


class Served:
    """A uuid that requests may name, and the repository that they are to be given to."""

    __slots__ = ("pace", "proxied", "repo", "uuid")

    def __init__(self, uuid: UUID, repo: GitRepository, pace: Pace, proxied: bool) -> None:
        self.uuid = uuid
        self.repo = repo  # the same object for as long as it is the same repository
        self.pace = pace  # of REPO's disk
        self.proxied = proxied  # UUID is not REPO's own, but of one that its proxy log says it stands in front of

    @property
    def is_elsewhere(self) -> bool:
        """Whether it may never answer, where a disk of this machine does."""
        return self.proxied or not self.pace.is_local


class Repositories:
    """The repositories that are served: one, or all that are below some directories. Close it when done."""

    def __init__(self, directories: Sequence[bytes], single: Found | None, interval: float) -> None:
        """Use :meth:`single` or :meth:`below`."""
        self._directories = directories
        self._single = single
        self._interval = interval
        self._entries: dict[Found, _Entry] = {}
        self._own: dict[UUID, _Entry] = {}
        self._proxied: dict[UUID, _Entry] = {}
        self._warned: set[str] = set()
        self._trust: object = None
        self._closed = False
        # Of its own, for the usual one may be full of requests that wait for slow clients.
        self._threads = ThreadPoolExecutor(_READERS, "repositories")
        self._lookers = ThreadPoolExecutor(_LOOKERS, "repositories")  # for disks that may not answer
        self._scan: asyncio.Task[None] | None = None
        self._wanted: set[UUID] = set()  # those that the next scan has to look for in proxy logs too
        self._missed: set[UUID] = set()  # those that the last scan was for
        self._scanning = 0.0  # on the monotonic clock: when the scan that goes on began
        self._seen = 0.0  # on the monotonic clock: what was there then is known
        self._due = 0.0  # when the next scan may begin

    @classmethod
    def single(cls, directory: bytes, interval: float = SCAN_INTERVAL) -> Repositories:
        """The repository that DIRECTORY is in. Raises RepositoryError if that is none for us."""
        found = enclosing_repository(directory)
        if found is None:
            raise RepositoryError(_NOTHING_TO_SERVE)
        repositories = cls((), found, interval)
        repositories.look()
        entry = repositories._entries[found]
        if not entry.uuid:
            raise RepositoryError(entry.complaint or _NOTHING_TO_SERVE)
        return repositories

    @classmethod
    def below(cls, directories: Iterable[bytes], interval: float = SCAN_INTERVAL) -> Repositories:
        """All repositories in and below DIRECTORIES. Raises RepositoryError if one of these cannot be searched."""
        absolute = [os.path.join(os.getcwdb(), directory) for directory in directories]
        for directory in absolute:
            check_directory(directory)
        repositories = cls(absolute, None, interval)
        repositories.look()
        # The first time takes longer than any other, for nothing is known yet.
        repositories._due = time.monotonic() + interval
        return repositories

    def __len__(self) -> int:
        """How many there are, not counting those that they proxy for."""
        return len(self._own)

    def repos(self) -> list[GitRepository]:
        """Those that are served now; what was opened for any other can be closed."""
        return [entry.repo for entry in self._own.values() if entry.repo is not None]

    def at_hand(self, uuid: UUID) -> Served | None:
        """What :meth:`find` gives, if that is a repository whose config was looked at just now."""
        entry = self._own.get(uuid)
        if entry is None or entry.repo is None or entry.uuid != uuid:
            return None
        now = time.monotonic()
        if now - entry.looked > _JUST_NOW:
            if not entry.pace.is_quick:
                return None
            with entry.pace:
                signature = entry.current_signature()
            if signature is None or signature != entry.signature:
                return None
            entry.looked = now
        return Served(uuid, entry.repo, entry.pace, False)

    async def find(self, uuid: UUID, *, is_fallback: bool = False) -> Served | None:
        """What serves UUID; None if it is unknown, which may take a second to find out.

        An unknown one makes us look again: what was there before the question is found, unless looking takes so long
        that it cannot be done again already. IS_FALLBACK: the client may be asking again in other words, as it does
        four times whenever it is told that there is nothing (spec: http §9.7), and then the first answer stands.
        """
        asked = time.monotonic()
        while True:
            seen = self._seen
            served = await self._known(uuid)
            if served is not None or seen >= asked or not self._is_worth_looking():
                return served
            if is_fallback and uuid in self._missed and asked - seen < _FALLBACK:
                return None
            self._wanted.add(uuid)
            if self._scan is None:
                self._scan = asyncio.ensure_future(self._look_when_due())
            scan = self._scan
            # Others wait for the same one, which does not end when this one's client is gone.
            await asyncio.wait({scan}, timeout=_LONGEST_SCAN)
            if scan.done() and not scan.cancelled():
                scan.result()

    async def _known(self, uuid: UUID) -> Served | None:
        for entry, proxied in ((self._own.get(uuid), False), (self._proxied.get(uuid), True)):
            if entry is None or entry.repo is None:
                continue
            signature = await self._signature(entry)
            if signature is None:
                continue  # it was removed
            if signature != entry.signature and not self._closed:
                await asyncio.get_running_loop().run_in_executor(self._threads, entry.read)
            if entry.uuid and (proxied or entry.uuid == uuid):
                return Served(uuid, entry.repo, entry.pace, proxied)
        return None

    async def _signature(self, entry: _Entry) -> Signature:
        """The entry's current one, had in a thread where that may take long."""
        if entry.pace.is_quick:
            with entry.pace:
                return entry.current_signature()
        if self._closed:
            return entry.signature
        if entry.looking is None:
            # One thread for each disk that does not answer, however many ask.
            looking = asyncio.get_running_loop().run_in_executor(self._lookers, entry.current_signature)
            entry.looking = looking
            looking.add_done_callback(lambda _: entry.looked_at())
        return await asyncio.shield(entry.looking)

    def _is_worth_looking(self) -> bool:
        if self._closed:
            return False
        now = time.monotonic()
        if self._scan is not None:
            return not self._scanning or now - self._scanning < _LONGEST_SCAN
        if self._single is not None:
            return any(not entry.is_local or entry.may_have_changed() for entry in self._entries.values())
        return self._due - now <= max(self._interval, _PATIENCE)

    async def _look_when_due(self) -> None:
        try:
            await asyncio.sleep(max(0.0, self._due - time.monotonic()))
            wanted, self._wanted = self._wanted, set()
            began = self._scanning = time.monotonic()
            try:
                await asyncio.get_running_loop().run_in_executor(self._threads, self.look, wanted)
            finally:
                now = time.monotonic()
                self._seen, self._missed = began, wanted
                self._due = now + min(max(self._interval, _PAUSE_PER_SCAN * (now - began)), _LONGEST_PAUSE)
        except ScanStopped:
            pass
        except (AnnexshellError, OSError) as reason:
            # Whatever is known is served all the same, and the next question has us look again.
            log.warn(f"cannot look for new repositories: {reason}")
        finally:
            self._scan = None
            self._scanning = 0.0

    def look(self, wanted: Iterable[UUID] = ()) -> None:
        """Find out what is there now; in the proxy logs only if WANTED are not found elsewhere.

        Not to be called by two threads at once. Raises TemporaryFailure, ScanStopped.
        """
        if self._single is not None:
            found = [self._single]
        else:
            found = find_repositories(self._directories, lambda: self._closed)
        entries = {place: self._entries.get(place) or _Entry(place) for place in found}
        self._forget_refusals(entries.values())
        self._for_each(_Entry.read, (e for e in entries.values() if e.current_signature() != e.signature))
        own = self._by_uuid(entries.values())
        if not own.keys() >= set(wanted):
            self._for_each(_Entry.read_proxied, (e for e in own.values() if e.may_proxy_for_others_now()))
        proxied: dict[UUID, _Entry] = {}
        for entry in own.values():
            for uuid in entry.proxied:
                proxied.setdefault(uuid, entry)
        self._entries, self._own, self._proxied = entries, own, proxied

    def _forget_refusals(self, entries: Iterable[_Entry]) -> None:
        """Other owners' repositories are trusted by a setting of our user, who may have followed the advice."""
        trust, before = tuple(map(_signature, _user_configs())), self._trust
        self._trust = trust
        for entry in entries:
            if entry.complaint and trust != before:
                entry.signature = None

    def _for_each(self, function: Callable[[_Entry], None], entries: Iterable[_Entry]) -> None:
        chosen = list(entries)
        if len(chosen) <= 1:
            for entry in chosen:
                function(entry)
            return

        def unless_closed(entry: _Entry) -> None:
            if self._closed:
                raise ScanStopped
            function(entry)

        # Threads only as long as they are needed, so that the process can fork afterwards.
        with ThreadPoolExecutor(_READERS) as pool:
            for _ in pool.map(unless_closed, chosen):
                pass

    def _by_uuid(self, entries: Iterable[_Entry]) -> dict[UUID, _Entry]:
        own: dict[UUID, _Entry] = {}
        for entry in entries:
            if entry.complaint:
                self._warn_once(f"{entry} is not served: {entry.complaint}")
            if not entry.uuid:
                continue
            other = own.setdefault(entry.uuid, entry)
            if other is not entry:
                self._warn_once(f"{entry} is not served: it has the same annex.uuid as {other} ({entry.uuid})")
        return own

    def _warn_once(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            log.warn(message)

    def close(self) -> None:
        """Stop looking. Whoever waits gets to know what is known so far."""
        self._closed = True
        for threads in (self._threads, self._lookers):
            threads.shutdown(wait=False)
        if self._scan is not None:
            self._scan.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class _Entry:
    """A git repository, and what is known of it. It is read again only when its files have changed."""

    __slots__ = (
        "_branch_state",
        "_config_file",
        "_found",
        "_mutex",
        "complaint",
        "looked",
        "looking",
        "pace",
        "proxied",
        "repo",
        "signature",
        "uuid",
    )

    def __init__(self, found: Found) -> None:
        self._found = found
        self._config_file = found.commondir + b"/config"
        self._mutex = threading.Lock()
        self._branch_state: object = None
        self.repo: GitRepository | None = None
        self.signature: Signature = None  # of the config file, before it was read
        self.looked = 0.0  # on the monotonic clock: when the signature was the current one
        self.looking: asyncio.Future[Signature] | None = None  # a look that goes on
        self.pace = Pace(())  # of the disk, for the event loop's thread; once it has a repo
        self.uuid = NO_UUID  # empty if it is not to be served
        self.complaint = ""  # why not, if it looks like somebody wants it to be
        self.proxied: frozenset[UUID] = frozenset()

    def __str__(self) -> str:
        return os.fsdecode(self._found.path)

    def current_signature(self) -> Signature:
        return _signature(self._config_file)

    def read(self) -> None:
        """Read the config if it has changed."""
        with self._mutex:
            signature = self.current_signature()
            if signature == self.signature:
                return  # another thread was faster
            uuid, complaint = NO_UUID, ""
            try:
                uuid = self._read_config()
            except TemporaryFailure as reason:
                log.debug(f"{self}: {reason}")
                return  # to be tried again, and until then nothing is different
            except RepositoryError as reason:
                complaint = str(reason)
            self.uuid, self.complaint, self.signature = uuid, complaint, signature

    def _read_config(self) -> UUID:
        if not self._is_ours():
            # Its config can have us run any program, and that somebody put it there is nobody's consent.
            check_ownership(self._found.path, self._found.gitdir)
        if self.repo is None:
            repo = GitRepository(self._found.path)
            _ = repo.config
            self.pace = Pace((self._found.commondir, repo.annexdir, repo.annexdir + b"/objects"))
            self.repo = repo  # now that it has a config: others must not see it without one
        else:
            self.repo.refresh_config()
        # Without annex.version it has not been used much yet; git-annex serves it too.
        if self.repo.uuid and self.repo.version is not None:
            check_annex(self.repo)
        return self.repo.uuid

    def _is_ours(self) -> bool:
        """Whether git would not even think of refusing to work there."""
        found = self._found
        dotgit = found.path + b"/.git"
        places = {found.path, found.gitdir, found.commondir} | ({dotgit} if os.path.lexists(dotgit) else set())
        try:
            return all(os.stat(place).st_uid == os.geteuid() for place in places)
        except OSError:
            return False

    @property
    def is_local(self) -> bool:
        return self.repo is not None and self.pace.is_local

    def looked_at(self) -> None:
        self.looking = None

    def may_have_changed(self) -> bool:
        return self.current_signature() != self.signature or self.may_proxy_for_others_now()

    def may_proxy_for_others_now(self) -> bool:
        """Whether its proxy log may say something else than when it was read."""
        return self._current_branch_state() != self._branch_state

    def read_proxied(self) -> None:
        """Read which others it proxies for."""
        if self.repo is None or not self.uuid:
            return
        state = self._current_branch_state()
        try:
            content = self._read_proxy_log(self.repo)
        except (RepositoryError, OSError) as reason:
            log.debug(f"{self}: cannot read {os.fsdecode(proxylog.FILE)}: {reason}")
            return
        self.proxied = frozenset(uuid for uuid, _ in proxylog.parse(content).get(self.uuid, ()))
        self._branch_state = state

    def _read_proxy_log(self, repo: GitRepository) -> bytes:
        if not self._may_have_branch():
            return b""
        with Branch(repo, Permissions(repo)) as branch:
            return branch.read(proxylog.FILE)

    def _may_have_branch(self) -> bool:
        """Whether it is worth to start git for what is in the git-annex branch, or will be in it."""
        if any(_signature(path) for path in self._branch_files()):
            return True
        try:
            with open(self._found.commondir + b"/packed-refs", "rb") as file:
                return any(line.endswith(b"/git-annex\n") for line in file)
        except OSError:
            return False

    def _current_branch_state(self) -> object:
        """Something that is different after a change of the branch."""
        # The tip itself, because of file systems that give a new file the number of the one just removed.
        tip = None if self.repo is None else branchref.loose_tip(self.repo)
        packed = _signature(self._found.commondir + b"/packed-refs")
        return self.uuid, tip, packed, tuple(map(_signature, self._branch_files()))

    def _branch_files(self) -> Iterable[bytes]:
        common = self._found.commondir
        yield common + b"/" + branchref.BRANCH
        yield common + b"/" + branchref.ORIGIN
        yield common + b"/reftable/tables.list"
        yield common + b"/annex/journal/" + proxylog.FILE
        yield common + b"/annex/journal-private/" + proxylog.FILE


def _user_configs() -> Iterable[bytes]:
    home = os.environb.get(b"HOME", b"/")
    yield os.environb.get(b"GIT_CONFIG_GLOBAL") or home + b"/.gitconfig"
    yield (os.environb.get(b"XDG_CONFIG_HOME") or home + b"/.config") + b"/git/config"
    yield os.environb.get(b"GIT_CONFIG_SYSTEM") or b"/etc/gitconfig"


def _signature(path: bytes) -> Signature:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
