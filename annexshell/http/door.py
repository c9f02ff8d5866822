"""The HTTP API, request by request (spec: http §3-§7).

Each action has one handler, found in a table. A handler says what it wants of the repository in a function that runs
in another thread, and makes an answer of what comes back.
"""

from __future__ import annotations

import asyncio
import json
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from aiohttp import ClientPayloadError, HttpVersion11, web
from aiohttp.http_exceptions import HttpProcessingError

from annexshell import log
from annexshell.annex.repository import clock
from annexshell.errors import (
    AnnexshellError,
    NotLocked,
    NotPresent,
    PeerError,
    Refused,
    RemoteUnavailable,
    TransferRefused,
    Unnameable,
)
from annexshell.http import api as a
from annexshell.http import download, replies, routes
from annexshell.http.api import ApiRequest, Refusal
from annexshell.http.asker import Asker
from annexshell.http.connections import explain
from annexshell.http.upload import Receiver
from annexshell.p2p.versions import VERSIONS
from annexshell.proxy import CannotProxy
from annexshell.repository import AlreadyHave, Outcome

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping

    from annexshell.http.auth import Gate
    from annexshell.http.locks import Locks, Stream
    from annexshell.http.repositories import Repositories, Served
    from annexshell.http.sessions import Sessions
    from annexshell.http.work import Workers
    from annexshell.repository import Repository
    from annexshell.uuid import UUID

T = TypeVar("T")

BODY_TIMEOUT = 600.0  # seconds for which a client that sends need not send anything
_LONGEST_VALUE = 1 << 16  # bytes of one of the JSON values in the body of keeplocked
_DATA_LENGTH = "X-git-annex-data-length"


