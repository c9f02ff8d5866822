"""What is said in a session, told to whoever looks for a fault: each message, and the hash of each content.

A :class:`Trace` is one session's; :meth:`Trace.connections_to` gives what makes its connections. Content that the
kernel would move passes through this process instead, so that it can be hashed; what is sent stays the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from functools import partial

from annexshell import log
from annexshell.p2p import messages as m
from annexshell.p2p.wire import Connection
from annexshell.relay import Source

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any, TypeAlias

    # What is told of one event: its time, who says it to whom, and the message or what its content was.
    Event: TypeAlias = Mapping[str, Any]

CLIENT, PROXY, REMOTE = "client", "proxy", "remote"  # in "from" and "to"; the proxy is this program
_STDERR = 2


class Trace:
    """Tells stderr what happens, and when, in seconds since it was made. Used in a ``with``."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._connections: dict[str, TracingConnection] = {}
        self._format = terminal_format() if os.isatty(_STDERR) else json.dumps

    def connections_to(self, peer: str) -> Callable[..., Connection]:
        """What makes traced connections, with the parameters of Connection. PEER is what the other end is called."""
        return partial(self._connection, peer)

    def _connection(self, peer: str, *parameters: Any, **more: Any) -> Connection:
        if peer in self._connections:
            self._connections[peer].end()  # this one takes its place
        connection = self._connections[peer] = TracingConnection(self, peer, *parameters, **more)
        return connection

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for connection in self._connections.values():
            connection.end()

    def message(self, sender: str, receiver: str, line: bytes) -> None:
        """LINE is without its LF."""
        self._tell({"from": sender, "to": receiver, "message": line.decode("utf-8", "backslashreplace")})

    def content(self, sender: str, receiver: str, content: Hashed) -> None:
        missing = {} if content.missing == 0 else {"missing": content.missing}
        told = {"length": content.length, "sha256": content.digest.hexdigest(), **missing}
        self._tell({"from": sender, "to": receiver, "content": told})

    def note(self, text: str) -> None:
        """Something that was not said, but that has to be known to understand the rest."""
        self._tell({"from": PROXY, "note": text})

    def _tell(self, event: Event) -> None:
        line = self._format({"time": round(time.monotonic() - self._start, 3), **event})
        try:
            os.write(_STDERR, line.encode("utf-8", "backslashreplace") + b"\n")
        except OSError:
            pass  # nobody looks any more; the session is more important


class Hashed:
    """Content that is on its way, as far as it went."""

    def __init__(self, length: int) -> None:
        self.length = 0
        self.missing = length
        self.digest = hashlib.sha256()

    def update(self, view: memoryview | bytes) -> None:
        self.length += len(view)
        self.missing -= len(view)
        self.digest.update(view)


class TracingConnection(Connection):
    """A connection that tells of everything that passes it."""

    __slots__ = ("_incoming", "_outgoing", "_peer", "_trace")

    def __init__(self, trace: Trace, peer: str, *parameters: Any, **more: Any) -> None:
        super().__init__(*parameters, **more)
        self._trace = trace
        self._peer = peer
        self._incoming: Hashed | None = None  # what was announced, and not told of yet
        self._outgoing: Hashed | None = None

    # What comes.

    def read_line(self) -> bytes | None:
        self._end_incoming()
        line = super().read_line()
        if line is not None:
            self._trace.message(self._peer, PROXY, line)
            self._incoming = _announced(line)
        return line

    def readinto(self, view: memoryview) -> int:
        count = super().readinto(view)
        if self._incoming is not None:
            self._incoming.update(view[:count])
            if not count or not self._incoming.missing:
                self._end_incoming()
        return count

    def splice(self, out: int, count: int) -> int | None:
        return None  # nobody here would see the bytes

    def _end_incoming(self) -> None:
        """Tell of the content that came. A DATA message that no content follows was none."""
        content, self._incoming = self._incoming, None
        if content is not None and (content.length or not content.missing):
            self._trace.content(self._peer, PROXY, content)

    # What is sent.

    def send(self, *messages: m.Message) -> None:
        for message in messages:
            self._tell_sent(message)
        super().send(*messages)

    def announce(self, data: m.Data) -> None:
        self._outgoing = Hashed(data.length)
        super().announce(data)

    def send_bytes(self, length: int, source: Source) -> None:
        content = self._outgoing
        if content is None:
            super().send_bytes(length, source)  # the rest of what was complete before: nothing
            return
        super().send_bytes(length, _HashingSource(source, content))
        if not content.missing:
            self._end_outgoing()

    def _end_outgoing(self) -> None:
        content, self._outgoing = self._outgoing, None
        if content is not None:
            self._trace.content(PROXY, self._peer, content)

    def send_small_content(self, data: bytes, *then: m.Message) -> None:
        self._tell_sent(m.Data(len(data)))
        content = Hashed(len(data))
        content.update(data)
        self._trace.content(PROXY, self._peer, content)
        for message in then:
            self._tell_sent(message)
        super().send_small_content(data, *then)

    def _tell_sent(self, message: m.Message) -> None:
        self._trace.message(PROXY, self._peer, m.encode(message).removesuffix(b"\n"))

    def end(self) -> None:
        """Nothing more will pass: tell of content that did not come or go as a whole."""
        self._end_incoming()
        self._end_outgoing()


def _announced(line: bytes) -> Hashed | None:
    try:
        message = m.parse(line)
    except m.Unparsable:
        return None
    return Hashed(message.length) if isinstance(message, m.Data) else None


class _HashingSource(Source):
    """Another source, whose bytes are hashed when they are read."""

    __slots__ = ("_content", "_source")

    def __init__(self, source: Source, content: Hashed) -> None:
        self._source = source
        self._content = content

    def readinto(self, view: memoryview) -> int:
        count = self._source.readinto(view)
        self._content.update(view[:count])
        return count


_COLOURS = {
    (CLIENT, PROXY): "cyan",
    (PROXY, CLIENT): "green",
    (PROXY, REMOTE): "magenta",
    (REMOTE, PROXY): "yellow",
}


def terminal_format() -> Callable[[Event], str]:
    """For people: columns, and a colour for each direction, where the terminal has any."""
    from rich.console import Console
    from rich.text import Text

    console = Console(stderr=True)

    def show(event: Event) -> str:
        way = (event["from"], event.get("to", ""))
        says = f"{way[0]:>6} {'→' if way[1] else ' '} {way[1]:6}"
        style = _COLOURS.get(way, "dim")
        text = Text.assemble((f"{event['time']:8.3f}  ", "dim"), (f"{says}  ", style), (_said(event), style))
        with console.capture() as capture:
            console.print(text, soft_wrap=True, end="")
        return capture.get()

    return show


def _said(event: Event) -> str:
    content = event.get("content")
    if content is None:
        return log.printable(event.get("message") or event["note"])
    missing = f", {content['missing']:,} bytes are missing" if "missing" in content else ""
    return f"({content['length']:,} bytes, SHA256 {content['sha256']}{missing})"
