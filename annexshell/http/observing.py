"""How the server is watched: whether it is well, what it does, and who asked for what.

One object sees each request from its beginning to its end. Of an answer that takes long its handler tells more, in
the :class:`Observation` that :func:`of` finds.
"""

from __future__ import annotations

import asyncio
import ipaddress
import re
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple

from aiohttp import web

from annexshell.http.accesslog import FORMATS, Entry, LogFile
from annexshell.http.api import ACTIONS
from annexshell.http.connections import Server

if TYPE_CHECKING:
    from annexshell.http.auth import Gate
    from annexshell.http.connections import Handler
    from annexshell.http.listening import Listeners
    from annexshell.http.metrics import Gauges, Metrics
    from annexshell.http.siblings import Place

HEALTH = "/healthz"
METRICS = "/metrics"
PERIOD = 1.0  # seconds between looks at what is going on
GONE = 499  # the status of a client that did not wait for its answer, as nginx has it
OTHER = "other"  # the action of what is none of the API's
_ACTION = re.compile(r"[^?]*?/git-annex/[^/?]*/(?:v[0-9]+/)?([a-z-]+)")
_observation: ContextVar[Observation | None] = ContextVar("observation", default=None)


class Watch(NamedTuple):
    """What the command line says about this."""

    log: LogFile | None = None
    format: str = "combined"  # of the log's lines, one of accesslog.FORMATS
    metrics: Listeners | None = None  # where these are asked for
    trusts_proxy: bool = False  # what is in front of us says in X-Forwarded-For who the client is


NOBODY = Watch()


class Observation:
    """A request that is going on."""

    __slots__ = (
        "_request",
        "_told_sent",
        "action",
        "began",
        "length",
        "makes_sense",
        "received",
        "sent",
        "status",
        "time",
    )

    def __init__(self, request: web.BaseRequest, *, makes_sense: bool = True) -> None:
        self._request = request
        self.makes_sense = makes_sense  # if not, nothing of the request is as it came
        found = _ACTION.match(request.raw_path)
        self.action = found[1] if found and found[1] in ACTIONS else OTHER
        self.time = time.time()
        self.began = time.perf_counter()
        self.status = 0  # of an answer that is sent piece by piece, once it has begun
        self.length = 0  # bytes of its body
        self.sent = 0  # of these; another thread may count them
        self.received = self._told_sent = 0  # as of the last progress

    def progress(self) -> tuple[int, int]:
        """Bytes received and sent since the last time."""
        request = self._request
        received, sent = request.content.total_bytes if request.body_exists else 0, self.sent
        news = received - self.received, sent - self._told_sent
        self.received, self._told_sent = received, sent
        return news


def of(request: web.BaseRequest) -> Observation:
    """The observation of a request; one that nobody looks at if the request is not observed."""
    return _observation.get() or Observation(request)


