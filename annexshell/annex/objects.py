"""Where a key's object is, or would be (spec: objects §2)."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key


class Objects:
    """The object directories of one repository."""

    __slots__ = ("_levels", "_mixed_first", "_other_too", "directory")

    def __init__(self, repo: GitRepository) -> None:
        config = repo.config
        self.directory = repo.annexdir + b"/objects/"
        self._levels = 1 if config.get_bool(b"annex.tune.objecthash1") else 2
        no_symlinks = config.get_bool(b"annex.crippledfilesystem") and not config.get_bool(b"core.symlinks", True)
        lower_only = not repo.bare and config.get_bool(b"annex.tune.objecthashlower")
        self._mixed_first = not (repo.bare or lower_only or no_symlinks)
        self._other_too = not lower_only

    def candidates(self, key: Key) -> Iterator[bytes]:
        """The paths at which the object may be, in the order in which to look; the first is where it is stored.

        One by one, because the first nearly always is the one, and the next would cost as much again.
        """
        lower, mixed = key.hashdirs_lower, key.hashdirs_mixed
        order = (mixed, lower) if self._mixed_first else (lower, mixed)
        name = key.filename
        for hashdirs in order[: 1 + self._other_too]:
            yield b"%s%s/%s/%s" % (self.directory, hashdirs(self._levels), name, name)

    def locate(self, key: Key) -> bytes:
        """The path of the object that is there, else of the object that would be."""
        first = None
        for path in self.candidates(key):
            if os.path.exists(path):
                return path
            first = first or path
        assert first is not None
        return first

    def occupant(self, key: Key) -> tuple[int, int, int] | None:
        """What tells the file in the place of the key's object from a later one; None if nothing is there."""
        for path in self.candidates(key):
            try:
                status = os.lstat(path)
            except OSError:
                continue  # whoever wants to use it finds out why
            return status.st_dev, status.st_ino, status.st_ctime_ns
        return None

    def prune(self, object_directory: bytes) -> None:
        """Remove an object's directory and its hash directories as far as they are empty."""
        directory = object_directory
        for _ in range(1 + self._levels):
            try:
                os.rmdir(directory)
            except OSError:
                return  # not empty, already gone, or not ours to remove
            directory = os.path.dirname(directory)
