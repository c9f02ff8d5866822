"""Clients of an HTTP server that go away, stay for too long, or make no sense; all of them by plain sockets.

What is asked and how the client behaves are two tables; any of one goes with any of the other.
"""

from __future__ import annotations

import hashlib
import json
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from tests.http.doors import CLIENT, quoted, target

PATIENCE = 0.3  # seconds for which a rude client waits for anything
NEVER = " (no answer)"
_SLOW = 1.5  # seconds at the most for which it is slow
_SILENT = 20  # connections at a time that stay and say nothing


def key_for(content: bytes) -> str:
    return f"SHA256E-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


class Figures:
    """What was asked, and how clients went, by kind; and for how long anybody had to wait."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.progress: Counter[str] = Counter()
        self.gaps: dict[str, float] = {}  # seconds
        self._since: dict[str, float] = {}
        self._mutex = threading.Lock()

    def rude(self, requests: Sequence[str], end: str) -> None:
        with self._mutex:
            self.requests.update(requests)
            self.ends[end] += 1

    def begin(self, name: str) -> None:
        """What NAME does counts from now on."""
        self._since[name] = time.monotonic()
        self.gaps[name] = 0.0
        self.progress[name] = 0

    def advance(self, name: str) -> None:
        """Somebody who means well has got something done."""
        now = time.monotonic()
        with self._mutex:
            self.progress[name] += 1
            self.gaps[name] = max(self.gaps[name], now - self._since[name])
        self._since[name] = now


class Targets:
    """What there is to be asked for, at what is SERVED, a NODE behind that, and another one that NEVER answers.

    SHARED are contents by key that others upload, too.
    """

    def __init__(
        self, port: int, served: str, node: str, never: str, present: Mapping[str, bytes], shared: Mapping[str, bytes]
    ) -> None:
        self.port = port
        self.served = served
        self.node = node
        self.never = never
        self.present = present
        self.shared = shared
        self.lockids: list[str] = []
        self.contents: dict[str, bytes] = {}  # what rude clients have begun to upload
        self.spoiled: set[str] = set()  # keys of which other bytes may have been uploaded
        self.stored: list[tuple[str, str]] = []  # uuid and key of what they were told is there


class Question:
    """A request as bytes, and what is to be made of its answer."""

    def __init__(self, name: str, data: bytes, stores: tuple[str, str] | None = None, *, contested: bool = False):
        self.name = name
        self.data = data
        self.stores = stores
        self.contested = contested


def _head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: localhost", *headers, "", ""]).encode()


def _chunked(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in [*pieces, b""])


class Asking:
    """Makes up questions."""

    def __init__(self, targets: Targets, source: random.Random) -> None:
        self._targets = targets
        self._source = source

    def question(self) -> Question:
        return self._source.choices(_QUESTIONS, _WEIGHTS)[0](self)

    def _uuid(self) -> str:
        targets = self._targets
        return self._source.choices((targets.served, targets.node, targets.never), (12, 4, 1))[0]

    def _post(self, action: str, uuid: str, *headers: str, body: bytes = b"", **query: object) -> bytes:
        version = self._source.choice((3, 4, 4, 4))
        headers = headers or (f"Content-Length: {len(body)}",)
        return _head("POST", target(action, version, uuid, **query), *headers) + body

    def _named(self, name: str, uuid: str) -> str:
        return name + {self._targets.node: " (node)", self._targets.never: NEVER}.get(uuid, "")

    def _some_key(self) -> str:
        return self._source.choice(list(self._targets.present))

    def get(self) -> Question:
        uuid, method = self._uuid(), self._source.choice(("GET", "GET", "GET", "HEAD"))
        version = self._source.choice(("v4/", "v0/", ""))
        path = f"/git-annex/{uuid}/{version}key/{quoted(self._some_key())}?clientuuid={CLIENT}"
        return Question(self._named(method, uuid), _head(method, path))

    def put(self) -> Question:
        uuid, source = self._uuid(), self._source
        contested = source.random() < 0.3
        if contested:
            key, content = source.choice(list(self._targets.shared.items()))
        else:
            content = source.randbytes(source.choice((1, 100, 20_000, 70_000, 300_000)))
            key = key_for(content)
            self._targets.contents[key] = content
        length = f"X-git-annex-data-length: {len(content)}"
        if source.random() < 0.5:
            headers, body = ("Transfer-Encoding: chunked",), _chunked(content, source.choice((32752, 1000)))
        else:
            headers, body = (f"Content-Length: {len(content)}",), content
        data = self._post("put", uuid, length, *headers, body=body, key=key)
        return Question(self._named("put", uuid), data, (uuid, key), contested=contested)

    def put_again(self) -> Question:
        key = self._some_key()
        content = self._targets.present[key]
        length = (f"X-git-annex-data-length: {len(content)}", f"Content-Length: {len(content)}")
        uuid = self._uuid()
        return Question(self._named("put again", uuid), self._post("put", uuid, *length, body=content, key=key))

    def short(self) -> Question:
        uuid, key = self._uuid(), self._some_key()
        absent = key_for(self._source.randbytes(8))
        action, query = self._source.choice(
            (
                ("checkpresent", {"key": key}),
                ("putoffset", {"key": absent}),
                ("putoffset", {"key": key}),
                ("remove", {"key": absent}),
                ("remove-before", {"key": absent, "timestamp": 1}),
                ("gettimestamp", {}),
            )
        )
        return Question(self._named(action, uuid), self._post(action, uuid, **query))

    def lock(self) -> Question:
        # Not of a node: who never hears of a lock cannot end it, and each would hold a connection for ten minutes.
        return Question("lockcontent", self._post("lockcontent", self._targets.served, key=self._some_key()))

    def keep_locked(self) -> Question:
        lockid = self._source.choice(self._targets.lockids or ["nonsense"])
        body = _chunked(b'{"unlock":false}\n', 100)[:-5] + _chunked(b'{"unlock":true}\n', 100)
        if self._source.random() < 0.5:
            body = _chunked(b'{"unlock":false}\n', 100)  # it stays locked
        headers = ("Transfer-Encoding: chunked",)
        return Question(
            "keeplocked", self._post("keeplocked", self._targets.served, *headers, body=body, lockid=lockid)
        )


_QUESTIONS = (Asking.get, Asking.put, Asking.put_again, Asking.short, Asking.lock, Asking.keep_locked)
_WEIGHTS = (5, 5, 1, 4, 1, 1)


class Rude:
    """One client after the other, as fast as they can be made."""

    def __init__(self, targets: Targets, figures: Figures, silent: list[socket.socket], seed: int) -> None:
        self._targets = targets
        self._figures = figures
        self._silent = silent  # connections that stay, to be closed by whoever made this
        self._source = random.Random(seed)
        self._asking = Asking(targets, self._source)

    def behave(self) -> None:
        """Be a client, once."""
        manner = self._source.choices(_MANNERS, _HOW_OFTEN)[0]
        question = self._asking.question()
        while question.contested and manner not in _SHORT_MANNERS:  # somebody waits for his turn
            question = self._asking.question()
        if question.name.endswith(NEVER) and manner is Rude._stay_to_the_end:
            manner = Rude._half_close
        self._figures.rude([question.name], manner.__name__.strip("_").replace("_", " "))
        self._client = socket.socket()
        try:
            if self._source.random() < 0.3:
                self._client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            self._client.settimeout(PATIENCE)
            self._client.connect(("127.0.0.1", self._targets.port))
            self._be_heard(question)
            manner(self, question)
        except (TimeoutError, ConnectionError):
            pass  # it may well have been cut off
        finally:
            self._client.close()

    # How to go.

    def _reset(self) -> None:
        self._client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    def _be_heard(self, question: Question) -> None:
        """Where nothing is read any more, an end that comes behind all that was sent does not arrive."""
        if question.name.endswith(NEVER):
            self._reset()

    def _some_end(self) -> None:
        if self._source.random() < 0.5:
            self._reset()

    def _some_of(self, data: bytes) -> bytes:
        """Up to anywhere, but as likely in the header as in a body."""
        header = data.index(b"\r\n\r\n") + 4
        return data[: self._source.randint(0, header if self._source.random() < 0.5 else len(data))]

    def _take(self, count: int) -> None:
        while count > 0 and (piece := self._client.recv(min(count, 1 << 16))):
            count -= len(piece)

    # How to behave.

    def _go_while_asking(self, question: Question) -> None:
        self._client.sendall(self._some_of(question.data))
        self._some_end()

    def _go_while_answered(self, question: Question) -> None:
        self._client.sendall(question.data)
        self._take(self._source.choice((0, 0, 1, 100, 1000, 100_000, 1_000_000)))
        self._some_end()

    def _half_close(self, question: Question) -> None:
        self._client.sendall(question.data if self._source.random() < 0.5 else self._some_of(question.data))
        self._client.shutdown(socket.SHUT_WR)
        self._take(self._source.choice((0, 100, 1 << 30)))

    def _read_slowly(self, question: Question) -> None:
        self._client.sendall(question.data)
        self._slowly(lambda: self._client.recv(self._source.choice((1, 100, 3000))))
        self._some_end()

    def _write_slowly(self, question: Question) -> None:
        rest = memoryview(question.data)

        def write() -> bool:
            nonlocal rest
            rest = rest[self._client.send(rest[: self._source.choice((1, 50, 3000))]) :]
            return bool(rest)

        self._slowly(write)
        if self._source.random() < 0.3:
            self._client.sendall(rest)
            self._take(100)
        self._some_end()

    def _slowly(self, step: Callable[[], object]) -> None:
        end = time.monotonic() + self._source.random() * _SLOW
        while time.monotonic() < end and step():
            time.sleep(0.02)

    def _pipeline(self, question: Question) -> None:
        others = [self._asking.question() for _ in range(self._source.randint(1, 6))]
        others = [other for other in others if not other.contested]
        for other in others:
            self._be_heard(other)
        self._figures.rude([other.name for other in others], "pipelined")
        self._client.sendall(b"".join(one.data for one in [question, *others]))
        self._take(self._source.choice((0, 100, 1000, 1_000_000)))
        self._some_end()

    def _make_no_sense(self, question: Question) -> None:
        if question.stores:
            self._targets.spoiled.add(question.stores[1])
        data = bytearray(question.data[:50_000][:-1])  # never all of it, as it may be of a key that means nothing
        if self._source.random() < 0.3:
            data = bytearray(self._source.randbytes(self._source.randint(1, 5000)))
        for _ in range(self._source.randint(1, 20)):
            data[self._source.randrange(min(len(data), 600))] = self._source.randrange(256)
        self._client.sendall(data)
        self._take(1000)
        self._some_end()

    def _fall_silent(self, question: Question) -> None:
        self._client.sendall(self._some_of(question.data))
        self._silent.append(self._client.dup())
        if len(self._silent) > _SILENT:
            self._silent.pop(0).close()

    def _stay_to_the_end(self, question: Question) -> None:
        """Which is not rude. But what others get told then must be true, too."""
        data = question.data.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)
        self._client.settimeout(30.0)
        self._client.sendall(data)
        received = b""
        while piece := self._client.recv(1 << 16):
            received += piece
        header, _, body = received.partition(b"\r\n\r\n")
        if question.name.startswith(("put", "lockcontent")) and header.startswith(b"HTTP/1.1 200 "):
            answer = json.loads(body)
            if answer.get("stored") and question.stores:
                self._targets.stored.append(question.stores)
            if answer.get("locked"):
                self._targets.lockids.append(answer["lockid"])


_MANNERS = (
    Rude._go_while_asking,
    Rude._go_while_answered,
    Rude._half_close,
    Rude._read_slowly,
    Rude._write_slowly,
    Rude._pipeline,
    Rude._make_no_sense,
    Rude._fall_silent,
    Rude._stay_to_the_end,
)
_HOW_OFTEN = (9, 9, 3, 2, 2, 2, 3, 1, 3)
_SHORT_MANNERS = (Rude._go_while_asking, Rude._go_while_answered, Rude._half_close, Rude._stay_to_the_end)
