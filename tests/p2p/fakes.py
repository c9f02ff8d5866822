"""A Repository in memory, whose failures a test chooses, and a client talking to a server over pipes."""

from __future__ import annotations

import os
import threading

from annexshell.access import READ_WRITE
from annexshell.errors import NotLocked, NotPresent
from annexshell.p2p.client import P2PRepository
from annexshell.p2p.server import Server
from annexshell.p2p.wire import Connection
from annexshell.relay import BytesSource, to_callable
from annexshell.repository import AlreadyHave, Content, ContentLock, Outcome, Repository, Upload
from annexshell.uuid import UUID


class MemoryRepository(Repository):
    """Keys to bytes. ``fail[method]`` is raised by that method, or by a later step named ``receive``."""

    def __init__(self, contents=None, uuids=()):
        self.uuid = UUID(b"memory")
        self.protocol_version = 4
        self.contents = dict(contents or {})
        self.partial = {}
        self.uuids = uuids
        self.fail = {}
        self.events = []
        self.valid = True

    def _maybe_fail(self, step):
        if step in self.fail:
            raise self.fail[step]

    def checkpresent(self, key):
        self._maybe_fail("checkpresent")
        return key in self.contents

    def lockcontent(self, key):
        if key not in self.contents:
            raise NotLocked("absent")
        self.events.append("lock")
        return MemoryLock(self)

    def remove(self, key, before=None):
        self._maybe_fail("remove")
        if before is not None and before <= self.gettimestamp():
            return Outcome(False, self.uuids)
        self.contents.pop(key, None)
        return Outcome(True, self.uuids)

    def gettimestamp(self):
        return 1000

    def get(self, key, offset, file):
        self._maybe_fail("get")
        if key not in self.contents:
            raise NotPresent("absent")
        self.events.append(("get", offset, file))
        return MemoryContent(self, self.contents[key][offset:])

    def put(self, key, file):
        self._maybe_fail("put")
        if key in self.contents:
            return AlreadyHave(self.uuids)
        return MemoryUpload(self, key)

    def close(self):
        self.events.append("close")


class MemoryLock(ContentLock):
    def __init__(self, repository):
        self.repository = repository
        self.how = "unlock"

    def keep(self):
        self.how = "keep"

    def __exit__(self, *exc):
        self.repository.events.append(self.how)


class MemoryContent(Content):
    def __init__(self, repository, data):
        self.repository = repository
        self.length = len(data)
        self.source = BytesSource(data[: repository.fail.get("short")])

    def still_valid(self):
        return self.repository.valid

    def acknowledge(self, received):
        self.repository.events.append(("acknowledged", received))

    def __exit__(self, *exc):
        self.repository.events.append("sent")


class MemoryUpload(Upload):
    def __init__(self, repository, key):
        self.repository = repository
        self.key = key
        self.offset = len(repository.partial.get(key, b""))

    def receive(self, length, source, validity):
        self.repository._maybe_fail("receive")
        data = bytearray(self.repository.partial.get(self.key, b""))
        try:
            to_callable(source, length, data.extend)
        except BaseException:
            self.repository.partial[self.key] = bytes(data)
            raise
        valid = validity()
        self.repository._maybe_fail("store")
        self.repository.events.append(("validity", valid))
        if valid is False:
            return Outcome(False)
        self.repository.contents[self.key] = bytes(data)
        return Outcome(True, self.repository.uuids)

    def check_stored(self):
        return Outcome(self.key in self.repository.contents)

    def __exit__(self, *exc):
        self.repository.events.append("uploaded")


class Talk:
    """A conversation with a server that runs in a thread; its end is waited for, and its exception kept."""

    def __init__(self, repository, access=READ_WRITE, connect=None, greet=True):
        self.to_server, self.write_fd = os.pipe()
        self.read_fd, self.from_server = os.pipe()
        self.error = None
        self.connection = Connection(self.read_fd, self.write_fd)
        server = Server(repository, Connection(self.to_server, self.from_server), access, connect)

        def serve():
            try:
                if greet:
                    os.write(self.from_server, b"AUTH-SUCCESS %s\n" % repository.uuid)
                server.run()
            except Exception as error:
                self.error = error
            finally:
                os.close(self.from_server)
                os.close(self.to_server)

        self.thread = threading.Thread(target=serve, daemon=True)
        self.thread.start()

    def hang_up(self):
        if self.write_fd >= 0:
            os.close(self.write_fd)
            self.write_fd = -1

    def say(self, data: bytes) -> None:
        os.write(self.write_fd, data)

    def say_all(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.write_fd, view) :]

    def finish(self) -> bytes:
        """Hang up; gives what the server still had to say."""
        self.hang_up()
        rest = b""
        while piece := os.read(self.read_fd, 65536):
            rest += piece
        self.thread.join(10)
        assert not self.thread.is_alive()
        return rest

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.hang_up()
        self.thread.join(10)
        os.close(self.read_fd)
        assert not self.thread.is_alive()


def converse(repository, data: bytes, **options) -> tuple[bytes, Exception | None]:
    """All that a server answers to DATA followed by the end of the connection, and how its session ended."""
    with Talk(repository, greet=False, **options) as talk:
        talk.say(data)
        return talk.finish(), talk.error


def connected(talk: Talk, version: int = 4) -> P2PRepository:
    return P2PRepository(talk.connection, highest=version)
