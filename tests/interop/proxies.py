"""Repositories behind repositories: a client, the proxy it knows, and the node that is behind the proxy.

How a proxy reaches its node is told by a word: ``path``, ``http`` (the real ``git annex p2phttp``), or else the ssh
host, which is a profile of the ssh servers.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import find_git_annex
from tests.interop.harness import DEBUG, P2P, P2P_LINE, Program, Repo, key_file, pseudorandom, wait_until
from tests.interop.sshservers import ClientConfig, free_port


@cache
def git_annex_knows_proxies() -> bool:
    """Old versions can be clients and nodes, which have to be told everything by hand."""
    return not subprocess.run([find_git_annex(), "updateproxy", "--help"], capture_output=True).returncode


# In our process, through our own shell, through the real one, and through a server of the real program.
WAYS = ["path", "rw", "real", *(["http"] if git_annex_knows_proxies() else [])]
CONTENT = pseudorandom(100_000)


class HttpServer:
    """``git annex p2phttp`` in one repository, open to everybody."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.port = free_port()
        self.start()

    @property
    def url(self) -> str:
        return f"annex+http://127.0.0.1:{self.port}/git-annex/"

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["git-annex", "p2phttp", "--bind=127.0.0.1", f"--port={self.port}", "--wideopen", "-J4"],
            env=self.repo.env,
            cwd=self.repo.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self.is_listening)

    def is_listening(self) -> bool:
        assert self.process.poll() is None, "p2phttp ended"
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def stop(self) -> None:
        self.process.kill()
        self.process.wait()


class Proxied:
    """A node, which the client knows as a remote of its remote, or of a remote of that."""

    def __init__(self, client: Repo, proxy: Repo, node: Repo, way: str | HttpServer) -> None:
        self.client = client
        self.proxy = proxy
        self.node = node
        self.http = way if isinstance(way, HttpServer) else None  # the node's server
        self.remote = "origin-node"  # the client's name for it
        self.between: list[Repo] = []  # other proxies, between the one that the client knows and the node

    def check(self, key: str, content: bytes | None, *, at_client: bool) -> None:
        """That the node has CONTENT, and that everybody knows who has it."""
        assert self.node.content(key) == content
        here, there = {self.client.uuid} if at_client else set(), {self.node.uuid} if content is not None else set()
        assert self.client.locations(key) == here | there
        self.check_tidy()
        for repo in (self.proxy, *self.between, self.node):
            assert committed(repo, key).get(self.node.uuid) is (content is not None), repo.path

    def check_tidy(self) -> None:
        """That all is committed, and nothing left behind."""
        if self.http:  # which commits when nothing more has come for a second
            wait_until(lambda: not self.leftovers(), 10)
        assert self.leftovers() == []
        assert processes_at(self.proxy.path) == []

    def leftovers(self) -> list[Path]:
        """What nobody but a session in progress may have in the proxy and the node."""
        found = []
        for repo in (self.proxy, *self.between, self.node):
            found += repo.leftovers()
            found += [
                path for path in (repo.git_dir / "annex" / "journal").glob("*") if not path.name.startswith(".")
            ]
            found += [path for path in (repo.git_dir / "annex" / "ssh").glob("*") if path.suffix != ".lock"]
        return found

    def p2p(self, program: Program, **env: str) -> P2P:
        """A conversation with the node by way of the proxy."""
        command = f"git-annex-shell 'p2pstdio' '{self.proxy.path}' '{uuid.uuid4()}' --uuid {self.node.uuid}"
        return P2P([*program.argv, "-c", command], program.env | env)


def committed(repo: Repo, key: str) -> dict[str, bool]:
    """The location log of a key as it is in the branch, with nothing of the journal or of other refs."""
    digest = hashlib.md5(key.encode()).hexdigest()
    log = repo.git("show", f"git-annex:{digest[:3]}/{digest[3:6]}/{key_file(key)}.log", check=False).out
    entries = sorted(line.split(" ")[:3] for line in log.splitlines())
    return {uuid: present == "1" for _, present, uuid in entries}


def out_and_home(proxied: Proxied) -> None:
    """Everything that can be asked of a remote, in a few commands."""
    client, remote = proxied.client, proxied.remote
    key = client.add("a file", CONTENT)
    client.commit()
    client.annex("copy", f"--to={remote}", "a file")
    proxied.check(key, CONTENT, at_client=True)
    client.annex("drop", "a file")
    client.annex("move", f"--from={remote}", "a file")
    assert client.content(key) == CONTENT
    proxied.check(key, None, at_client=True)


