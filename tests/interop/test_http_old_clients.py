"""git-annex of before there was an HTTP API, which is what the PATH of some distributions has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop.harness import Repo, environment, make_home, pseudorandom, run
from tests.interop.proxies import git_annex_knows_proxies
from tests.interop.webservers import Door, Front, Static

CONTENT = pseudorandom(100_000)


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


if not git_annex_knows_proxies():

    def test_what_is_for_others_does_not_disturb_them(
        tmp_path: Path, server_home: Path, git_annex_path: Path, make_server: Callable[..., Repo], parts: ExitStack
    ) -> None:
        """Neither the url that others are told of, nor the server: they have content as they always had."""
        maker, server = make_server("maker", bare=False), make_server("server.git")
        key = maker.add("a file", CONTENT)
        maker.commit()
        maker.git("remote", "add", "origin", server.path)
        maker.git("push", "--quiet", "origin", "main")
        maker.annex("copy", "--quiet", "--to=origin", "a file")
        door = Door(server_home, server.path)
        parts.callback(door.kill)
        front = Front(door)
        parts.callback(front.stop)
        server.git("config", "annex.url", front.url)
        server.git("update-server-info")
        static = Static(tmp_path)
        parts.callback(static.stop)

        home = make_home(tmp_path / "home", '[annex "security"]\n\tallowed-ip-addresses = all\n')
        client = Repo(tmp_path / "clone", environment(home, git_annex_path))
        run(["git", "clone", "--quiet", f"{static.url}server.git", client.path], client.env, tmp_path)
        client.annex("init", "--quiet", "clone")
        client.annex("get", "--from=origin", "a file")
        assert client.content(key) == CONTENT
        client.annex("drop", "a file")
        # Not even one that is told to can use it.
        client.git("config", "remote.origin.annexUrl", front.url)
        assert client.annex("get", "--from=origin", "a file", check=False).status == 1
        assert front.asked == []
        door.stop()
        assert server.content(key) == CONTENT and server.leftovers() == []
