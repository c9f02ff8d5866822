"""The keys database: which work tree files are of a key, and which files are known to hold its content.

An SQLite database that git-annex shares (spec: objects §15). It is a cache in so far as everything in it can be found
out again, but git-annex itself does so only for what git's index says changed since it last looked.
"""

from __future__ import annotations

import os
import time
from _thread import allocate_lock

from annexshell.annex import indexdiff, lockfile
from annexshell.annex.config import file_signature
from annexshell.annex.inodecache import BadInodeCache, InodeCache
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterable
    from typing import Any, TypeVar

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions
    from annexshell.key import Key

    T = TypeVar("T")

BUSY_SECONDS = 60.0  # as long as git-annex waits; somebody else's transaction is short
_BUSY = ("database is locked", "database table is locked", "locking protocol", "database schema is locked")
# What SQLite says of a database, or of a write-ahead log beside it, that our user may not open or create.
_INACCESSIBLE = ("unable to open database file", "attempt to write a readonly database", "access permission denied")
_NEVER = (-1, -1, -1)
_SCHEMA = (
    'CREATE TABLE "associated"("id" INTEGER PRIMARY KEY,"key" BLOB NOT NULL,"file" BLOB NOT NULL,'
    'CONSTRAINT "key_file_index" UNIQUE ("key","file"),CONSTRAINT "file_key_index" UNIQUE ("file","key"))',
    'CREATE TABLE "content"("id" INTEGER PRIMARY KEY,"key" BLOB NOT NULL,"inodecache" VARCHAR NOT NULL,'
    '"filesize" VARCHAR NOT NULL,"mtime" INTEGER NOT NULL,'
    'CONSTRAINT "key_inode_cache_index" UNIQUE ("key","inodecache"),'
    'CONSTRAINT "inode_cache_key_index" UNIQUE ("inodecache","key"))',
)


