"""Watching the refs of a repository: which objects do they point to now that they did not before (spec: shell §7.3).

The kernel tells of changes through inotify. Of the libraries for that, inotify-simple hands out the descriptor, so
that one poll() can wait for the client, too; watchfiles watches in a thread of its own, and asyncinotify has asyncio
do it. It takes 15 ms and 2 MB to import, so this module is imported by those only who are going to watch.
"""

from __future__ import annotations

import errno
import os
import stat

from inotify_simple import INotify, flags, parse_events

from annexshell import log, process
from annexshell.annex.git import is_object_id
from annexshell.errors import RepositoryError, TemporaryFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository

# Added to what is watched already: symlinks may lead to the same directory twice.
_ADDED = int(flags.ONLYDIR | flags.MASK_ADD)
# Git writes NAME.lock and renames it; others may write to a file itself, or link it.
_CONTENT = int(flags.MOVED_TO | flags.CLOSE_WRITE | flags.CREATE) | _ADDED
_PLACE = int(flags.MOVE_SELF | flags.DELETE_SELF) | _ADDED
_PACKING = int(flags.MOVED_TO)
_GONE = int(flags.MOVE_SELF | flags.DELETE_SELF | flags.UNMOUNT | flags.IGNORED)
_OVERFLOW, _IGNORED, _DIRECTORY = int(flags.Q_OVERFLOW), int(flags.IGNORED), int(flags.ISDIR)
_READ_SIZE = 1 << 16
_READS = 64  # so many times that size and then it is somebody else's turn
_LONGEST = 256  # bytes of a file that could be an object id
_SYSCTLS = "/proc/sys/fs/inotify/"


class Changes:
    """What happened to refs since it was last asked."""

    __slots__ = ("ids", "unnamed")

    def __init__(self) -> None:
        # The objects that refs were set to, in that order, and whether some of these refs are branches.
        self.ids: dict[bytes, bool] = {}
        # Something changed of which no more is known.
        self.unnamed = False

    def add(self, name: bytes, object_id: bytes) -> None:
        """The ref NAME, as ``refs/heads/main``, points to an object."""
        self.ids[object_id] = self.ids.get(object_id, False) or name.startswith(b"refs/heads/")


class RefWatch:
    """A watch on the refs of a repository, for the length of a ``with`` block; made by :func:`watch`.

    What refs are set to when it begins counts as changed.
    """

    fd: int  # readable when there is something for read() to look at

    def __init__(self, repo: GitRepository) -> None:
        """Begin watching. Raises RepositoryError, TemporaryFailure, OSError."""
        self._repo = repo
        self._inotify = _start()
        self.fd = self._inotify.fileno()
        self._changes = Changes()
        self._places: set[int] = set()  # watches on directories without which there is nothing to watch
        self._commondir: int | None = None
        try:
            self._watch_place()
            self._begin()
        except BaseException:
            self._inotify.close()
            raise

    def __enter__(self) -> RefWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._inotify.close()

    def read(self) -> None:
        """Look at what changed, without waiting. Raises RepositoryError when there is nothing to watch any more."""
        try:
            for _ in range(_READS):
                self._take_events(os.read(self.fd, _READ_SIZE))
        except BlockingIOError:
            self._caught_up()

    def _take_events(self, data: bytes) -> None:
        for event in parse_events(data):
            if event.mask & _OVERFLOW:
                # What the queue had no place for may have been packed since, and be in no loose ref.
                self._changes.unnamed = True
                self._begin()
            elif event.wd in self._places and event.mask & _GONE:
                raise self._gone()
            else:
                self._take_event(event.wd, event.mask, os.fsencode(event.name))

    @property
    def changed(self) -> bool:
        """Whether something may have happened since the last take()."""
        return self._changes.unnamed or bool(self._changes.ids)

    def take(self) -> Changes:
        """What happened so far, which then is forgotten. Raises RepositoryError as read() does."""
        changes, self._changes = self._changes, Changes()
        return changes

    def _begin(self) -> None:
        """Watch, and look at, all there is: at first, and when events were lost."""
        raise NotImplementedError

    def _take_event(self, watch: int, mask: int, name: bytes) -> None:
        raise NotImplementedError

    def _caught_up(self) -> None:
        """Everything that happened has been looked at."""

    def _watch_place(self) -> None:
        """Notice when the repository is moved away: it takes its refs with it, who do not notice."""
        for place, mask in ((self._repo.path, _PLACE), (self._repo.commondir, _PLACE | _PACKING)):
            try:
                watch = self._try_watch(place, mask)
            except PermissionError:
                continue  # one can be allowed to use what is in a directory, but not to read this
            if watch is None:
                raise self._gone()
            self._places.add(watch)
            if place == self._repo.commondir:
                self._commondir = watch

    def _watch_root(self, root: bytes) -> None:
        """Watch the directory of all refs."""
        try:
            watch = self._try_watch(root, _CONTENT | _PLACE)
        except PermissionError as reason:
            raise RepositoryError(f"cannot watch {os.fsdecode(root)}: {reason.strerror}") from reason
        if watch is None:
            raise self._gone()
        self._places.add(watch)

    def _try_watch(self, directory: bytes, mask: int) -> int | None:
        """The watch on a directory; None when it is gone. Raises PermissionError, TemporaryFailure, OSError."""
        try:
            return int(self._inotify.add_watch(directory, mask))
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as reason:
            if reason.errno == errno.ENOSPC:
                raise _exhausted("as many directories", "max_user_watches") from reason
            raise

    def _gone(self) -> RepositoryError:
        return RepositoryError(f"The repository {os.fsdecode(self._repo.path)} has been removed or moved away.")


