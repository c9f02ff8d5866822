"""Where urls lead to."""

from __future__ import annotations

import os
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.gitrepo import GitRepository
from annexshell.remotes.remote import AnnexHttp, LocalPath, Location, Special, Ssh, Unreachable
from annexshell.remotes.urls import Urls, percent_decode
from tests import vectors
from tests.remotes.repositories import TARGET, init, of

CONNECTIONS = vectors.load("proxy-remotes")["connections"]


def locate(proxy, url: str, *settings: tuple[str, str]) -> Location:
    proxy.configure([*of("r", url=url), *settings])
    urls = Urls(proxy.open())
    return urls.parse(urls.of(b"r"))


@pytest.fixture
def neighbours(proxy, tmp_path):
    init(tmp_path / "nn", uuid=TARGET)
    init(tmp_path / "bare.git", "--bare", uuid=TARGET)
    return proxy


def is_connected(connection) -> bool:
    return not connection["spawned"].startswith("none")


# The longest beginning that insteadOf matches is replaced, as git does it; the recording has the shortest.
LONGEST = next(c for c in CONNECTIONS if "git itself would use the longest" in c.get("note", ""))


@pytest.mark.parametrize(
    "connection",
    [c for c in CONNECTIONS if is_connected(c) and c is not LONGEST],
    ids=lambda c: " ".join([c["url"], *(f"{name}={value}" for name, value in c["config"])]),
)
def test_recorded_connections(neighbours, tmp_path, connection):
    def here(text: str) -> str:
        return text.replace("/srv/", f"{tmp_path}/")

    location = locate(neighbours, here(connection["url"]), *map(tuple, connection["config"]))
    argv = connection["argv"]
    if connection["spawned"] == "git-annex-shell":
        assert isinstance(location, LocalPath)
        assert os.fsdecode(location.path) == here(argv[1])
        return
    assert isinstance(location, Ssh)
    assert location.host.decode() == next(word for word in argv if not word.startswith("-"))
    assert location.port == (int(argv[argv.index("-p") + 1]) if "-p" in argv else None)
    words = shlex.split(argv[-1])
    assert location.path.decode() == words[words.index("p2pstdio") + 1]


@pytest.mark.parametrize("connection", [c for c in CONNECTIONS if not is_connected(c)], ids=lambda c: c["url"])
def test_recorded_refusals(proxy, connection):
    location = locate(proxy, connection["url"])
    if "special remote" in connection["spawned"]:
        assert isinstance(location, Special) and location.kind == b"p2p"
    elif connection["url"].startswith("annex+http"):
        assert isinstance(location, AnnexHttp) and location.url.decode() == connection["url"]
    else:
        assert isinstance(location, Unreachable)
        if "rejecting" in connection["stderr"]:
            assert connection["stderr"] == f"git-annex: {location.reason}"


def test_the_longest_beginning_is_replaced(proxy):
    location = locate(proxy, LONGEST["url"], *map(tuple, LONGEST["config"]))
    assert isinstance(location, Ssh) and location.host == b"longer"


def ssh(host: str, path: str, port: int | None = None) -> tuple[bytes, int | None, bytes]:
    return host.encode(), port, path.encode()


@pytest.fixture(scope="module")
def parse(tmp_path_factory):
    repo = GitRepository(os.fsencode(init(tmp_path_factory.mktemp("urls") / "u")))
    urls = Urls(repo)
    return lambda url: urls.parse(url.encode() if isinstance(url, str) else url)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("host:a%20b", ssh("host", "/~/a b")),
        ("host:a%2zb%", ssh("host", "/~/a%2zb%")),
        ("host:a//b", ssh("host", "/~/a//b")),
        ("user@host:", ssh("user@host", "/~/")),
        ("user@host::x", ssh("user@host", "/~/:x")),
        ("ssh:/host/a", ssh("ssh", "/host/a")),
        ("höst:ö", ssh("höst", "/~/ö")),
        ("ssh://host//a", ssh("host", "//a")),
        ("ssh://user:pw@host/a", ssh("user:pw@host", "/a")),
        ("ssh://user@[::1]:22/a", ssh("user@::1", "/a", 22)),
        ("[fe80::1%eth0]:b", ssh("fe80::1%eth0", "/~/b")),
        ("git+ssh://h:22/~x", ssh("h", "/~x", 22)),
        (b"ssh://host/\xff%fe", (b"host", None, b"/\xff\xfe")),
    ],
)
def test_ssh(parse, url, expected):
    location = parse(url)
    assert isinstance(location, Ssh)
    assert (location.host, location.port, location.path) == expected


