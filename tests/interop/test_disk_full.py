"""A disk that is full while we write to it. Collected only where a small one can be mounted (see conftest.py)."""

from __future__ import annotations

import pytest

from tests.interop.harness import file_size, running, wait_until
from tests.interop.interrupting import CONTENT, ENOUGH, MEBI, SIZE, go_on, make_slow_pair, offsets, server_processes


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
