"""What people do every day with a repository behind ssh, with the real client."""

from __future__ import annotations

import pytest

from tests.interop.harness import DEBUG, P2P_LINE, pseudorandom
from tests.interop.sshservers import find_sshd

# Without an sshd the one in Python has to do; it is tested everywhere.
HOSTS = ["rw.asyncssh", *(["rw.sshd"] if find_sshd() else [])]

SERVERS = pytest.mark.parametrize(
    ("bare", "version"),
    [
        pytest.param(True, 10, id="bare-v10"),
        pytest.param(False, 10, id="nonbare-v10"),
        pytest.param(True, 8, id="bare-v8"),
        pytest.param(False, 8, id="nonbare-v8"),
    ],
)


@pytest.mark.parametrize("host", HOSTS)
@pytest.mark.parametrize("sshcaching", ["true", "false"])
def test_copy_sync_and_get_by_somebody_else(make_server, make_client, host, sshcaching):
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


@SERVERS
def test_there_and_back(make_pair, bare, version):
    server, client = make_pair(bare=bare, version=version, sshcaching="true")
    contents = {client.add(f"file{n}", content): content for n in range(12) if (content := b"content %d" % n)}
    client.commit()

    client.annex("copy", "-J4", "--to=origin")
    assert {key: server.content(key) for key in contents} == contents
    client.annex("drop", "-J4")
    assert {client.content(key) for key in contents} == {None}
    client.annex("get", "-J4")
    assert {key: client.content(key) for key in contents} == contents

    client.annex("move", "-J2", "--to=origin")
    assert {client.content(key) for key in contents} == {None}
    client.annex("move", "-J2", "--from=origin")
    assert {key: client.content(key) for key in contents} == contents
    assert {server.content(key) for key in contents} == {None}

    client.annex("sync", "--no-content")
    for repo in (client, server):
        assert repo.all_locations() == {key: {client.uuid} for key in contents}
    assert not server.leftovers()
    assert "failed" not in server.annex("fsck", "--all").said


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_sync_content_both_ways(make_server, make_client, bare):
    server = make_server(bare=bare)
    one, two = make_client(server, "one"), make_client(server, "two")
    key = one.add("from one", b"one's")
    one.annex("sync", "--content")
    two.annex("sync", "--content")
    other = two.add("from two", b"two's")
    two.annex("sync", "--content")
    one.annex("sync", "--content")
    for repo in (one, two, server):
        assert repo.content(key) == b"one's"
        assert repo.content(other) == b"two's"
    assert server.locations(other) >= {server.uuid, two.uuid}


@SERVERS
def test_drop_with_the_last_other_copy_locked(make_server, make_client, bare, version):
    """Dropping from one server locks the copy on the other one, and is refused where there is no other."""
    first = make_server("first", bare=bare, version=version)
    second = make_server("second", bare=bare, version=version)
    client = make_client(first)
    client.git("remote", "add", "second", f"ssh://rw{second.path}")
    key = client.add("file", b"precious")
    client.commit()
    client.annex("sync", "--no-content", "second")  # learns the uuid
    client.annex("copy", "--to=origin", "file")
    client.annex("copy", "--to=second", "file")
    client.annex("drop", "file")

    dropped = client.annex("drop", "--from=origin", "file", *DEBUG)
    assert f"LOCKCONTENT {key}" in dropped.err
    assert first.content(key) is None
    assert second.content(key) == b"precious"
    refused = client.annex("drop", "--from=second", "file", check=False)
    assert refused.status == 1
    assert second.content(key) == b"precious"

    client.annex("sync", "--no-content")
    for repo in (client, first, second):
        assert repo.locations(key) == {second.uuid}
    assert not second.leftovers()


@SERVERS
def test_fsck_of_the_server_from_the_client(make_pair, bare, version):
    server, client = make_pair(bare=bare, version=version)
    good, bad, lost = (client.add(name, name.encode() * 1000) for name in ("good", "bad", "lost"))
    client.commit()
    client.annex("copy", "--to=origin")
    for repo, quick in ((client, ["--fast"]), (client, [])):
        assert repo.annex("fsck", "--from=origin", *quick).status == 0

    damaged = server.object(bad)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * damaged.stat().st_size)
    gone = server.object(lost)
    gone.parent.chmod(0o755)
    gone.unlink()
    found = client.annex("fsck", "--from=origin", "--fast", check=False)
    assert "fixing location log" in found.said
    found = client.annex("fsck", "--from=origin", check=False)
    assert found.status == 1
    assert "bad" in found.said
    assert client.locations(good) == {server.uuid, client.uuid}
    assert client.locations(lost) == {client.uuid}


@SERVERS
def test_testremote_fast(make_pair, bare, version):
    _server, client = make_pair(bare=bare, version=version)
    client.annex("testremote", "--fast", "origin", timeout=250)


def test_testremote_in_full(make_pair):
    _server, client = make_pair(host=HOSTS[0], sshcaching="false")
    client.annex("testremote", "origin", timeout=280)


def test_one_connection_serves_a_whole_command(make_pair):
    server, client = make_pair()
    for n in range(5):
        client.add(f"file{n}", b"%d" % n)
    client.commit()
    done = client.annex("copy", "--to=origin", *DEBUG)
    greetings = [line for line in P2P_LINE.findall(done.err) if "AUTH-SUCCESS" in line]
    assert greetings == [f"AUTH-SUCCESS {server.uuid}"]
