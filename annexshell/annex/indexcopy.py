"""git's index under a second name, so that git commands can be run on it without locking the real one.

Somebody's ``git commit`` fails when it finds the index locked, be it for a millisecond.
"""

from __future__ import annotations

import os

from annexshell.annex.config import file_signature
from annexshell.annex.workfile import copy_content

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository


class IndexCopy:
    """The index as it is when entering the ``with`` block; ``env`` makes git use it. Raises OSError on entering.

    An index that does not exist (yet) is an empty one, to git and here.
    """

    __slots__ = ("_index", "env", "path", "signature")

    signature: tuple[int, int, int] | None  # of the index that this is a copy of

    def __init__(self, repo: GitRepository) -> None:
        self._index = repo.gitdir + b"/index"
        self.path = b"%s/annexshell-index.%d.%s" % (repo.gitdir, os.getpid(), os.urandom(4).hex().encode())
        self.env = {**os.environb, b"GIT_INDEX_FILE": self.path}

    def __enter__(self) -> IndexCopy:
        try:
            # git replaces an index file, and never writes into one, so a link is as good as a copy.
            os.link(self._index, self.path)
            self.signature = file_signature(self.path)
        except FileNotFoundError:
            self.signature = None
        except OSError:
            self.signature = self._copy()  # a file system without links, or no permission, which will show
        return self

    def _copy(self) -> tuple[int, int, int]:
        source = os.open(self._index, os.O_RDONLY | os.O_CLOEXEC)
        try:
            status = os.fstat(source)
            target = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, status.st_mode & 0o777)
            try:
                copy_content(source, target)
            finally:
                os.close(target)
        finally:
            os.close(source)
        return status.st_ino, status.st_size, status.st_mtime_ns

    def put_in_place(self) -> bool:
        """Make the copy the index, unless that changed meanwhile. Raises FileExistsError when the index is locked."""
        lock = self._index + b".lock"
        # Held for two system calls only, not while git runs: if we were killed then, nobody would remove it.
        os.close(os.open(lock, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666))
        try:
            if file_signature(self._index) != self.signature:
                return False
            os.rename(self.path, self._index)
            return True
        finally:
            os.unlink(lock)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            os.unlink(self.path)
        except FileNotFoundError:
            pass  # there was no index, or this became it
