"""What people do every day with a repository behind ssh, with the real client."""

from __future__ import annotations

import pytest

from tests.interop.harness import pseudorandom

SERVERS = [
    pytest.param(True, 10, id="bare-v10"),
    pytest.param(False, 10, id="nonbare-v10"),
    pytest.param(True, 8, id="bare-v8"),
    pytest.param(False, 8, id="nonbare-v8"),
]


@pytest.mark.parametrize("host", ["rw.sshd", "rw.asyncssh"])
@pytest.mark.parametrize("sshcaching", ["true", "false"])
def test_round_trip(make_server, make_client, host, sshcaching):
    server = make_server()
    one = make_client(server, "one", host=host, sshcaching=sshcaching)
    content = pseudorandom(100_000)
    key = one.add("a file", content)
    one.commit()
    one.annex("copy", "--to=origin", "a file")
    one.annex("sync", "--no-content")
    assert server.content(key) == content
    two = make_client(server, "two", host=host, sshcaching=sshcaching)
    two.annex("get", "a file")
    assert two.content(key) == content
    two.annex("sync", "--no-content")
    one.annex("sync", "--no-content")
    everywhere = {server.uuid, one.uuid, two.uuid}
    for repo in (server, one, two):
        assert repo.locations(key) == everywhere
    assert not server.leftovers()
