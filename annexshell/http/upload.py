"""Content on its way from an HTTP client (spec: http §6).

The event loop takes the body apart and writes it to a pipe; a thread of its own reads it there, hashes it and stores
it. How the body ended is told beside it, when the last byte has gone through.
"""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from annexshell import log, relay
from annexshell.errors import Hangup
from annexshell.repository import AlreadyHave, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractContextManager

    from annexshell.http.api import ApiRequest
    from annexshell.http.work import Slot
    from annexshell.repository import Repository


_TOO_MUCH = 1 << 24  # bytes


class Receiver:
    """One upload: the pipe, and the thread at its other end."""

    def __init__(self, api: ApiRequest, session: AbstractContextManager[Repository]) -> None:
        assert api.key is not None
        self._key = api.key
        self._api = api
        self._session = session
        self._loop = asyncio.get_running_loop()
        # The offset that the repository wants; or an outcome, when it wants nothing.
        self._started: asyncio.Future[int | Outcome] = self._loop.create_future()
        self._ended = threading.Event()  # it is known how the body ended
        self._is_whole = False
        self._read_fd, self._write_fd = os.pipe()
        os.set_blocking(self._write_fd, False)
        relay.widen_pipe(self._write_fd)

    async def receive(self, body: AsyncIterator[bytes], slot: Slot) -> Outcome:
        """Store BODY. Raises what the repository raises, or what reading the body does."""
        try:
            future = slot.start(self._work)
        except BaseException:
            os.close(self._read_fd)
            self._hang_up()
            raise
        try:
            wanted = await self._started
            if isinstance(wanted, Outcome):
                seen = 0
                async for chunk in body:  # the client has to be rid of all of it before it is told
                    seen += len(chunk)
                    if self._is_endless(seen):
                        break
            else:
                await self._feed(body, wanted)
        finally:
            self._hang_up()
        return await asyncio.wrap_future(future)

    async def _feed(self, body: AsyncIterator[bytes], wanted: int) -> None:
        """Hand the body on from the offset WANTED, and tell whether it was as long as announced."""
        announced = self._api.data_length or 0
        skip = wanted - self._api.offset
        seen = 0
        async for chunk in body:
            start, seen = seen, seen + len(chunk)
            piece = memoryview(chunk)[max(0, skip - start) : max(0, announced - start)]
            if piece and not await self._write(piece):
                break  # why it wants no more, the thread will say
            if self._is_endless(seen):
                break
        self._is_whole = seen == announced

    def _is_endless(self, seen: int) -> bool:
        """Whether there is so much more than announced that nobody can be meant to read it to its end."""
        return seen > (self._api.data_length or 0) + _TOO_MUCH

    async def _write(self, piece: memoryview) -> bool:
        while piece:
            try:
                piece = piece[os.write(self._write_fd, piece) :]
            except BlockingIOError:
                await self._wait_to_write()
            except BrokenPipeError:
                return False
        return True

    async def _wait_to_write(self) -> None:
        ready = asyncio.Event()
        self._loop.add_writer(self._write_fd, ready.set)
        try:
            await ready.wait()
        finally:
            self._loop.remove_writer(self._write_fd)

    def _hang_up(self) -> None:
        fd, self._write_fd = self._write_fd, -1
        if fd >= 0:
            os.close(fd)
        self._ended.set()

    # In the thread.

    def _work(self) -> Outcome:
        try:
            with self._session as repository, repository.put(self._key, self._api.file) as upload:
                if isinstance(upload, AlreadyHave):
                    return self._tell_outcome(Outcome(True, upload.uuids))
                if self._api.data_present:
                    return self._tell_outcome(upload.check_stored())
                length = (self._api.data_length or 0) - (upload.offset - self._api.offset)
                if self._api.offset > upload.offset or length < 0:
                    return self._tell_outcome(Outcome(False))
                self._loop.call_soon_threadsafe(_settle, self._started, upload.offset)
                return upload.receive(length, _PipeSource(self._read_fd), self._validity)
        except Hangup as reason:
            log.debug(f"the body of an upload was not as announced: {reason}")
            return self._tell_outcome(Outcome(False))
        except BaseException as reason:
            self._loop.call_soon_threadsafe(_fail, self._started, reason)
            raise
        finally:
            os.close(self._read_fd)

    def _tell_outcome(self, outcome: Outcome) -> Outcome:
        self._loop.call_soon_threadsafe(_settle, self._started, outcome)
        return outcome

    def _validity(self) -> bool | None:
        """Called when all bytes were read."""
        self._ended.wait()
        if not self._is_whole:
            raise Hangup("the body is longer than announced, or was cut short after its last byte")
        return None if self._api.version == 0 else True


def _settle(future: asyncio.Future[int | Outcome], wanted: int | Outcome) -> None:
    if not future.done():
        future.set_result(wanted)


def _fail(future: asyncio.Future[int | Outcome], reason: BaseException) -> None:
    if not future.done():
        future.set_exception(reason)


class _PipeSource(relay.Source):
    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def readinto(self, view: memoryview) -> int:
        return os.readv(self._fd, [view])

    def splice(self, out: int, count: int) -> int | None:
        return relay.splice(self._fd, out, count)
