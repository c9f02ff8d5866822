"""The refs that may be other versions of the git-annex branch, and which were looked at already (spec: branch §7).

Reading refs by hand takes a twentieth of the time of the shortest git command. What is found is only ever used by its
id, so the worst that a missed ref can do is to be merged later.
"""

from __future__ import annotations

import os

from annexshell.annex import git
from annexshell.annex.journal import read_file, write_file
from annexshell.annex.othertmp import OtherTmp

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.annex.permissions import Permissions

_NAME = b"git-annex"  # the last component of all of them
_MERGED = b"/mergedrefs"
_IGNORED = b"/ignoredrefs"


def listed(repo: GitRepository, cat_file: CatFile) -> list[tuple[bytes, bytes]]:
    """Name and id of every ref called git-annex, the branch among them. Raises OSError, RepositoryError."""
    if repo.config.get(b"extensions.refstorage") in (None, b"files"):
        return sorted(_files(repo, cat_file).items())
    # Unlike show-ref, this does not stop at a ref whose object is missing.
    printed = git.output(repo, b"for-each-ref", b"--format=%(refname) %(objectname)", b"refs/**/" + _NAME)
    refs = []
    for line in printed.splitlines():
        name, _, id = line.rpartition(b" ")
        refs.append((name, id))
    return refs


def _files(repo: GitRepository, cat_file: CatFile) -> dict[bytes, bytes]:
    loose = {}
    for name in _loose_names(repo.commondir):
        content = _read(repo.commondir + b"/" + name)
        id = content.rstrip(b"\n")
        if git.is_object_id(id):
            loose[name] = id
        elif content and (found := cat_file.get(name)) is not None:
            loose[name] = found.id  # of the ref that this is another name for
    # Afterwards: git packs a ref before it deletes the file.
    return dict(_packed(_read(repo.commondir + b"/packed-refs"))) | loose


def _loose_names(gitdir: bytes) -> Iterator[bytes]:
    directories = [b"refs"]
    while directories:
        directory = directories.pop()
        try:
            with os.scandir(gitdir + b"/" + directory) as entries:
                for entry in entries:
                    name = directory + b"/" + entry.name
                    if entry.is_dir(follow_symlinks=False):
                        directories.append(name)
                    elif entry.name == _NAME:
                        yield name
        except (FileNotFoundError, NotADirectoryError):
            pass  # deleted meanwhile; git does that when a directory has become empty


def _packed(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Name and id of the refs in packed-refs, which may be a large file."""
    end = 0
    while (end := content.find(b"/" + _NAME + b"\n", end + 1)) >= 0:
        line = content[content.rfind(b"\n", 0, end) + 1 : end + 1 + len(_NAME)]
        id, _, name = line.partition(b" ")
        if git.is_object_id(id):
            yield name, id


def known(repo: GitRepository) -> set[bytes]:
    """The ids that were found to be merged, and those that are never to be. Raises OSError."""
    ids = set()
    for file in (_MERGED, _IGNORED):
        for line in _read(repo.annexdir + file).splitlines():
            ids.add(line.partition(b"\t")[0])
    return ids


def remember_merged(repo: GitRepository, permissions: Permissions, refs: Iterable[tuple[bytes, bytes]]) -> None:
    """Let everybody know that these versions are in the branch. Raises OSError.

    Two processes that do this at once may forget what one of them said, which costs somebody a second look.
    """
    new = dict(refs)
    lines = [id + b"\t" + name for name, id in new.items()]
    lines += [line for line in _read(repo.annexdir + _MERGED).splitlines() if line.partition(b"\t")[2] not in new]
    path = repo.annexdir + _MERGED
    with OtherTmp(repo, permissions) as othertmp:
        temporary = othertmp.unique(b"mergedrefs")
        try:
            write_file(temporary, b"".join(line + b"\n" for line in lines))
            os.rename(temporary, path)
        except BaseException:
            try:
                os.unlink(temporary)
            except OSError:
                pass
            raise
    permissions.adjust_file(path)


def _read(path: bytes) -> bytes:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return b""
    try:
        return read_file(fd)
    finally:
        os.close(fd)