class _LooseRefs(RefWatch):
    """Files below ``refs/``. Packed refs do not count, but for those that were packed before we came to read them."""

    def _begin(self) -> None:
        self._root = self._repo.commondir + b"/refs"
        self._directories: dict[int, bytes] = {}  # by watch
        self._new: set[bytes] = set()  # "refs/DIRECTORY/", for those that something may have been packed from
        self._packed: set[bytes] = set()  # names of refs, and of such directories, to be looked for in packed-refs
        self._watch_root(self._root)
        self._look_through(self._root)

    def _take_event(self, watch: int, mask: int, name: bytes) -> None:
        if watch == self._commondir and name == b"packed-refs":
            self._packed |= self._new
        elif mask & _IGNORED:
            self._directories.pop(watch, None)  # removed, as git does with empty ones
        elif watch in self._directories:
            path = self._directories[watch] + b"/" + name
            if mask & _DIRECTORY:
                # What was packed, and removed, before there was a watch, made no event but that of packing.
                self._new.add(self._name(path) + b"/")
                self._look_through(path)
            else:
                self._look_at(path)

    def _caught_up(self) -> None:
        self._new.clear()

    def _name(self, path: bytes) -> bytes:
        return b"refs" + path[len(self._root) :]

    def _look_through(self, top: bytes) -> None:
        """Watch TOP and all directories in it, and look at the files.

        Each is watched before it is listed, so that what is missing in the list makes an event.
        """
        seen = set()
        waiting = [top]
        while waiting:
            directory = waiting.pop()
            try:
                watch = self._try_watch(directory, _CONTENT)
                if watch is None or watch in seen:
                    continue  # gone, or a symlink led back to where we were
                names = os.listdir(directory)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except PermissionError as reason:
                log.warn(f"cannot watch {os.fsdecode(directory)}: {reason.strerror}")
                continue
            seen.add(watch)
            self._directories[watch] = directory
            for name in names:
                path = directory + b"/" + name
                if os.path.isdir(path):
                    waiting.append(path)
                else:
                    self._look_at(path)

    def _look_at(self, path: bytes) -> None:
        if path.endswith(b".lock"):
            return
        name = self._name(path)
        try:
            object_id = _read_ref(path)
        except (FileNotFoundError, NotADirectoryError):
            self._packed.add(name)  # or deleted
            return
        if object_id is not None:
            self._changes.add(name, object_id)

    @property
    def changed(self) -> bool:
        return bool(self._packed) or super().changed

    def take(self) -> Changes:
        if self._packed:
            if not os.path.isdir(self._root):
                raise self._gone()
            packed, self._packed = self._packed, set()
            directories = tuple(name for name in packed if name.endswith(b"/"))
            for name, object_id in _packed_refs(self._repo):
                if name in packed or name.startswith(directories):
                    self._changes.add(name, object_id)
        return super().take()


class _Reftable(RefWatch):
    """A list of tables, which is replaced when a ref changes. That it did is all that we tell."""

    def _begin(self) -> None:
        self._watch_root(self._repo.commondir + b"/reftable")
        self._changes.unnamed = True  # as of loose refs all are reported at first

    def _take_event(self, watch: int, mask: int, name: bytes) -> None:
        if name == b"tables.list":
            self._changes.unnamed = True


def watch(repo: GitRepository) -> RefWatch:
    """Watch the refs that all work trees of REPO share, where it keeps them.

    Raises RepositoryError, TemporaryFailure, OSError.
    """
    storage = (repo.config.get(b"extensions.refstorage") or b"files").lower()
    if storage == b"files":
        return _LooseRefs(repo)
    if storage == b"reftable":
        return _Reftable(repo)
    raise RepositoryError(
        f"The repository keeps its refs in a way that this program cannot watch: {os.fsdecode(storage)}"
    )


def _start() -> INotify:
    try:
        return INotify(nonblocking=True)
    except OSError as reason:
        if reason.errno == errno.EMFILE:
            raise _exhausted("for as many clients", "max_user_instances") from reason
        raise


def _exhausted(what: str, name: str) -> TemporaryFailure:
    try:
        with open(_SYSCTLS + name, encoding="ascii") as file:
            limit = f", which is {file.read().strip()}"
    except OSError:
        limit = ""
    return TemporaryFailure(
        f"cannot watch for changes: this account already watches {what} as this server allows it."
        f" Its administrator can raise the sysctl fs.inotify.{name}{limit}."
    )


def _read_ref(path: bytes) -> bytes | None:
    """The object id in a loose ref, None for symbolic refs, symlinks, and whatever else is no such thing."""
    try:
        # Neither follow a symlink, which would be a symbolic ref, nor wait for somebody to write to a pipe.
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as reason:
        if reason.errno in (errno.ELOOP, errno.ENXIO, errno.EACCES):
            log.debug(f"not a ref: {reason}")
            return None
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        text = os.read(fd, _LONGEST).strip().lower()
    finally:
        os.close(fd)
    return text if is_object_id(text) else None


def _packed_refs(repo: GitRepository) -> Iterator[tuple[bytes, bytes]]:
    """The names of all packed refs, and their object ids."""
    try:
        fd = os.open(repo.commondir + b"/packed-refs", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        lines = process.read_all(fd).splitlines()
    finally:
        os.close(fd)
    for line in lines:
        object_id, _, name = line.partition(b" ")
        if is_object_id(object_id):
            yield name, object_id
