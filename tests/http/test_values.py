"""Values as they stand in requests: escaped, wrapped, or not usable at all."""

from __future__ import annotations

import base64
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.http import urls, values
from annexshell.key import BadKey, Key

NOT_BASE64 = "unable to base64 decode [] wrapped value"


@pytest.mark.parametrize(
    "target, segments, query",
    [
        ("/", [b""], b""),
        ("", [b""], b""),
        ("/a/b", [b"", b"a", b"b"], b""),
        ("/a/b/", [b"", b"a", b"b"], b""),
        ("/a/b//", [b"", b"a", b"b", b""], b""),
        ("//a", [b"", b"", b"a"], b""),
        ("/a%2Fb/c+d%2f", [b"", b"a/b", b"c+d/"], b""),
        ("/a?b/c?d%26/", [b"", b"a"], b"b/c?d%26/"),
        ("/%zz%4%", [b"", b"%zz%4%"], b""),
        ("/caf%C3%A9/\u00e9/%ff", [b"", b"caf\xc3\xa9", b"\xc3\xa9", b"\xff"], b""),
        (b"/\xff", [b"", b"\xff"], b""),
        ("/\udcff", [b"", b"\xff"], b""),
        ("http://host:1/a?b", [b"", b"a"], b"b"),
        ("HTTPS://host/a/", [b"", b"a"], b""),
        ("http://host?/a/b", [b""], b"/a/b"),
        ("ftp://host/a", [b"ftp:", b"", b"host", b"a"], b""),
        ("*", [b"*"], b""),
    ],
)
def test_target(target: str | bytes, segments: list[bytes], query: bytes) -> None:
    assert values.split_target(target) == (segments, query)


def test_query() -> None:
    query = values.Query(b"a=1;b=%26%3B%3D+%2B&a=2&c&&c=3;;%64=x=y&e=&bypass=q&bypass&bypass[]=%5Br%5D;=z")
    assert [query.get(name) for name in (b"a", b"b", b"c", b"d", b"e", b"f", b"")] == [
        b"1",
        b"&;= +",
        None,  # the first one counts, and has no value
        b"x=y",
        b"",
        None,
        None,
    ]
    assert query.bypass == [b"q", b"[r]"]
    assert values.Query(b"").bypass == []


@pytest.mark.parametrize(
    "value, is_",
    [
        (b"", b""),
        (b"[", b"["),
        (b"]", b"]"),
        (b"[]", b""),
        (b"[foo", b"[foo"),
        (b"a[Zm8=]", b"a[Zm8=]"),
        (b"[Zm9v]", b"foo"),
        (b"[Zm8=]", b"fo"),
        (b"[Zm8]", b"fo"),
        (b"[Zg]", b"f"),
        (b"[-_8=]", b"\xfb\xff"),
    ],
)
def test_wrapping(value: bytes, is_: bytes) -> None:
    assert values.unwrapped(value) == is_


@pytest.mark.parametrize("value", [b"[!!]", b"[Z]", b"[+/8=]", b"[Zm=8]", b"[Zm9v\n]", b"[Zm9v Zm9v]", b"[\xff]"])
def test_what_is_wrapped_must_be_base64url(value: bytes) -> None:
    with pytest.raises(ValueError) as reason:
        values.unwrapped(value)
    assert str(reason.value) == NOT_BASE64


@given(st.binary() | st.from_regex(rb"\A\[[A-Za-z]*\]\Z"))
def test_our_client_and_ours_agree(value: bytes) -> None:
    assert values.unwrapped(unquote(urls.encode_value(value)).encode()) == value
    assert urls.decode_value(values.wrapped(value)) == value
    assert values.unwrapped(b"[" + base64.urlsafe_b64encode(value).rstrip(b"=") + b"]") == value


@pytest.mark.parametrize("value", [b"u", b"notauuid", b"\xff", b"...", b"x" * 255, b"[W10=]", b".lck"])
def test_clients(value: bytes) -> None:
    assert values.read_client(value) == values.read_word(value) == values.read_uuid(value) == values.unwrapped(value)


@pytest.mark.parametrize("value", [b"/", b"../../x", b"a/b", b".", b"..", b"x" * 256, b"[Li4=]", b"lck"])
def test_clients_that_could_not_have_a_directory(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^not usable as the name of a directory$"):
        values.read_client(value)
    assert values.read_word(value)


@pytest.mark.parametrize("value", [b"a b", b"a\nREMOVE", b"a\r", b"a\0b", b" ", b"\0", b"[Cg==]"])
def test_words_stay_one_word(value: bytes) -> None:
    for read in (values.read_word, values.read_client):
        with pytest.raises(ValueError, match=r"^white space or NUL in UUID$"):
            read(value)


@pytest.mark.parametrize("value", [b"", b"[]"])
def test_no_uuid_is_empty(value: bytes) -> None:
    for read in (values.read_uuid, values.read_word, values.read_client):
        with pytest.raises(ValueError, match=r"^empty UUID$"):
            read(value)


@pytest.mark.parametrize(
    "value", [b"", b"badkey", b"WORM--a\0b", b"WORM--a\nREMOVE WORM--b", b"WORM--a\r", b"WORM--" + b"x" * 40000]
)
def test_no_keys(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^key parse error$"):
        values.read_key(value)
    with pytest.raises(ValueError, match=r"^key parse error$"):
        values.read_key(values.wrapped(value).encode())


@given(st.binary(max_size=60).map(lambda name: b"WORM-s1--" + name))
def test_keys(text: bytes) -> None:
    try:
        expected = Key(text)
    except BadKey:
        return
    if b"\n" not in text and not text.endswith(b"\r"):
        assert values.read_key(values.wrapped(text).encode()) == expected


@pytest.mark.parametrize(
    "value, file",
    [(b"a/b", b"a/b"), (b"", None), (b"[]", None), (b"/etc/passwd", None), (b"[L2E=]", None), (b"[Wl0=]", b"Z]")],
)
def test_files(value: bytes, file: bytes | None) -> None:
    assert values.read_file(value) == file


@pytest.mark.parametrize(
    "value, number",
    [
        (b"0", 0),
        (b"007", 7),
        (b"0" * 30 + b"5", 5),
        (b"9223372036854775806", (1 << 63) - 2),
        (b"9223372036854775808", (1 << 63) - 1),
        (b"9" * 100000, (1 << 63) - 1),
    ],
)
def test_numbers(value: bytes, number: int) -> None:
    assert values.read_number(value, "n") == number


@pytest.mark.parametrize(
    "value", [b"", b"-1", b"+1", b"0x3", b"(3)", b" 3", b"3 ", b"1.5", b"1e1", b"1_0", "\u0663".encode(), b"\xb2"]
)
def test_no_numbers(value: bytes) -> None:
    with pytest.raises(ValueError, match=r"^offset parse error$"):
        values.read_number(value, "offset")


def test_booleans() -> None:
    assert [values.read_boolean(value) for value in (b"true", b"TRUE", b"false", b"False")] == [
        True,
        True,
        False,
        False,
    ]
    for value, told in ((b"1", "1"), (b"", ""), (b"true ", "true "), (b"\xff", "\ufffd")):
        with pytest.raises(ValueError) as reason:
            values.read_boolean(value)
        assert str(reason.value) == f"could not parse: `{told}'"
