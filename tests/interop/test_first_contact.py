"""Repositories that are new to git-annex, and ways in that allow less."""

from __future__ import annotations

import pytest

from tests.interop.harness import DEBUG, pseudorandom, run


def test_sync_initialises_a_fresh_bare_repository(make_server, make_client):
    server = make_server(init=False)
    client = make_client(server)
    key = client.add("file", b"content")
    client.commit()
    client.annex("sync", "--content")
    assert len(server.uuid) == 36
    assert client.git("config", "remote.origin.annex-uuid").out.strip() == server.uuid
    assert server.git("config", "annex.version").out.strip() in {"8", "10"}
    assert server.content(key) == b"content"
    client.annex("sync", "--no-content")
    for repo in (server, client):
        assert repo.locations(key) == {server.uuid, client.uuid}
    # Its existence is on record, so that other clones know what the uuid is.
    assert server.uuid in server.git("show", "git-annex:uuid.log").out


def test_no_other_command_initialises_it(make_server, make_client):
    server = make_server(init=False)
    client = make_client(server)
    client.add("file", b"content")
    client.commit()
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status != 0
    assert not server.git("config", "annex.uuid", check=False)
    assert not client.git("config", "remote.origin.annex-uuid", check=False)
    assert not client.git("config", "remote.origin.annex-ignore", check=False), "it could never be used again"


def test_a_push_before_the_first_contact_is_enough(make_server, make_client):
    server = make_server(init=False)
    client = make_client(server)
    client.add("file", b"content")
    client.commit()
    client.git("push", "--quiet", "origin", "main", "git-annex")
    client.annex("copy", "--to=origin", "file")
    assert client.git("config", "remote.origin.annex-uuid").out.strip() == server.uuid


def test_clone_initialised_by_the_client_learns_the_uuid(make_pair):
    server, client = make_pair()
    client.annex("info", "--fast")
    assert client.git("config", "remote.origin.annex-uuid").out.strip() == server.uuid


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_read_only(make_server, make_client, bare):
    server = make_server(bare=bare)
    writer, reader = make_client(server, "writer"), make_client(server, "reader", host="readonly")
    content = pseudorandom(50_000)
    key = writer.add("file", content)
    writer.annex("sync", "--content")
    reader.annex("sync", "--no-content", "--no-push")
    reader.annex("get", "file")
    assert reader.content(key) == content
    reader.annex("fsck", "--from=origin")

    other = reader.add("more", b"more")
    reader.commit()
    refused = reader.annex("copy", "--to=origin", "more", check=False)
    assert refused.status == 1
    refused = reader.annex("drop", "--from=origin", "file", *DEBUG, check=False)
    assert refused.status == 1
    assert "this repository is read-only" in refused.said
    assert server.content(key) == content
    assert server.content(other) is None
    assert server.uuid in reader.locations(key)
    assert server.uuid not in reader.locations(other)
    # A lock on the read-only copy is allowed, it is what makes it safe to drop ours.
    reader.annex("drop", "file")


@pytest.mark.parametrize("bare", [True, False], ids=["bare", "nonbare"])
def test_append_only(make_pair, bare):
    server, client = make_pair(bare=bare, host="appendonly")
    key = client.add("file", b"content")
    client.commit()
    client.annex("copy", "--to=origin", "file")
    refused = client.annex("drop", "--from=origin", "file", *DEBUG, check=False)
    assert refused.status == 1
    assert "this repository is append-only" in refused.said
    assert server.content(key) == b"content"
    client.annex("sync", "--no-content")
    assert server.locations(key) == {server.uuid, client.uuid}


def test_read_only_refuses_to_initialise(make_server, make_client):
    server = make_server(init=False)
    client = make_client(server, host="readonly")
    client.add("file", b"content")
    client.commit()
    client.annex("sync", "--no-push", check=False)
    assert not server.git("config", "annex.uuid", check=False)


def test_uuid_of_another_repository(make_server, make_client):
    """The directory has been replaced by another repository since the client saw it."""
    server = make_server()
    client = make_client(server)
    client.annex("info", "--fast")
    server.git("config", "annex.uuid", "00000000-0000-4000-8000-000000000001")
    key = client.add("file", b"content")
    client.commit()
    refused = client.annex("copy", "--to=origin", "file", check=False)
    assert refused.status == 1
    assert server.content(key) is None
    assert client.locations(key) == {client.uuid}


@pytest.mark.parametrize("host", ["linked", "login"])
def test_started_by_the_name_git_annex_shell(make_pair, host):
    """As a forced command under that name, and found in PATH by an unrestricted login."""
    server, client = make_pair(host=host)
    key = client.add("file", b"content")
    client.annex("sync", "--content")
    assert server.content(key) == b"content"
    client.annex("move", "--from=origin", "file")
    assert server.content(key) is None


@pytest.mark.parametrize("host", ["rw", "login"])
def test_started_by_the_name_that_the_client_configures(make_pair, host):
    """As part of what a forced command is given, and found in PATH by an unrestricted login."""
    server, client = make_pair(host=host)
    client.git("config", "remote.origin.annex-shell", "annexshell")
    key = client.add("file", b"content")
    client.commit()
    client.annex("copy", "--to=origin", "file")
    assert server.content(key) == b"content"
    client.annex("move", "--from=origin", "file")
    assert server.content(key) is None


def test_directories_below_the_home_of_the_login(make_server, make_client, server_home, tmp_path):
    """host:dir and ssh://host/~/dir, by way of a link in the home directory."""
    server = make_server()
    link = server_home / tmp_path.name
    link.symlink_to(server.path)
    client = make_client(server)
    key = client.add("file", b"content")
    client.commit()
    for name, url in (("tilde", f"ssh://rw/~/{link.name}"), ("scp", f"rw:{link.name}")):
        client.git("remote", "add", name, url)
        client.annex("copy", f"--to={name}", "file")
        assert client.git("config", f"remote.{name}.annex-uuid").out.strip() == server.uuid
        assert server.content(key) == b"content"
        client.annex("drop", f"--from={name}", "file")
        assert server.content(key) is None


def test_something_that_is_no_repository(make_pair, tmp_path, client_env):
    _server, client = make_pair()
    (tmp_path / "plain").mkdir()
    client.git("remote", "add", "plain", f"ssh://rw{tmp_path}/plain")
    client.git("remote", "add", "missing", f"ssh://rw{tmp_path}/missing")
    client.add("file", b"content")
    client.commit()
    for name in ("plain", "missing"):
        assert not client.annex("copy", f"--to={name}", "file", check=False)
        refused = run(["git", "fetch", name], client_env, client.path, check=False)
        assert refused.status == 128
