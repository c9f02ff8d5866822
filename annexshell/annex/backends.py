"""What each key variety promises about its content (spec: objects §12.2).

The table says which hash a variety names and whether finding other content with the same hash is infeasible, which is
what annex.securehashesonly asks for. Everything that is imported for a hash is imported when one is made.
"""

from __future__ import annotations

from annexshell import log

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    class Hash(Protocol):
        def update(self, data: memoryview | bytes, /) -> object: ...
        def hexdigest(self) -> str: ...


# To load OpenSSL takes as long as the interpreter's own SHA-256 takes for about this many bytes. It is loaded when
# that has been hashed without it, so that a session about little content never pays for it.
_OPENSSL_COST = 1 << 20
_hashed_without = 0


class Backend:
    """How content is verified. ``create`` makes an empty hash, for content of about so many bytes (None: unknown)."""

    __slots__ = ("create", "digest_after_dash", "external", "secure", "uses_equivalents")

    def __init__(
        self,
        create: Callable[[int | None], Hash] | None = None,
        *,
        secure: bool = False,
        digest_after_dash: bool = False,
        external: bool = False,
        uses_equivalents: bool = False,
    ) -> None:
        self.create = create  # None: nothing can be computed while content arrives
        self.secure = secure  # of external and equivalent ones, others know
        self.digest_after_dash = digest_after_dash  # the key's name is not only a digest
        self.external = external  # a program is asked
        self.uses_equivalents = uses_equivalents  # other keys say what the content may be

    def expected_digest(self, name: bytes) -> bytes:
        """The digest that a key's name calls for, whatever its form; nothing hashes to a malformed one."""
        if self.digest_after_dash:
            return name.rpartition(b"-")[2]
        # Some old programs left sha256sum's mark for an escaped file name in the key.
        return name.partition(b".")[0].removeprefix(b"\\")


def find(variety: bytes) -> Backend:
    """The backend of a key's variety; UNVERIFIABLE for one that nobody knows."""
    known = _BACKENDS.get(variety)
    if known is not None:
        return known
    if variety[-1:] == b"E" and (hashed := _HASHES.get(variety[:-1])) is not None:
        return hashed
    return _EXTERNAL if variety[:1] == b"X" else UNVERIFIABLE


class HashUnavailable(Exception):
    """The package that computes a hash is not installed."""


def _hashlib(name: str, module: str, older: str) -> Callable[[int | None], Hash]:
    """A hash of OpenSSL's, or for little content the interpreter's own (MODULE; before Python 3.12 OLDER)."""

    def create(size: int | None) -> Hash:
        global _hashed_without
        if size is not None and _hashed_without + size <= _OPENSSL_COST:
            for builtin in (module, older):
                # Absent where the interpreter was built to have its hashes from OpenSSL only.
                try:
                    own: Hash = getattr(__import__(builtin), name)(usedforsecurity=False)
                except (ImportError, AttributeError):
                    continue
                _hashed_without += size
                return own
        import hashlib

        # The keys' own strength is judged by `secure` above; a FIPS OpenSSL would refuse MD5 here.
        return hashlib.new(name, usedforsecurity=False)

    return create


