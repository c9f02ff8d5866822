"""Merging versions of the branch (spec: branch §8).

Every file is a set of lines that carry their time, so the union of two versions loses nothing.
"""

from __future__ import annotations

import os

from annexshell.annex import git
from annexshell.annex.journal import write_file
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.othertmp import OtherTmp

_BATCH = 1000  # merged files that lie in othertmp at a time


def union(ours: bytes, theirs: bytes) -> bytes:
    """The lines of both, sorted; or one of the two as it is, theirs if possible, when it has all lines already."""
    our_lines, their_lines = _lines(ours), _lines(theirs)
    if our_lines <= their_lines:
        return theirs
    if their_lines <= our_lines:
        return ours
    return b"".join(line + b"\n" for line in sorted(our_lines | their_lines))


def _lines(content: bytes) -> set[bytes]:
    lines = content.split(b"\n")
    if not lines[-1]:
        lines.pop()
    return set(lines)


def merge_into_index(
    repo: GitRepository, cat_file: CatFile, othertmp: OtherTmp, commit: bytes, env: Mapping[bytes, bytes]
) -> None:
    """Bring the lines of COMMIT into the index that ENV names. What is only in the index stays."""
    merged: list[bytes] = []
    unions: list[tuple[bytes, bytes]] = []
    for path, our_id, their_id in _differences(repo, commit, env):
        if our_id is None:
            merged.append(index_entry(their_id, path))
            continue
        ours, theirs = _content(cat_file, our_id), _content(cat_file, their_id)
        both = union(ours, theirs)
        if both == theirs:
            merged.append(index_entry(their_id, path))
        elif both != ours:
            unions.append((path, both))
        if len(unions) == _BATCH:
            merged += _hash(repo, othertmp, unions)
            unions = []
    merged += _hash(repo, othertmp, unions)
    if merged:
        update_index(repo, merged, env)


def index_entry(blob: bytes, path: bytes) -> bytes:
    """A line for :func:`update_index`."""
    return b"100644 blob %s\t%s" % (blob, path)


def update_index(repo: GitRepository, entries: list[bytes], env: Mapping[bytes, bytes]) -> None:
    """Set entries of the index."""
    git.output(repo, b"update-index", b"-z", b"--index-info", input=b"\0".join((*entries, b"")), env=env)


def hash_files(repo: GitRepository, paths: list[bytes]) -> list[bytes]:
    """The ids of new blobs with the content of files."""
    # Quoted, since a line end in a path would otherwise end it.
    printed = git.output(
        repo,
        b"hash-object",
        b"-w",
        b"--no-filters",
        b"--stdin-paths",
        input=b"".join(b'"%s"\n' % _quote(path) for path in paths),
    )
    ids = printed.split(b"\n")[:-1]
    if len(ids) != len(paths) or not all(map(git.is_object_id, ids)):
        raise RepositoryError("git hash-object printed something that is no object id")
    return ids


def _differences(
    repo: GitRepository, commit: bytes, env: Mapping[bytes, bytes]
) -> Iterator[tuple[bytes, bytes | None, bytes]]:
    """Path, blob in the index (None if not there) and blob in COMMIT, of what COMMIT has and the index has not."""
    listing = git.output(
        repo, b"diff-index", b"--raw", b"-z", b"-r", b"--no-renames", b"-l0", b"--cached", commit, b"--", env=env
    )
    *fields, rest = listing.split(b"\0")
    if rest or len(fields) % 2:
        raise RepositoryError("git diff-index printed something that makes no sense")
    for description, path in zip(fields[::2], fields[1::2], strict=True):
        words = description.split(b" ")
        if len(words) != 5 or not path or not git.is_object_id(words[2]) or not git.is_object_id(words[3]):
            raise RepositoryError("git diff-index printed something that makes no sense")
        _, _, their_id, our_id, status = words
        if status == b"A":
            continue  # only in the index
        yield path, None if status == b"D" else our_id, their_id


def _content(cat_file: CatFile, blob: bytes) -> bytes:
    found = cat_file.get(blob)
    if found is None:
        raise RepositoryError(f"the git-annex branch has a file whose content is missing ({blob.decode()})")
    return found.content


def _hash(repo: GitRepository, othertmp: OtherTmp, unions: list[tuple[bytes, bytes]]) -> list[bytes]:
    if not unions:
        return []
    temporary: list[bytes] = []
    try:
        for _, content in unions:
            temporary.append(othertmp.unique(b"merge"))
            write_file(temporary[-1], content)
        blobs = hash_files(repo, temporary)
    finally:
        for path in temporary:
            try:
                os.unlink(path)
            except OSError:
                pass  # not written, for want of space perhaps
    return [index_entry(blob, path) for blob, (path, _) in zip(blobs, unions, strict=True)]


def _quote(path: bytes) -> bytes:
    return path.replace(b"\\", b"\\\\").replace(b'"', b'\\"').replace(b"\n", b"\\n").replace(b"\r", b"\\r")
