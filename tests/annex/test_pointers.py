"""Pointer files against the vectors, as a property, and on disk."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.pointers import MAX_SIZE, format_pointer, parse_pointer, read_pointer
from annexshell.key import Key
from tests import vectors

KEY = Key(b"SHA256E-s6--5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03")


def content_of(row) -> bytes:
    if "content" in row:
        return vectors.to_bytes(row["content"])
    if row["case"].startswith("long first line"):
        start = b"/annex/objects/FOO--"
        return start + b"k" * (row["len"] - len(start) - 1) + b"\n"
    start = format_pointer(KEY) + b"/annex/"
    return start + b"x" * (row["len"] - len(start) - 1) + b"\n"


@pytest.mark.parametrize("row", vectors.load("objects-pointers")["pointer"], ids=lambda row: row["case"])
def test_vectors(row, tmp_path):
    content = content_of(row)
    assert len(content) == row["len"]
    (tmp_path / "f").write_bytes(content)
    read = read_pointer(os.fsencode(tmp_path / "f"))
    for key in (parse_pointer(content), read and read.key):
        if row["key"] is None or row["case"] == "nul byte after":  # a key that no file can be named after
            assert key is None
        elif row.get("key_len"):
            assert key is not None and len(key.serialized) == row["key_len"]
        else:
            assert key is not None and key.serialized == vectors.to_bytes(row["key"])


@given(st.binary(max_size=60).filter(lambda name: b"\0" not in name))
def test_a_pointer_leads_back_to_its_key(name):
    key = Key(b"FOO-s3--" + name)
    parsed = parse_pointer(format_pointer(key))
    if b"\n" not in name and not name.endswith(b"\r"):
        assert parsed == key


@given(st.binary(max_size=30), st.binary(max_size=60))
def test_any_content_is_a_pointer_or_not(start, rest):
    key = parse_pointer(start + b"/annex/objects/" + rest)
    if key is not None:
        assert parse_pointer(b"/annex/objects/" + key.filename) == key


def test_reading_with_status_and_directory_descriptor(tmp_path):
    (tmp_path / "f").write_bytes(format_pointer(KEY))
    directory = os.open(tmp_path, os.O_RDONLY)
    try:
        pointer = read_pointer(b"f", directory)
    finally:
        os.close(directory)
    assert pointer is not None and pointer.key == KEY
    assert pointer.status.st_ino == (tmp_path / "f").stat().st_ino


def test_only_small_regular_files_are_pointers(tmp_path):
    here = os.fsencode(tmp_path)
    (tmp_path / "f").write_bytes(format_pointer(KEY))
    (tmp_path / "link").symlink_to("f")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "directory").mkdir()
    (tmp_path / "large").write_bytes(format_pointer(KEY) + b"/annex/\n" * MAX_SIZE)
    os.mkfifo(tmp_path / "fifo")
    for name in (b"link", b"loop", b"directory", b"large", b"fifo", b"missing", b"f/x"):
        assert read_pointer(here + b"/" + name) is None, name
