"""Clients of one proxy at the same time, which share what leads to the node."""

from __future__ import annotations

import os
import re
import signal

from tests.interop.harness import DEBUG, file_size, running, wait_until
from tests.interop.interrupting import CONTENT, ENOUGH, SLOW, go_on, processes
from tests.interop.proxies import know_nodes, processes_at


# Its name is part of the path of the connection's socket, which has to be short.
def test_ssh(make_proxied, make_client):
    """There is one connection to the node. The last one ends it, and not the one that made it."""
    proxied = make_proxied("rw", **SLOW)
    proxy, node, remote = proxied.proxy, proxied.node, proxied.remote
    one, two = proxied.client, make_client(proxy, "two", **SLOW)
    know_nodes(two, node=node)
    key, other = one.add("one", b"1" + CONTENT), two.add("two", b"2" + CONTENT)
    one.config(bwlimit="500kB")  # so that it is not done before the other one has begun
    socket = proxy.git_dir / "annex" / "ssh" / "rw"

    with running(one.start_annex("copy", f"--to={remote}", "one")) as first:
        wait_until(lambda: file_size(node.temporary(key)) > 0)
        with running(two.start_annex("copy", f"--to={remote}", "two")) as second:
            wait_until(lambda: file_size(node.temporary(other)) >= ENOUGH)
            assert file_size(node.temporary(key)) > 0
            assert socket.is_socket()
            assert len(processes("ssh: ", str(socket)[1:], "[mux]")) == 1
            os.killpg(first.pid, signal.SIGKILL)
            second.communicate(timeout=60)
            assert second.returncode == 0
    wait_until(lambda: not processes_at(proxy.path, node.path))
    assert not socket.exists()
    assert node.content(key) is None
    assert node.content(other) == b"2" + CONTENT
    assert proxy.leftovers() == []
    go_on(one, "copy", f"--to={remote}", "one")
    proxied.check(key, b"1" + CONTENT, at_client=True)


def test_cut(make_proxied, server):
    """A connection that breaks is made again for the same client, whatever is left of the one before."""
    proxied = make_proxied("rw", **SLOW)
    client, proxy, node, remote = proxied.client, proxied.proxy, proxied.node, proxied.remote
    key = client.add("file", CONTENT)
    client.commit()
    socket = proxy.git_dir / "annex" / "ssh" / "rw"
    with running(client.start_annex("copy", f"--to={remote}", "file", *DEBUG)) as copying:
        wait_until(lambda: file_size(node.temporary(key)) >= ENOUGH)
        masters = processes("ssh: ", str(socket)[1:], "[mux]")
        assert len(masters) == 1
        os.kill(masters[0][0], signal.SIGKILL)
        said = copying.communicate(timeout=60)[0].decode()
        assert copying.returncode == 0, said
    first, again = (int(offset) for offset in re.findall(r"P2P < PUT-FROM (\d+)", said))
    assert first == 0
    assert again >= ENOUGH
    assert "lost the connection to remote node" in said or server.is_real
    proxied.check(key, CONTENT, at_client=True)
