"""The one who asked, as the threads see him that work for him.

A thread that waits for another machine does not know whether anybody waits for it. So it holds on to a lifeline,
which the event loop cuts when the client has gone.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from annexshell.remotes.patience import Lifeline


class Asker:
    """Of one request, which may hold several lifelines, one after the other or at once."""

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._lifelines: set[Lifeline] = set()
        self._has_gone = False

    @contextmanager
    def holding(self, lifeline: Lifeline | None) -> Iterator[None]:
        """While this lasts the lifeline is the asker's; before and after, somebody else's."""
        if lifeline is None:
            yield
            return
        with self._mutex:
            self._lifelines.add(lifeline)
            if self._has_gone:
                lifeline.cut()
        try:
            yield
        finally:
            with self._mutex:
                self._lifelines.discard(lifeline)

    def go(self) -> None:
        """Nobody waits any more, now or later."""
        with self._mutex:
            self._has_gone = True
            for lifeline in self._lifelines:
                lifeline.cut()
