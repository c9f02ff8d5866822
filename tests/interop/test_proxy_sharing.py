"""Several clients of one proxy, which share what leads to the node."""

from __future__ import annotations

from tests.interop.harness import file_size, running, wait_until
from tests.interop.interrupting import CONTENT, ENOUGH, SLOW, cut_client, processes
from tests.interop.proxies import committed, processes_at


# The name of the test is part of the socket's path, which has to be short.
def test_ssh(make_proxied, make_client):
    """One connection to the node for all of them, which ends with the last one."""
    proxied = make_proxied("rw", **SLOW)
    proxy, node, remote = proxied.proxy, proxied.node, proxied.remote
    clients = [proxied.client, *(make_client(proxy, name, **SLOW) for name in ("two", "three"))]
    keys = [client.add("file", bytes([number]) + CONTENT) for number, client in enumerate(clients)]
    socket = proxy.git_dir / "annex" / "ssh" / "rw"
    copying = [client.start_annex("copy", f"--to={remote}", "file") for client in clients]
    with running(copying[0]), running(copying[1]), running(copying[2]):
        for key in keys:
            wait_until(lambda key=key: file_size(node.temporary(key)) >= ENOUGH)
        assert socket.is_socket()
        masters = processes("ssh: ", str(socket)[1:], "[mux]")
        assert len(masters) == 1
        # The one that began has no more to say than the others.
        cut_client(copying[0], proxy)
        assert [process.wait(60) for process in copying[1:]] == [0, 0]
    wait_until(lambda: not processes_at(proxy.path, node.path))
    assert not socket.exists()
    assert node.content(keys[0]) is None
    for client, key in zip(clients[1:], keys[1:], strict=True):
        assert node.content(key) is not None
        assert client.locations(key) == {client.uuid, node.uuid}
        assert committed(proxy, key).get(node.uuid)
    clients[0].annex("copy", f"--to={remote}", "file")
    assert not proxied.leftovers()
