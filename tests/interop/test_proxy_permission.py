"""Who a proxy stands in front of: git config and the proxy log have to agree on it."""

from __future__ import annotations

import pytest

from tests.interop.harness import run


@pytest.fixture
def proxied(make_proxied):
    """A node whose client has been told of it by hand, so that it will try whatever the proxy says."""
    proxied = make_proxied("path")
    client = proxied.client
    proxied.proxy.git("fetch", "--quiet", "node")  # how it comes to know what the node is called
    client.git("remote", "add", "by-hand", client.git("config", "remote.origin.url").out.strip())
    client.git("config", "remote.by-hand.annex-uuid", proxied.node.uuid)
    client.add("file", b"content")
    client.commit()
    return proxied


def is_refused(proxied):
    """Whether the client gets nowhere; it is told why, and nothing is done."""
    answer = proxied.client.annex("copy", "--to=by-hand", "file", "--force", check=False)
    if answer:
        proxied.client.annex("drop", "--from=by-hand", "file", "--force")
        return False
    assert "not configured to proxy for repository node" in answer.err
    key = proxied.client.key_of("file")
    assert proxied.node.content(key) is None
    assert not proxied.leftovers()
    return True


def test_both_are_needed(proxied):
    proxy = proxied.proxy
    assert not is_refused(proxied)
    proxy.git("config", "remote.node.annex-proxy", "false")
    assert is_refused(proxied), "the log is not enough"
    assert "Stopped proxying for node" in proxy.annex("updateproxy").out
    assert is_refused(proxied)
    proxy.git("config", "remote.node.annex-proxy", "true")
    assert is_refused(proxied), "the config is not enough"
    assert "Started proxying for node" in proxy.annex("updateproxy").out
    assert not is_refused(proxied)


def test_remote_by_another_name(proxied):
    proxy = proxied.proxy
    proxy.git("remote", "rename", "node", "other")
    assert is_refused(proxied)
    proxy.annex("updateproxy")
    assert not is_refused(proxied)


def test_ignored_and_dead_remotes(proxied):
    """What keeps the proxy's owner from using it himself does not keep his clients from it."""
    proxy = proxied.proxy
    proxy.git("config", "remote.node.annex-ignore", "true")
    proxy.annex("dead", "node")
    assert not is_refused(proxied)


def test_repository_that_is_no_proxy(make_server, make_client):
    """Nobody learns what it knows of other repositories."""
    server, other = make_server("server"), make_server("other")
    server.git("remote", "add", "other", str(other.path))
    server.annex("info", "--fast")
    server.git("config", "remote.other.annex-proxy", "true")
    client = make_client(server)
    client.add("file", b"content")
    client.commit()
    client.git("config", "remote.origin.annex-uuid", other.uuid)
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert f"expected repository UUID {other.uuid} but found UUID {server.uuid}" in refused.err


def test_restricted_ways_in(make_proxied):
    """What the way in to the proxy does not allow is not allowed for the nodes either."""
    proxied = make_proxied("path")
    client, node, remote = proxied.client, proxied.node, proxied.remote
    key, other = client.add("file", b"content"), client.add("other", b"other")
    client.commit()
    client.annex("copy", f"--to={remote}", "file")

    client.git("remote", "set-url", "origin", f"ssh://readonly{proxied.proxy.path}")
    client.annex("drop", "file")  # the copy there can be locked
    client.annex("get", "file")
    refused = client.annex("drop", f"--from={remote}", "file", check=False)
    assert refused.status == 1
    assert "this repository is read-only; write access denied" in refused.said
    assert not client.annex("copy", f"--to={remote}", "other", check=False)

    client.git("remote", "set-url", "origin", f"ssh://appendonly{proxied.proxy.path}")
    client.annex("copy", f"--to={remote}", "other")
    refused = client.annex("drop", f"--from={remote}", "file", check=False)
    assert refused.status == 1
    assert "this repository is append-only; removal denied" in refused.said
    assert (node.content(key), node.content(other)) == (b"content", b"other")


def test_other_commands_are_not_proxied(proxied, server):
    for words in ("configlist", "inannex KEY", "dropkey KEY", "sendkey KEY", "recvkey KEY"):
        name, *key = words.split()
        command = f"git-annex-shell '{name}' '{proxied.proxy.path}' --uuid {proxied.node.uuid} {' '.join(key)}"
        refused = run([*server.argv, "-c", command], server.env, proxied.proxy.path, check=False)
        # To a client of inannex, 1 would mean that the content is not there.
        assert (refused.status, refused.out) == (100 if name == "inannex" else 1, "")
        assert f"Cannot proxy {name} command." in refused.err


@pytest.mark.parametrize("way", ["path", "real"])
def test_directory_of_the_proxy_alone(make_proxied, server, way):
    """What is allowed to name the proxy may use its nodes, which are not below its directory."""
    proxied = make_proxied(way)
    key = proxied.client.add("file", b"content")
    restriction = {"GIT_ANNEX_SHELL_DIRECTORY": str(proxied.proxy.path)}
    with proxied.p2p(server, **restriction) as session:
        assert session.put(key, b"content") == "SUCCESS"
        assert session.close() == 0
    assert proxied.node.content(key) == b"content"
