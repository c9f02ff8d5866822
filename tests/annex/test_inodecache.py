"""Inode caches against the vectors, and as a property."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.inodecache import BadInodeCache, InodeCache, Sentinal
from tests import vectors

VECTORS = vectors.load("objects-inodecache")
INODES = {"I": "17", "J": "18"}


@pytest.mark.parametrize("row", VECTORS["format"], ids=lambda row: str(row["mtime_ns"]))
def test_format_of_a_file(row):
    cache = InodeCache(17, row["size"], row["mtime_ns"])
    assert str(cache) == row["inodecache"].replace("INODE", "17")
    assert cache.seconds == row["mtime_column"]
    parsed = InodeCache.parse(str(cache))
    assert (parsed.inode, parsed.size, parsed.mtime_ns) == (17, row["size"], row["mtime_ns"])
    assert str(parsed) == str(cache)


@pytest.mark.parametrize("kind", ["strong_match", "weak_match"])
def test_matching(kind):
    for row in VECTORS[kind]:
        stored = INODES[row["stored"][0]] + row["stored"][1:]
        current = InodeCache(17, 9, row["mtime_ns"])
        weakly = kind == "weak_match"
        assert InodeCache.parse(stored).matches(current, weakly=weakly) is row["matches"], row
        assert current.matches_any([InodeCache(1, 1, 1), InodeCache.parse(stored)], weakly=weakly) is row["matches"]


def test_a_weak_match_needs_inodes_to_have_changed():
    assert not InodeCache(17, 9, 0).matches(InodeCache(18, 9, 0))
    assert InodeCache(17, 9, 0).matches(InodeCache(18, 9, 0), weakly=True)


@pytest.mark.parametrize(
    "text", ["", "1 2", "a 9 1", "1 9 x", "1 9 1 x", "1 9 --1", "1 -9 1", "1 9 ²", "1 9 " + "9" * 50]
)
def test_what_is_not_an_inode_cache(text):
    with pytest.raises(BadInodeCache):
        InodeCache.parse(text)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**63), st.integers(-(2**62), 2**62))
def test_formatting_and_parsing_are_inverse(inode, size, mtime_ns):
    cache = InodeCache(inode, size, mtime_ns)
    parsed = InodeCache.parse(str(cache))
    assert parsed == cache
    assert parsed.matches(cache)
    assert (parsed.inode, parsed.size, parsed.mtime_ns) == (inode, size, mtime_ns)


@given(st.text(max_size=40))
def test_parsing_any_text_gives_a_cache_or_is_refused(text):
    try:
        cache = InodeCache.parse(text)
    except BadInodeCache:
        return
    assert InodeCache.parse(str(cache)) == cache


def test_only_regular_files_have_one(tmp_path):
    file = tmp_path / "file"
    file.write_bytes(b"123456789")
    os.utime(file, ns=(0, 1_500_000_000))
    (tmp_path / "link").symlink_to("file")
    os.mkfifo(tmp_path / "fifo")
    here = os.fsencode(tmp_path)
    assert str(InodeCache.of_file(here + b"/file")) == f"{file.stat().st_ino} 9 1 5"
    for other in (b"/link", b"/fifo", b"", b"/missing"):
        assert InodeCache.of_file(here + other) is None


class TestSentinal:
    @pytest.fixture
    def repo(self, tmp_path):
        file = tmp_path / "sentinal"
        file.touch()
        (tmp_path / "sentinal.cache").write_text(str(InodeCache.of(file.stat())))
        return SimpleNamespace(annexdir=os.fsencode(tmp_path))

    def test_unchanged(self, repo):
        assert not Sentinal(repo).inodes_changed

    def test_is_looked_at_once(self, repo, tmp_path):
        sentinal = Sentinal(repo)
        assert not sentinal.inodes_changed
        (tmp_path / "sentinal").unlink()
        assert not sentinal.inodes_changed
        assert Sentinal(repo).inodes_changed

    def test_other_inode(self, repo, tmp_path):
        (tmp_path / "new").touch()
        (tmp_path / "new").rename(tmp_path / "sentinal")
        assert Sentinal(repo).inodes_changed

    @pytest.mark.parametrize("content", [b"", b"x", b"\xff 0 1 1"])
    def test_unparsable(self, repo, tmp_path, content):
        (tmp_path / "sentinal.cache").write_bytes(content)
        assert Sentinal(repo).inodes_changed

    @pytest.mark.parametrize("name", ["sentinal", "sentinal.cache"])
    def test_missing(self, repo, tmp_path, name):
        (tmp_path / name).unlink()
        assert Sentinal(repo).inodes_changed