def there_and_back(proxied: Proxied) -> None:
    """Everything that people do with the content of a remote."""
    client, remote = proxied.client, proxied.remote
    key = client.add("a file", CONTENT)
    client.commit()

    client.annex("copy", f"--to={remote}", "a file")
    proxied.check(key, CONTENT, at_client=True)
    client.annex("fsck", f"--from={remote}", "a file")
    dropped = client.annex("drop", "a file", *DEBUG)
    said = P2P_LINE.findall(dropped.err)
    assert {f"LOCKCONTENT {key}", "UNLOCKCONTENT"} <= set(said)
    assert f"CHECKPRESENT {key}" not in said  # what is asked when there is no lock to be had
    proxied.check(key, CONTENT, at_client=False)
    client.annex("get", f"--from={remote}", "a file")
    assert client.content(key) == CONTENT
    client.annex("drop", f"--from={remote}", "a file")
    proxied.check(key, None, at_client=True)

    client.annex("move", f"--to={remote}", "a file")
    proxied.check(key, CONTENT, at_client=False)
    client.annex("move", f"--from={remote}", "a file")
    assert client.content(key) == CONTENT
    proxied.check(key, None, at_client=True)


def processes_at(*directories: Path) -> list[str]:
    """The command lines of all processes that have one of DIRECTORIES in their arguments or work in it."""
    found = []
    names = [os.fsencode(directory)[1:] for directory in directories]  # ssh is told where it is seen from /
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ")
                seen = words + b"\n" + os.fsencode(os.readlink(entry / "cwd"))
            except OSError:
                continue  # it has ended
            if any(name in seen for name in names):
                found.append(f"{entry.name} {words.decode(errors='replace')}")
    return found


@pytest.fixture
def http_server() -> Iterator[Callable[[Repo], HttpServer]]:
    """Starts HTTP servers."""
    started: list[HttpServer] = []

    def start(repo: Repo) -> HttpServer:
        started.append(HttpServer(repo))
        return started[-1]

    yield start
    for one in started:
        one.stop()


@pytest.fixture
def make_proxy(
    make_server: Callable[..., Repo], http_server: Callable[[Repo], HttpServer], ssh: ClientConfig
) -> Callable[..., Repo]:
    """Makes a repository that proxies for others, given as NAME=(REPO, WAY)."""

    def make(called: str = "proxy", *, bare: bool = True, **nodes: tuple[Repo, str | HttpServer]) -> Repo:
        proxy = make_server(called, bare=bare)
        proxy.config(ssh_options=f"-F {ssh.path}")
        proxy.git("config", "core.sshCommand", ssh.command)
        proxy.git("config", "annex.security.allowed-ip-addresses", "127.0.0.1")
        for name, (node, way) in nodes.items():
            add_node(proxy, name, node, http_server(node) if way == "http" else way)
        if git_annex_knows_proxies():
            proxy.annex("updateproxy")
        else:
            entries = " ".join(sorted(f"{node.uuid}:{name}" for name, (node, _) in nodes.items()))
            log = proxy.git_dir / "annex" / "journal" / "proxy.log"
            log.write_text(f"{int(time.time())}s {proxy.uuid} {entries}\n")
            proxy.annex("merge")
        return proxy

    return make


def add_node(proxy: Repo, name: str, node: Repo, way: str | HttpServer) -> None:
    """Have PROXY know and offer a remote."""
    there = str(node.path) if way == "path" else f"ssh://{way}{node.path}"
    url = way.url if isinstance(way, HttpServer) else there
    proxy.git("remote", "add", name, url)
    if url.startswith("annex+http:"):
        proxy.git("config", f"remote.{name}.annex-uuid", node.uuid)  # git cannot tell
    else:
        proxy.annex("info", "--fast")
    assert proxy.git("config", f"remote.{name}.annex-uuid").out.strip() == node.uuid
    proxy.git("config", f"remote.{name}.annex-proxy", "true")


def know_nodes(client: Repo, **nodes: Repo) -> None:
    """Have CLIENT know what is behind its proxy, called origin-NAME, as newer ones find out by themselves."""
    for name, node in nodes.items():
        if not git_annex_knows_proxies():
            client.git("remote", "add", f"origin-{name}", client.git("config", "remote.origin.url").out.strip())
            client.git("config", f"remote.origin-{name}.annex-uuid", node.uuid)


@pytest.fixture
def make_proxied(
    make_server: Callable[..., Repo],
    make_proxy: Callable[..., Repo],
    make_client: Callable[..., Repo],
    http_server: Callable[[Repo], HttpServer],
) -> Callable[..., Proxied]:
    """Makes a node, a proxy that reaches it in some WAY, and a client that reaches the proxy through HOST."""

    def make(way: str, *, host: str = "rw", bare: bool = True, **settings: str) -> Proxied:
        node = make_server("node", bare=bare)
        http = http_server(node) if way == "http" else None
        proxy = make_proxy(bare=bare, node=(node, http or way))
        client = make_client(proxy, host=host, **settings)
        know_nodes(client, node=node)
        return Proxied(client, proxy, node, http or way)

    return make
