"""Unlocked files in the work tree of a server repository: filled when content arrives, emptied when it goes."""

from __future__ import annotations

import os

import pytest

from tests.interop.harness import Repo


@pytest.fixture(params=[8, 10], ids=["v8", "v10"])
def checked_out(request, make_server, make_client) -> tuple[Repo, Repo, str]:
    """A server with an unlocked file, content absent, and the client that has its content."""
    server = make_server(bare=False, version=request.param)
    client = make_client(server)
    key = client.add("dir/unlocked file", b"the content\n", unlocked=True)
    client.add("locked", b"locked content\n")
    client.commit()
    client.annex("sync", "--no-content")
    server.annex("merge")
    assert (server.path / "dir/unlocked file").read_bytes() == b"/annex/objects/" + key.encode() + b"\n"
    return server, client, key


def test_copied_to_and_dropped_from(checked_out):
    server, client, key = checked_out
    file = server.path / "dir/unlocked file"
    client.annex("copy", "--to=origin", "dir")
    assert file.read_bytes() == b"the content\n"
    assert os.access(file, os.W_OK)
    assert server.content(key) == b"the content\n"
    assert server.git("status", "--porcelain").out == ""
    assert "failed" not in server.annex("fsck").said

    client.annex("drop", "--from=origin", "dir")
    assert file.read_bytes() == b"/annex/objects/" + key.encode() + b"\n"
    assert server.content(key) is None
    assert server.git("status", "--porcelain").out == ""
    assert "failed" not in server.annex("fsck").said
    client.annex("sync", "--no-content")
    assert server.locations(key) == {client.uuid}


def test_two_files_of_one_key(checked_out):
    server, client, key = checked_out
    client.add("copy", b"the content\n", unlocked=True)
    client.commit()
    client.annex("sync", "--no-content")
    server.annex("merge")
    client.annex("copy", "--to=origin", "copy")
    for name in ("copy", "dir/unlocked file"):
        assert (server.path / name).read_bytes() == b"the content\n"
    client.annex("drop", "--from=origin", "copy")
    for name in ("copy", "dir/unlocked file"):
        assert (server.path / name).read_bytes() == b"/annex/objects/" + key.encode() + b"\n"
    assert server.git("status", "--porcelain").out == ""


def test_modified_meanwhile(checked_out):
    """Work that is not committed yet is left alone."""
    server, client, key = checked_out
    file = server.path / "dir/unlocked file"
    file.write_bytes(b"somebody's work\n")
    client.annex("copy", "--to=origin", "dir")
    assert file.read_bytes() == b"somebody's work\n"
    assert server.content(key) == b"the content\n"
    client.annex("drop", "--from=origin", "dir")
    assert file.read_bytes() == b"somebody's work\n"
    assert server.content(key) is None


def test_modified_after_it_was_filled(checked_out):
    server, client, key = checked_out
    file = server.path / "dir/unlocked file"
    client.annex("copy", "--to=origin", "dir")
    file.write_bytes(b"somebody's work\n")
    client.annex("drop", "--from=origin", "dir")
    assert file.read_bytes() == b"somebody's work\n"
    assert server.content(key) is None


def test_locked_file_is_a_link_to_the_content(checked_out):
    server, client, _key = checked_out
    client.annex("copy", "--to=origin", "locked")
    assert (server.path / "locked").read_bytes() == b"locked content\n"
    assert (server.path / "locked").is_symlink()
