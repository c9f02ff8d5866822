"""External backends: programs that verify what is in keys of varieties XNAME and XNAMEE (spec: objects §12.5).

A program speaks lines over pipes of its own. What it can do is asked once; then it verifies one key after the other.
"""

from __future__ import annotations

import os
import time

from annexshell import log, process

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.key import Key

# A program that hangs would hold the transfer's locks for ever. It answers what it can do without reading content: a
# minute is for a slow interpreter on a machine that swaps. To verify, it reads the file: slower than a megabyte per
# second no program gets, and ten minutes are for a disk that has to wake up or is busy.
_QUESTION_SECONDS = 60.0
_VERIFY_SECONDS = 600.0
_SLOWEST_BYTES_PER_SECOND = 1 << 20
_END_SECONDS = 1.0  # to end by itself once its stdin is closed
_LONGEST_LINE = 1 << 16

_SIGKILL = 9


class _Broken(Exception):
    """The program ended, hung, or said what makes no sense."""


class ExternalBackends:
    """The programs that run for one user, who is one thread; used in a ``with``."""

    __slots__ = ("_programs",)

    def __init__(self) -> None:
        self._programs: dict[bytes, _Program | None] = {}

    def verify(self, key: Key, path: bytes) -> bool | None:
        """Whether the file's content is the key's; None when there is no program that could tell.

        Raises OSError when the file is not there.
        """
        seconds = _VERIFY_SECONDS + os.stat(path).st_size / _SLOWEST_BYTES_PER_SECOND
        program = self._program(key.variety)
        if program is None or not program.can_verify:
            return None
        try:
            return program.verify(key, path, seconds)
        except (_Broken, OSError) as reason:
            # Nothing good was said of the content, and it is not fit to be asked again: the next key gets a new one.
            log.warn(f"{os.fsdecode(program.name)}: {reason}")
            del self._programs[_basic(key.variety)]
            program.close()
            return False

    def can_verify(self, variety: bytes) -> bool:
        program = self._program(variety)
        return program is not None and program.can_verify

    def is_cryptographically_secure(self, variety: bytes) -> bool:
        program = self._program(variety)
        return program is not None and program.secure

    def _program(self, variety: bytes) -> _Program | None:
        variety = _basic(variety)
        if variety not in self._programs:
            self._programs[variety] = _start(variety)
        return self._programs[variety]

    def close(self) -> None:
        """End all programs."""
        programs, self._programs = self._programs, {}
        for program in programs.values():
            if program is not None:
                program.close()

    def __enter__(self) -> ExternalBackends:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _basic(variety: bytes) -> bytes:
    """The variety without the E that stands for a file extension in its keys."""
    return variety[:-1] if variety[-1:] == b"E" else variety


def _start(variety: bytes) -> _Program | None:
    """The running program for a variety, or None with a warning."""
    name = b"git-annex-backend-" + variety
    if b"/" in variety or b"\0" in variety:
        # The client made this up. A name with a slash would not be looked for in PATH: it could be any file.
        log.warn(b"there cannot be an external backend " + variety)
        return None
    try:
        program = _Program(name)
    except OSError as reason:
        log.warn(f"cannot run {os.fsdecode(name)}, so the content is not verified: {reason.strerror}")
        return None
    try:
        program.introduce()
    except (_Broken, OSError) as reason:
        log.warn(f"{os.fsdecode(name)} cannot be used, so the content is not verified: {reason}")
        program.close()
        return None
    except BaseException:
        program.close()
        raise
    return program


class _Program:
    """A running program and the pipes to it."""

    __slots__ = ("_from", "_pending", "_pid", "_to", "can_verify", "name", "secure")

    def __init__(self, name: bytes) -> None:
        """Start it; raises OSError."""
        self.name = name
        self.can_verify = self.secure = False
        self._pending = b""
        self._to, self._from = process.Pipe(), process.Pipe()
        try:
            self._pid = process.spawn([name], stdin=self._to.read_fd, stdout=self._from.write_fd)
        except BaseException:
            self._close_pipes()
            raise
        self._to.close_read()
        self._from.close_write()

    def introduce(self) -> None:
        """Learn what it can do; raises _Broken, OSError."""
        version = self._ask(b"GETVERSION", _QUESTION_SECONDS)
        if version != b"VERSION 1":
            raise _Broken("it uses an unsupported version of the external backend protocol")
        self.can_verify = self._yes_or_no(b"CANVERIFY")
        self.secure = self._yes_or_no(b"ISCRYPTOGRAPHICALLYSECURE")

    def _yes_or_no(self, question: bytes) -> bool:
        answer = self._ask(question, _QUESTION_SECONDS)
        if answer not in (question + b"-YES", question + b"-NO"):
            raise _unexpected(answer)
        return answer.endswith(b"-YES")

    def verify(self, key: Key, path: bytes, seconds: float) -> bool:
        """Whether the file has the key's content; raises _Broken, OSError."""
        # The program does not know of extensions, and cuts them off keys of both spellings alike.
        fields = key.serialized[len(key.variety) : len(key.serialized) - len(key.name)]
        name = key.name.partition(b".")[0]
        question = b"VERIFYKEYCONTENT " + _basic(key.variety) + fields + name + b" " + path
        if b"\n" in question or b"\r" in question or b"\0" in question:
            raise _Broken("the key or the file's path cannot be given to it in a line")
        answer = self._ask(question, seconds)
        if answer not in (b"VERIFYKEYCONTENT-SUCCESS", b"VERIFYKEYCONTENT-FAILURE"):
            raise _unexpected(answer)
        return answer == b"VERIFYKEYCONTENT-SUCCESS"

    def _ask(self, question: bytes, seconds: float) -> bytes:
        """The answer to a question, within so many seconds."""
        deadline = time.monotonic() + seconds
        line = question + b"\n"
        while line:
            line = line[os.write(self._to.write_fd, line) :]
        while True:
            answer = self._read_line(deadline)
            word, _, rest = answer.partition(b" ")
            if word == b"DEBUG":
                log.debug(log.printable(self.name + b": " + rest))
            elif word == b"ERROR":
                raise _Broken(log.printable(rest))
            elif word != b"PROGRESS":
                return answer

    def _read_line(self, deadline: float) -> bytes:
        from select import POLLIN, poll

        poller = poll()
        poller.register(self._from.read_fd, POLLIN)
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0 or not poller.poll(left * 1000):
                raise _Broken("it does not answer")
            part = os.read(self._from.read_fd, 4096)
            if not part:
                raise _Broken("it ended without an answer")
            self._pending += part
            if len(self._pending) > _LONGEST_LINE:
                raise _Broken("it says too much")
        line, _, self._pending = self._pending.partition(b"\n")
        return line

    def close(self) -> None:
        """Have it end, by force when it does not by itself."""
        self._close_pipes()
        deadline = time.monotonic() + _END_SECONDS
        while os.waitpid(self._pid, os.WNOHANG)[0] == 0:
            if time.monotonic() > deadline:
                os.kill(self._pid, _SIGKILL)
                os.waitpid(self._pid, 0)
                return
            time.sleep(0.005)

    def _close_pipes(self) -> None:
        for pipe in (self._to, self._from):
            pipe.close_write()
            pipe.close_read()


def _unexpected(answer: bytes) -> _Broken:
    return _Broken(f"unexpected answer {log.printable(answer[:100])!r}")
