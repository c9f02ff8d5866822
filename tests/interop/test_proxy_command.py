"""``annexshell proxy`` in repositories that the real git-annex has set up, in front of nodes of all kinds."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.interop.harness import annexshell_program, run
from tests.interop.proxies import WAYS, committed

CONTENT = b"some content\n" * 20000


@pytest.fixture
def proxy_command(server_home, git_annex_path, tmp_path):
    """Runs it with INPUT, to its end."""
    program = annexshell_program(server_home, git_annex_path)

    def proxy(repo, *words, **how):
        return run([*program.argv, "proxy", repo.path, *words], program.env, tmp_path, **how)

    return proxy


@pytest.mark.parametrize("way", WAYS)
def test_content_stored_by_hand_is_the_nodes(way, make_server, make_proxy, proxy_command):
    node = make_server("node")
    proxy = make_proxy(node=(node, way))
    key = f"SHA256E-s{len(CONTENT)}--{hashlib.sha256(CONTENT).hexdigest()}.txt"
    said = f"VERSION 4\nPUT some%file {key}\nDATA {len(CONTENT)}\n".encode() + CONTENT + b"VALID\n"
    done = proxy_command(proxy, "node", "--trace", input=said + f"CHECKPRESENT {key}\n".encode())
    assert done.out.splitlines()[0] == f"AUTH-SUCCESS {node.uuid}"
    assert done.out.splitlines()[2:] == ["PUT-FROM 0", "SUCCESS", "SUCCESS"]
    assert node.content(key) == CONTENT
    assert committed(proxy, key) == {node.uuid: True}
    node.annex("fsck", "--key", key)

    told = [json.loads(line) for line in done.err.splitlines() if line.startswith("{")]
    contents = {(event["from"], event["to"]): event["content"] for event in told if "content" in event}
    expected = {("client", "proxy")} | ({("proxy", "remote")} if way in ("rw", "real") else set())
    assert set(contents) == expected
    assert all(
        content == {"length": len(CONTENT), "sha256": hashlib.sha256(CONTENT).hexdigest()}
        for content in contents.values()
    )
    assert len([event for event in told if "note" in event]) == (way not in ("rw", "real"))


@pytest.mark.parametrize("way", WAYS)
def test_the_dry_run_says_what_git_annex_has_set_up(way, make_server, make_proxy, proxy_command):
    node, other = make_server("node"), make_server("other")
    proxy = make_proxy(node=(node, way), other=(other, "path"))
    for asked in ("node", node.uuid):
        report = json.loads(proxy_command(proxy, asked, "--dry-run", "--json").out)
        assert report["usable"] is True
        remotes = {remote["name"]: remote for remote in report["remotes"]}
        assert remotes["node"]["used"]
        assert set(remotes["node"]["reached"]) == {{"path": "path", "http": "url"}.get(way, "ssh")}
        assert remotes["other"]["reason"] == f"its uuid is {other.uuid}"


def test_both_permissions_are_needed_and_suffice(make_server, make_proxy, proxy_command):
    node = make_server("node")
    proxy = make_proxy(node=(node, "path"))
    proxy.git("config", "--unset", "remote.node.annex-proxy")
    assert "git config does not allow it" in proxy_command(proxy, "node", check=False).err
    proxy.annex("updateproxy")
    refused = proxy_command(proxy, "node", check=False)
    assert (refused.status, refused.out) == (1, "")
    _, _, advice = refused.err.strip().partition("run in the repository: ")
    run(["sh", "-c", advice], proxy.env, proxy.path)
    assert proxy_command(proxy, "node").out == f"AUTH-SUCCESS {node.uuid}\n"
