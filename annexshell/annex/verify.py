"""Whether content is what its key says (spec: objects §12).

Answers are True, False, and None for content that cannot be verified, which is then taken for what it is said to be.
Nothing here compares sizes but :func:`size_matches`: when that counts is for the receiver of content to know.
"""

from __future__ import annotations

import os

from annexshell.annex import backends
from annexshell.annex.external_backend import ExternalBackends
from annexshell.key import Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import TypeAlias

    from annexshell.annex.backends import Hash

    # The keys recorded as equivalent to a VURL key, or what looks them up (spec: objects §12.3).
    Equivalents: TypeAlias = Iterable[Key] | Callable[[Key], Iterable[Key]]

_BUFFER_SIZE = 1 << 18


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


def verify_file(
    key: Key, path: bytes, equivalent_keys: Equivalents = (), programs: ExternalBackends | None = None
) -> bool | None:
    """Whether the file's content is the key's. Raises OSError when it cannot be read.

    ``programs`` are kept running for the next key; without them, one that is needed is started for this key alone.
    """
    backend = backends.find(key.variety)
    if backend.external:
        with _Programs(programs) as running:
            return running.verify(key, path)
    if backend.uses_equivalents:
        return _matches_any(path, _listed(key, equivalent_keys), programs)
    hashed = hasher(key)
    if hashed is None:
        return None
    _read_file(path, hashed.update)
    return hashed.matches()


def is_cryptographically_secure(
    key: Key, equivalent_keys: Equivalents = (), programs: ExternalBackends | None = None
) -> bool:
    """Whether annex.securehashesonly lets the key's content be transferred and stored (spec: objects §12.4)."""
    backend = backends.find(key.variety)
    if backend.external:
        with _Programs(programs) as running:
            return running.is_cryptographically_secure(key.variety)
    if backend.uses_equivalents:
        listed = _listed(key, equivalent_keys)
        return all(is_cryptographically_secure(other, (), programs) for other in listed)
    return backend.secure


def size_matches(key: Key, size: int) -> bool:
    """Whether content of SIZE bytes can be the key's: always when the key does not tell its size."""
    return key.size is None or key.size == size


def _matches_any(path: bytes, listed: list[Key], programs: ExternalBackends | None) -> bool | None:
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
    return any(verify_file(key, path, (), programs) is True for key in others)


def _listed(key: Key, equivalent_keys: Equivalents) -> list[Key]:
    """The equivalent keys without VURL ones, which would need others in turn, possibly in a circle."""
    found = equivalent_keys(key) if callable(equivalent_keys) else equivalent_keys
    return [other for other in found if not backends.find(other.variety).uses_equivalents]


def _read_file(path: bytes, *consumers: Callable[[memoryview], object]) -> None:
    """Hand the file's content to all consumers."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        buffer = memoryview(bytearray(_BUFFER_SIZE))
        while count := os.readv(fd, [buffer]):
            for consume in consumers:
                consume(buffer[:count])
    finally:
        os.close(fd)


class _Programs:
    """The user's programs, which outlive the ``with``, or else some that end with it."""

    __slots__ = ("_own", "_programs")

    def __init__(self, programs: ExternalBackends | None) -> None:
        self._own = programs is None
        self._programs = ExternalBackends() if programs is None else programs

    def __enter__(self) -> ExternalBackends:
        return self._programs

    def __exit__(self, *error: object) -> None:
        if self._own:
            self._programs.close()
