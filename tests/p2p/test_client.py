"""The client's side: as a Repository against our own server at every version, and against peers that misbehave."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import pytest

from annexshell.access import READ_ONLY
from annexshell.errors import (
    Hangup,
    NotLocked,
    NotPresent,
    PeerError,
    RemoteUnavailable,
    RepositoryError,
    TransferRefused,
)
from annexshell.key import Key
from annexshell.p2p.client import P2PRepository
from annexshell.p2p.wire import Connection
from annexshell.relay import BytesSource, ShortSource, to_callable
from annexshell.repository import AlreadyHave
from annexshell.uuid import UUID
from tests.p2p.fakes import MemoryRepository, Talk, connected

KEY = Key(b"SHA256-s5--present")
ABSENT = Key(b"SHA256-s5--absent")
VERSIONS = range(5)


def read(content):
    data = bytearray()
    to_callable(content.source, content.length, data.extend)
    return bytes(data)


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_that_can_be_asked(version):
    served = MemoryRepository({KEY: b"hello"})
    with Talk(served) as talk:
        remote = connected(talk, version)
        assert (remote.uuid, remote.protocol_version) == (b"memory", version)
        assert remote.checkpresent(KEY) and not remote.checkpresent(ABSENT)
        with remote.lockcontent(KEY):
            pass
        with pytest.raises(NotLocked):
            remote.lockcontent(ABSENT)
        assert remote.gettimestamp() == 1000
        with remote.get(KEY, 1, b"some file") as content:
            assert (content.length, read(content), content.still_valid()) == (4, b"ello", True)
            content.acknowledge(True)
        put = remote.put(KEY, None)
        assert isinstance(put, AlreadyHave)
        with remote.put(ABSENT, None) as upload:
            assert upload.offset == 0
            assert upload.receive(5, BytesSource(b"world"), lambda: True)
        assert served.contents[ABSENT] == b"world"
        assert remote.remove(ABSENT)
        assert remote.remove(KEY, before=2000)
        assert served.contents == {}
        if version:
            with pytest.raises(NotPresent):
                remote.get(KEY, 0, None)
        assert not remote.checkpresent(KEY)
        assert remote.usable
    assert talk.error is None


@pytest.mark.parametrize("key", [ABSENT, Key(b"WORM--absent")])
@pytest.mark.parametrize("version", VERSIONS)
def test_an_upload_given_up_is_not_stored(version, key):
    """It can be told by the end of the connection only to a peer that would take no content for all of it."""
    served = MemoryRepository()
    with Talk(served) as talk:
        remote = connected(talk, version)
        with remote.put(key, None):
            pass
        assert remote.usable == (version > 0 and key is ABSENT)
        if remote.usable:
            assert remote.gettimestamp() == 1000
    assert served.contents == {}


@pytest.mark.parametrize("key", [ABSENT, Key(b"WORM--absent")])
@pytest.mark.parametrize("version", VERSIONS)
def test_no_content_at_all_declared_invalid_is_not_stored(version, key):
    served = MemoryRepository()
    with Talk(served) as talk:
        remote = connected(talk, version)
        with remote.put(key, None) as upload:
            assert not upload.receive(0, BytesSource(b""), lambda: False)
    assert served.contents == {}


def test_empty_content_is_stored():
    for version in VERSIONS:
        served = MemoryRepository()
        with Talk(served) as talk, connected(talk, version).put(Key(b"WORM--absent"), None) as upload:
            assert upload.receive(0, BytesSource(b""), lambda: True)
        assert served.contents == {Key(b"WORM--absent"): b""}


def test_uuids_of_others_are_passed_on():
    others = (UUID(b"u1"), UUID(b"u2"))
    with Talk(MemoryRepository({KEY: b"hello"}, uuids=others)) as talk:
        remote = connected(talk)
        put = remote.put(KEY, None)
        assert isinstance(put, AlreadyHave) and put.uuids == others
        outcome = remote.remove(KEY, before=0)
        assert (outcome.done, outcome.uuids) == (False, others)


def test_what_the_peer_refuses():
    with Talk(MemoryRepository({KEY: b"hello"}), access=READ_ONLY) as talk:
        remote = connected(talk)
        with pytest.raises(PeerError, match="read-only"):
            remote.remove(KEY)
        with pytest.raises(TransferRefused, match="read-only"):
            remote.put(ABSENT, None)
        assert remote.checkpresent(KEY)


def test_a_lock_that_is_kept_is_not_released():
    served = MemoryRepository({KEY: b"hello"})
    with Talk(served) as talk:
        remote = connected(talk)
        with remote.lockcontent(KEY) as lock:
            lock.keep()
        with pytest.raises(RemoteUnavailable):
            remote.gettimestamp()
    assert served.events == ["lock", "keep"]


def test_content_not_read_to_its_end_makes_the_connection_unusable():
    with Talk(MemoryRepository({KEY: b"hello"})) as talk:
        remote = connected(talk)
        with remote.get(KEY, 0, None):
            pass
        with pytest.raises(RemoteUnavailable):
            remote.checkpresent(KEY)


def test_a_source_that_ends_early_never_becomes_content():
    served = MemoryRepository()
    with Talk(served) as talk:
        remote = connected(talk)
        with pytest.raises(ShortSource), remote.put(ABSENT, None) as upload:
            upload.receive(10, BytesSource(b"short"), lambda: True)
        assert not remote.usable
    assert served.contents == {}
    assert isinstance(talk.error, Hangup)


def test_invalid_content_is_declared_so():
    served = MemoryRepository({KEY: b"hello"})
    served.valid = False
    with Talk(served) as talk:
        remote = connected(talk)
        with remote.get(KEY, 0, None) as content:
            assert read(content) == b"hello"
            assert not content.still_valid()
        assert remote.gettimestamp() == 1000
        with remote.put(ABSENT, None) as upload:
            assert not upload.receive(2, BytesSource(b"ab"), lambda: False)
    assert ABSENT not in served.contents


def test_presence_that_the_peer_cannot_tell():
    served = MemoryRepository()
    served.fail["checkpresent"] = RepositoryError("no idea")
    with Talk(served) as talk, pytest.raises(PeerError, match="no idea"):
        connected(talk).checkpresent(KEY)


class Scripted:
    """A peer that says what it was told to, whatever it hears: one of LINES, and another for each line heard."""

    def __init__(self, *lines: bytes) -> None:
        self.read_fd, write_fd = os.pipe()
        heard_fd, self.write_fd = os.pipe()

        def speak() -> None:
            with (
                suppress(BrokenPipeError),  # who has heard enough hangs up
                os.fdopen(heard_fd, "rb") as heard,
                os.fdopen(write_fd, "wb", buffering=0) as voice,
            ):
                for number, line in enumerate(lines):
                    if number:
                        heard.readline()
                    voice.write(line)

        threading.Thread(target=speak).start()
        self.connection = Connection(self.read_fd, self.write_fd)

    def __enter__(self) -> Connection:
        return self.connection

    def __exit__(self, *exc: object) -> None:
        os.close(self.read_fd)
        os.close(self.write_fd)


@pytest.mark.parametrize(
    ("lines", "error"),
    [
        ([], RemoteUnavailable),
        ([b"Welcome to the machine\n"], RemoteUnavailable),
        ([b"AUTH-FAILURE\n"], RemoteUnavailable),
        ([b"ERROR no\n"], RemoteUnavailable),
        ([b"AUTH-SUCCESS u\n"], RemoteUnavailable),
        ([b"AUTH-SUCCESS u\n", b"SUCCESS\n"], RemoteUnavailable),
        ([b"AUTH-SUCCESS u\n", b"???\n"], RemoteUnavailable),
        ([b"AUTH-SUCCESS u\n", b"x" * 40000], RemoteUnavailable),
        ([b"AUTH-SUCCESS u\n", b"VERSION 4\n"], RemoteUnavailable),  # not the expected uuid
    ],
)
def test_peers_that_do_not_open_properly(lines, error):
    with Scripted(*lines) as connection, pytest.raises(error):
        P2PRepository(connection, UUID(b"expected"))


def test_a_peer_that_does_not_know_versions():
    with Scripted(b"AUTH-SUCCESS u\n", b"ERROR unknown command\n", b"SUCCESS\n") as connection:
        remote = P2PRepository(connection)
        assert remote.protocol_version == 0
        assert remote.checkpresent(KEY)


@pytest.mark.parametrize("version", range(5))
def test_gateways_that_are_not_to_be_asked_again(version):
    """Only newer peers know what that means."""
    heard_fd, write_fd = os.pipe()
    read_fd, say_fd = os.pipe()
    os.write(say_fd, b"AUTH-SUCCESS u\nVERSION %d\n" % version)
    P2PRepository(Connection(read_fd, write_fd)).bypass([UUID(b"b"), UUID(b"a"), UUID(b"b")])
    os.close(write_fd)
    assert os.read(heard_fd, 100) == b"VERSION 4\n" + (b"BYPASS a b\n" if version >= 2 else b"")
    for fd in (heard_fd, read_fd, say_fd):
        os.close(fd)


def test_a_peer_that_claims_a_version_from_the_future():
    with Scripted(b"AUTH-SUCCESS u\n", b"VERSION 99\n") as connection:
        assert P2PRepository(connection).protocol_version == 4


@pytest.mark.parametrize("answer", [b"VALID\n", b"DATA 3\n", b"nonsense\n", b""])
@pytest.mark.parametrize(
    "ask",
    [
        lambda r: r.checkpresent(KEY),
        lambda r: r.lockcontent(KEY),
        lambda r: r.remove(KEY),
        lambda r: r.gettimestamp(),
        lambda r: r.put(KEY, None),
    ],
)
def test_answers_that_make_no_sense(answer, ask):
    with Scripted(b"AUTH-SUCCESS u\n", b"VERSION 4\n", answer) as connection:
        remote = P2PRepository(connection)
        with pytest.raises(RemoteUnavailable):
            ask(remote)
        assert not remote.usable


def test_what_was_said_unasked_is_no_answer():
    """Neither SUCCESS may be taken for the lock that is asked for next."""
    with Scripted(b"AUTH-SUCCESS u\n", b"VERSION 4\n", b"SUCCESS\nSUCCESS\n") as connection:
        remote = P2PRepository(connection)
        assert remote.checkpresent(KEY)
        with pytest.raises(RemoteUnavailable, match="more than it was asked"):
            remote.lockcontent(KEY)
        assert not remote.usable


@pytest.mark.parametrize("validity", [b"ERROR it changed\n", b"SUCCESS\n", b"???\n", b""])
def test_content_that_the_peer_does_not_vouch_for(validity):
    with Scripted(b"AUTH-SUCCESS u\n", b"VERSION 4\n", b"DATA 5\nhello" + validity) as connection:
        remote = P2PRepository(connection, name="remote r")
        with remote.get(KEY, 0, None) as content:
            assert read(content) == b"hello"
            with pytest.raises(RemoteUnavailable, match="remote r"):
                content.still_valid()
        assert not remote.usable


def test_an_acknowledgement_comes_after_the_validity():
    """Also where the receiver is of a version that does not have any, and so nobody asks for it."""
    with Scripted(b"AUTH-SUCCESS u\n", b"VERSION 4\n", b"DATA 5\nhelloVALID\n", b"") as connection:
        remote = P2PRepository(connection)
        with remote.get(KEY, 0, None) as content:
            assert read(content) == b"hello"
            content.acknowledge(True)
        assert remote.usable
