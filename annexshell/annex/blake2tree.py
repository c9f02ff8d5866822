"""BLAKE2bp and BLAKE2sp: one root over leaves that take the blocks of the content in turn.

After "BLAKE2: simpler, smaller, fast as MD5" (Aumasson et al., 2013) and RFC 7693. hashlib's BLAKE2 computes the
nodes; only the leaves of BLAKE2sp-224 as git-annex has them are out of its reach.
"""

from __future__ import annotations

from struct import pack, unpack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import Protocol

    class Node(Protocol):
        """What hashlib's objects have and is needed here."""

        def update(self, data: bytes | bytearray, /) -> object: ...
        def copy(self) -> Node: ...
        def digest(self) -> bytes: ...
        def hexdigest(self) -> str: ...

    class Leaves(Protocol):
        def update(self, stripes: memoryview, /) -> None: ...
        def digests(self, tail: bytes, /) -> Sequence[bytes]: ...


# Bytes that all leaves together take in one turn: 4 blocks of BLAKE2b, or 8 of BLAKE2s.
_STRIPE = 512


class TreeHash:
    """A hash object like hashlib's."""

    __slots__ = ("_leaves", "_root", "_tail")

    def __init__(self, leaves: Leaves, root: Node) -> None:
        self._leaves = leaves
        self._root = root
        self._tail = b""

    def update(self, data: memoryview | bytes, /) -> None:
        view = memoryview(data)
        if self._tail:
            missing = _STRIPE - len(self._tail)
            self._tail += bytes(view[:missing])
            if len(self._tail) < _STRIPE:
                return
            self._leaves.update(memoryview(self._tail))
            view = view[missing:]
        whole = len(view) - len(view) % _STRIPE
        if whole:
            self._leaves.update(view[:whole])
        self._tail = bytes(view[whole:])

    def hexdigest(self) -> str:
        root = self._root.copy()
        for digest in self._leaves.digests(self._tail):
            root.update(digest)
        return root.hexdigest()


def blake2bp(size: int) -> TreeHash:
    """BLAKE2bp with a digest of SIZE bytes."""
    from _blake2 import blake2b

    def node(number: int = 0, depth: int = 0, last: bool = False) -> blake2b:
        return blake2b(
            digest_size=size, fanout=4, depth=2, node_offset=number, node_depth=depth, inner_size=64, last_node=last
        )

    leaves = [node(number, last=number == 3) for number in range(4)]
    return TreeHash(HashlibLeaves(leaves), node(depth=1, last=True))


def blake2sp(size: int) -> TreeHash:
    """BLAKE2sp with a digest of SIZE bytes; the digests of leaves always have 32 bytes."""
    from _blake2 import blake2s

    def node(number: int = 0, depth: int = 0, last: bool = False) -> blake2s:
        return blake2s(
            digest_size=size, fanout=8, depth=2, node_offset=number, node_depth=depth, inner_size=32, last_node=last
        )

    root = node(depth=1, last=True)
    if size != 32:
        return TreeHash(LaneLeaves(size), root)
    return TreeHash(HashlibLeaves([node(number, last=number == 7) for number in range(8)]), root)


class HashlibLeaves:
    """Leaves that are hashlib's objects."""

    __slots__ = ("_block", "_leaves")

    def __init__(self, leaves: Sequence[Node]) -> None:
        self._leaves = leaves
        self._block = _STRIPE // len(leaves)

    def update(self, stripes: memoryview, /) -> None:
        # A leaf's blocks lie apart from each other. Assigning slices of eight-byte words with a step, once for each
        # word of a block, gathers them as fast as they are hashed.
        source = stripes.cast("B").cast("Q")
        words, stride = self._block // 8, _STRIPE // 8
        share = bytearray(len(stripes) // len(self._leaves))
        target = memoryview(share).cast("Q")
        for number, leaf in enumerate(self._leaves):
            for word in range(words):
                target[word::words] = source[number * words + word :: stride]
            leaf.update(share)

    def digests(self, tail: bytes, /) -> list[bytes]:
        digests = []
        for number, leaf in enumerate(self._leaves):
            whole = leaf.copy()
            whole.update(tail[number * self._block : (number + 1) * self._block])
            digests.append(whole.digest())
        return digests


# BLAKE2s in eight lanes: one long integer holds a word of every leaf, each in 64 bits of its own, so that what
# overflows its 32 bits reaches no neighbour before it is cut off.
_LANES = range(8)
_ONES = sum(1 << 64 * lane for lane in _LANES)
_CUT = _ONES * 0xFFFFFFFF
_IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
_SIGMA = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15),
    (14, 10, 4, 8, 9, 15, 13, 6, 1, 12, 0, 2, 11, 7, 5, 3),
    (11, 8, 12, 0, 5, 2, 15, 13, 10, 14, 3, 6, 7, 1, 9, 4),
    (7, 9, 3, 1, 13, 12, 11, 14, 2, 6, 5, 10, 4, 0, 15, 8),
    (9, 0, 5, 7, 2, 4, 10, 15, 14, 1, 11, 12, 6, 8, 3, 13),
    (2, 12, 6, 10, 0, 11, 8, 3, 4, 13, 7, 5, 15, 14, 1, 9),
    (12, 5, 1, 15, 14, 13, 4, 10, 0, 7, 6, 3, 9, 2, 8, 11),
    (13, 11, 7, 14, 12, 1, 3, 9, 5, 0, 15, 4, 8, 6, 2, 10),
    (6, 15, 14, 9, 11, 3, 0, 8, 12, 2, 13, 7, 1, 4, 10, 5),
    (10, 2, 8, 4, 7, 6, 1, 5, 15, 11, 9, 14, 3, 12, 13, 0),
)
_COLUMNS_THEN_DIAGONALS = (
    (0, 4, 8, 12),
    (1, 5, 9, 13),
    (2, 6, 10, 14),
    (3, 7, 11, 15),
    (0, 5, 10, 15),
    (1, 6, 11, 12),
    (2, 7, 8, 13),
    (3, 4, 9, 14),
)


