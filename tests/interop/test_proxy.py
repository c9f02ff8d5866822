"""What people do with a repository that is behind another one, with the real client."""

from __future__ import annotations

import pytest

from tests.interop.harness import DEBUG, P2P_LINE, file_size, running, wait_until
from tests.interop.interrupting import CONTENT as BIG
from tests.interop.interrupting import ENOUGH, SLOW, cut_client, cut_server, go_on, offsets, server_processes
from tests.interop.proxies import CONTENT, WAYS, committed, git_annex_knows_proxies, know_nodes, there_and_back

EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@EVERY_WAY
def test_there_and_back(make_proxied, way):
    there_and_back(make_proxied(way))


@EVERY_WAY
def test_testremote(make_proxied, way):
    """All that fails without a proxy, with p2phttp as the server, does not fail through one."""
    proxied = make_proxied(way)
    proxied.client.annex("testremote", "--fast", proxied.remote, timeout=250)
    proxied.check_tidy()


@EVERY_WAY
def test_drop_with_the_last_other_copy_locked(make_server, make_proxy, make_client, way):
    """Both copies are behind the proxy; the one that stays is locked while the other one is removed."""
    one, two = make_server("one"), make_server("two")
    proxy = make_proxy(one=(one, way), two=(two, "path" if way != "path" else "rw"))
    client = make_client(proxy)
    know_nodes(client, one=one, two=two)
    key = client.add("file", CONTENT)
    client.commit()
    client.annex("copy", "--to=origin-one", "file")
    client.annex("move", "--to=origin-two", "file")
    assert one.content(key) == two.content(key) == CONTENT

    dropped = client.annex("drop", "--from=origin-one", "file", *DEBUG)
    said = P2P_LINE.findall(dropped.err)
    assert f"LOCKCONTENT {key}" in said
    assert any(line.startswith("REMOVE-BEFORE ") for line in said) or not git_annex_knows_proxies()
    assert one.content(key) is None
    assert two.content(key) == CONTENT
    refused = client.annex("drop", "--from=origin-two", "file", check=False)
    assert refused.status == 1
    assert two.content(key) == CONTENT
    assert client.locations(key) == {two.uuid}
    logged = committed(proxy, key)
    assert (logged[one.uuid], logged[two.uuid]) == (False, True)


@EVERY_WAY
def test_locked_content_is_not_removed(make_proxied, server, way):
    """A locked key fails by itself; the command goes on with the next one."""
    proxied = make_proxied(way)
    client, node = proxied.client, proxied.node
    locked, free = client.add("1", b"locked" * 1000), client.add("2", b"free" * 1000)
    client.commit()
    client.annex("copy", f"--to={proxied.remote}")
    with server.p2p(node) as holder:
        assert holder.ask(f"LOCKCONTENT {locked}") == "SUCCESS"
        refused = client.annex("drop", f"--from={proxied.remote}", check=False)
        assert refused.status == 1
        assert refused.out.count("failed") == refused.out.count("ok\n") == 1
        holder.send("UNLOCKCONTENT")
        assert holder.close() == 0
    proxied.check(locked, b"locked" * 1000, at_client=True)
    proxied.check(free, None, at_client=True)
    client.annex("drop", f"--from={proxied.remote}")
    proxied.check(locked, None, at_client=True)


@EVERY_WAY
def test_lock_is_held_on_the_node_itself(make_proxied, server, way):
    proxied = make_proxied(way)
    client, node = proxied.client, proxied.node
    key = client.add("file", CONTENT)
    client.commit()
    client.annex("copy", f"--to={proxied.remote}")
    with proxied.p2p(server) as holder:
        assert holder.ask(f"LOCKCONTENT {key}") == "SUCCESS"
        assert not node.annex("drop", f"--key={key}", "--force", check=False)
        holder.send("UNLOCKCONTENT")
        assert holder.ask(f"CHECKPRESENT {key}") == "SUCCESS"
        assert node.annex("drop", f"--key={key}", "--force")
        assert holder.ask(f"LOCKCONTENT {key}") == "FAILURE"
        assert holder.close() == 0
    proxied.check_tidy()


# Who is killed in the middle of it.
@pytest.mark.parametrize(
    ("way", "cut", "where"),
    [
        *[pytest.param(way, cut_client, "proxy", id=f"{way}-client") for way in WAYS],
        pytest.param("rw", cut_server, "proxy", id="rw-proxy"),
        pytest.param("rw", cut_server, "node", id="rw-node"),
    ],
)
def test_interrupted_transfers_are_resumed(make_proxied, way, cut, where):
    proxied = make_proxied(way, retry="0", **SLOW)
    client, proxy, node, remote = proxied.client, proxied.proxy, proxied.node, proxied.remote
    key = client.add("big", BIG)
    client.commit()

    with running(client.start_annex("copy", f"--to={remote}", "big")) as copying:
        wait_until(lambda: file_size(node.temporary(key)) >= ENOUGH)
        cut(copying, getattr(proxied, where))
        copying.wait(60)
    wait_until(lambda: not server_processes(proxy) and not server_processes(node))
    assert node.content(key) is None
    assert not committed(proxy, key).get(node.uuid)
    arrived = node.temporary(key).read_bytes()
    assert ENOUGH <= len(arrived) < len(BIG)
    assert BIG.startswith(arrived)
    done = go_on(client, "move", f"--to={remote}", "big")
    # Old nodes are heard too.
    assert set(offsets(done, "PUT-FROM")) == {len(arrived)}
    assert set(offsets(done, "DATA")) == {len(BIG) - len(arrived)}
    proxied.check(key, BIG, at_client=False)

    client.config(**SLOW)
    with running(client.start_annex("get", "big")) as getting:
        wait_until(lambda: file_size(client.temporary(key)) >= ENOUGH)
        cut(getting, getattr(proxied, where))
        getting.wait(60)
    wait_until(lambda: not server_processes(proxy) and not server_processes(node))
    here = file_size(client.temporary(key))
    assert ENOUGH <= here < len(BIG)
    done = go_on(client, "get", "big")
    assert offsets(done, "GET")[0] >= here
    assert client.content(key) == BIG
    proxied.check(key, BIG, at_client=True)


def test_work_tree_of_the_node(make_proxied):
    """Files in use at the node get their content, and are pointers again afterwards, as with git-annex there."""
    proxied = make_proxied("path", bare=False)
    client, node, remote = proxied.client, proxied.node, proxied.remote
    key = node.add("file", CONTENT, unlocked=True)
    node.commit()
    node.annex("drop", "--force", "file")
    assert client.add("file", CONTENT) == key
    client.annex("copy", f"--to={remote}", "file")
    assert (node.path / "file").read_bytes() == CONTENT
    assert node.git("status", "--porcelain").out == ""
    proxied.check(key, CONTENT, at_client=True)
    client.annex("drop", f"--from={remote}", "file")
    assert key in (node.path / "file").read_text()
    assert node.git("status", "--porcelain").out == ""
    proxied.check(key, None, at_client=True)
