"""Proxies in front of proxies, and the real git-annex-shell as a proxy in front of ours."""

from __future__ import annotations

import pytest

from tests.interop.harness import file_size, running, wait_until
from tests.interop.interrupting import CONTENT, ENOUGH, MEBI, SLOW, processes
from tests.interop.proxies import Proxied, out_and_home


@pytest.mark.parametrize(("host", "way"), [("real", "rw"), ("real-with-ours", "path")])
def test_real_proxy(make_proxied, server, host, way):
    proxied = make_proxied(way, host=host)
    out_and_home(proxied)

    client, node = proxied.client, proxied.node
    client.config(**SLOW)
    key = client.add("big", CONTENT[:MEBI])
    client.commit()
    with running(client.start_annex("copy", f"--to={proxied.remote}", "big")) as copying:
        wait_until(lambda: file_size(node.temporary(key)) >= ENOUGH)
        assert processes("python", "p2pstdio", str(node.path)) or server.is_real
        copying.communicate(timeout=60)  # which also waits for ssh, and so for the proxy to commit
        assert copying.returncode == 0
    proxied.check(key, CONTENT[:MEBI], at_client=True)


@pytest.mark.parametrize(
    ("outer", "inner", "way"), [("real", "rw", "path"), ("rw", "real", "rw"), ("rw", "rw", "http")]
)
def test_chain(make_server, make_proxy, make_client, http_server, outer, inner, way):
    """A proxy in front of a proxy, which have to be told of nothing more than of each other."""
    node = make_server("node")
    server = http_server(node) if way == "http" else way
    far = make_proxy("far", node=(node, server))
    near = make_proxy("near", far=(far, inner))
    near.git("fetch", "--quiet", "far")
    assert "Started proxying for far-node" in near.annex("updateproxy").out
    proxied = Proxied(make_client(near, host=outer), near, node, server)
    proxied.between, proxied.remote = [far], "origin-far-node"
    out_and_home(proxied)