class KeysDatabase:
    """Opened when first needed, and kept open. Not used at all in a bare repository, which has no work tree files.

    Methods may be called by several threads. They raise RepositoryError when the database is not usable; for reading,
    one that does not exist or that our user may not open is an empty one.
    """

    __slots__ = (
        "_connection",
        "_directory",
        "_identity",
        "_index_seen",
        "_lockfile",
        "_mutex",
        "_permissions",
        "_repo",
    )

    def __init__(self, repo: GitRepository, permissions: Permissions) -> None:
        parent = repo.annexdir
        dbdir = repo.config.get(b"annex.dbdir")
        if dbdir:
            parent = os.path.join(repo.path, dbdir, repo.uuid)
        self._repo = repo
        self._permissions = permissions
        self._directory = parent + b"/keysdb"
        self._lockfile = parent + b"/keysdb.lck"
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None  # of the file that the connection is to
        self._index_seen: tuple[int, int, int] | None = _NEVER
        self._mutex = allocate_lock()

    @property
    def path(self) -> bytes:
        return self._directory + b"/db"

    def close(self) -> None:
        with self._mutex:
            self._disconnect()

    # Reading. Costs one stat when there is no database.

    def associated_files(self, key: Key) -> list[bytes]:
        """Paths relative to the top of the work tree that were of KEY when the index was last looked at.

        Some may no longer be, and none is to be trusted: anything may have been written there.
        """
        rows = self._read('SELECT "file" FROM "associated" WHERE "key"=?', key)
        return [file for (file,) in rows if isinstance(file, bytes)]

    def inode_caches(self, key: Key) -> list[InodeCache]:
        """The files known to hold the content of KEY. None does not mean that there are none."""
        caches = []
        for (text,) in self._read('SELECT "inodecache" FROM "content" WHERE "key"=?', key):
            try:
                caches.append(InodeCache.parse(str(text)))
            except BadInodeCache:
                continue
        return caches

    def _read(self, query: str, key: Key) -> list[tuple[Any, ...]]:
        if self._repo.bare:
            return []
        with self._mutex:
            connection = self._connected()
            if connection is None:
                return []
            try:
                return self._retrying(lambda: connection.execute(query, (key.serialized,)).fetchall())
            except _Inaccessible:
                self._keep_away()
                return []

    # Writing.

    def add_inode_caches(self, key: Key, caches: Iterable[InodeCache]) -> None:
        """Record files that hold the content of KEY."""
        rows = [(key.serialized, str(cache), str(cache.size), cache.seconds) for cache in caches]
        if rows:
            self._write(
                'INSERT OR IGNORE INTO "content" ("key","inodecache","filesize","mtime") VALUES (?,?,?,?)', rows
            )

    def remove_inode_caches(self, key: Key) -> None:
        """Forget every file of KEY's content."""
        self._write('DELETE FROM "content" WHERE "key"=?', [(key.serialized,)], create=False)

    def _write(self, statement: str, rows: list[tuple[Any, ...]], *, create: bool = True) -> None:
        if self._repo.bare:
            return
        with self._mutex:
            connection = self._connected()
            if connection is not None:
                self._transaction(connection, [(statement, rows)])
                return
        if create:
            # The lock file before the mutex, as in reconcile().
            with self._lock(), self._mutex:
                self._transaction(self._connected_or_created(), [(statement, rows)])

    def _transaction(
        self, connection: sqlite3.Connection, statements: list[tuple[str, list[tuple[Any, ...]]]]
    ) -> None:
        def write() -> None:
            # Immediate: a transaction that began as a reader cannot wait for its turn to write.
            connection.execute("BEGIN IMMEDIATE")
            try:
                for statement, rows in statements:
                    connection.executemany(statement, rows)
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise

        self._retrying(write)

    # Reconciling with git's index.

    def reconcile(self, fix: Callable[[Key, bytes], None]) -> None:
        """Make the rows of associated files what git's index says, if it changed since this was last done (§15.4).

        Creates the database. FIX(key, path) is called for every unlocked file that is new in the index, when its row
        is there. Raises RepositoryError, and then rows may be missing or left over.
        """
        repo = self._repo
        if repo.bare or repo.worktree is None:
            return
        index = file_signature(repo.gitdir + b"/index")
        with self._mutex:
            if index == self._index_seen and self._connected() is not None:
                return
        # The lock file, and not the mutex, keeps others out while git runs, because FIX comes back to us.
        with self._lock():
            with self._mutex:
                connection = self._connected_or_created()
            with indexdiff.IndexDiff(repo) as difference:
                self._reconcile(connection, difference, fix)
        self._index_seen = difference.signature

    def _reconcile(
        self,
        connection: sqlite3.Connection,
        difference: indexdiff.IndexDiff,
        fix: Callable[[Key, bytes], None],
    ) -> None:
        gone: list[tuple[bytes, bytes]] = []
        for changes in difference.changes():
            gone.extend((c.old.serialized, c.path) for c in changes if c.old is not None and c.old != c.new)
            added = [(c.new.serialized, c.path) for c in changes if c.new is not None]
            with self._mutex:
                self._transaction(
                    connection, [('INSERT OR IGNORE INTO "associated" ("key","file") VALUES (?,?)', added)]
                )
            for change in changes:
                if change.new is not None and change.unlocked:
                    fix(change.new, change.path)
        # Deletions last, together, and then the ref: when we are interrupted before, rows are only left over, never
        # missing, whatever the index has become by the next time.
        with self._mutex:
            # On disk before the ref says that it is; other writes are worth no fsync, losing them costs a hash.
            connection.execute("PRAGMA synchronous=FULL")
            self._transaction(connection, [('DELETE FROM "associated" WHERE "key"=? AND "file"=?', gone)])
            connection.execute("PRAGMA synchronous=NORMAL")
        difference.remember()

    # Opening and creating.

    def _connected(self) -> sqlite3.Connection | None:
        """The connection, to the file that is there now; None when there is none or we may not open it."""
        try:
            status = os.stat(self.path)
            identity = (status.st_dev, status.st_ino)
        except OSError:
            identity = None
        if identity != self._identity:
            # Somebody removed the database, and perhaps made another one.
            self._disconnect()
            self._identity = identity
            if identity is not None:
                try:
                    self._connection = self._retrying(lambda: _connect(self.path))
                except _Inaccessible:
                    pass
                except RepositoryError:
                    self._identity = None  # not taken for an empty database the next time
                    raise
        return self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            connection, self._connection = self._connection, None
            connection.close()
        self._identity = None

    def _keep_away(self) -> None:
        """Do not try this file again."""
        identity = self._identity
        self._disconnect()
        self._identity = identity

    def _lock(self) -> lockfile.LockFile:
        try:
            try:
                return self._acquire()
            except FileNotFoundError:
                self._permissions.make_directory(os.path.dirname(self._lockfile))
                return self._acquire()
        except OSError as reason:
            raise RepositoryError(f"cannot lock the keys database: {reason.strerror}") from reason

    def _acquire(self) -> lockfile.LockFile:
        lock = lockfile.acquire(self._lockfile, lockfile.EXCLUSIVE, wait=True)
        assert lock is not None  # a waiting lock is obtained or raises
        self._permissions.adjust_file(self._lockfile)
        return lock

    def _connected_or_created(self) -> sqlite3.Connection:
        """With the lock held."""
        connection = self._connected()
        if connection is None:
            if self._identity is None:
                self._create()
                connection = self._connected()
            if connection is None:
                raise RepositoryError(f"cannot open {os.fsdecode(self.path)}: permission denied")
        return connection

    def _create(self) -> None:
        # The database appears by a rename, complete. Before that the ref must go: if it stayed, files that it says
        # were seen would never be entered into the new database.
        temporary = self._directory + b".tmp"
        try:
            indexdiff.forget(self._repo)
            _remove_directory(temporary)
            self._permissions.make_directory(temporary)
            self._retrying(lambda: _create_schema(temporary + b"/db"))
            self._permissions.adjust_file(temporary + b"/db")
            _remove_directory(self._directory)
            os.rename(temporary, self._directory)
        except OSError as reason:
            raise RepositoryError(f"cannot create the keys database: {reason}") from reason

    def _retrying(self, action: Callable[[], T]) -> T:
        """Do ACTION, again while others have the database locked. Raises RepositoryError, _Inaccessible."""
        sqlite3 = _sqlite()
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                return action()
            except sqlite3.Error as reason:
                text = str(reason)
                # SQLite itself waits where it can, but says "busy" at once where waiting might be for ever.
                if text in _BUSY and time.monotonic() < deadline:
                    time.sleep(0.05)
                    continue
                if text in _INACCESSIBLE:
                    raise _Inaccessible(f"cannot use {os.fsdecode(self.path)}: {text}") from reason
                raise RepositoryError(f"cannot use {os.fsdecode(self.path)}: {text}") from reason


