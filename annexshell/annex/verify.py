"""Whether content is what its key says (spec: objects §12).

Answers are True, False, and None for content that cannot be verified, which is then taken for what it is said to be.
Nothing here compares sizes but :func:`size_matches`: when that counts is for the receiver of content to know.
"""

from __future__ import annotations

import os

from annexshell import relay
from annexshell.annex import backends
from annexshell.annex.external_backend import ExternalBackends
from annexshell.key import Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import TracebackType

    from annexshell.annex.backends import Hash


class Hasher:
    """The hash of content that passes by; :attr:`update` takes it piece by piece."""

    __slots__ = ("_expected", "_hash", "update")

    update: Callable[[memoryview | bytes], object]

    def __init__(self, hash: Hash, expected: bytes) -> None:
        self._hash = hash
        self._expected = expected
        self.update = hash.update  # itself, as a method in between would be called for each buffer

    def matches(self) -> bool:
        """Whether what came by is the key's content. Digests are compared exactly, so upper case never matches."""
        return self._hash.hexdigest().encode() == self._expected


def hasher(key: Key) -> Hasher | None:
    """What verifies content while it arrives; None where only :func:`verify_file` can, or nothing."""
    computed = backends.create_hash(key.variety, key.size)
    return None if computed is None else Hasher(computed, backends.find(key.variety).expected_digest(key.name))


def size_matches(key: Key, size: int) -> bool:
    """Whether content of SIZE bytes can be the key's: always when the key does not tell its size."""
    return key.size is None or key.size == size


class Verifier:
    """Verifies files for one user, who is one thread. The programs that this needs run until it is closed.

    EQUIVALENT_KEYS looks up what is recorded as equivalent to a VURL key (spec: objects §12.3).
    """

    __slots__ = ("_equivalent_keys", "_programs")

    def __init__(self, equivalent_keys: Callable[[Key], Iterable[Key]] = lambda key: ()) -> None:
        self._equivalent_keys = equivalent_keys
        self._programs = ExternalBackends()

    def verify(self, key: Key, path: bytes) -> bool | None:
        """Whether the file's content is the key's. Raises OSError when it cannot be read."""
        backend = backends.find(key.variety)
        if backend.external:
            return self._programs.verify(key, path)
        if backend.uses_equivalents:
            return self._matches_any(path, self._listed(key))
        hashed = hasher(key)
        if hashed is None:
            return None
        _read_file(path, hashed.update)
        return hashed.matches()

    def can_verify(self, key: Key) -> bool:
        """Whether :meth:`verify` could tell this key's content from other content of the same size."""
        backend = backends.find(key.variety)
        if backend.external:
            return self._programs.can_verify(key.variety)
        if backend.uses_equivalents:
            return bool(self._listed(key))
        return backends.create_hash(key.variety, key.size) is not None

    def is_secure(self, key: Key) -> bool:
        """Whether annex.securehashesonly lets the key's content be transferred and stored (spec: objects §12.4)."""
        backend = backends.find(key.variety)
        if backend.external:
            return self._programs.is_cryptographically_secure(key.variety)
        if backend.uses_equivalents:
            return all(map(self.is_secure, self._listed(key)))
        return backend.secure

    def _listed(self, key: Key) -> list[Key]:
        """The equivalent keys without VURL ones, which would need others in turn, possibly in a circle."""
        return [k for k in self._equivalent_keys(key) if not backends.find(k.variety).uses_equivalents]

    def _matches_any(self, path: bytes, listed: list[Key]) -> bool | None:
        """Whether the content is that of one of the keys, of which one that cannot be verified says nothing good."""
        if not listed:
            return None
        hashers: list[Hasher] = []
        others: list[Key] = []
        for key in listed:
            hashed = hasher(key)
            if hashed is not None:
                hashers.append(hashed)
            elif backends.find(key.variety).external:
                others.append(key)
        if hashers:
            _read_file(path, *(hashed.update for hashed in hashers))
            if any(hashed.matches() for hashed in hashers):
                return True
        return any(self.verify(key, path) is True for key in others)

    def close(self) -> None:
        """End the programs."""
        self._programs.close()

    def __enter__(self) -> Verifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read_file(path: bytes, *consumers: Callable[[memoryview], object]) -> None:
    """Hand the file's content to all consumers."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = memoryview(bytearray(relay.BUFFER_SIZE))
        while count := os.readv(fd, [buffer]):
            for consume in consumers:
                consume(buffer[:count])
    finally:
        os.close(fd)
