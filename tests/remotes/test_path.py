"""Remotes on this machine, and the refusals of those that cannot be opened at all."""

from __future__ import annotations

import os

import pytest

from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RemoteUnavailable
from annexshell.remotes.opening import open_remote
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import LocalPath, Remote, Special, Unreachable
from annexshell.uuid import UUID
from tests.annex.local import UUID_HERE, Local, put, sha256_key

NODE = UUID(b"22222222-2222-4222-8222-222222222222")
DATA = b"some content"
KEY = sha256_key(DATA)


@pytest.fixture
def proxy(tmp_path, clean_environment):
    repo = GitRepository(os.fsencode(Local(tmp_path / "proxy").path))
    assert repo.uuid  # so that git, which reads the config, is waited for
    return repo


@pytest.fixture
def node(tmp_path, clean_environment):
    return Local(tmp_path / "node", **{"annex.uuid": NODE.decode()})


def remote_at(location):
    return Remote(Config(), b"a1", location, 100.0, read_uuid=lambda: NODE)


def opened(proxy, location):
    return open_remote(proxy, remote_at(location), NODE, 4, Patience())


def test_it_is_used_in_this_process_with_us_as_its_client(proxy, node):
    repository = opened(proxy, LocalPath(os.fsencode(node.path)))
    assert (repository.uuid, repository.protocol_version, repository.client) == (NODE, 4, UUID_HERE.encode())
    assert put(repository, KEY, DATA) is True
    repository.close()
    assert node.object(KEY).read_bytes() == DATA
    assert node.journal() == {}  # committed to the node's own branch


def test_what_restricts_us_does_not_restrict_it(proxy, node, monkeypatch):
    monkeypatch.setenv("GIT_ANNEX_SHELL_DIRECTORY", "/elsewhere")
    monkeypatch.setenv("GIT_ANNEX_SHELL_READONLY", "1")
    repository = opened(proxy, LocalPath(os.fsencode(node.path)))
    assert put(repository, KEY, DATA) is True
    repository.close()


def test_there_is_nothing(proxy, tmp_path):
    with pytest.raises(RemoteUnavailable, match=r"remote a1: there is no directory .*missing"):
        opened(proxy, LocalPath(os.fsencode(tmp_path / "missing")))


def test_it_is_another_repository(proxy, node):
    node.config(**{"annex.uuid": "33333333-3333-4333-8333-333333333333"})
    with pytest.raises(RemoteUnavailable, match=r"remote a1: expected repository UUID 2222.* has UUID 3333"):
        opened(proxy, LocalPath(os.fsencode(node.path)))


def test_it_is_not_initialized(proxy, node):
    node.config(**{"annex.uuid": ""})
    with pytest.raises(RemoteUnavailable, match="is not initialized"):
        opened(proxy, LocalPath(os.fsencode(node.path)))


def test_its_version_is_not_known(proxy, node):
    node.config(**{"annex.version": "77"})
    with pytest.raises(RemoteUnavailable, match=r"remote a1: .*annex.version 77"):
        opened(proxy, LocalPath(os.fsencode(node.path)))


def test_what_cannot_be_opened_at_all(proxy):
    with pytest.raises(RemoteUnavailable, match=r"remote a1: it is a special remote \(directory\)"):
        opened(proxy, Special(b"directory"))
    with pytest.raises(RemoteUnavailable, match="remote a1: no such host"):
        opened(proxy, Unreachable(b"x", "no such host"))
