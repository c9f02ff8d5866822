"""Being served below a path."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from annexshell.errors import UsageError
from annexshell.http import prefix
from annexshell.http.accesslog import LogFile
from annexshell.http.observing import Watch
from annexshell.key import Key
from tests.http.doors import CLIENT, HELLO, SERVED, Door, Place, key_of, quoted, target
from tests.http.program import Program, failure

LARGE = os.urandom(3_000_000)


@pytest.mark.parametrize(
    ("text", "path"),
    [("", ""), ("/", ""), ("/a", "/a"), ("/a/", "/a"), ("/a/b c//", "/a/b c"), ("/\u00e9", "/\u00e9")],
)
def test_paths(text: str, path: str) -> None:
    assert prefix.parse(text) == path


@pytest.mark.parametrize("text", ["a", "a/b", "http://host/a", "/a//b", "//a", "/a?b", "/a#b", "/a%20b", "/a\nb"])
def test_no_paths(text: str) -> None:
    with pytest.raises(UsageError, match="is not a path like /annex"):
        prefix.parse(text)


@pytest.fixture(params=["plain", "tls"])
def door(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
    return open_door(request.param, path_prefix="/some/\u00e9 path")


WRITTEN = ("/some/%C3%A9%20path", "/%73ome/%c3%a9%20path")


@pytest.mark.parametrize("below", WRITTEN)
def test_everything_can_be_asked_there(door: Door, place: Place, below: str) -> None:
    odd = Key(b"WORM--a/b+c%2Fd")
    with closing(door.connect()) as connection:
        for key, content in ((key_of(LARGE), LARGE), (odd, b"odd")):
            length = {"X-git-annex-data-length": str(len(content))}
            put = connection.ask("POST", below + target("put", key=key), length, [content[:2], content[2:]])
            assert put.json == {"plusuuids": [], "stored": True}
            assert place.content(key) == content
            path = f"{below}/git-annex/{SERVED}/v4/key/{quoted(key)}?clientuuid={CLIENT}"
            assert connection.ask("GET", path).body == content
            assert connection.ask("HEAD", path).data_length == len(content)
            assert connection.ask("GET", f"{below}/git-annex/{SERVED}/key/{quoted(key)}").body == content
        lockid = connection.ask("POST", below + target("lockcontent", key=odd)).json["lockid"]
        kept = connection.ask("POST", below + target("keeplocked", lockid=lockid), {}, [b'{"unlock":true}'])
        assert kept.json == {"locked": False}
        assert connection.ask("POST", below + target("remove", key=odd)).json["removed"] is True
        assert connection.ask("POST", below + target("checkpresent", 9, key=odd)).status == 404
        assert connection.ask("PUT", below + target("put", key=odd)).status == 405


@pytest.mark.parametrize(
    "below", ["", "/", "/some", "/some/%C3%A9%20path/", "/some/%C3%A9%20path/more", "/SOME/%C3%A9%20path", "/x/y"]
)
def test_nothing_can_be_asked_beside_it(door: Door, below: str) -> None:
    assert door.ask("POST", below + target("checkpresent", key=HELLO)).status == 404


def test_health_is_where_it_was(door: Door) -> None:
    assert door.ask("GET", "/healthz").body == b"ok\n"
    for path in ("/", "/some", WRITTEN[0], WRITTEN[0] + "/", WRITTEN[0] + "/git-annex"):
        assert door.ask("GET", path).status == 404


def test_it_is_logged(open_door: Callable[..., Door], tmp_path: Path) -> None:
    """As that is what somebody asked."""
    log = LogFile(os.fsencode(tmp_path / "log"))
    door = open_door(path_prefix="/annex", watch=Watch(log))
    assert door.post("checkpresent", key=HELLO).status == 404
    assert door.ask("POST", "/annex" + target("checkpresent", key=HELLO)).json == {"present": True}
    door.stop()
    first, second = (tmp_path / "log").read_text().splitlines()
    assert f'"POST {target("checkpresent", key=HELLO)} HTTP/1.1" 404' in first
    assert f'"POST /annex{target("checkpresent", key=HELLO)} HTTP/1.1" 200' in second


def test_locks_of_other_workers(place: Place) -> None:
    options = ("--wideopen", "--workers=2", "--path-prefix=/annex/")
    with Program(place.directory, *options) as program:
        for _ in range(6):
            with closing(program.connect()) as one, closing(program.connect()) as other:
                lockid = one.ask("POST", "/annex" + target("lockcontent", key=HELLO)).json["lockid"]
                path = "/annex" + target("keeplocked", lockid=lockid)
                assert other.ask("POST", path, {}, [b'{"unlock":true}']).json == {"locked": False}
        with closing(program.connect()) as one:
            assert one.ask("POST", "/annex" + target("remove", key=HELLO)).json["removed"] is True
        assert program.stop() == ""


def test_what_makes_no_sense_is_told_at_the_start(place: Place) -> None:
    assert failure(place.directory, "--wideopen", "--path-prefix=annex") == "Error: annex is not a path like /annex\n"
