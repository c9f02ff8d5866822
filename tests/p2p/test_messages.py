"""The wire codec: the recorded lines, every message back and forth, and any bytes at all."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.key import Key
from annexshell.p2p import messages as m
from annexshell.uuid import UUID
from tests import vectors

PARSE = vectors.load("protocol-parse")["lines"]
FILES = vectors.load("protocol-associatedfile")

# Numbers and white space that the recorded program takes and that we take for what they are: no message (R1, R5).
STRICTER = (
    "VERSION 1\r\r",
    "VERSION \t 1",
    "VERSION\u00a01",
    "VERSION\u20031",
    "VERSION 1 ",
    "VERSION -1",
    "VERSION 3abc",
    "VERSION (2)",
    "VERSION 0x3",
    "VERSION 0o2",
    "VERSION 1_0",
    "GET -1  FOO--y",
    "GET 5x  FOO--y",
)


def line_of(row):
    if "line" in row:
        return vectors.to_bytes(row["line"])
    unit, count = row["line_repeat"]
    return vectors.to_bytes(unit) * count


@pytest.mark.parametrize("row", PARSE, ids=lambda row: repr(row.get("line", row.get("line_repeat")))[:50])
def test_recorded_lines(row):
    unparsable = row["reply"] == ["ERROR unknown command"] or row["reply"] == ["<EOF>"] or row.get("line") in STRICTER
    try:
        m.parse(line_of(row))
    except m.Unparsable:
        assert unparsable
    else:
        assert not unparsable


@pytest.mark.parametrize("row", FILES["client_encode"], ids=lambda row: repr(row["name"]))
def test_file_names_are_encoded_as_the_client_does(row):
    assert m.encode_file(vectors.to_bytes(row["name"])) == vectors.to_bytes(row["wire"])


@pytest.mark.parametrize(
    "row", [r for r in FILES["server_decode"] if r["decoded"]], ids=lambda row: repr(row["wire"])
)
def test_file_names_are_decoded_as_the_server_does(row):
    assert m.decode_file(vectors.to_bytes(row["wire"])) == vectors.to_bytes(row["decoded"])


def test_an_absolute_file_name_and_an_empty_one():
    assert m.decode_file(b"") is None
    with pytest.raises(m.Unparsable):
        m.decode_file(b"/abs")


blanks = b" \t\n\v\f\r"
tokens = st.binary(max_size=20).filter(lambda b: not any(c in blanks for c in b))
uuids = st.lists(tokens.filter(bool).map(UUID), max_size=4).map(tuple)
keys = st.builds(
    lambda size, name: Key(b"SHA256-s%d--%s" % (size, name)),
    st.integers(0, 1 << 70),
    st.binary(max_size=30).filter(lambda b: not set(b) & set(b"\n\0") and not b.endswith(b"\r")),
)
numbers = st.integers(0, 1 << 70)
# Names that survive the escaping, which is lossy for spaces and control characters.
names = st.none() | st.text(string.ascii_letters + "%/.-é漢", min_size=1).map(str.encode).filter(
    lambda n: not n.startswith(b"/") and b"\xa0" not in n
)
text = st.binary(max_size=30).filter(lambda b: b"\n" not in b and not b.endswith(b"\r"))

STRATEGIES = {
    m.Auth: st.builds(m.Auth, tokens.map(UUID), st.text(string.ascii_letters + string.digits).map(str.encode)),
    m.AuthSuccess: st.builds(m.AuthSuccess, tokens.map(UUID)),
    m.RemoveBefore: st.builds(m.RemoveBefore, st.integers(-(1 << 40), 1 << 40), keys),
    m.Get: st.builds(m.Get, numbers, names, keys),
    m.Put: st.builds(m.Put, names, keys),
    m.Connect: st.builds(m.Connect, st.sampled_from((b"git-upload-pack", b"git-receive-pack"))),
    m.ConnectDone: st.builds(m.ConnectDone, st.integers(-255, 255)),
    m.Error: st.builds(m.Error, text),
    **{cls: st.builds(cls, uuids) for cls in (m.Bypass, m.AlreadyHavePlus, m.SuccessPlus, m.FailurePlus, m.Changed)},
    **{cls: st.builds(cls, keys) for cls in (m.CheckPresent, m.LockContent, m.Remove)},
    **{cls: st.builds(cls, numbers) for cls in (m.Version, m.TimestampIs, m.PutFrom, m.Data)},
    **{cls: st.builds(cls) for cls in (m.AuthFailure, m.UnlockContent, m.GetTimestamp, m.NotifyChange)},
    **{cls: st.builds(cls) for cls in (m.AlreadyHave, m.DataPresent, m.Valid, m.Invalid, m.Success, m.Failure)},
}
EVERY_MESSAGE = st.one_of(*STRATEGIES.values())


@given(EVERY_MESSAGE)
def test_what_is_written_is_read_back(message):
    line = m.encode(message)
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert m.parse(line[:-1]) == message


def test_every_message_is_in_the_property_above():
    assert set(STRATEGIES) == set(m.Message.__subclasses__())


@given(st.binary(max_size=100).filter(lambda b: b"\n" not in b))
def test_any_line_is_a_message_or_unparsable(line):
    try:
        message = m.parse(line)
    except m.Unparsable:
        return
    # What was understood can be said again, and then means the same.
    if not isinstance(message, m.Get | m.Put):  # their file names are decoded lossily
        assert m.parse(m.encode(message)[:-1]) == message


@given(st.sampled_from(list(m._BY_WORD)), st.binary(max_size=60).filter(lambda b: b"\n" not in b))
def test_any_parameters_are_a_message_or_unparsable(word, rest):
    try:
        m.parse(word + b" " + rest)
    except m.Unparsable:
        pass


@pytest.mark.parametrize("space", ["\u00a0", "\u2003", "\u3000", "\u202f", "\x85", "\x1c"])
def test_spaces_beyond_ascii_do_not_split_a_line(space):
    key = Key(b"SHA256-s1--x")
    line = f"PUT x{space}y SHA256-s1--x".encode()
    message = m.parse(line)
    assert isinstance(message, m.Put)
    assert message.key == key


@pytest.mark.parametrize("number", [b"-1", b"+1", b"1_0", b"1e1", b"0x1", b" 1", b"1 ", b"", "\u0661".encode()])
def test_numbers_are_digits_and_nothing_else(number):
    with pytest.raises(m.Unparsable):
        m.parse(b"DATA " + number)


def test_empty_tokens_keep_their_space():
    key = Key(b"SHA256-s1--x")
    assert m.encode(m.Put(None, key)) == b"PUT  SHA256-s1--x\n"
    assert m.encode(m.Get(0, None, key)) == b"GET 0  SHA256-s1--x\n"
    assert m.encode(m.Bypass(())) == b"BYPASS\n"
    assert m.encode(m.AuthSuccess(UUID(b""))) == b"AUTH-SUCCESS \n"
