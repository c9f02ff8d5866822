"""Our client of the HTTP API against our own server: what is tested with git-annex's, and where the two differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from annexshell.errors import PeerError
from annexshell.http.client import HttpRepository
from annexshell.key import Key
from annexshell.relay import BytesSource
from tests.interop.harness import Repo, file_size, wait_until
from tests.interop.test_http_client import (
    LARGE,
    Server,
    connect,
    key_for,
    test_a_lock_that_is_kept,
    test_a_password_for_writing_only,
    test_a_repository_that_is_not_served,
    test_a_temporary_file_that_is_too_large,
    test_an_upload_that_somebody_else_completes,
    test_corrupt_content_is_not_stored,
    test_downloads_that_were_given_up,
    test_everything_at_each_version,
    test_one_repository_used_by_several_threads,
    test_passwords,
    test_tls,
    test_who_may_not_write,
)
from tests.interop.webservers import Door

__all__ = [
    "connect",
    "test_a_lock_that_is_kept",
    "test_a_password_for_writing_only",
    "test_a_repository_that_is_not_served",
    "test_a_temporary_file_that_is_too_large",
    "test_an_upload_that_somebody_else_completes",
    "test_corrupt_content_is_not_stored",
    "test_downloads_that_were_given_up",
    "test_everything_at_each_version",
    "test_one_repository_used_by_several_threads",
    "test_passwords",
    "test_tls",
    "test_who_may_not_write",
]


@pytest.fixture
def serve(make_server: Callable[..., Repo], server_home: Path) -> Iterator[Callable[..., Server]]:
    """In place of what starts git-annex's."""
    started: list[Door] = []

    def start(*options: str, **env: str) -> Server:
        repo = make_server("server", bare=False)
        started.append(Door(server_home, repo.path, *options, env=env))
        scheme = "annex+https" if any(option.startswith("--certfile") for option in options) else "annex+http"
        return Server(repo, started[-1].port, scheme)

    yield start
    for door in started:
        door.kill()


def test_removing_what_is_locked(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    key = Key(server.repo.add("f", b"content").encode())
    remote = connect(server)
    with remote.lockcontent(key):
        assert not remote.remove(key)
        assert not remote.remove(key, remote.gettimestamp() + 100)
    assert remote.remove(key)


def test_another_upload_meanwhile(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, LARGE)

    def try_another() -> bool:
        with remote.put(key, None) as second, pytest.raises(PeerError, match="already in progress"):
            second.receive(len(LARGE) - second.offset, BytesSource(LARGE[second.offset :]), lambda: True)
        return True

    with remote.put(key, None) as upload:
        assert upload.receive(len(LARGE), BytesSource(LARGE), try_another)
    assert server.repo.content(str(key)) == LARGE


def test_an_upload_that_is_given_up(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, LARGE)
    with remote.put(key, None) as upload:
        assert not upload.receive(len(LARGE), BytesSource(LARGE), lambda: False)
    wait_until(lambda: file_size(server.repo.temporary(str(key))) > 0)
    wait_until(lambda: not list((server.repo.git_dir / "annex" / "transfer").rglob("lck.*")))
    assert server.repo.object(str(key)) is None
    with remote.put(key, None) as upload:
        assert 0 < upload.offset < len(LARGE)
        rest = LARGE[upload.offset :]
        assert upload.receive(len(rest), BytesSource(rest), lambda: True)
    assert server.repo.content(str(key)) == LARGE
