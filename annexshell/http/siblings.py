"""The other worker processes of a server, which may hold what a request asks for (spec: http §7).

A lock is held by the process that took it, and its id tells which one that is. But a connection may come in anywhere,
so a request about another one's lock is passed on, by a socket that nobody else can connect to. It ends there when
its client is gone here, and in the same way: without a word.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import TYPE_CHECKING, NamedTuple

import aiohttp
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from yarl import URL

from annexshell import log
from annexshell.http import routes
from annexshell.http.api import KEEPLOCKED, Refusal
from annexshell.http.locks import worker_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from annexshell.http.connections import Handler

# Who connected to the sibling, and how. Nobody but siblings is believed.
_SCHEME = "X-Annexshell-Scheme"
_REMOTE = "X-Annexshell-Remote"
_PASSED_ON = ("Authorization", "User-Agent")
_CONNECT_TIMEOUT = 5.0  # seconds
# What this connection's answer has of its own.
_NOT_PASSED_BACK = frozenset(("connection", "content-length", "date", "server", "transfer-encoding"))


class Place(NamedTuple):
    """Which one of several processes this is, and where they talk to each other."""

    number: int
    of: int
    directory: str  # where nobody else has access

    def path_of(self, number: int) -> str:
        return os.path.join(self.directory, str(number))


def listen(place: Place) -> socket.socket:
    """Where siblings reach the worker at PLACE. Raises OSError."""
    path = place.path_of(place.number)
    try:
        os.unlink(path)  # of a worker of this number that died
    except FileNotFoundError:
        pass
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(path)
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def as_asked_there(request: web.BaseRequest) -> web.BaseRequest:
    """A request that was passed on to us, as it had come in."""
    return request.clone(
        scheme=request.headers.get(_SCHEME, "http"), remote=request.headers.get(_REMOTE, request.remote or "")
    )


class Siblings:
    """Passes requests on. Close it when done."""

    def __init__(self, place: Place) -> None:
        """On the event loop's thread."""
        self._sessions = {
            other: aiohttp.ClientSession(
                # A connection for each request: the sibling may have been started anew since the last one.
                connector=aiohttp.UnixConnector(place.path_of(other), limit=0, force_close=True),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, connect=_CONNECT_TIMEOUT),
                auto_decompress=False,
            )
            for other in range(place.of)
            if other != place.number
        }

    def before(self, answer: Handler) -> Handler:
        """Have requests about the locks of siblings answered by them, and others by ANSWER."""

        async def pass_on_or_answer(request: web.BaseRequest) -> web.StreamResponse:
            session = self._sessions.get(_holder(request))
            answered = None if session is None else await _pass_on(request, session)
            # If the sibling is gone then the lock is, too, and is answered for like any other that there is not.
            return answered or await answer(request)

        return pass_on_or_answer

    async def close(self) -> None:
        for session in self._sessions.values():
            await session.close()


def _holder(request: web.BaseRequest) -> int:
    """The number of the worker that has the lock that is asked for; -1 if none is."""
    if KEEPLOCKED.name not in request.raw_path:
        return -1  # all that are in a hurry
    try:
        api = routes.parse(request.method, request.raw_path, request.headers)
    except Refusal:
        return -1
    holder = worker_of(api.lockid) if api.action is KEEPLOCKED and api.lockid is not None else None
    return -1 if holder is None else holder


async def _pass_on(request: web.BaseRequest, session: aiohttp.ClientSession) -> web.Response | None:
    """The sibling's answer; None if it is gone."""
    target = request.rel_url
    url = URL.build(
        scheme="http", host="sibling", path=target.raw_path, query_string=target.raw_query_string, encoded=True
    )
    headers = {name: request.headers[name] for name in _PASSED_ON if name in request.headers}
    headers |= {_SCHEME: request.scheme, _REMOTE: request.remote or ""}
    # Read by a task of its own: whoever answers when the sibling is gone can read on once that has ended.
    pieces: asyncio.Queue[bytes] = asyncio.Queue(1)
    reading = asyncio.ensure_future(_read(request, pieces))
    try:
        async with session.request(request.method, url, headers=headers, data=_body(pieces)) as answer:
            return web.Response(
                status=answer.status,
                body=await answer.read(),
                headers=[
                    (name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_BACK
                ],
            )
    except (aiohttp.ClientError, asyncio.TimeoutError) as reason:
        log.debug(f"another worker did not answer: {reason}")
        return None
    finally:
        reading.cancel()
        await asyncio.wait({reading})


async def _read(request: web.BaseRequest, pieces: asyncio.Queue[bytes]) -> None:
    piece = b"begin"
    while piece:
        try:
            piece = await request.content.readany()
        except (aiohttp.ClientPayloadError, HttpProcessingError, OSError) as reason:
            log.debug(f"the body of a request makes no sense: {reason}")
            piece = b""  # to end without a word means the same
        await pieces.put(piece)


async def _body(pieces: asyncio.Queue[bytes]) -> AsyncIterator[bytes]:
    while piece := await pieces.get():
        yield piece
