"""Transfers slow enough to be broken, ways to break them, and what was said when they went on."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from tests.interop.harness import DEBUG, P2P_LINE, Repo, Result, pseudorandom

MEBI = 1 << 20
SIZE = 4 * MEBI
CONTENT = pseudorandom(SIZE)
ENOUGH = MEBI // 2

# A client's rate that leaves time to break the transfer. What counts is how much has arrived, never how fast.
SLOW = {"bwlimit": "1MB"}


def processes(*words: str) -> list[tuple[int, str]]:
    """The pid and command line of all processes that have all WORDS in their command line."""
    listing = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,args="], capture_output=True, check=True).stdout
    found = []
    for line in listing.decode(errors="replace").splitlines():
        pid, _, args = line.strip().partition(" ")
        if all(word in args for word in words) and int(pid) != os.getpid():
            found.append((int(pid), args))
    return found


def server_processes(server: Repo) -> list[int]:
    return [pid for pid, args in processes("p2pstdio", str(server.path)) if not is_ssh(args)]


def is_ssh(args: str) -> bool:
    return Path(args.split(" ", 1)[0]).name in {"ssh", "sh", "bash", "dash"}


def cut_client(client: subprocess.Popen[bytes], server: Repo) -> None:
    os.killpg(client.pid, signal.SIGKILL)
    for pid, _ in processes("ssh", "p2pstdio", str(server.path), " -T "):
        os.kill(pid, signal.SIGKILL)


def cut_connection(client: subprocess.Popen[bytes], server: Repo) -> None:
    # The client would go on by itself as long as a retry makes progress, so it has to go too.
    for pid, args in processes("p2pstdio", str(server.path), " -T "):
        if is_ssh(args):
            os.kill(pid, signal.SIGKILL)
    client.terminate()


def cut_server(client: subprocess.Popen[bytes], server: Repo) -> None:
    for pid in server_processes(server):
        os.kill(pid, signal.SIGKILL)
    client.terminate()


def offsets(done: Result, word: str) -> list[int]:
    """The numbers after WORD in what was said."""
    return [int(line.split()[1]) for line in P2P_LINE.findall(done.err) if line.startswith(word + " ")]


def make_slow_pair(make_pair, bare=True, host="rw"):
    server, client = make_pair(bare=bare, host=host, sshcaching="false", retry="0", **SLOW)
    key = client.add("big", CONTENT)
    client.commit()
    client.annex("info", "--fast")
    return server, client, key


def go_on(client: Repo, *args: str) -> Result:
    """The same command again, at full speed."""
    client.git("config", "--unset", "annex.bwlimit")
    return client.annex(*args, *DEBUG)
