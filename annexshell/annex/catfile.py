"""A git process that stays, and gives the content of one object after another (spec: branch §5.4).

It resolves names anew for every request, so that nothing that it says is older than the request.
"""

from __future__ import annotations

import _thread
import os

from annexshell import process
from annexshell.annex import git
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository

_LONGEST_HEADER = 4096
_SIGKILL = 9
_KINDS = frozenset((b"blob", b"tree", b"commit", b"tag"))


class GitObject:
    """An object's id, kind (``b"blob"`` and so on) and content."""

    __slots__ = ("content", "id", "kind")

    def __init__(self, id: bytes, kind: bytes, content: bytes) -> None:
        self.id = id
        self.kind = kind
        self.content = content


class CatFile:
    """``git cat-file --batch``, started when it is first needed. May be used by several threads."""

    __slots__ = ("_child", "_expected", "_mutex", "_repo")

    def __init__(self, repo: GitRepository) -> None:
        self._repo = repo
        self._mutex = _thread.allocate_lock()
        self._child: _Child | None = None
        self._expected: bytes | None = None  # the name that was asked for and whose answer was not read yet

    def expect(self, name: bytes) -> None:
        """Have git look up NAME while we do other things; the next :meth:`get` of the same name has the answer.

        The name has to be of something that never changes, such as ``TREE:path``.
        """
        if b"\n" in name or name.endswith(b"\r"):
            return
        with self._mutex:
            try:
                if self._child is None:
                    self._child = _Child(self._repo)
                if self._expected is None:
                    self._child.ask(name)
                    self._expected = name
            except (RepositoryError, OSError):
                self._stop()  # get() will say what is wrong

    def get(self, name: bytes) -> GitObject | None:
        """The object of that name, ``REF:path`` for example; None if there is none. Raises RepositoryError."""
        if b"\n" in name or name.endswith(b"\r"):
            return self._get_odd(name)
        with self._mutex:
            # A child that had been killed is found out by asking it; a new one is asked once.
            if self._child is not None:
                try:
                    return self._get(self._child, name)
                except (RepositoryError, OSError):
                    self._stop()
                except BaseException:
                    self._stop()  # its answer, not read to the end, would be taken for the next request's
                    raise
            self._child = _Child(self._repo)
            try:
                return self._get(self._child, name)
            except OSError as reason:
                self._stop()
                raise RepositoryError(f"git cat-file: {reason.strerror}") from reason
            except BaseException:
                self._stop()
                raise

    def _get(self, child: _Child, name: bytes) -> GitObject | None:
        expected, self._expected = self._expected, None
        if expected is not None:
            found = child.answer(expected)
            if expected == name:
                return found
        child.ask(name)
        return child.answer(name)

    def _get_odd(self, name: bytes) -> GitObject | None:
        # The batch interface is made of lines.
        try:
            id = git.object_id(git.output(self._repo, b"rev-parse", b"--verify", b"--quiet", name), "rev-parse")
        except git.GitFailed:
            return None
        return self.get(id)

    def close(self) -> None:
        """End the process."""
        with self._mutex:
            self._stop()

    def _stop(self) -> None:
        self._expected = None
        if self._child is not None:
            child, self._child = self._child, None
            child.close()


class _Child:
    __slots__ = ("_buffer", "_pid", "_read_fd", "_write_fd")

    def __init__(self, repo: GitRepository) -> None:
        with process.Pipe() as requests, process.Pipe() as answers:
            # Names are given in full, so there is nothing to look for in five other places each time.
            argv = repo.git(b"-c", b"core.warnAmbiguousRefs=false", b"cat-file", b"--batch")
            try:
                self._pid = process.spawn(argv, stdin=requests.read_fd, stdout=answers.write_fd)
            except OSError as reason:
                raise RepositoryError(f"cannot run git: {reason.strerror}") from reason
            self._write_fd, requests.write_fd = requests.write_fd, -1
            self._read_fd, answers.read_fd = answers.read_fd, -1
        self._buffer = b""

    def ask(self, name: bytes) -> None:
        request = memoryview(name + b"\n")
        while request:
            request = request[os.write(self._write_fd, request) :]

    def answer(self, name: bytes) -> GitObject | None:
        header = self._read_line()
        if header == name + b" missing":
            return None
        words = header.split(b" ")
        if len(words) != 3 or not git.is_object_id(words[0]) or words[1] not in _KINDS or not words[2].isdigit():
            raise RepositoryError("git cat-file gave an answer that makes no sense")
        content = self._read(int(words[2]) + 1)
        if content[-1:] != b"\n":
            raise RepositoryError("git cat-file gave an answer that makes no sense")
        return GitObject(words[0], words[1], content[:-1])

    def _read_line(self) -> bytes:
        while b"\n" not in self._buffer:
            if len(self._buffer) > _LONGEST_HEADER:
                raise RepositoryError("git cat-file gave an answer that makes no sense")
            self._buffer += self._receive(1 << 16)
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _read(self, length: int) -> bytes:
        parts = [self._buffer]
        missing = length - len(self._buffer)
        while missing > 0:
            part = self._receive(missing)
            parts.append(part)
            missing -= len(part)
        whole = b"".join(parts)
        self._buffer = whole[length:]
        return whole[:length]

    def _receive(self, most: int) -> bytes:
        part = os.read(self._read_fd, most)
        if not part:
            raise RepositoryError("git cat-file ended unexpectedly")
        return part

    def close(self) -> None:
        os.close(self._write_fd)
        os.close(self._read_fd)
        # It would end by itself, but it only reads, so there is nothing worth waiting for.
        os.kill(self._pid, _SIGKILL)
        process.wait(self._pid)
