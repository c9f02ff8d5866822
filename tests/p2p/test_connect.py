"""CONNECT: git's protocol inside ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.access import APPEND_ONLY, READ_ONLY
from annexshell.errors import Hangup, ProtocolError
from annexshell.p2p import messages as m
from annexshell.p2p.connect import GitServices
from annexshell.relay import to_callable
from tests.leftovers import left_open
from tests.p2p.fakes import MemoryRepository, Talk

ROOT = Path(__file__).parents[2]


@pytest.fixture
def environment(tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text("[user]\n\tname = T\n\temail = t@example.com\n[init]\n\tdefaultBranch = main\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")


@pytest.fixture
def repository(tmp_path, environment):
    path = tmp_path / "server.git"
    source = tmp_path / "source"
    git("init", "-q", source)
    (source / "file").write_bytes(os.urandom(300_000))
    git("-C", source, "add", "file")
    git("-C", source, "commit", "-q", "-m", "one")
    git("clone", "-q", "--bare", source, path)
    git("-C", path, "config", "annex.uuid", "11111111-1111-4111-8111-111111111111")
    git("-C", path, "config", "annex.version", "10")
    return path


def git(*arguments, **environment):
    return subprocess.run(
        ["git", *arguments], check=True, capture_output=True, text=True, env={**os.environ, **environment}
    ).stdout


def connected(repository, **options):
    return Talk(MemoryRepository(), connect=GitServices(os.fsencode(repository)), greet=False, **options)


def take_data(talk, message):
    data = bytearray()
    to_callable(talk.connection.payload(message.length), message.length, data.extend)
    return bytes(data)


def take_content(talk):
    """The bytes of DATA messages up to the first other message, and that."""
    data = b""
    while isinstance(message := talk.connection.receive(), m.Data):
        data += take_data(talk, message)
    return data, message


def take_advertisement(talk):
    """What upload-pack says first, in however many DATA messages."""
    data = b""
    while not data.endswith(b"0000"):
        message = talk.connection.receive()
        assert isinstance(message, m.Data)
        data += take_data(talk, message)
    return data


def test_a_flush_packet_ends_upload_pack(repository):
    with connected(repository) as talk:
        talk.say(b"CONNECT git-upload-pack\nDATA 4\n0000")
        assert b"refs/heads/main" in take_advertisement(talk)
        assert take_content(talk) == (b"", m.ConnectDone(0))
        assert talk.connection.receive() == m.ConnectDone(0)  # it is said twice
        assert talk.connection.receive() is None
    assert talk.error is None


def test_the_client_may_end_it(repository):
    with connected(repository) as talk:
        talk.say(b"CONNECT git-upload-pack\n")
        take_advertisement(talk)
        talk.say(b"CONNECTDONE 5\n")
        assert talk.finish() == b"CONNECTDONE 5\nCONNECTDONE 5\n"
    assert talk.error is None


@pytest.mark.parametrize("line", [b"FOO\n", b"SUCCESS\n", b"ERROR x\n"])
def test_other_messages_end_it(repository, line):
    with connected(repository) as talk:
        talk.say(b"CONNECT git-upload-pack\n")
        take_advertisement(talk)
        talk.say(line)
        assert talk.finish() == b"ERROR expected DATA or CONNECTDONE\nCONNECTDONE 1\nCONNECTDONE 1\n"


def test_hanging_up_leaves_no_process(repository):
    before = left_open()
    for said, error in ((b"", ProtocolError), (b"DATA 9\n0", Hangup)):
        with connected(repository) as talk:
            talk.say(b"CONNECT git-receive-pack\n" + said)
            talk.connection.receive()
            talk.finish()
        assert isinstance(talk.error, error)
    assert left_open() <= before


def test_a_directory_that_is_no_repository(tmp_path, environment):
    with connected(tmp_path) as talk:
        talk.say(b"CONNECT git-upload-pack\n")
        assert take_content(talk) == (b"", m.ConnectDone(128))
        assert talk.connection.receive() == m.ConnectDone(128)  # it is said twice
        assert talk.connection.receive() is None


def test_not_the_repository_with_git_behind_its_name(repository, tmp_path, environment):
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain.git").symlink_to(repository)
    with connected(tmp_path / "plain") as talk:
        talk.say(b"CONNECT git-upload-pack\n")
        assert take_content(talk) == (b"", m.ConnectDone(128))


@pytest.mark.parametrize("access", [READ_ONLY, APPEND_ONLY])
def test_pushing_needs_full_access(repository, access):
    with connected(repository, access=access) as talk:
        talk.say(b"CONNECT git-receive-pack\n")
        assert talk.finish() == b"ERROR this repository is read-only; write access denied\n"
    assert talk.error is None


def test_git_clones_and_pushes_through_it(repository, tmp_path):
    over = {
        "GIT_SSH_COMMAND": f"{sys.executable} -m tests.p2p.git_over_p2p",
        "GIT_SSH_VARIANT": "simple",
        "PYTHONPATH": str(ROOT),
    }
    clone = tmp_path / "clone"
    git("clone", "-q", f"ssh://server{repository}", clone, **over)
    assert (clone / "file").stat().st_size == 300_000
    (clone / "new").write_bytes(os.urandom(2_000_000))
    git("-C", clone, "add", "new")
    git("-C", clone, "commit", "-q", "-m", "two")
    git("-C", clone, "push", "-q", "origin", "HEAD:refs/heads/other", **over)
    assert git("-C", repository, "log", "--format=%s", "other").split() == ["two", "one"]
