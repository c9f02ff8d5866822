"""Keys against the vectors, and as a property."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.key import BadKey, Key
from tests import vectors

KEYS = vectors.load("objects-keys")
POINTERS = vectors.load("objects-pointers")


@pytest.mark.parametrize("row", KEYS["valid"], ids=lambda row: repr(row["key"])[:60])
def test_valid_keys_parse_to_the_listed_fields(row):
    text = vectors.to_bytes(row["key"])
    key = Key(text)
    assert key.serialized == vectors.to_bytes(row.get("canonical", row["key"]))
    assert key.variety == vectors.to_bytes(row["backend"])
    assert key.size == row["size"]
    assert key.name == vectors.to_bytes(row["name"])
    assert key.hashdirs_lower() == vectors.to_bytes(row["lower"]).rstrip(b"/")
    assert key.hashdirs_mixed() == vectors.to_bytes(row["mixed"]).rstrip(b"/")
    assert key.filename == vectors.to_bytes(row["file"])


@pytest.mark.parametrize("row", KEYS["invalid"], ids=lambda row: repr(row["key"])[:60])
def test_invalid_keys_are_refused(row):
    with pytest.raises(BadKey):
        Key(vectors.to_bytes(row["key"]))


@pytest.mark.parametrize("row", POINTERS["filename_to_key"], ids=lambda row: repr(row["file"])[:60])
def test_file_names_give_the_listed_key(row):
    name = vectors.to_bytes(row["file"])
    if row["key"] is None:
        with pytest.raises(BadKey):
            Key.from_filename(name)
    else:
        assert Key.from_filename(name).serialized == vectors.to_bytes(row["key"])


fields = st.integers(min_value=0, max_value=10**30)
varieties = st.binary(min_size=1, max_size=20).filter(lambda v: not v.endswith(b"E") and not set(v) & set(b"-\0"))
names = st.binary(max_size=60).filter(lambda name: b"\0" not in name)


@given(varieties, st.none() | fields, st.none() | fields, names)
def test_escaping_loses_nothing_and_never_leaves_the_directory(variety, size, chunk, name):
    text = variety
    if size is not None:
        text += b"-s%d" % size
    if chunk is not None:
        text += b"-S%d-C1" % chunk
    key = Key(text + b"--" + name)
    assert key.serialized == text + b"--" + name
    assert b"/" not in key.filename
    assert key.filename not in (b"", b".", b"..")
    assert Key.from_filename(key.filename) == key


@given(st.binary(max_size=80))
def test_parsing_is_idempotent_on_any_bytes(text):
    try:
        key = Key(text)
    except BadKey:
        return
    assert Key(key.serialized) == key


def test_numbers_have_no_limit():
    digits = b"9" * 20000
    key = Key(b"SHA256-s" + digits + b"--x")
    assert key.serialized == b"SHA256-s" + digits + b"--x"
    assert key.size is not None and key.size % 10 == 9
    assert Key(b"SHA256-s" + digits + b"-S1-C2--x").digest == key.digest


@pytest.mark.parametrize(
    "chunk, whole",
    [
        (b"S-s5-m9223372036854775808-S1-C2--x-S1-C2", b"S-s5-m-9223372036854775808--x-S1-C2"),
        (b"C-S1--", b"C--"),
        (b"S-C1--S-C1--x", b"S--S-C1--x"),
        (b"S-m1--S-C1", b"S-m1--S-C1"),
    ],
)
def test_chunks_share_what_their_object_is_called(chunk, whole):
    assert Key(chunk).without_chunk == whole


def test_no_key_has_a_nul_byte():
    """No file name can have one."""
    for text in (b"FOO--a\0b", b"FOO\0--a", b"FOO--\0"):
        with pytest.raises(BadKey):
            Key(text)
