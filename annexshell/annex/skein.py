"""Skein-256-256 and Skein-512-512, after "The Skein Hash Function Family", version 1.3 (Ferguson et al., 2010).

No maintained package computes them. It is pure Python and slow, about a megabyte per second, which is enough for
keys that hardly anybody has.
"""

from __future__ import annotations

from struct import Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    # (chaining words, block's words, tweak, bit mask of a word) -> the next chaining words
    _Compress = Callable[[Sequence[int], Sequence[int], int], tuple[int, ...]]

_WORD = (1 << 64) - 1
_PARITY = 0x1BD11BDAA9FC1A22  # C240, table 2 of the paper: 3.3.2
_ROUNDS = 72

# Per number of words in a block: the rotations of eight rounds (table 4) and the permutation of words (table 3).
_ROTATIONS = {
    4: ((14, 16), (52, 57), (23, 40), (5, 37), (25, 33), (46, 12), (58, 22), (32, 32)),
    8: (
        (46, 36, 19, 37),
        (33, 27, 14, 42),
        (17, 49, 36, 39),
        (44, 9, 54, 56),
        (39, 30, 34, 24),
        (13, 50, 10, 17),
        (25, 29, 39, 43),
        (8, 35, 56, 22),
    ),
}
_PERMUTATION = {4: (0, 3, 2, 1), 8: (2, 1, 4, 7, 6, 5, 0, 3)}

# The tweak (§3.4, table 5): how many bytes came before the end of this block, what they are, first and last block.
_CONFIG = 4 << 120
_MESSAGE = 48 << 120
_OUTPUT = 63 << 120
_FIRST = 1 << 126
_FINAL = 1 << 127


class Skein:
    """A hash object like hashlib's, of 256 or 512 bits of state and of output."""

    __slots__ = ("_chain", "_compress", "_done", "_pending", "_unpack")

    def __init__(self, bits: int) -> None:
        words = bits // 64
        self._unpack = Struct(f"<{words}Q")
        self._compress = _compression(words)
        config = Struct("<4sHxxQ16x").pack(b"SHA3", 1, bits) + bytes(self._unpack.size)
        self._chain = self._compress((0,) * words, self._unpack.unpack_from(config), _CONFIG | _FIRST | _FINAL | 32)
        self._pending = b""  # kept back although full: only the last block is marked as such
        self._done = 0

    def update(self, data: memoryview | bytes, /) -> None:
        size = self._unpack.size
        if len(self._pending) + len(data) <= size:
            self._pending += bytes(data)
            return
        view = memoryview(data)
        if self._pending:
            missing = size - len(self._pending)
            self._blocks(self._pending + bytes(view[:missing]))
            view = view[missing:]
        keep = (len(view) - 1) % size + 1 if view else 0
        self._blocks(view[: len(view) - keep])
        self._pending = bytes(view[len(view) - keep :])

    def _blocks(self, data: memoryview | bytes) -> None:
        compress, chain, done, size = self._compress, self._chain, self._done, self._unpack.size
        for block in self._unpack.iter_unpack(data):
            chain = compress(chain, block, _MESSAGE | (0 if done else _FIRST) | done + size)
            done += size
        self._chain, self._done = chain, done

    def hexdigest(self) -> str:
        unpack = self._unpack
        block = unpack.unpack(self._pending.ljust(unpack.size, b"\0"))
        tweak = _MESSAGE | _FINAL | (0 if self._done else _FIRST) | self._done + len(self._pending)
        chain = self._compress(self._chain, block, tweak)
        output = self._compress(chain, (0,) * len(block), _OUTPUT | _FIRST | _FINAL | 8)
        return unpack.pack(*output).hex()


_compressions: dict[int, _Compress] = {}


def _compression(words: int) -> _Compress:
    """The function of §3.3 and §3.5.1, Threefish with what was encrypted added to the outcome, for so many words.

    It is written out line by line from the tables and compiled, which makes it three times as fast as walking them.
    """
    if words not in _compressions:
        scope: dict[str, _Compress] = {}
        exec("\n    ".join(_source(words)), scope)
        _compressions[words] = scope["compress"]
    return _compressions[words]


def _source(words: int) -> list[str]:
    numbers = range(words)
    v = [f"v{i}" for i in numbers]
    keys = [f"k{i}" for i in range(words + 1)]
    lines = [
        "def compress(chain, block, tweak):",
        f"{', '.join(keys[:-1])} = chain",
        f"{', '.join(f'b{i}' for i in numbers)} = block",
        f"{keys[-1]} = {_PARITY} ^ {' ^ '.join(keys[:-1])}",
        f"t0 = tweak & {_WORD}; t1 = tweak >> 64; t2 = t0 ^ t1",
        *(f"v{i} = b{i}" for i in numbers),
    ]
    for round in range(_ROUNDS):
        if round % 4 == 0:
            lines += _key_injection(words, v, round // 4)
        for pair, left in enumerate(_ROTATIONS[words][round % 8]):
            # The even words of a round are even ones in the next. As they are only added to and mixed into a word
            # that is cut off, they can stay uncut between key injections, which saves an operation.
            x, y = v[2 * pair], v[2 * pair + 1]
            lines.append(f"{x} += {y}; {y} = (({y} << {left} | {y} >> {64 - left}) ^ {x}) & {_WORD}")
        v = [v[i] for i in _PERMUTATION[words]]
    lines += _key_injection(words, v, _ROUNDS // 4)
    return [*lines, f"return {', '.join(f'{v[i]} & {_WORD} ^ b{i}' for i in numbers)}"]


def _key_injection(words: int, v: list[str], number: int) -> list[str]:
    """Add subkey NUMBER (§3.3.2)."""
    lines = []
    for i, word in enumerate(v):
        terms = [word, f"k{(number + i) % (words + 1)}"]
        if i in (words - 3, words - 2):
            terms.append(f"t{(number + i - (words - 3)) % 3}")
        elif i == words - 1:
            terms.append(str(number))
        lines.append(f"{word} = ({' + '.join(terms)}) & {_WORD}")
    return lines
