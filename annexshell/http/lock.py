"""A lock on content behind the HTTP API (spec: http §7).

``lockcontent`` alone holds for ten minutes. What makes it last longer is a ``keeplocked`` request whose body stays
open; but git-annex's server ends the lock as soon as that is cut short, where whoever had the lock may count on the
rest of his ten minutes. So it is begun only when they are nearly over.
"""

from __future__ import annotations

import threading

from annexshell import log
from annexshell.errors import AnnexshellError
from annexshell.repository import ContentLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType

    from annexshell.http.client import HttpRepository
    from annexshell.http.connection import Connection
    from annexshell.http.session import Request, Session
    from annexshell.key import Key

_LOCKED_FOR = 600.0  # seconds
_EXTENDED_AFTER = 480.0
_TRIED_AGAIN_AFTER = 20.0
_JSON = {"Content-Type": "application/json;charset=utf-8"}
_HOLD, _UNLOCK = b'{"unlock":false}\n', b'{"unlock":true}\n'


class RemoteLock(ContentLock):
    """Held by the server, which knows it by an id."""

    def __init__(self, repository: HttpRepository, session: Session, key: Key, lockid: bytes) -> None:
        self._repository = repository
        self._session = session
        self._key = key
        self._lockid = lockid
        self._kept = False
        self._over = threading.Event()
        self._mutex = threading.Lock()  # for the two below
        self._stream: Connection | None = None
        self._extending = threading.Thread(target=self._extend, name="keeplocked", daemon=True)
        self._extending.start()

    def _extend(self) -> None:
        """Make the lock last for as long as we are there, once it would not by itself."""
        waited = wait = _EXTENDED_AFTER
        while not self._over.wait(wait):
            try:
                stream = self._begin_stream()
            except AnnexshellError as reason:
                log.debug(f"cannot extend the lock on {self._key}: {reason}")
                waited += (wait := _TRIED_AGAIN_AFTER)
                if waited > _LOCKED_FOR:
                    log.warn(f"{self._session.base} does not lock {self._key} any longer: {reason}")
                    return
                continue
            with self._mutex:
                if self._over.is_set():
                    stream.close()
                else:
                    self._stream = stream
            return

    def _request(self, headers: dict[str, str], body: bytes = b"") -> Request:
        return self._repository.request(
            "keeplocked", ("lockid", self._lockid), headers={**_JSON, **headers}, body=body
        )

    def _begin_stream(self) -> Connection:
        stream = self._session.begin(self._request({"Transfer-Encoding": "chunked"}))
        try:
            self._session.send(stream, _chunk(_HOLD))
        except BaseException:
            stream.close()
            raise
        return stream

    def keep(self) -> None:
        self._kept = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            self._over.set()
            stream, self._stream = self._stream, None
        if self._kept:
            # Nothing is said to the server: the lock runs out by itself.
            if stream is not None:
                stream.close()
            return
        try:
            self._unlock(stream)
        except AnnexshellError as reason:
            log.warn(f"cannot unlock {self._key}, it stays locked for up to ten minutes: {reason}")

    def _unlock(self, stream: Connection | None) -> None:
        """Returns when the server has done it, lest a removal that follows meets with the lock."""
        request = self._request({}, _UNLOCK)
        if stream is None:
            self._repository.ask(request)
            return
        try:
            self._session.send(stream, _chunk(_UNLOCK) + _chunk(b""))
            reply = self._session.answer(stream, request.action)
        except BaseException:
            stream.close()
            raise
        self._repository.understand(reply, request.action)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)
