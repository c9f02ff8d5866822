"""Lines of the protocol's checklist (spec: protocol §13) that no recording and no other test covers."""

from __future__ import annotations

import os
import time

import pytest

from tests.p2p.conftest import CONTENTS, KEYS
from tests.p2p.driver import sha256e

KS, KN, KB, KA = (KEYS[name] for name in ("KS", "KN", "KB", "KA"))
SMALL, NEW, BIG = (CONTENTS[name] for name in ("small", "new", "big"))
MB = 1 << 20


def clock():
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def at_the_start_of_a_second():
    """Wait for it; the whole seconds of the clock."""
    time.sleep(1 - clock() % 1)
    return int(clock())


@pytest.fixture
def large(session, repository):
    """A key of 4 MB that is there, more than fits into any pipe, and its content."""
    content = os.urandom(4 * MB)
    key = sha256e(content)
    assert session.put(key, content) == b"SUCCESS"
    return key, content


def test_line_12_any_byte_from_0x80_on_may_be_in_a_file_name(session):
    for byte in range(0x80, 0x100):
        assert session.get(KS, file=b"a%cb" % byte) == SMALL, byte
        assert session.ask(b"PUT a%cb " % byte + KS) == b"ALREADY-HAVE", byte
    assert session.finish() == 0


def test_line_18_success_comes_after_lock_and_retention_time(session, repository):
    assert repository.held_locks() == []
    assert session.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
    assert any(line.endswith(".lck") for line in repository.held_locks())
    remaining = float(repository.beside(KS, ".rtm").read_text().rstrip("s")) - time.time()
    assert 595 < remaining <= 600
    session.line("UNLOCKCONTENT")
    assert session.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"
    assert repository.held_locks() == []
    assert repository.leftovers() == []


def test_line_24_a_lock_of_the_real_server_is_honoured(session, programs, repository):
    with programs.server(repository, kind="real") as other:
        other.open(repository)
        assert other.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        assert session.ask(b"REMOVE " + KS) != b"SUCCESS"
        assert repository.object(KS) is not None
        other.line("UNLOCKCONTENT")
        assert other.finish() == 0


def test_line_24_the_real_server_honours_a_lock_of_ours(session, programs, repository):
    assert session.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
    with programs.server(repository, kind="real") as other:
        other.open(repository)
        assert other.ask(b"REMOVE " + KS) is None
        assert other.exit_code() == 1
    session.line("UNLOCKCONTENT")
    assert session.ask(b"REMOVE " + KS) == b"SUCCESS"


def test_line_26_the_time_of_remove_before(session, repository):
    assert session.ask(b"REMOVE-BEFORE %d " % at_the_start_of_a_second() + KS) == b"FAILURE"
    assert repository.object(KS) is not None
    assert repository.leftovers() == []
    assert session.ask(b"REMOVE-BEFORE %d " % (at_the_start_of_a_second() + 1) + KS) == b"SUCCESS"
    assert repository.object(KS) is None
    assert session.finish() == 0


def test_line_27_the_time_is_checked_when_the_lock_has_been_taken(session_with, repository):
    """The command that thaws the object's directory for the lock file takes its time."""
    with session_with({"annex.thawcontent-command": "sleep 1.2"}) as server:
        assert server.ask(b"REMOVE-BEFORE %d " % (at_the_start_of_a_second() + 1) + KS) == b"FAILURE"
        assert server.finish() == 0
    assert repository.object(KS) is not None


@pytest.fixture
def session_with(serve, repository):
    def start(config):
        for name, value in config.items():
            repository.set_config(name, value)
        return serve().open(repository)

    return start


def test_line_31_data_present(session, repository, tmp_path):
    assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
    (tmp_path / "content").write_bytes(NEW)
    repository.git_annex("setkey", KN, str(tmp_path / "content"))
    session.line("DATA-PRESENT")
    session.expect("SUCCESS")
    assert session.finish() == 0
    assert repository.locations()[KN] == 1


def test_line_44_a_file_that_grows_while_it_is_sent(session, repository, large):
    key, content = large
    session.line(b"GET 0  " + key)
    session.expect(b"DATA %d" % len(content))
    assert session.read(1000) == content[:1000]
    path = repository.object(key)
    path.chmod(0o644)
    with path.open("ab") as grown:
        grown.write(b"more")
    assert session.read(len(content) - 1000) == content[1000:]
    session.expect("INVALID")
    session.line("FAILURE")
    assert session.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"


def test_line_44_a_file_that_is_removed_while_it_is_sent(session, repository, large):
    """What was opened can be read to the end; whether it was valid until then cannot be told."""
    key, content = large
    session.line(b"GET 0  " + key)
    session.expect(b"DATA %d" % len(content))
    path = repository.object(key)
    path.parent.chmod(0o755)
    path.unlink()
    assert session.read(len(content)) == content
    assert session.read_line() in (b"VALID", b"INVALID")
    session.line("FAILURE")
    assert session.ask(b"CHECKPRESENT " + key) == b"FAILURE"


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("answer", [b"VALID", b"REMOVE " + KS, b"FOO", b"", b"SUCCESS-PLUS u", b"FAILURE-PLUS"])
def test_line_46_acknowledgements(version, answer, serve, repository):
    with serve() as server:
        server.open(repository, version=version)
        assert server.ask(b"GET 0  " + KS) == b"DATA 12"
        assert server.read(12) == SMALL
        if version >= 1:
            server.expect("VALID")
        server.line(answer)
        if version < 2:
            server.expect("ERROR expected SUCCESS or FAILURE")
        elif b"PLUS" not in answer:
            server.expect("ERROR expected SUCCESS or SUCCESS-PLUS or FAILURE or FAILURE-PLUS")
        assert server.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"
        assert server.finish() == 0


def test_line_47_two_downloads_of_one_key(session, serve, repository, large):
    key, content = large
    with serve() as other:
        other.open(repository)
        for server in (session, other):
            server.line(b"GET 0  " + key)
            server.expect(b"DATA %d" % len(content))
        for start in range(0, len(content), MB):
            for server in (session, other):
                assert server.read(MB) == content[start : start + MB]
        for server in (session, other):
            server.expect("VALID")
            server.line("SUCCESS")
            assert server.finish() == 0
    assert repository.leftovers() == []


def test_line_52_the_end_is_prompt(session, repository):
    """The client waits for the server's exit."""
    assert session.put(KN, NEW) == b"SUCCESS"
    assert session.ask(b"REMOVE " + KS) == b"SUCCESS"
    begun = time.monotonic()
    assert session.finish() == 0
    assert time.monotonic() - begun < 10
    assert repository.journal() == {}


@pytest.mark.parametrize("version", [2, 3, 4])
def test_line_56_one_repository_never_answers_with_plus(version, serve, repository):
    with serve() as server:
        server.open(repository, version=version)
        server.line("BYPASS 22222222-2222-2222-2222-222222222222")
        assert server.put(KN, NEW) == b"SUCCESS"
        assert server.ask(b"PUT  " + KN) == b"ALREADY-HAVE"
        assert server.ask(b"REMOVE " + KN) == b"SUCCESS"
        assert server.ask(b"REMOVE-BEFORE 0 " + KS) == b"FAILURE"
        assert server.finish() == 0