class Door:
    """Answers requests. It owns nothing that it is given."""

    def __init__(
        self, repositories: Repositories, sessions: Sessions, gate: Gate, locks: Locks, workers: Workers
    ) -> None:
        self._repositories = repositories
        self._sessions = sessions
        self._gate = gate
        self._locks = locks
        self._workers = workers

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        """The answer to any request; whatever goes wrong is one."""
        asker = Asker()
        try:
            api = routes.parse(request.method, request.raw_path, request.headers)
            header, over_tls = request.headers.get("Authorization"), request.secure
            slow = self._gate.is_slow(header, over_tls)
            served = self._repositories.at_hand(api.uuid) or await self._found(api)
            if served is None:
                raise Refusal(404)
            authorize = partial(self._gate.access, api.action.kind, header, over_tls, api.uuid)
            if slow:
                await self._workers.check(authorize)
            else:
                authorize()
            api.asker = asker
            return await _HANDLERS[api.action](self, request, api, served)
        except Refusal as refusal:
            return _refused(refusal)
        except (AnnexshellError, OSError) as reason:
            transport = request.transport
            if isinstance(reason, ConnectionError) and (transport is None or transport.is_closing()):
                raise  # there is nobody left to be answered
            return _refused(_explained(reason))
        except asyncio.CancelledError:
            asker.go()  # whatever thread works for it
            raise

    async def _found(self, api: ApiRequest) -> Served | None:
        is_fallback = api.version is not None and api.version < a.HIGHEST
        return await self._repositories.find(api.uuid, is_fallback=is_fallback)

    async def _ask(
        self, api: ApiRequest, served: Served, question: Callable[[Repository], T], *, changes: bool = False
    ) -> T:
        session = self._sessions.open(api, served, changes=changes)

        def work() -> T:
            with session as repository:
                return question(repository)

        is_quick = api.action.kind is a.Kind.READ and not served.is_elsewhere
        return await self._workers.run(work, waits_for=None if is_quick else api.uuid)

    # Short requests.

    async def _checkpresent(self, _: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        present = self._sessions.checkpresent(api, served)
        if present is None:
            present = await self._ask(api, served, lambda r: r.checkpresent(api.the_key))
        return _json(replies.present(present))

    async def _gettimestamp(self, _: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        return _json(replies.timestamp(await self._ask(api, served, _gettimestamp)))

    async def _remove(self, _: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        try:
            outcome = await self._ask(api, served, lambda r: _remove(r, api), changes=True)
        except NotLocked as reason:
            log.debug(f"remove {api.key}: {reason}")
            outcome = Outcome(False)
        return _json(replies.removed(api.the_version, _without(outcome, api.uuid)))

    async def _putoffset(self, _: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        offset = await self._ask(api, served, lambda r: r.putoffset(api.the_key, api.file))
        if isinstance(offset, AlreadyHave):
            return _json(replies.already_have(api.the_version, _others(offset.uuids, api.uuid)))
        return _json(replies.offset(offset))

    # Locks.

    async def _lockcontent(self, _: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        try:
            executor = self._workers.waiting_for(api.uuid) if served.is_elsewhere else None
            lockid = await self._locks.acquire(api.uuid, self._sessions.lockcontent(api, served), executor)
        except (NotLocked, NotPresent) as reason:
            log.debug(f"lockcontent {api.key}: {reason}")
            lockid = None
        return _json(replies.locked(lockid))

    async def _keeplocked(self, request: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        assert api.lockid is not None
        with self._locks.stream(api.uuid, api.lockid) as stream:
            await _wait_for_unlock(request, stream)
        return _json(replies.locked(None))

    # Content.

    async def _get(self, request: web.BaseRequest, api: ApiRequest, served: Served) -> web.StreamResponse:
        if request.method == "HEAD" and served.proxied:
            return await self._head(api, served)
        wanted = download.Wanted(request, api, served, self._sessions.open(api, served))
        waits_for = api.uuid if served.is_elsewhere else None
        pace = self._sessions.pace_of_get(api, served)
        opened = await self._workers.run(wanted.open, waits_for=waits_for, pace=pace, dispose=download.Opened.close)
        return await download.send(request, opened, lambda: self._workers.transfer((api.uuid, api.action)))

    async def _head(self, api: ApiRequest, served: Served) -> web.Response:
        """Without beginning to have content sent here, which could not be ended in good order."""
        if not await self._ask(api, served, lambda r: r.checkpresent(api.the_key)):
            raise Refusal(404)
        size = api.the_key.size
        headers = dict(download.HEADERS)
        if size is not None:
            headers[_DATA_LENGTH] = headers["Content-Length"] = str(max(0, size - api.offset))
        return web.Response(headers=headers)

    async def _put(self, request: web.BaseRequest, api: ApiRequest, served: Served) -> web.Response:
        body = _body(request)
        slot = self._workers.transfer((api.uuid, api.action))
        try:
            outcome = await Receiver(api, self._sessions.open(api, served, changes=True)).receive(body, slot)
        except (PeerError, TransferRefused) as reason:
            if not served.proxied:
                raise
            log.warn(f"cannot receive {api.key}: {reason}")
            async for _ in body:
                pass
            outcome = Outcome(False)
        finally:
            slot.give_up()
        return _json(replies.stored(api.the_version, _without(outcome, api.uuid)))


async def _body(request: web.BaseRequest, *, may_stall: bool = False) -> AsyncIterator[bytes]:
    """The request's body, piece by piece. A client that stalls is cut off, unless it MAY STALL."""
    if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
        await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request.writer.output_size = 0
    loop = asyncio.get_running_loop()
    while True:
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("the client is gone")
        stalled = None if may_stall else loop.call_later(BODY_TIMEOUT, transport.abort)
        try:
            piece = await request.content.readany()
        except (ClientPayloadError, HttpProcessingError) as reason:
            raise Refusal(400, f"the body of the request makes no sense: {explain(reason)}") from reason
        finally:
            if stalled is not None:
                stalled.cancel()
        if not piece:
            return
        yield piece


async def _wait_for_unlock(request: web.BaseRequest, stream: Stream) -> None:
    """Return when the client says so, or has said everything (spec: http §7.2). It may take hours."""
    rest = b""
    # What keeps no lock is not kept for long either.
    async for piece in _body(request, may_stall=stream.is_known):
        *lines, rest = (rest + piece).split(b"\n")
        # The last value need not have a line end yet.
        if any(map(_says_unlock, lines)) or _says_unlock(rest):
            await stream.unlock()
            return
        rest = rest[:_LONGEST_VALUE]


def _says_unlock(line: bytes) -> bool:
    try:
        value = json.loads(line) if b"unlock" in line and len(line) < _LONGEST_VALUE else None
    except (ValueError, RecursionError):
        return False  # it is not complete, or never will be
    return isinstance(value, dict) and value.get("unlock") is True


def _gettimestamp(repository: Repository) -> int:
    return repository.gettimestamp() if _has_clock(repository) else clock()


def _remove(repository: Repository, api: ApiRequest) -> Outcome:
    before = api.timestamp
    if before is None or _has_clock(repository):
        return repository.remove(api.the_key, before)
    return repository.remove(api.the_key) if clock() < before else Outcome(False)


def _has_clock(repository: Repository) -> bool:
    """Whether it knows of removing in time. For a node that is too old to, the client goes by our clock."""
    return VERSIONS[repository.protocol_version].remove_before


def _without(outcome: Outcome, uuid: UUID) -> Outcome:
    """What became of the content elsewhere than where the client asked."""
    return Outcome(outcome.done, _others(outcome.uuids, uuid))


def _others(uuids: Iterable[UUID], uuid: UUID) -> tuple[UUID, ...]:
    return tuple(other for other in uuids if other != uuid)


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers={"Content-Type": replies.CONTENT_TYPE})


def _refused(refusal: Refusal) -> web.Response:
    headers = dict(refusal.headers)
    if refusal.text:
        # It may quote what the client said.
        headers |= {"Content-Type": "text/plain;charset=utf-8", "X-Content-Type-Options": "nosniff"}
    return web.Response(status=refusal.status, body=refusal.text.encode("utf-8", "backslashreplace"), headers=headers)


def _explained(reason: AnnexshellError | OSError) -> Refusal:
    """What a failure of ours, or of somebody behind us, is as an answer."""
    if isinstance(reason, NotPresent):
        return Refusal(404)
    if isinstance(reason, Unnameable):
        return Refusal(400, str(reason))
    text = reason.strerror or "" if isinstance(reason, OSError) else str(reason)
    if isinstance(reason, CannotProxy):
        text = text or "unknown uuid"
    is_elsewhere = isinstance(reason, (Refused, RemoteUnavailable))
    return Refusal(502 if is_elsewhere else 500, log.printable(text or type(reason).__name__))


_HANDLERS: Mapping[a.Action, Callable[[Door, web.BaseRequest, ApiRequest, Served], Awaitable[web.StreamResponse]]] = {
    a.GET: Door._get,
    a.CHECKPRESENT: Door._checkpresent,
    a.LOCKCONTENT: Door._lockcontent,
    a.KEEPLOCKED: Door._keeplocked,
    a.REMOVE: Door._remove,
    a.REMOVE_BEFORE: Door._remove,
    a.GETTIMESTAMP: Door._gettimestamp,
    a.PUT: Door._put,
    a.PUTOFFSET: Door._putoffset,
}
