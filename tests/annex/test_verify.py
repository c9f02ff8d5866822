"""Verification: every backend against the recorded digests, odd keys, and the real git-annex's own keys."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from itertools import cycle

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annexshell import log
from annexshell.annex import backends, verify
from annexshell.key import Key
from tests import vectors
from tests.annex.verifying import is_secure, verify_file

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


@pytest.mark.parametrize("variety", HASHES)
def test_recorded_digests_verify_in_pieces_of_any_size(variety):
    for length, digest in DIGESTS[variety].items():
        key = Key(f"{variety}-s{length}--{digest}".encode())
        for pieces in ((1 << 20,), (63, 64, 65), (511, 513), (1, 7, 1000)):
            assert fed(key, content(int(length)), pieces), (length, pieces)


@pytest.mark.parametrize("form", ["{v}--{d}", "{v}E-s4096--{d}.tar.gz", "{v}-s4096--{d}.tar.gz", "{v}-s4096--\\{d}"])
@pytest.mark.parametrize("variety", HASHES)
def test_every_form_of_key_verifies_and_a_flipped_bit_does_not(variety, form):
    key = Key(form.format(v=variety, d=DIGESTS[variety]["4096"]).encode())
    data = bytearray(content(4096))
    assert fed(key, bytes(data))
    data[2000] ^= 0x10
    assert not fed(key, bytes(data))


@pytest.mark.parametrize("variety", HASHES)
def test_recorded_digests_verify_from_a_file(variety, tmp_path):
    path = tmp_path / "file"
    for length, digest in DIGESTS[variety].items():
        path.write_bytes(content(int(length)))
        key = Key(f"{variety}-s{length}--{digest}".encode())
        assert verify_file(key, os.fsencode(path)) is True
        path.write_bytes(content(int(length)) + b"x")
        assert verify_file(key, os.fsencode(path)) is False


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
        (HELLO_SHA256 + b"\xff", False),
        (b"." + HELLO_SHA256[1:], False),
        (b"", False),
        (b"\\", False),
        (b"\xff\xfe", False),
    ],
)
@pytest.mark.parametrize("variety", [b"SHA256", b"SHA256E"])
def test_which_part_of_a_name_is_the_digest(variety, name, good, hello):
    key = Key(variety + b"--" + name)
    assert fed(key, HELLO) is good
    assert verify_file(key, hello) is good


def test_the_verdict_can_be_asked_for_again():
    for variety in HASHES:
        hasher = verify.hasher(Key(f"{variety}-s1023--{DIGESTS[variety]['1023']}".encode()))
        hasher.update(content(1023))
        assert hasher.matches() and hasher.matches(), variety


@pytest.mark.parametrize(
    ("name", "good"),
    [
        (b"6d0a5b1c-0000-0000-0000-000000000001-" + HELLO_SHA256, True),
        (HELLO_SHA256, True),
        (b"a.b-" + HELLO_SHA256, True),
        (b"a-" + HELLO_SHA256 + b".x", False),
        (b"a-\\" + HELLO_SHA256, False),
        (b"a-" + HELLO_SHA256 + b"-", False),
        (b"a-" + HELLO_SHA256.upper(), False),
    ],
)
def test_the_digest_of_a_git_bundle_comes_last(name, good, hello):
    key = Key(b"GITBUNDLE-s5--" + name)
    assert fed(key, HELLO) is good
    assert verify_file(key, hello) is good


UNVERIFIABLE = ["WORM-s5-m1--x", "URL-s5--x", "FOO-s5--x", "GITMANIFEST-s5--x", "foo--x", "E--x", "SHA999E-s5--x"]
# Not the names of other backends, although they begin or end as one does.
UNVERIFIABLE += ["VURLE-s5--x", "WORME-s5--x", "GITBUNDLEE-s5--a-b", "SHA256EE-s5--x", "sha256-s5--x"]


@pytest.mark.parametrize("text", UNVERIFIABLE)
def test_what_cannot_be_verified_is_told_apart_from_what_is_wrong(text, hello, warnings):
    key = Key(text.encode())
    assert verify.hasher(key) is None
    assert verify_file(key, hello) is None
    assert is_secure(key) is False
    assert warnings == []


@given(st.binary(max_size=60))
@example(b"SHA256--\xff")
@example(b"X/--a")
def test_no_key_makes_verification_fail_with_an_exception(text):
    try:
        key = Key(text)
    except ValueError:
        return
    assert verify_file(key, b"/dev/null") in (True, False, None)
    assert is_secure(key) in (True, False)


@pytest.mark.parametrize("suffix", ["", "E"])
@pytest.mark.parametrize("variety", [*HASHES, "GITBUNDLE"])
def test_which_hashes_are_secure(variety, suffix):
    key = Key(f"{variety}{suffix}-s5--x".encode())
    expected = variety not in INSECURE and variety + suffix != "GITBUNDLEE"
    assert is_secure(key) is expected


def test_the_size_is_compared_where_there_is_one():
    assert verify.size_matches(Key(b"SHA256-s5--x"), 5)
    assert not verify.size_matches(Key(b"SHA256-s5--x"), 6)
    assert verify.size_matches(Key(b"SHA256--x"), 6)
    assert not verify.size_matches(Key(b"FOO-s" + b"9" * 30 + b"--x"), 6)


def test_the_content_counts_and_not_the_size(hello):
    assert verify_file(Key(b"SHA256-s999--" + HELLO_SHA256), hello) is True


def test_a_missing_file_is_an_error_and_no_verdict(tmp_path):
    for text in (b"SHA256--x", b"SKEIN256--x"):
        with pytest.raises(FileNotFoundError):
            verify_file(Key(text), os.fsencode(tmp_path / "missing"))


class TestVurl:
    KEY = Key(b"VURL-s5--http://example.com/x")
    GOOD = Key(b"SHA256-s5--" + HELLO_SHA256)
    GOOD_MD5 = Key(b"MD5-s5--" + HELLO_MD5)
    BAD = Key(b"SHA256-s5--" + HELLO_SHA256[::-1])
    WORM = Key(b"WORM-s5-m1--x")

    def test_nothing_is_hashed_while_it_arrives(self):
        assert verify.hasher(self.KEY) is None

    def test_without_equivalent_keys_it_cannot_be_verified(self, hello):
        assert verify_file(self.KEY, hello) is None
        assert verify_file(self.KEY, hello, [self.KEY]) is None

    def test_one_equivalent_key_is_enough(self, hello):
        assert verify_file(self.KEY, hello, [self.GOOD]) is True
        assert verify_file(self.KEY, hello, [self.BAD, self.WORM, self.GOOD_MD5]) is True
        assert verify_file(self.KEY, hello, [self.BAD]) is False

    def test_a_key_that_cannot_be_verified_says_nothing_good(self, hello):
        assert verify_file(self.KEY, hello, [self.WORM]) is False
        assert verify_file(self.KEY, hello, [Key(b"XNOSUCHPROGRAM-s5--x")]) is False

    def test_the_keys_can_be_looked_up_when_needed(self, hello):
        asked = []

        def look_up(key):
            asked.append(key)
            return iter([self.GOOD])

        assert verify_file(self.KEY, hello, look_up) is True
        assert asked == [self.KEY]
        assert verify_file(self.GOOD, hello, look_up) is True
        assert asked == [self.KEY]

    def test_it_is_as_secure_as_all_its_equivalent_keys(self):
        assert is_secure(self.KEY) is True
        assert is_secure(self.KEY, [self.GOOD]) is True
        assert is_secure(self.KEY, [self.GOOD, self.GOOD_MD5]) is False
        assert is_secure(self.KEY, lambda key: [self.WORM]) is False


@pytest.mark.parametrize(("variety", "package"), [(b"BLAKE3_256E", "blake3"), (b"XXH3", "xxhash")])
def test_without_its_package_a_hash_cannot_be_verified(variety, package, monkeypatch, warnings, hello):
    monkeypatch.setitem(sys.modules, package, None)
    key = Key(variety + b"-s5--x")
    assert verify.hasher(key) is None
    assert verify_file(key, hello) is None
    assert all(package in message and variety.decode() in message for message in warnings)
    assert len(warnings) == 2


@pytest.mark.parametrize("variety", ["SHA256", "SHA384", "SHA1", "MD5", "SHA3_512"])
def test_interpreters_without_hashes_of_their_own_have_openssl(variety, monkeypatch):
    for module in ("_sha2", "_sha256", "_sha512", "_sha1", "_md5", "_sha3"):
        monkeypatch.setitem(sys.modules, module, None)
    key = Key(f"{variety}-s3--{DIGESTS[variety]['3']}".encode())
    assert fed(key, content(3))


def test_a_hash_that_openssl_refuses_cannot_be_verified(monkeypatch, warnings):
    def refuse(name, **options):
        raise ValueError(f"unsupported hash type {name}")

    monkeypatch.setattr(hashlib, "new", refuse)
    assert verify.hasher(Key(b"MD5--x")) is None
    assert warnings == ["content of MD5 keys cannot be verified: unsupported hash type md5"]


def test_little_content_does_not_load_openssl():
    program = (
        "import sys; from annexshell.annex import verify; from annexshell.key import Key\n"
        f"def verified(size): h = verify.hasher(Key(b'SHA256-s%d--{HELLO_SHA256.decode()}' % size));"
        " h.update(b'hello'); return h.matches()\n"
        "assert verified(5) and '_hashlib' not in sys.modules and 'hashlib' not in sys.modules\n"
        "for _ in range(20): assert verified(100_000)\n"
        "assert 'hashlib' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)


data_and_cuts = st.tuples(st.binary(max_size=3000), st.lists(st.integers(1, 1200), min_size=1, max_size=6))


@pytest.mark.parametrize(
    "variety", ["SKEIN256", "SKEIN512", "BLAKE2BP512", "BLAKE2SP224", "BLAKE2SP256", "BLAKE3_256"]
)
@settings(max_examples=40, deadline=None)
@given(data_and_cuts)
def test_in_pieces_and_at_once_is_the_same(variety, drawn):
    data, cuts = drawn
    whole = backends.create_hash(variety.encode(), len(data))
    whole.update(data)
    parts = backends.create_hash(variety.encode(), len(data))
    view = memoryview(data)
    sizes = cycle(cuts)
    while view:
        size = next(sizes)
        parts.update(view[:size])
        view = view[size:]
    assert parts.hexdigest() == whole.hexdigest()


def test_a_buffer_may_be_reused_after_an_update():
    for variety in HASHES:
        hasher = verify.hasher(Key(f"{variety}-s1025--{DIGESTS[variety]['1025']}".encode()))
        buffer = bytearray(300)
        data = content(1025)
        for start in range(0, len(data), 300):
            part = data[start : start + 300]
            buffer[: len(part)] = part
            hasher.update(memoryview(buffer)[: len(part)])
            buffer[:] = bytes(300)
        assert hasher.matches(), variety


@pytest.mark.interop
@pytest.mark.parametrize("extension", ["", "E"])
@pytest.mark.parametrize("variety", HASHES)
def test_keys_of_the_real_git_annex_verify(variety, extension, git_annex_path, calckey_repository):
    backend = variety + extension
    path = calckey_repository / "some.file.txt"
    done = subprocess.run(
        [git_annex_path / "git-annex", "calckey", f"--backend={backend}", path.name],
        cwd=calckey_repository,
        stdout=subprocess.PIPE,
        check=True,
        timeout=60,
    )
    key = Key(done.stdout.rstrip(b"\n"))
    assert key.variety.decode() == backend
    data = path.read_bytes()
    assert verify.size_matches(key, len(data))
    assert fed(key, data, (10000, 1, 511))
    assert verify_file(key, os.fsencode(path)) is True
    flipped = bytearray(data)
    flipped[-1] ^= 1
    assert not fed(key, bytes(flipped))


@pytest.fixture(scope="module")
def calckey_repository(git_annex_path, tmp_path_factory):
    path = tmp_path_factory.mktemp("calckey")
    environ = {**os.environ, "HOME": str(path), "PATH": f"{git_annex_path}{os.pathsep}{os.environ['PATH']}"}
    for command in (["init", "-q"], ["config", "user.name", "x"], ["config", "user.email", "x@example.com"]):
        subprocess.run(["git", *command], cwd=path, check=True, env=environ)
    subprocess.run(["git", "annex", "init", "-q"], cwd=path, check=True, env=environ, stdout=subprocess.DEVNULL)
    (path / "some.file.txt").write_bytes(b"\0\xff".join(b"%d" % i for i in range(9000)))
    return path


@pytest.mark.parametrize(
    ("text", "equivalents", "expected"),
    [
        (b"SHA256-s5--x", (), True),
        (b"XXH3E-s5--x", (), True),
        (b"WORM-s5--x", (), False),
        (b"URL--x", (), False),
        (b"NOBODY--x", (), False),
        (b"XNOSUCHPROGRAM-s5--x", (), False),
        (b"VURL--x", (), False),
        (b"VURL--x", (Key(b"SHA256-s5--x"),), True),
    ],
)
def test_what_could_be_verified_at_all(text, equivalents, expected):
    with verify.Verifier(lambda key: equivalents) as verifier:
        assert verifier.can_verify(Key(text)) is expected