@pytest.mark.parametrize(
    "url",
    [
        "ssh://host:abc/a",
        "ssh://host:123456/a",
        "ssh://a:b:22/c",
        "ssh:///a",
        "ssh://user@/a",
        "ssh://[::1/a",
        "ssh://[foo]/a",
        "ssh://[::1]x/a",
        "ssh://host?x/a",
        "ssh://host#x",
        "[host]:b",
        "[host]b:c",
        "[a:b]:c",
        ":b",
        "ssh::x",
        "a::b:c",
        "SSH://host/a",
        "http://h/a",
        "git://h/a",
        "file://tmp",
        "file://",
        "annex::x",
        "ssh://h/%00",
        "ssh://h%00/a",
        "file:///a%00b",
        "h%00:x",
    ],
)
def test_unreachable(parse, url):
    location = parse(url)
    assert isinstance(location, Unreachable)
    assert location.url == url.encode() and location.reason


@pytest.mark.parametrize(
    "url", ["-x@host:b", "-x:b", "ssh://-x@host/b", "ssh://%2dx/b", "ssh://user@-x/b", "user@-x:b", "ssh://u@%2Dx/"]
)
def test_no_host_is_an_option(parse, url):
    location = parse(url)
    assert isinstance(location, Unreachable)
    assert location.reason.startswith("rejecting ssh hostname that starts with '-' : ")


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("file://{}/nn", "{}/nn"),
        ("file://{}/n%6e?x", "{}/nn"),
        ("file://{}/nn#x", "{}/nn"),
        ("file://localhost{}/nn", "{}/nn"),
        ("file:///~/x", "/~/x.git"),
        ("../u/../nn", "{}/nn"),
        ("../nn/.", "{}/nn"),
        ("../nn//", "{}/nn"),
        ("{}//nn", "{}//nn"),
        ("../nn/.git/", "{}/nn"),
        ("../missing/.git", "{}/missing"),
        ("../a%20b", "{}/a%20b.git"),
        ("{}/a:b/", "{}/a:b"),
        ("./a:b/", "{}/u/a:b"),
        ("[a]/b/", "{}/u/[a]/b"),
        (".", "{}/u"),
        ("", "{}/u"),
        ("/", "/"),
        ("/.git", "/"),
        ("~", "{}/home"),
        ("~/x", "{}/home/x.git"),
        ("~root", os.path.expanduser("~root")),
        ("~nobodyhasthisname/x/", "{}/u/~nobodyhasthisname/x"),
    ],
)
def test_paths(neighbours, tmp_path, url, expected):
    location = locate(neighbours, url.format(tmp_path))
    assert isinstance(location, LocalPath)
    assert os.fsdecode(location.path) == expected.format(tmp_path)


def test_paths_are_relative_to_what_git_starts_from(tmp_path, clean_environment):
    init(tmp_path / "nn")
    bare = init(tmp_path / "bare.git", "--bare")
    plain = init(tmp_path / "plain")
    (tmp_path / "elsewhere").mkdir()
    link = tmp_path / "elsewhere" / "link"
    link.symlink_to(plain)
    for directory in (bare, plain, plain / ".git", link):
        location = Urls(GitRepository(os.fsencode(directory))).parse(b"../nn")
        assert isinstance(location, LocalPath) and location.path == os.fsencode(tmp_path / "nn")


def replaced(base: str, prefix: str, variable: str = "insteadOf") -> tuple[str, str]:
    return (f"url.{base}.{variable}", prefix)


def annex_replaced(base: str, prefix: str) -> tuple[str, str]:
    return replaced(base, prefix, "annexInsteadOf")


ANNEXURL = "remote.r.annexurl"