class _Inaccessible(RepositoryError):
    """The database is there, but our user may not use it."""


def _sqlite() -> Any:
    # What the sqlite3 package is made of. The package also brings datetime, and takes five times as long to import.
    try:
        import _sqlite3
    except ImportError:
        import sqlite3

        return sqlite3
    return _sqlite3


def _connect(path: bytes) -> sqlite3.Connection:
    """Open a database that exists; it is never created here, not even when it vanishes meanwhile."""
    connection = _open(path, b"rw")
    try:
        connection.execute("PRAGMA synchronous=NORMAL")
    except BaseException:
        connection.close()
        raise
    return connection


def _open(path: bytes, mode: bytes) -> sqlite3.Connection:
    # Every byte quoted, so that no file name means anything in a URI.
    uri = b"file:" + b"".join(b"%%%02x" % byte for byte in path) + b"?mode=" + mode
    connection: sqlite3.Connection = _sqlite().connect(
        uri.decode("ascii"), uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
    )
    return connection


def _create_schema(path: bytes) -> None:
    connection = _open(path, b"rwc")
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        for statement in _SCHEMA:
            connection.execute(statement)
    finally:
        connection.close()  # the last to close removes the write-ahead log


def _remove_directory(path: bytes) -> None:
    """Remove a directory of plain files, if it is there."""
    try:
        names = os.listdir(path)
    except FileNotFoundError:
        return
    for name in names:
        os.unlink(path + b"/" + name)
    os.rmdir(path)
