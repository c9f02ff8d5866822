"""Transfers that end early, at either end and for every reason, and what is left of them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.interop.harness import DEBUG, file_size, running, wait_until
from tests.interop.interrupting import (
    CONTENT,
    ENOUGH,
    MEBI,
    SIZE,
    SLOW,
    cut_client,
    cut_connection,
    cut_server,
    go_on,
    make_slow_pair,
    offsets,
    server_processes,
)


@pytest.mark.parametrize("cut", [cut_client, cut_connection, cut_server])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_copy_to_the_server_is_resumed(make_pair, bare, cut):
    server, client, key = make_slow_pair(make_pair, bare)
    with running(client.start_annex("copy", "--to=origin", "big")) as copying:
        wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
        cut(copying, server)
        copying.wait(60)
    wait_until(lambda: not server_processes(server))
    assert server.content(key) is None
    arrived = server.temporary(key).read_bytes()
    assert ENOUGH <= len(arrived) < SIZE
    assert CONTENT.startswith(arrived)

    done = go_on(client, "copy", "--to=origin", "big")
    assert offsets(done, "PUT-FROM") == [len(arrived)]
    assert offsets(done, "DATA") == [SIZE - len(arrived)]
    assert server.content(key) == CONTENT
    assert not server.temporary(key).exists()
    client.annex("sync", "--no-content")
    for repo in (server, client):
        assert repo.locations(key) == {server.uuid, client.uuid}


@pytest.mark.parametrize("cut", [cut_client, cut_server])
def test_get_from_the_server_is_resumed(make_pair, cut):
    server, client, key = make_slow_pair(make_pair)
    client.git("config", "--unset", "annex.bwlimit")
    client.annex("move", "--to=origin", "big")
    client.config(**SLOW)
    with running(client.start_annex("get", "big")) as getting:
        wait_until(lambda: file_size(client.temporary(key)) >= ENOUGH)
        cut(getting, server)
        getting.wait(60)
    wait_until(lambda: not server_processes(server))
    arrived = file_size(client.temporary(key))
    assert ENOUGH <= arrived < SIZE
    done = go_on(client, "get", "big")
    assert offsets(done, "GET")[0] >= arrived
    assert client.content(key) == CONTENT
    assert not server.leftovers()


def test_content_that_cannot_be_verified_is_never_pieced_together(make_server, make_client, tmp_path):
    """An interrupted upload of a key without size and hash, and then somebody else's version of the same key."""
    server = make_server()
    key = "URL--http://example.com/changes"
    versions = [CONTENT, bytes(reversed(CONTENT))]
    clients = [make_client(server, name, retry="0") for name in ("one", "two")]
    for client, version in zip(clients, versions, strict=True):
        client.annex("fromkey", "--force", key, "file")
        (tmp_path / "content").write_bytes(version)
        client.annex("setkey", key, tmp_path / "content")
        client.annex("info", "--fast")
    one, two = clients
    one.config(**SLOW)
    with running(one.start_annex("copy", "--to=origin", f"--key={key}")) as copying:
        wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
        cut_client(copying, server)
        copying.wait(60)
    wait_until(lambda: not server_processes(server))
    two.annex("copy", "--to=origin", f"--key={key}")
    assert server.content(key) == versions[1]
    assert not server.leftovers()


def test_sender_whose_file_changes(make_pair):
    """What arrives is not what the key says, so it is neither stored nor kept for resuming."""
    server, client = make_pair()
    key = client.add("file", CONTENT[:50_000])
    client.commit()
    place = client.object(key)
    place.chmod(0o644)
    place.write_bytes(b"x" * 50_000)
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert server.content(key) is None
    assert not server.leftovers()
    assert server.uuid not in client.locations(key)


def test_file_size_limit(make_pair):
    """A write that fails in the middle, as with a quota; later somebody lifts it."""
    server, client = make_pair(host="filelimit", retry="0")
    key = client.add("big", CONTENT)
    client.commit()
    refused = client.annex("copy", "--to=origin", "big", check=False)
    assert refused.status == 1
    assert server.content(key) is None
    assert "failed" in refused.said
    kept = file_size(server.temporary(key))
    assert 0 < kept <= MEBI
    assert server.leftovers() == [server.temporary(key)]
    assert server.uuid not in client.locations(key)
    small = client.add("small", b"small")
    client.annex("copy", "--to=origin", "small")
    assert server.content(small) == b"small"

    client.git("remote", "set-url", "origin", f"ssh://rw{server.path}")
    done = client.annex("copy", "--to=origin", "big", *DEBUG)
    assert offsets(done, "PUT-FROM") == [kept]
    assert server.content(key) == CONTENT
    assert not server.leftovers()


def test_not_enough_space(make_pair):
    """More is to be kept free than there is: refused before anything is sent."""
    server, client = make_pair(retry="0")
    key = client.add("file", CONTENT[:50_000])
    client.commit()
    server.config(diskreserve="1000 TB")
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert "not enough free space" in refused.said
    assert server.content(key) is None
    assert not server.leftovers()
    server.config(diskreserve="1 MB")
    client.annex("copy", "--to=origin", "file")
    assert server.content(key) == CONTENT[:50_000]


def test_client_that_is_stopped_for_a_while(make_pair):
    """No timeouts: a laptop may sleep in the middle of a transfer."""
    server, client, key = make_slow_pair(make_pair)
    with running(client.start_annex("copy", "--to=origin", "big")) as copying:
        wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
        os.killpg(copying.pid, signal.SIGSTOP)
        time.sleep(3)
        os.killpg(copying.pid, signal.SIGCONT)
        assert copying.wait(120) == 0
    assert server.content(key) == CONTENT
