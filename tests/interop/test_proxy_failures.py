"""What a real client is told when a proxy cannot do its work, and what is left then: nothing."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tests.interop.harness import running, wait_until
from tests.interop.proxies import WAYS, processes_at
from tests.interop.sshservers import free_port

OTHER_UUID = "00000000-0000-4000-8000-000000000001"


def moved_to(url):
    """The node's server is said to be somewhere else; {path} is the node's."""

    def change(proxied):
        proxied.proxy.git("config", "remote.node.url", url.format(path=proxied.node.path, port=free_port()))

    return change


def set_to(name, value):
    """A setting of the remote."""

    def change(proxied):
        proxied.proxy.git("config", f"remote.node.{name}", value)

    return change


def unlike(name, addition):
    """A setting of the repository, with something in addition."""

    def change(proxied):
        value = proxied.proxy.git("config", name).out.strip()
        proxied.proxy.git("config", name, f"{value} {addition}")

    return change


def replaced(proxied):
    """Another repository where the node was."""
    proxied.node.git("config", "annex.uuid", OTHER_UUID)


def gone(proxied):
    proxied.node.path.rename(proxied.node.path.with_name("elsewhere"))


def stopped(proxied):
    proxied.http.stop()


# What is wrong with a node that is reached in some way, and what the client is told of it.
FAILURES = [
    pytest.param("rw", moved_to("ssh://rw:{port}{path}"), ["ssh to rw failed", "refused"], id="ssh-down"),
    pytest.param("rw", moved_to("ssh://host.invalid{path}"), ["ssh to host.invalid failed"], id="ssh-unknown-host"),
    pytest.param(
        "rw", unlike("annex.ssh-options", "-o PubkeyAuthentication=no"), ["Permission denied"], id="ssh-key-refused"
    ),
    pytest.param(
        "login", set_to("annex-shell", "no-such-program"), ["no-such-program is missing on login"], id="ssh-missing"
    ),
    pytest.param(
        "login",
        set_to("annex-shell", "echo Welcome; git-annex-shell"),
        ["Welcome", "start-up files on login must not print"],
        id="ssh-banner",
    ),
    pytest.param(
        "login",
        set_to("annex-shell", f"echo AUTH-SUCCESS {OTHER_UUID}; echo VERSION 1; cat >/dev/null;:"),
        [f"expected repository UUID {{uuid}} but found UUID {OTHER_UUID}"],
        id="ssh-another-answers",
    ),
    pytest.param(
        "login", set_to("annex-shell", "cat >/dev/null;:"), ["has said nothing for 3 seconds"], id="ssh-silent"
    ),
    pytest.param(
        "rw", replaced, [f"expected repository UUID {{uuid}} but found UUID {OTHER_UUID}"], id="ssh-replaced"
    ),
    pytest.param("rw", gone, [], id="ssh-gone"),
    pytest.param("path", gone, ["there is no directory {path} or {path}.git"], id="path-gone"),
    pytest.param("http", stopped, ["refused"], id="http-down"),
    pytest.param("http", moved_to("annex+http://host.invalid/git-annex/"), ["host.invalid"], id="http-unknown-host"),
]


@pytest.mark.parametrize(("way", "fail", "reasons"), [one for one in FAILURES if one.values[0] in (*WAYS, "login")])
def test_node_that_cannot_be_reached(make_proxied, way, fail, reasons):
    proxied = make_proxied(way, retry="0")
    client, proxy, node = proxied.client, proxied.proxy, proxied.node
    proxy.git("config", "annexshell.connecttimeout", "3")
    client.add("file", b"content")
    client.commit()
    uuid = node.uuid
    before = processes_at(proxy.path, node.path)
    fail(proxied)

    began = time.monotonic()
    failed = client.annex("copy", f"--to={proxied.remote}", "file", check=False)
    assert time.monotonic() - began < 20
    assert failed.status == 1
    assert "Unable to connect to remote node: " in failed.err
    for reason in reasons:
        assert reason.format(uuid=uuid, path=node.path) in failed.err
    assert "Traceback" not in failed.err
    assert processes_at(proxy.path, node.path) in (before, [])
    assert not proxied.leftovers()
    client.annex("copy", "--to=origin", "file")


def test_client_that_gives_up(make_proxied, server):
    """A node that does not answer keeps nobody waiting for whom nobody waits."""
    proxied = make_proxied("login")
    client, proxy = proxied.client, proxied.proxy
    set_to("annex-shell", "cat >/dev/null;:")(proxied)
    client.add("file", b"content")
    client.commit()
    with running(client.start_annex("copy", f"--to={proxied.remote}", "file")) as copying:
        wait_until(lambda: any("cat >/dev/null" in line for line in processes_at(proxied.node.path)))
        os.killpg(copying.pid, signal.SIGKILL)
        began = time.monotonic()
        wait_until(lambda: not processes_at(proxy.path, proxied.node.path), 30)
    assert time.monotonic() - began < 20
    assert not proxied.leftovers()