def _blake2b(bits: int) -> Callable[[int | None], Hash]:
    def create(size: int | None) -> Hash:
        from _blake2 import blake2b

        return blake2b(digest_size=bits // 8)

    return create


def _blake2s(bits: int) -> Callable[[int | None], Hash]:
    def create(size: int | None) -> Hash:
        from _blake2 import blake2s

        return blake2s(digest_size=bits // 8)

    return create


def _blake2bp(bits: int) -> Callable[[int | None], Hash]:
    def create(size: int | None) -> Hash:
        from annexshell.annex.blake2tree import blake2bp

        return blake2bp(bits // 8)

    return create


def _blake2sp(bits: int) -> Callable[[int | None], Hash]:
    def create(size: int | None) -> Hash:
        from annexshell.annex.blake2tree import blake2sp

        return blake2sp(bits // 8)

    return create


def _skein(bits: int) -> Callable[[int | None], Hash]:
    def create(size: int | None) -> Hash:
        from annexshell.annex.skein import Skein

        return Skein(bits)

    return create


def _blake3(size: int | None) -> Hash:
    try:
        from blake3 import blake3
    except ImportError as reason:
        raise HashUnavailable("the Python package blake3 is not installed") from reason
    return blake3()


def _xxh3(size: int | None) -> Hash:
    try:
        from xxhash import xxh3_64
    except ImportError as reason:
        raise HashUnavailable("the Python package xxhash is not installed") from reason
    return xxh3_64()


def create_hash(variety: bytes, size: int | None) -> Hash | None:
    """An empty hash for content of this variety, None where there is no such thing (a missing package is told)."""
    create = find(variety).create
    if create is None:
        return None
    try:
        return create(size)
    except (HashUnavailable, ImportError, ValueError) as reason:  # hashlib says ValueError of what its OpenSSL lacks
        log.warn(b"content of " + variety + b" keys cannot be verified: " + str(reason).encode())
        return None


UNVERIFIABLE = Backend()
_EXTERNAL = Backend(external=True)

# Those whose name with an E after it is the same backend, with a file extension in the key.
_HASHES = {
    b"SHA256": Backend(_hashlib("sha256", "_sha2", "_sha256"), secure=True),
    b"SHA512": Backend(_hashlib("sha512", "_sha2", "_sha512"), secure=True),
    b"SHA224": Backend(_hashlib("sha224", "_sha2", "_sha256"), secure=True),
    b"SHA384": Backend(_hashlib("sha384", "_sha2", "_sha512"), secure=True),
    b"SHA1": Backend(_hashlib("sha1", "_sha1", "_sha1")),
    b"MD5": Backend(_hashlib("md5", "_md5", "_md5")),
    b"SHA3_224": Backend(_hashlib("sha3_224", "_sha3", "_sha3"), secure=True),
    b"SHA3_256": Backend(_hashlib("sha3_256", "_sha3", "_sha3"), secure=True),
    b"SHA3_384": Backend(_hashlib("sha3_384", "_sha3", "_sha3"), secure=True),
    b"SHA3_512": Backend(_hashlib("sha3_512", "_sha3", "_sha3"), secure=True),
    b"SKEIN256": Backend(_skein(256), secure=True),
    b"SKEIN512": Backend(_skein(512), secure=True),
    b"BLAKE2B160": Backend(_blake2b(160), secure=True),
    b"BLAKE2B224": Backend(_blake2b(224), secure=True),
    b"BLAKE2B256": Backend(_blake2b(256), secure=True),
    b"BLAKE2B384": Backend(_blake2b(384), secure=True),
    b"BLAKE2B512": Backend(_blake2b(512), secure=True),
    b"BLAKE2BP512": Backend(_blake2bp(512), secure=True),
    b"BLAKE2S160": Backend(_blake2s(160), secure=True),
    b"BLAKE2S224": Backend(_blake2s(224), secure=True),
    b"BLAKE2S256": Backend(_blake2s(256), secure=True),
    b"BLAKE2SP224": Backend(_blake2sp(224), secure=True),
    b"BLAKE2SP256": Backend(_blake2sp(256), secure=True),
    b"BLAKE3_256": Backend(_blake3, secure=True),
    b"XXH3": Backend(_xxh3),
}

_BACKENDS = {
    **_HASHES,
    b"GITBUNDLE": Backend(_HASHES[b"SHA256"].create, secure=True, digest_after_dash=True),
    b"GITMANIFEST": UNVERIFIABLE,
    b"WORM": UNVERIFIABLE,
    b"URL": UNVERIFIABLE,
    b"VURL": Backend(uses_equivalents=True),
}
