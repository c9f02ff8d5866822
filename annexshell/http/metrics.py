"""Numbers about what the server does, as Prometheus asks for them.

With several worker processes each one writes its numbers to files of its own, in a directory that all of them read,
so that whichever is asked knows those of all together. The files are named after the workers, not their process ids:
a worker that is started anew counts on where the one before it was killed.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.values import MultiProcessValue

from annexshell.http.api import ACTIONS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, TypeAlias

    from annexshell.http.siblings import Place

    # What there is at the moment: an explanation and a way to count it, by name.
    Gauges: TypeAlias = Mapping[str, tuple[str, Callable[[], int]]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds: from checkpresent to the upload of a large file.
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
_DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"


class Metrics:
    """The numbers of this process, to be changed by one thread; and those of all, for any thread to read."""

    def __init__(self, gauges: Gauges, place: Place | None = None) -> None:
        """PLACE is that of one of several processes; all metrics that such a process makes are shared then."""
        self._registry = CollectorRegistry()
        self._directory = None
        if place is not None:
            self._directory = os.path.join(place.directory, "metrics")
            os.makedirs(self._directory, 0o700, exist_ok=True)
            number = place.number
            values.ValueClass = MultiProcessValue(lambda: number)  # type: ignore[no-untyped-call]
        own: Any = {"registry": self._registry, "namespace": "annexshell", "subsystem": "http"}
        # The library looks at this when it opens its files, which it does for what has no labels, and below.
        with _Environment(_DIRECTORY, self._directory):
            self._requests = Counter("requests", "Requests that were answered.", ["action", "status"], **own)
            self._durations = Histogram(
                "request_duration_seconds",
                "Time from the end of a request's header to the end of its answer.",
                ["action"],
                buckets=_BUCKETS,
                **own,
            )
            self._incomplete = Counter("incomplete_answers", "Answers that ended early.", ["action"], **own)
            self._received = Counter("received_bytes", "Bytes in the bodies of requests.", **own)
            self._sent = Counter("sent_bytes", "Bytes in the bodies of answers.", **own)
            self._refused_logins = Counter("refused_logins", "Requests whose password or token was wrong.", **own)
            self._commits = Counter("commits", "Commits of what requests recorded.", ["result"], **own)
            self._gauges = [
                (Gauge(name, text, multiprocess_mode="sum", **own), measure)
                for name, (text, measure) in gauges.items()
            ]
            # All of these are there from the beginning, so that one can be told when the first of them happens.
            self._duration_of = {action: self._durations.labels(action) for action in (*ACTIONS, "other")}
            self._commit_of = {done: self._commits.labels("done" if done else "failed") for done in (True, False)}
        self._request_of: dict[tuple[str, int], Counter] = {}
        self.measure()

    def ended(self, action: str, status: int, seconds: float, *, complete: bool) -> None:
        """A request has."""
        counter = self._request_of.get((action, status))
        if counter is None:
            counter = self._request_of[action, status] = self._requests.labels(action, str(status))
        counter.inc()
        self._duration_of[action].observe(seconds)
        if not complete:
            self._incomplete.labels(action).inc()

    def moved(self, received: int, sent: int) -> None:
        """So many more bytes."""
        if received:
            self._received.inc(received)
        if sent:
            self._sent.inc(sent)

    def refused_login(self) -> None:
        self._refused_logins.inc()

    def committed(self, done: bool) -> None:
        """Whether it worked."""
        self._commit_of[done].inc()

    def measure(self) -> None:
        """What there is at the moment; others cannot ask us."""
        for gauge, measured in self._gauges:
            gauge.set(measured())

    def text(self) -> bytes:
        """What Prometheus reads. It takes a while."""
        registry = self._registry
        if self._directory is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, self._directory)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


class _Environment:
    """A variable that is set for the length of a ``with``; programs that we start later would take it for theirs."""

    def __init__(self, name: str, value: str | None) -> None:
        self._name = name
        self._value = value

    def _set(self, value: str | None) -> None:
        if value is None:
            os.environ.pop(self._name, None)
        else:
            os.environ[self._name] = value

    def __enter__(self) -> None:
        self._before = os.environ.get(self._name)
        self._set(self._value)

    def __exit__(self, *_: object) -> None:
        self._set(self._before)
