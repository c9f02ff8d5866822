"""What an annexUrl stands for, and how values are written into the urls of requests."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.errors import RemoteUnavailable
from annexshell.http import urls


@pytest.mark.parametrize(
    "url, base",
    [
        ("annex+http://h", "http://h:9417/"),
        ("annex+http://h/", "http://h:9417/"),
        ("annex+https://h/git-annex", "https://h:9417/"),
        ("annex+https://h/git-annex/", "https://h:9417/"),
        ("annex+https://H.Example:1/foo/?query", "https://h.example:1/foo/"),
        ("annex+http://h/foo/git-annex/", "http://h:9417/foo/git-annex/"),
        ("annex+http://[::1]:80/", "http://[::1]:80/"),
        ("annex+http://h\u00fc/a b", "http://xn--h-eha:9417/a%20b/"),
        ("annex+http://user:pass@h/", "http://h:9417/"),
    ],
)
def test_base(url: str, base: str) -> None:
    parsed = urls.parse(url.encode())
    assert parsed.web_url == base
    assert str(parsed) == "annex+" + base


def test_user_and_password() -> None:
    base = urls.parse(b"annex+http://a%40b:p%3a%ff@h/")
    assert (base.user, base.password) == (b"a@b", b"p:\xff")
    assert urls.parse(b"annex+http://h/").user is None


@pytest.mark.parametrize(
    "url",
    [
        b"http://h/",
        b"ANNEX+http://h/",
        b"annex+ftp://h/",
        b"annex+http:///path",
        b"annex+http://secret:secret@h:port/",
        b"annex+http://secret@h:99999/",
        b"annex+http://secret@[::1/",
        b"annex+http://secret@[::zz]/",
        b"annex+http://h/\nsecret",
        b"annex+http://h/\xff",
        b"annex+http://" + b"h" * 100 + b"/",
        b"annex+http://a..b/",
    ],
)
def test_bad_urls_tell_no_secret(url: bytes) -> None:
    with pytest.raises(RemoteUnavailable) as failure:
        urls.parse(url)
    assert "secret" not in str(failure.value)
    assert failure.value.__suppress_context__


TARGET = "/git-annex/U/v4/put?key=a%2Fb&clientuuid=c"


@pytest.mark.parametrize(
    "location, base, target",
    [
        (f"https://h{TARGET}", "https://h:443/", TARGET),
        (f"http://other:1/a{TARGET}", "http://other:1/a/", TARGET),
        (f"//h:1/a{TARGET}", "http://h:1/a/", TARGET),
        (f"/b{TARGET}", "http://h:9417/b/", TARGET),
        ("/elsewhere?x=y", "http://h:9417/", "/elsewhere?x=y"),
        ("http://h/a b\u00fc", "http://h:80/", "/a%20b%C3%BC"),
        ("http://h", "http://h:80/", ""),
    ],
)
def test_redirects(location: str, base: str, target: str) -> None:
    found, rest = urls.redirected(urls.parse(b"annex+http://h/a"), location, TARGET)
    assert (found.web_url, rest) == (base, target)


@pytest.mark.parametrize("location", ["", "relative", "ftp://h/", "file:///etc/passwd", "http://", "http://h:x/"])
def test_redirects_to_nowhere(location: str) -> None:
    with pytest.raises(ValueError):
        urls.redirected(urls.parse(b"annex+http://h/a"), location, TARGET)


def test_no_redirect_away_from_tls() -> None:
    with pytest.raises(ValueError):
        urls.redirected(urls.parse(b"annex+https://h/"), f"http://h{TARGET}", TARGET)


@pytest.mark.parametrize(
    "value, text",
    [
        (b"plain-1.x", "plain-1.x"),
        (b"a/b+c %&=", "a%2Fb%2Bc%20%25%26%3D"),
        ("\u00fc".encode(), "%C3%BC"),
        (b"\xff", "%5B_w%3D%3D%5D"),
        (b"[x]", "%5BW3hd%5D"),
        (b"[x", "%5Bx"),
    ],
)
def test_encoding_of_values(value: bytes, text: str) -> None:
    assert urls.encode_value(value) == text


@given(st.binary())
def test_values_come_back(value: bytes) -> None:
    from urllib.parse import unquote

    text = urls.encode_value(value)
    assert text.isascii() and not set(text) & set("/?&=+# \r\n")
    assert urls.decode_value(unquote(text)) == value


def test_decoding_is_lenient_about_padding_only() -> None:
    assert urls.decode_value("[_w]") == b"\xff"
    for wrong in ("[_]", "[!!!!]", "[\u00fc]"):
        with pytest.raises(ValueError):
            urls.decode_value(wrong)
