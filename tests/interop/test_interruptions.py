"""Transfers that end early, at either end and for every reason, and what is left of them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.interop.harness import P2P_LINE, Repo, Result, file_size, pseudorandom, running, wait_until

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
    return client.annex(*args, "--debug", "--debugfilter=P2P.IO")


@pytest.mark.parametrize("cut", [cut_client, cut_connection, cut_server])
@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_copy_to_the_server_is_resumed(make_pair, bare, cut):
    server, client, key = make_slow_pair(make_pair, bare)
    with running(client.start_annex("copy", "--to=origin", "big")) as copying:
        wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
        cut(copying, server)
        copying.wait(60)
    wait_until(lambda: not server_processes(server))
    assert server.content(key) is None
    arrived = server.temporary(key).read_bytes()
    assert ENOUGH <= len(arrived) < SIZE
    assert CONTENT.startswith(arrived)

    done = go_on(client, "copy", "--to=origin", "big")
    assert offsets(done, "PUT-FROM") == [len(arrived)]
    assert offsets(done, "DATA") == [SIZE - len(arrived)]
    assert server.content(key) == CONTENT
    assert not server.temporary(key).exists()
    client.annex("sync", "--no-content")
    for repo in (server, client):
        assert repo.locations(key) == {server.uuid, client.uuid}


@pytest.mark.parametrize("cut", [cut_client, cut_server])
def test_get_from_the_server_is_resumed(make_pair, cut):
    server, client, key = make_slow_pair(make_pair)
    client.git("config", "--unset", "annex.bwlimit")
    client.annex("move", "--to=origin", "big")
    client.config(**SLOW)
    with running(client.start_annex("get", "big")) as getting:
        wait_until(lambda: file_size(client.temporary(key)) >= ENOUGH)
        cut(getting, server)
        getting.wait(60)
    wait_until(lambda: not server_processes(server))
    arrived = file_size(client.temporary(key))
    assert ENOUGH <= arrived < SIZE
    done = go_on(client, "get", "big")
    assert offsets(done, "GET")[0] >= arrived
    assert client.content(key) == CONTENT
    assert not server.leftovers()


def test_sender_whose_file_changes(make_pair):
    """What arrives is not what the key says, so it is neither stored nor kept for resuming."""
    server, client = make_pair()
    key = client.add("file", CONTENT[:50_000])
    client.commit()
    place = client.object(key)
    place.chmod(0o644)
    place.write_bytes(b"x" * 50_000)
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert server.content(key) is None
    assert not server.leftovers()
    assert server.uuid not in client.locations(key)


def test_file_size_limit(make_pair):
    """A write that fails in the middle, as with a quota; later somebody lifts it."""
    server, client = make_pair(host="filelimit", retry="0")
    key = client.add("big", CONTENT)
    client.commit()
    refused = client.annex("copy", "--to=origin", "big", check=False)
    assert refused.status == 1
    assert server.content(key) is None
    assert "failed" in refused.said
    kept = file_size(server.temporary(key))
    assert 0 < kept <= MEBI
    assert server.leftovers() == [server.temporary(key)]
    assert server.uuid not in client.locations(key)
    small = client.add("small", b"small")
    client.annex("copy", "--to=origin", "small")
    assert server.content(small) == b"small"

    client.git("remote", "set-url", "origin", f"ssh://rw{server.path}")
    done = client.annex("copy", "--to=origin", "big", "--debug", "--debugfilter=P2P.IO")
    assert offsets(done, "PUT-FROM") == [kept]
    assert server.content(key) == CONTENT
    assert not server.leftovers()


def test_not_enough_space(make_pair):
    """More is to be kept free than there is: refused before anything is sent."""
    server, client = make_pair(retry="0")
    key = client.add("file", CONTENT[:50_000])
    client.commit()
    server.config(diskreserve="1000 TB")
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert "not enough free space" in refused.said
    assert server.content(key) is None
    assert not server.leftovers()
    server.config(diskreserve="1 MB")
    client.annex("copy", "--to=origin", "file")
    assert server.content(key) == CONTENT[:50_000]


def test_disk_full_in_the_middle(make_pair, small_disk):
    """Somebody else fills the disk while we receive."""
    server, client, key = make_slow_pair(make_pair)
    with small_disk(server.git_dir / "annex", 8 * MEBI) as annex:
        server.config(diskreserve="0")
        filler = annex / "filler"
        with running(client.start_annex("copy", "--to=origin", "big")) as copying:
            wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
            with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
                while True:
                    file.write(bytes(4096))
            said = copying.communicate(timeout=120)[0]
            assert copying.returncode == 1
            assert b"failed" in said
        wait_until(lambda: not server_processes(server))
        kept = server.temporary(key).read_bytes()
        assert ENOUGH <= len(kept) < SIZE
        assert CONTENT.startswith(kept)
        assert not list((server.git_dir / "annex" / "objects").rglob("SHA256E*"))
        assert server.leftovers() == [server.temporary(key)]
        filler.unlink()

        done = go_on(client, "copy", "--to=origin", "big")
        assert offsets(done, "PUT-FROM") == [len(kept)]
        assert server.content(key) == CONTENT
        assert not server.leftovers()
        client.annex("sync", "--no-content")
        assert server.locations(key) == {server.uuid, client.uuid}


def test_disk_full_while_the_change_is_recorded(make_pair, small_disk):
    """The repository's logs have no room: what is acknowledged must be what is recorded, and it works afterwards."""
    server, client = make_pair(retry="0")
    keys = [client.add(f"file{n}", b"%d" % n) for n in range(3)]
    client.commit()
    client.annex("copy", "--to=origin", "file0")
    with small_disk(server.git_dir / "annex", 4 * MEBI) as annex:
        server.config(diskreserve="0")
        filler = annex / "filler"
        with filler.open("wb", buffering=0) as file, pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(512))
        refused = client.annex("copy", "--to=origin", "file1", "file2", check=False)
        assert refused.status == 1
        assert server.content(keys[1]) is None
        filler.unlink()
        assert not server.leftovers() or {path.stat().st_size for path in server.leftovers()} <= {0, 1}
        client.annex("copy", "--to=origin")
        assert [server.content(key) for key in keys] == [b"0", b"1", b"2"]
        client.annex("sync", "--no-content")
        assert server.all_locations() == {key: {server.uuid, client.uuid} for key in keys}


def test_client_that_is_stopped_for_a_while(make_pair):
    """No timeouts: a laptop may sleep in the middle of a transfer."""
    server, client, key = make_slow_pair(make_pair)
    with running(client.start_annex("copy", "--to=origin", "big")) as copying:
        wait_until(lambda: file_size(server.temporary(key)) >= ENOUGH)
        os.killpg(copying.pid, signal.SIGSTOP)
        time.sleep(3)
        os.killpg(copying.pid, signal.SIGCONT)
        assert copying.wait(120) == 0
    assert server.content(key) == CONTENT