@pytest.mark.parametrize(
    ("url", "settings", "host"),
    [
        # annexurl is replaced in its turn, and annexInsteadOf does not count beside it.
        ("http://h/a", [(ANNEXURL, "short:x"), replaced("ssh://real/", "short:")], "real"),
        ("http://h/a", [(ANNEXURL, "ssh://k/"), annex_replaced("ssh://q/", "ssh://k/")], "k"),
        ("ssh://a/b", [(ANNEXURL, "")], "a"),
        ("annex::x", [(ANNEXURL, "ssh://k/")], "k"),
        # insteadOf comes first, then annexInsteadOf.
        ("http://h/a", [annex_replaced("ssh://a/", "http://h/"), replaced("ssh://b/", "http://")], "b"),
        ("g:a", [replaced("http://x/", "g:"), annex_replaced("ssh://b/", "http://x/")], "b"),
        ("https://h/a", [annex_replaced("ssh://a/", "https://"), annex_replaced("ssh://b/", "https://h/")], "b"),
        # One name may have several values, and is replaced only once.
        ("xx:a", [replaced("ssh://a/", "yy:"), replaced("ssh://a/", "xx:"), replaced("ssh://a/", "zz:")], "a"),
        ("xx:a", [replaced("yy:", "xx:"), replaced("ssh://a/", "yy:")], "yy"),
        ("xx:a", [replaced("ssh://e/", "xx:"), replaced("ssh://f/", "xx:")], "e"),
        ("xx:a", [replaced("ssh://e/", "")], "e"),
        ("xx:a", [replaced("ssh://e/", "XX:")], "xx"),
        ("ssh://a/b", [("remote.r.url", "ssh://c/d")], "c"),
        ("../nn", [replaced("ssh://k/", "../")], "k"),
        # An HTTP server is only used if there is no other way.
        ("ssh://a/b", [(ANNEXURL, "annex+http://h/")], "a"),
        ("ssh://a/b", [annex_replaced("annex+http://h/", "ssh://a/")], "a"),
    ],
)
def test_replacing(proxy, url, settings, host):
    location = locate(proxy, url, *settings)
    assert isinstance(location, Ssh) and location.host.decode() == host


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("http://h/", [(ANNEXURL, "annex+https://s/x/")]),
        ("git://h/", [(ANNEXURL, "annex+https://s/x/")]),
        ("http://h/x/", [annex_replaced("annex+https://s/", "http://h/")]),
        ("annex::", [(ANNEXURL, "annex+https://s/x/")]),
        ("annex+https://s/x/", []),
        ("s:x/", [replaced("annex+https://s/", "s:")]),
    ],
)
def test_http_servers(proxy, url, settings):
    location = locate(proxy, url, *settings)
    assert isinstance(location, AnnexHttp) and location.url == b"annex+https://s/x/"


URL_PARTS = [
    *("ssh://", "git+ssh://", "file://", "annex+http://", "gcrypt::", "p2p-annex::", "foo://", "foo::"),
    *(
        "[",
        "]",
        "::1",
        ":",
        "@",
        "/",
        "//",
        "~",
        "%",
        "%00",
        "%2d",
        "-",
        "?",
        "#",
        ".git",
        "..",
        "host",
        "22",
        "\xff",
    ),
]
urls_of_parts = st.lists(st.sampled_from(URL_PARTS)).map("".join).map(str.encode)


@given(url=st.one_of(urls_of_parts, st.binary()))
def test_no_url_does_harm(parse, url):
    # Git config values have no null bytes.
    location = parse(url.replace(b"\0", b""))
    if isinstance(location, LocalPath):
        assert location.path.startswith(b"/") and b"\0" not in location.path
    elif isinstance(location, Ssh):
        assert location.host and not location.host.startswith(b"-") and b"\0" not in location.host + location.path


@given(st.binary())
def test_percent_decoding(data):
    assert percent_decode(b"".join(b"%%%02X" % byte for byte in data)) == data
    assert percent_decode(data.replace(b"%", b"%25")) == data
    assert len(percent_decode(data)) <= len(data)


def test_percent_signs_that_encode_nothing():
    assert percent_decode(b"%") == b"%"
    assert percent_decode(b"a%2") == b"a%2"
    assert percent_decode(b"%zz%+1% 1%1_") == b"%zz%+1% 1%1_"
    assert percent_decode(b"%2541") == b"%41"
    assert percent_decode(b"%fF") == b"\xff"
