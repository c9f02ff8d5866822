"""The one idea: everything is a Repository, wherever it may be, and the doors serve Repositories.

A request is a method call; what it may raise is part of the interface. Content moves between descriptors, so that
whoever has both ends can let the kernel do it (see :mod:`annexshell.relay`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from annexshell.key import Key
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import TypeAlias

    from typing_extensions import Self

    from annexshell.relay import Source

    # The name of a work tree file that the client gave, for display and preferred content only: never a path.
    AssociatedFile: TypeAlias = bytes | None
    # Seconds on the clock of the repository, which counts from some moment of its own (GETTIMESTAMP).
    Timestamp: TypeAlias = int

VALID = True
INVALID = False


class Outcome:
    """Whether it was done, and the uuids of other repositories for which it was done at the same time.

    WHY it was not, where that is known, is for logs: the protocol has no place for it.
    """

    __slots__ = ("done", "uuids", "why")

    def __init__(self, done: bool, uuids: tuple[UUID, ...] = (), *, why: str = "") -> None:
        self.done = done
        self.uuids = uuids
        self.why = why

    def __bool__(self) -> bool:
        return self.done

    def __repr__(self) -> str:
        return f"Outcome({self.done}, {self.uuids})"


class Exchange(ABC):
    """Something begun with a repository, which a ``with`` ends in any case."""

    def __enter__(self) -> Self:
        return self

    @abstractmethod
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class AlreadyHave(Exchange):
    """The answer to a put of content that is there, and the uuids of other repositories that have it."""

    __slots__ = ("uuids",)

    def __init__(self, uuids: tuple[UUID, ...] = ()) -> None:
        self.uuids = uuids

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass  # nothing was begun


class ContentLock(Exchange):
    """A held lock on content."""

    @abstractmethod
    def keep(self) -> None:
        """Let the lock's retention time run on after the ``with``: the holder vanished without unlocking."""


class Content(Exchange):
    """Content being sent, from an offset to its end."""

    length: int  # bytes that source will give, neither more nor less
    source: Source

    def narrow(self, start: int, length: int) -> bool:
        """Send only LENGTH bytes from START on; false where that cannot be done."""
        return False

    @abstractmethod
    def still_valid(self) -> bool:
        """After the bytes were read: whether they were the key's content all the time."""

    def acknowledge(self, received: bool) -> None:
        """Tell what the receiver said of it; not called when the receiver is gone."""


class Upload(Exchange):
    """Content being received; leaving the ``with`` without :meth:`receive` gives the transfer up."""

    offset: int  # where the sender should start

    @abstractmethod
    def receive(self, length: int, source: Source, validity: Callable[[], bool | None]) -> Outcome:
        """Take LENGTH bytes from SOURCE, then ask the sender whether they were valid, and store them.

        ``validity`` is called once, after the last byte, and gives VALID, INVALID, or None where the sender did
        not say. Raises TransferRefused before the first byte is read, and Hangup when SOURCE ends early (what
        arrived is kept for resuming).
        """

    @abstractmethod
    def check_stored(self) -> Outcome:
        """The sender stored the content by other means (DATA-PRESENT): whether it is there; records it."""


class Repository(ABC):
    """What can be asked of a repository, be it on this disk or somewhere else."""

    uuid: UUID
    protocol_version: int  # the highest version of the P2P protocol that it can honour end to end
    usable: bool = True  # false once an exchange was cut short; then it can only be closed

    def agree(self, highest: int) -> int:
        """The version of the protocol for a client that knows HIGHEST; called once, before anything is asked.

        HIGHEST is 0 for a client that did not say. Raises RemoteUnavailable.
        """
        return min(highest, self.protocol_version)

    def bypass(self, uuids: Sequence[UUID]) -> None:
        """What is going to be asked has come by these gateways of a cluster, and must not come to them again.

        Called before anything is asked; concerns nobody but other gateways. Raises RemoteUnavailable.
        """

    def is_alive(self) -> bool:
        """Whether something can still be asked, as far as that shows without asking, and between two requests."""
        return self.usable

    @abstractmethod
    def checkpresent(self, key: Key) -> bool:
        """Whether the whole content is there. Raises RepositoryError when that cannot be told.

        This and everything else can raise RemoteUnavailable and PeerError of a repository that is somewhere else.
        """

    @abstractmethod
    def lockcontent(self, key: Key) -> ContentLock:
        """Keep the content from being removed for as long as the lock is open. Raises NotLocked."""

    @abstractmethod
    def remove(self, key: Key, before: Timestamp | None = None) -> Outcome:
        """Remove the content, unless the clock has reached BEFORE by the time that it is locked for removal.

        Done also when it was not there. Raises ContentLocked.
        """

    @abstractmethod
    def gettimestamp(self) -> Timestamp:
        """The repository's clock."""

    @abstractmethod
    def get(self, key: Key, offset: int, file: AssociatedFile) -> Content:
        """Send the content from OFFSET on. Raises NotPresent."""

    @abstractmethod
    def put(self, key: Key, file: AssociatedFile) -> Upload | AlreadyHave:
        """Receive the content. Raises TransferRefused, RepositoryError."""

    def putoffset(self, key: Key, file: AssociatedFile) -> int | AlreadyHave:
        """Where a :meth:`put` that began now would start. Raises as that does."""
        with self.put(key, file) as upload:
            return upload if isinstance(upload, AlreadyHave) else upload.offset

    @abstractmethod
    def close(self) -> None:
        """Finish what was begun: record the session's changes, end connections."""