class Observer:
    """Sees all requests. Everything is for the event loop's thread."""

    def __init__(self, watch: Watch, gate: Gate) -> None:
        self._log = watch.log
        self._line = FORMATS[watch.format]
        self._trusts_proxy = watch.trusts_proxy
        self._gate = gate
        self._is_stopping = False
        self._running: set[Observation] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._metrics: Metrics | None = None
        self._listeners = watch.metrics
        self._server: Server | None = None

    async def start(self, gauges: Gauges, place: Place | None) -> None:
        """GAUGES are what there is to be counted besides requests; PLACE is that of one of several processes."""
        if self._listeners is not None:
            from annexshell.http.metrics import Metrics

            running = {"running_requests": ("Requests that are being answered.", lambda: len(self._running))}
            self._metrics = Metrics(running | dict(gauges), place)
            self._server = Server(self._tell)
            for listening in self._listeners.for_worker():
                await self._server.listen(listening)
            self._look()

    def stopping(self) -> None:
        """No more requests should come."""
        self._is_stopping = True

    async def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._server is not None:
            await self._server.end(0.0)
        if self._log is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._log.close)

    def before(self, answer: Handler) -> Handler:
        """Have requests seen, which ANSWER answers, and those for our health answered."""
        if self._log is None and self._metrics is None:

            async def answer_or_health(request: web.BaseRequest) -> web.StreamResponse:
                return self._health(request) if request.raw_path == HEALTH else await answer(request)

            return answer_or_health

        async def observed(request: web.BaseRequest) -> web.StreamResponse:
            if request.raw_path == HEALTH:
                return self._health(request)
            observation = Observation(request)
            _observation.set(observation)  # in the task that is this request
            self._running.add(observation)
            status = GONE
            try:
                response = await answer(request)
                status = response.status
                if not observation.status and request.method != "HEAD":
                    observation.sent = response.content_length or 0
                return response
            except Exception as reason:
                if not isinstance(reason, ConnectionError):
                    status = 500  # which is what aiohttp makes of it
                raise
            finally:
                self._running.discard(observation)
                self._ended(request, observation, status)

        return observed

    def on_nonsense(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """What came was no request, which REQUEST stands for, and was refused."""
        if self._log is not None or self._metrics is not None:
            observation = Observation(request, makes_sense=False)
            observation.sent = response.content_length or 0
            self._ended(request, observation, response.status)

    def committed(self, done: bool) -> None:
        """The journal of a repository was committed, or could not be."""
        if self._metrics is not None:
            self._metrics.committed(done)

    def _health(self, request: web.BaseRequest) -> web.Response:
        """For load balancers and the like, again and again: it is neither logged nor counted."""
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        return web.Response(
            status=503 if self._is_stopping else 200,
            text="stopping\n" if self._is_stopping else "ok\n",
            headers={"Cache-Control": "no-store"},
        )

    def _ended(self, request: web.BaseRequest, observation: Observation, status: int) -> None:
        duration = time.perf_counter() - observation.began
        news = observation.progress()
        complete = status != GONE
        if not complete and observation.status:
            status = observation.status  # what the client got to see
            complete = observation.sent == observation.length
        if self._metrics is not None:
            self._metrics.moved(*news)
            self._metrics.ended(observation.action, status, duration, complete=complete)
            if status == 401 and "Authorization" in request.headers:
                self._metrics.refused_login()
        if self._log is not None:
            self._log.write(self._line(self._entry(request, observation, status, complete, duration)))

    def _entry(
        self, request: web.BaseRequest, observation: Observation, status: int, complete: bool, duration: float
    ) -> Entry:
        headers = request.headers
        login = headers.get("Authorization")
        version = request.version
        return Entry(
            time=observation.time,
            remote=self._client(request),
            user=None if login is None else self._gate.user(login, request.secure),
            method=request.method if observation.makes_sense else "",
            target=request.raw_path if observation.makes_sense else "",
            protocol=f"HTTP/{version.major}.{version.minor}" if observation.makes_sense else "",
            status=status,
            received=observation.received,
            sent=observation.sent,
            complete=complete,
            duration=duration,
            referer=headers.get("Referer", ""),
            agent=headers.get("User-Agent", ""),
        )

    def _client(self, request: web.BaseRequest) -> str | None:
        """The address of who asks; None if it came by a unix socket."""
        if self._trusts_proxy:
            # The last one is what the proxy itself has seen; those before it anybody may have made up.
            forwarded = request.headers.getall("X-Forwarded-For", ())
            address = forwarded[-1].rpartition(",")[2].strip() if forwarded else ""
            try:
                return str(ipaddress.ip_address(address))
            except ValueError:
                pass
        return request.remote or None

    # Metrics

    def _look(self) -> None:
        """Content that takes hours is not to be counted all at once when it has arrived."""
        assert self._metrics is not None
        for observation in self._running:
            self._metrics.moved(*observation.progress())
        self._metrics.measure()
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._look)

    async def _tell(self, request: web.BaseRequest) -> web.StreamResponse:
        from annexshell.http import metrics

        assert self._metrics is not None
        if request.path == HEALTH:
            return self._health(request)
        if request.path != METRICS:
            return web.Response(status=404)
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"})
        self._metrics.measure()
        text = await asyncio.get_running_loop().run_in_executor(None, self._metrics.text)
        return web.Response(body=text, headers={"Content-Type": metrics.CONTENT_TYPE})
