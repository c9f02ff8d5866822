"""Files larger than what a proxy may have in memory, both ways. ``--large MIB`` makes them larger."""

from __future__ import annotations

import hashlib
import re
import threading
from pathlib import Path
from types import TracebackType

import pytest

from tests.interop.harness import Repo, pseudorandom
from tests.interop.interrupting import MEBI, server_processes
from tests.interop.proxies import WAYS

PROXY_MEMORY = 48 * MEBI


@pytest.mark.timeout(0)
@pytest.mark.parametrize("way", WAYS)
def test_large_file_both_ways(make_proxied, server, pytestconfig, way):
    proxied = make_proxied(way)
    client, remote = proxied.client, proxied.remote
    blocks = pytestconfig.getoption("--large")
    key = f"SHA256-s{blocks * MEBI}--{write_blocks(client.path / 'large', blocks)}"
    client.annex("add", "--quiet", "--backend=SHA256", "large", timeout=3600)
    assert client.key_of("large") == key
    client.commit()

    with Peak(proxied.proxy) as peak:
        client.annex("move", f"--to={remote}", "large", timeout=3600)
        assert client.object(key) is None
        client.annex("move", f"--from={remote}", "large", timeout=3600)
    # It was verified on its way in, here and there; the client is git-annex, which does it by itself.
    assert client.object(key).stat().st_size == blocks * MEBI
    proxied.check(key, None, at_client=True)
    assert peak.memory > 0
    assert peak.memory < PROXY_MEMORY or server.is_real
    client.annex("drop", "--force", "large")


def write_blocks(file: Path, count: int) -> str:
    """COUNT MiB of content that does not compress; gives its SHA256."""
    digest, block = hashlib.sha256(), pseudorandom(MEBI)
    with file.open("wb") as stream:
        for number in range(count):
            marked = b"%8d" % number + block[8:]
            digest.update(marked)
            stream.write(marked)
    return digest.hexdigest()


class Peak:
    """The most memory that a process serving a repository had at any time, seen from outside."""

    def __init__(self, repo: Repo) -> None:
        self.repo = repo
        self.memory = 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch)

    def watch(self) -> None:
        while not self.over.wait(0.1):
            for pid in server_processes(self.repo):
                try:
                    status = Path(f"/proc/{pid}/status").read_text()
                except OSError:
                    continue  # it has ended
                if found := re.search(r"VmHWM:\s+(\d+) kB", status):
                    self.memory = max(self.memory, int(found[1]) << 10)

    def __enter__(self) -> Peak:
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.over.set()
        self.thread.join()
