"""Which annexed files the git index gained and lost since it was last looked at (spec: objects §15.4).

What was last looked at is a tree, kept by git under ``refs/annex/last-index``.
"""

from __future__ import annotations

import os

from annexshell import process
from annexshell.annex import git
from annexshell.annex.indexcopy import IndexCopy
from annexshell.annex.pointers import MAX_SIZE, parse_pointer
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key

LAST_INDEX = b"refs/annex/last-index"
_EMPTY_TREES = {
    b"sha1": b"4b825dc642cb6eb9a060e54bf8d69288fbee4904",
    b"sha256": b"6ef19b41225c5369f1c104d45d8d85efa9b057b53b14b4b9b939dd74decc5321",
}
_SYMLINK = b"120000"
_FILES = (b"100644", b"100755", _SYMLINK)
_UNMERGED = b"U"
_BATCH = 1000  # files at a time: bounds memory, whatever the size of the repository
# Only files in which the words of a pointer come or go; --text because attributes can declare pointers binary.
_DIFF_OPTIONS = (
    b"--raw",
    b"-r",
    b"-z",
    b"--no-abbrev",
    b"-G/annex/objects/",
    b"--text",
    b"--no-renames",
    b"--ignore-submodules=all",
    b"--no-textconv",
    b"--no-ext-diff",
)


class Change:
    """A path (relative to the top) whose key changed; None for no key. ``unlocked`` is about the new one."""

    __slots__ = ("new", "old", "path", "unlocked")

    def __init__(self, path: bytes, old: Key | None, new: Key | None, *, unlocked: bool) -> None:
        self.path = path
        self.old = old
        self.new = new
        self.unlocked = unlocked


class IndexDiff:
    """The difference between the index as it is now, and as the keys database last saw it. Used in a ``with``."""

    __slots__ = ("_copy", "_new", "_old", "_repo")

    _old: bytes
    _new: bytes | None

    def __init__(self, repo: GitRepository) -> None:
        self._repo = repo
        self._copy = IndexCopy(repo)

    @property
    def signature(self) -> tuple[int, int, int] | None:
        """That of the index which was looked at."""
        return self._copy.signature

    def __enter__(self) -> IndexDiff:
        """Raises RepositoryError."""
        repo = self._repo
        try:
            self._copy.__enter__()
        except OSError as reason:
            raise RepositoryError(f"cannot copy the index: {reason.strerror}") from reason
        try:
            # None while a merge is unfinished: the index cannot be made a tree then.
            self._new = _line(repo, b"write-tree", env=self._copy.env)
            # None when there is no such ref yet.
            known = _line(repo, b"rev-parse", b"--verify", b"--quiet", LAST_INDEX + b"^{tree}")
        except BaseException:
            self._copy.__exit__(None, None, None)
            raise
        self._old = known or _EMPTY_TREES[(repo.config.get(b"extensions.objectformat") or b"sha1").lower()]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._copy.__exit__(kind, error, trace)

    def changes(self) -> Iterator[list[Change]]:
        """What changed, some at a time, an unmerged file being regarded as unchanged. Raises RepositoryError."""
        if self._old == self._new:
            return
        entries: list[_Entry] = []
        for entry in self._entries():
            entries.append(entry)
            if len(entries) == _BATCH:
                yield list(self._with_keys(entries))
                entries.clear()
        yield list(self._with_keys(entries))

    def remember(self) -> None:
        """Make the index that was looked at the last one. Only to be called when the database has all of it."""
        if self._new is not None and self._new != self._old:
            git.output(self._repo, b"update-ref", LAST_INDEX, self._new)

    def _entries(self) -> Iterator[_Entry]:
        if self._new is not None:
            arguments = (b"diff-tree", *_DIFF_OPTIONS, self._old, self._new)
        else:
            arguments = (b"diff-index", b"--cached", *_DIFF_OPTIONS, self._old)
        fields = self._records(*arguments)
        for status in fields:
            path = next(fields, None)
            if path is None:
                raise git.GitFailed("the output of git diff was cut short")
            # ":100644 120000 OLD NEW M"
            old_mode, new_mode, old_blob, new_blob, kind = status[1:].split(b" ")
            if kind[:1] != _UNMERGED:
                yield _Entry(path, (old_mode, old_blob), (new_mode, new_blob))

    def _with_keys(self, entries: list[_Entry]) -> Iterator[Change]:
        blobs = {blob for entry in entries for mode, blob in (entry.old, entry.new) if mode in _FILES}
        keys = self._keys(blobs)
        for entry in entries:
            old, new = keys.get(entry.old[1]), keys.get(entry.new[1])
            if old is not None or new is not None:
                yield Change(entry.path, old, new, unlocked=entry.new[0] != _SYMLINK)

    def _keys(self, blobs: Iterable[bytes]) -> dict[bytes, Key]:
        """The keys of those blobs that are pointers."""
        small = []
        for line in self._ask(b"--batch-check=%(objectname) %(objecttype) %(objectsize)", blobs).splitlines():
            words = line.split(b" ")
            # "NAME missing" is an object that a partial or damaged repository does not have.
            if words[1] == b"blob" and int(words[2]) <= MAX_SIZE:
                small.append(words[0])
        found = {}
        output = self._ask(b"--batch=%(objectname) %(objectsize)", small)
        position = 0
        while position < len(output):
            end = output.index(b"\n", position)
            name, _, size = output[position:end].partition(b" ")
            if not size.isdigit():  # vanished since its size was asked for
                position = end + 1
                continue
            start, position = end + 1, end + 1 + int(size) + 1
            key = parse_pointer(output[start : position - 1])
            if key is not None:
                found[name] = key
        return found

    def _ask(self, how: bytes, blobs: Iterable[bytes]) -> bytes:
        names = b"".join(name + b"\n" for name in blobs)
        return git.output(self._repo, b"cat-file", how, input=names) if names else b""

    def _records(self, *arguments: bytes) -> Iterator[bytes]:
        """What git prints, in NUL-ended records, read as they come."""
        with process.Pipe() as pipe:
            pid = process.spawn(self._repo.git(*arguments), stdout=pipe.write_fd, env=self._copy.env)
            status = 1
            try:
                pipe.close_write()
                rest = b""
                while part := os.read(pipe.read_fd, 1 << 16):
                    *records, rest = (rest + part).split(b"\0")
                    yield from records
            finally:
                # Before waiting: a git whose output nobody reads any more would never end.
                pipe.close_read()
                status = process.wait(pid)
        if status != 0:
            raise git.GitFailed(f"git {arguments[0].decode()} ended with status {status}")


class _Entry:
    """A path and its (mode, blob), before and after."""

    __slots__ = ("new", "old", "path")

    def __init__(self, path: bytes, old: tuple[bytes, bytes], new: tuple[bytes, bytes]) -> None:
        self.path = path
        self.old = old
        self.new = new


def forget(repo: GitRepository) -> None:
    """Let the next comparison be with nothing: for a database that is new and empty. Raises RepositoryError."""
    git.output(repo, b"update-ref", b"-d", LAST_INDEX)


def _line(repo: GitRepository, *arguments: bytes, env: dict[bytes, bytes] | None = None) -> bytes | None:
    """What a git command prints; None when it fails."""
    try:
        return git.output(repo, *arguments, env=env, quiet=True).strip() or None
    except git.GitFailed:
        return None
