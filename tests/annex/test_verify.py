"""Verification: every backend against the recorded digests, odd keys, and the real git-annex's own keys."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import cycle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annexshell import log
from annexshell.annex import backends, skein, verify
from annexshell.key import Key
from tests import vectors

DIGESTS = vectors.load("objects-hashes")["digests"]
LENGTHS = sorted(int(length) for length in DIGESTS["SHA256"])
HASHES = sorted(DIGESTS)
INSECURE = ("MD5", "SHA1", "XXH3")
HELLO = b"hello"
HELLO_SHA256 = b"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
HELLO_MD5 = b"5d41402abc4b2a76b9719d911017c592"


def content(length: int) -> bytes:
    return bytes(i % 251 for i in range(length))


def fed(key: Key, data: bytes, pieces=(1 << 20,)) -> bool:
    """What the incremental hasher says of DATA fed in pieces of these sizes, over and over."""
    hasher = verify.hasher(key)
    assert hasher is not None
    view = memoryview(data)
    sizes = cycle(pieces)
    while view:
        size = next(sizes)
        hasher.update(view[:size])
        view = view[size:]
    return hasher.matches()


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(log, "warn", lambda message: said.append(log.printable(message)))
    return said


@pytest.fixture
def hello(tmp_path):
    path = tmp_path / "hello"
    path.write_bytes(HELLO)
    return os.fsencode(path)


@pytest.mark.parametrize("form", ["{v}-s{n}--{d}", "{v}--{d}", "{v}E-s{n}--{d}.tar.gz", "{v}-s{n}--\\{d}"])
@pytest.mark.parametrize("variety", HASHES)
def test_recorded_digests_verify_in_pieces_of_any_size(variety, form):
    for length, digest in DIGESTS[variety].items():
        data = content(int(length))
        key = Key(form.format(v=variety, n=length, d=digest).encode())
        for pieces in ((1 << 20,), (1, 7), (63, 64, 65), (129,), (511, 513), (1000,)):
            assert fed(key, data, pieces), (length, pieces)
        if data:
            flipped = bytearray(data)
            flipped[len(data) // 2] ^= 0x10
            assert not fed(key, bytes(flipped), (1000,)), length


@pytest.mark.parametrize("variety", HASHES)
def test_recorded_digests_verify_from_a_file(variety, tmp_path):
    path = tmp_path / "file"
    for length, digest in DIGESTS[variety].items():
        path.write_bytes(content(int(length)))
        key = Key(f"{variety}-s{length}--{digest}".encode())
        assert verify.verify_file(key, os.fsencode(path)) is True
        path.write_bytes(content(int(length)) + b"x")
        assert verify.verify_file(key, os.fsencode(path)) is False


def test_the_vectors_have_every_hash_of_the_table():
    assert {name.decode() for name in backends._HASHES} == set(DIGESTS)


@pytest.mark.parametrize("variety", HASHES)
def test_the_digest_has_to_be_lower_case(variety):
    digest = DIGESTS[variety]["3"]
    assert digest != digest.upper()
    assert fed(Key(f"{variety}-s3--{digest}".encode()), content(3))
    assert not fed(Key(f"{variety}-s3--{digest.upper()}".encode()), content(3))


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (HELLO_SHA256, True),
        (HELLO_SHA256 + b".", True),
        (HELLO_SHA256 + b".tar.gz", True),
        (b"\\" + HELLO_SHA256, True),
        (b"\\" + HELLO_SHA256 + b".x", True),
        (b"\\\\" + HELLO_SHA256, False),
        (HELLO_SHA256[:-1], False),
        (HELLO_SHA256 + b"0", False),
        (HELLO_SHA256 + b" ", False),
        (HELLO_SHA256 + b"\n", False),
        (HELLO_SHA256 + b"\0", False),
        (HELLO_SHA256 + b"\xff", False),
        (b"." + HELLO_SHA256, False),
        (b"", False),
        (b"\\", False),
        (b"\xff\xfe", False),
    ],
)
@pytest.mark.parametrize("variety", [b"SHA256", b"SHA256E"])
def test_which_part_of_a_name_is_the_digest(variety, name, good, hello):
    if variety == b"SHA256E" and name.startswith(b"." + HELLO_SHA256):
        pytest.raises(ValueError, Key, variety + b"--" + name)
        return
    key = Key(variety + b"--" + name)
    assert fed(key, HELLO) is good
    assert verify.verify_file(key, hello) is good
