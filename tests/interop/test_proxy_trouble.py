"""Content that is refused, changes, or is damaged, on its way through a proxy and at its end; many files at once."""

from __future__ import annotations

import pytest

from tests.interop.harness import pseudorandom
from tests.interop.proxies import CONTENT, WAYS, committed, know_nodes

# The shell in the place of the node is the same program whether it is behind ssh or not; it is not tried twice.
EVERY_PROGRAM = pytest.mark.parametrize("way", [way for way in WAYS if way != "rw"])


def reserve(proxied, size):
    proxied.node.config(diskreserve=size)
    if proxied.http:
        proxied.http.stop()
        proxied.http.start()


@EVERY_PROGRAM
def test_node_without_space(make_proxied, way):
    proxied = make_proxied(way, retry="0")
    client, proxy, node, remote = proxied.client, proxied.proxy, proxied.node, proxied.remote
    key = client.add("file", CONTENT)
    client.commit()
    reserve(proxied, "1000 TB")
    refused = client.annex("copy", f"--to={remote}", "file", check=False)
    assert refused.status == 1
    assert node.content(key) is None
    proxied.check_tidy()
    assert client.locations(key) == {client.uuid}
    assert not committed(proxy, key)
    reserve(proxied, "1 MB")
    client.annex("copy", f"--to={remote}", "file")
    proxied.check(key, CONTENT, at_client=True)


@EVERY_PROGRAM
def test_sender_whose_file_changes(make_proxied, way):
    """What arrives is not what the key says, so it is neither stored nor kept for resuming."""
    proxied = make_proxied(way, retry="0")
    client, node, remote = proxied.client, proxied.node, proxied.remote
    key, other = client.add("file", CONTENT), client.add("other", b"other")
    client.commit()
    place = client.object(key)
    place.chmod(0o644)
    place.write_bytes(b"x" * len(CONTENT))
    refused = client.annex("copy", f"--to={remote}", "file", "other", check=False)
    assert refused.status == 1
    assert node.content(key) is None
    proxied.check(other, b"other", at_client=True)
    assert client.locations(key) == {client.uuid}
    assert not committed(proxied.proxy, key)
    proxied.check_tidy()


@EVERY_PROGRAM
def test_content_that_the_node_has_lost_or_damaged(make_proxied, way):
    proxied = make_proxied(way)
    client, node, remote = proxied.client, proxied.node, proxied.remote
    bad, lost = client.add("bad", CONTENT), client.add("lost", CONTENT[1:])
    client.commit()
    client.annex("copy", f"--to={remote}")
    damaged = node.object(bad)
    damaged.chmod(0o644)
    damaged.write_bytes(b"x" * len(CONTENT))
    gone = node.object(lost)
    gone.parent.chmod(0o755)
    gone.unlink()
    client.annex("drop", "--force", "bad")
    refused = client.annex("get", "bad", check=False)
    assert refused.status == 1
    assert client.content(bad) is None
    found = client.annex("fsck", f"--from={remote}", "lost", check=False)
    assert "fixing location log" in found.said
    assert client.locations(lost) == {client.uuid}
    assert client.annex("get", "lost", f"--from={remote}")
    assert not client.annex("fsck", f"--from={remote}", "bad", check=False)
    proxied.check_tidy()


@EVERY_PROGRAM
def test_odd_keys(make_proxied, way):
    proxied = make_proxied(way)
    client, node, remote = proxied.client, proxied.node, proxied.remote
    contents = {
        client.add("empty", b""): b"",
        client.add("n\u00f6n\u2026", b"name"): b"name",
        client.add("worm wood", b"worm", backend="WORM"): b"worm",
        client.add("blake", b"blake", backend="BLAKE2B512E"): b"blake",
    }
    url = "URL--http://example.com/a b/%c&d"
    (client.path / "url").write_bytes(b"url")
    client.annex("fromkey", "--force", url, "from url")
    client.annex("setkey", url, client.path / "url")
    contents[url] = b"url"
    client.commit()
    client.annex("move", f"--to={remote}")
    assert {key: node.content(key) for key in contents} == contents
    client.annex("get")
    client.annex("drop", f"--from={remote}")
    assert {key: client.content(key) for key in contents} == contents
    assert {committed(proxied.proxy, key)[node.uuid] for key in contents} == {False}
    proxied.check_tidy()


def test_many_at_once(make_proxied):
    proxied = make_proxied("rw", sshcaching="true")
    client, node, remote = proxied.client, proxied.node, proxied.remote
    contents = {client.add(f"file{n}", content): content for n in range(8) if (content := pseudorandom(50_000, n))}
    client.commit()
    client.annex("copy", "-J2", f"--to={remote}")
    client.annex("drop", "-J2")
    client.annex("get", "-J2")
    client.annex("drop", "-J2", f"--from={remote}")
    assert {key: client.content(key) for key in contents} == contents
    client.annex("move", "-J2", f"--to={remote}")
    assert {key: node.content(key) for key in contents} == contents
    logged = [committed(proxied.proxy, key) for key in contents]
    assert logged == [{node.uuid: True}] * len(contents)
    proxied.check_tidy()


def test_sync_of_content(make_proxied, make_client):
    proxied = make_proxied("path")
    client, node = proxied.client, proxied.node
    key = client.add("file", CONTENT)
    client.annex("sync", "--content")
    assert node.content(key) == CONTENT
    other = make_client(proxied.proxy, "other")
    know_nodes(other, node=node)
    other.annex("sync", "--content")
    assert other.content(key) == CONTENT
    assert {node.uuid, client.uuid, proxied.proxy.uuid} <= other.locations(key)