class LaneLeaves:
    """The leaves of BLAKE2sp with a short digest.

    Their parameter blocks name the short length, yet they give all 32 bytes, which hashlib has no way to ask for.
    All of them are computed at once, at some megabytes per second.
    """

    __slots__ = ("_chain", "_count", "_held")

    def __init__(self, size: int) -> None:
        # The parameter block: digest length, fanout 8, depth 2; leaf number; inner length 32.
        self._chain = [_ONES * word for word in _IV]
        self._chain[0] ^= _ONES * (size | 8 << 16 | 2 << 24)
        self._chain[2] ^= _in_lanes(_LANES)
        self._chain[3] ^= _ONES * (32 << 24)
        self._count = 0  # bytes that went into each leaf
        self._held = b""  # a stripe that has the last block of some leaves, unless more is coming

    def update(self, stripes: memoryview, /) -> None:
        for at in range(0, len(stripes), _STRIPE):
            if self._held:
                self._count += 64
                self._chain = _compress(self._chain, self._held, [self._count] * 8, [False] * 8)
            self._held = bytes(stripes[at : at + _STRIPE])

    def digests(self, tail: bytes, /) -> list[bytes]:
        chain, count = self._chain, self._count
        sizes = [min(max(len(tail) - 64 * lane, 0), 64) for lane in _LANES]
        in_tail = [True] * 8
        if self._held:
            in_tail = [size > 0 for size in sizes]
            count += 64
            chain = _compress(chain, self._held, [count] * 8, [not more for more in in_tail])
        ended = _compress(chain, tail.ljust(_STRIPE, b"\0"), [count + size for size in sizes], in_tail)
        select = _in_lanes(0xFFFFFFFF * more for more in in_tail)
        words = [_of_lanes(new & select | old & ~select) for new, old in zip(ended, chain, strict=True)]
        return [pack("<8I", *(word[lane] for word in words)) for lane in _LANES]


def _compress(chain: list[int], stripe: bytes, counts: list[int], final: list[bool]) -> list[int]:
    """BLAKE2s' compression in all lanes. COUNTS are the leaves' sizes up to here, FINAL whether they end here."""
    content = unpack("<128I", stripe)
    m = [_in_lanes(content[word::16]) for word in range(16)]
    v = chain + [_ONES * word for word in _IV]
    v[12] ^= _in_lanes(count & 0xFFFFFFFF for count in counts)
    v[13] ^= _in_lanes(count >> 32 for count in counts)
    v[14] ^= _in_lanes(0xFFFFFFFF * end for end in final)
    v[15] ^= 0xFFFFFFFF * final[7] << 64 * 7  # the last leaf of all
    for order in _SIGMA:
        for (i, j, k, h), x, y in zip(_COLUMNS_THEN_DIAGONALS, order[::2], order[1::2], strict=True):
            a, b, c, d = v[i], v[j], v[k], v[h]
            a = a + b + m[x] & _CUT
            d ^= a
            d = (d >> 16 | d << 16) & _CUT
            c = c + d & _CUT
            b ^= c
            b = (b >> 12 | b << 20) & _CUT
            a = a + b + m[y] & _CUT
            d ^= a
            d = (d >> 8 | d << 24) & _CUT
            c = c + d & _CUT
            b ^= c
            v[i], v[j], v[k], v[h] = a, (b >> 7 | b << 25) & _CUT, c, d
    return [word ^ v[i] ^ v[i + 8] for i, word in enumerate(chain)]


def _in_lanes(values: Iterable[int]) -> int:
    return int.from_bytes(pack("<8Q", *values), "little")


def _of_lanes(word: int) -> tuple[int, ...]:
    return unpack("<8Q", word.to_bytes(64, "little"))
