"""Clients that lie, stop, vanish or dawdle, and servers that run out of disk or are killed.

Whatever happens: nothing outside the annex directory is touched, nothing half-received becomes visible, no lock stays
held, and what was received is there for the next attempt.
"""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.p2p.conftest import CONTENTS, KEYS
from tests.p2p.driver import Repository, sha256e

KS, KN, KB, KA, KF = (KEYS[name] for name in ("KS", "KN", "KB", "KA", "KF"))
SMALL, NEW, BIG = (CONTENTS[name] for name in ("small", "new", "big"))
MB = 1 << 20


@pytest.fixture(autouse=True)
def nothing_escapes(repository, tmp_path):
    """After every test: all around the annex directory is as it was, and no lock is held inside."""
    before = surroundings(tmp_path, repository)
    yield
    assert surroundings(tmp_path, repository) == before
    assert repository.held_locks() == []


def surroundings(top, repository):
    """Every file and directory outside the annex directory and git's objects and refs, with its content."""
    found = {}
    own = (repository.annex, repository.git_dir / "objects", repository.git_dir / "refs", repository.git_dir / "logs")
    for path in top.rglob("*"):
        if not any(path == directory or directory in path.parents for directory in own):
            found[str(path)] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


def assert_usable(server):
    assert server.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


def tmp_size(repository, key):
    try:
        return repository.tmp(key).stat().st_size
    except FileNotFoundError:
        return None


class TestLines:
    def test_the_longest_line(self, session):
        assert session.ask(b"X" * 32767) == b"ERROR unknown command"
        assert session.ask(b"X" * 32766 + b"\r") == b"ERROR unknown command"
        assert_usable(session)
        assert session.finish() == 0

    @pytest.mark.parametrize("end", [b"\n", b"\r\n", b"", b"X" * MB])
    def test_a_longer_line_ends_the_session(self, end, session):
        session.send(b"X" * 32768 + end)
        assert session.read_all() == b""
        assert session.exit_code() == 1
        assert b"Traceback" not in session.errors

    @pytest.mark.parametrize("where", [b"LOCKCONTENT " + KS, b"GET 0  " + KS, b"PUT  " + KN])
    def test_a_longer_line_inside_an_exchange(self, where, session, repository):
        session.line(where)
        session.send(b"X" * 40000)
        session.read_all()
        assert session.exit_code() == 1
        assert repository.object(KN) is None

    def test_many_lines_at_once(self, session):
        session.send((b"CHECKPRESENT " + KS + b"\nFOO\n") * 20000)
        for _ in range(20000):
            session.expect("SUCCESS", "ERROR unknown command")
        assert session.finish() == 0


class TestKeys:
    """The key comes from the client; its file name must not lead anywhere else (spec: objects §1.5)."""

    NAMES = (
        b"FOO--../../../../escaped",
        b"FOO--/etc/passwd",
        b"FOO--..",
        b"FOO--.",
        b"FOO--",
        b"FOO-s12--../x",
        b"FOO--a/../../b",
        b"FOO--&c&a&s%",
        b"FOO--x y\tz",
        b"FOO--\xff\xfe\x80",
        b"FOO--\x01\x1b[2J",
        b"..--x",
        b"../..--x",
        b"/--x",
        b".--.",
        b"-s1--x",
        b"FOO-s1-m2-S3-C4--x",
    )

    @pytest.mark.parametrize("key", NAMES)
    def test_stays_inside(self, key, session, repository):
        for line in (b"CHECKPRESENT ", b"REMOVE ", b"REMOVE-BEFORE 0 ", b"LOCKCONTENT "):
            assert session.ask(line + key) in (b"SUCCESS", b"FAILURE", b"ERROR unknown command")
        reply = session.ask(b"PUT ../../f " + key)
        if reply == b"PUT-FROM 0":
            session.send(b"DATA 12\n" + SMALL + b"VALID\n")
            assert session.read_line() in (b"SUCCESS", b"FAILURE")
            if session.ask(b"CHECKPRESENT " + key) == b"SUCCESS":
                assert session.get(key) == SMALL
                assert session.ask(b"LOCKCONTENT " + key) == b"SUCCESS"
                session.line("UNLOCKCONTENT")
                assert session.ask(b"REMOVE " + key) == b"SUCCESS"
                assert repository.object(key) is None
        else:
            assert reply is not None and reply.startswith(b"ERROR ")
        assert_usable(session)
        assert session.finish() == 0

    @pytest.mark.parametrize("key", [b"FOO--a\0b", b"FOO--\0", b"FOO\0--x"])
    def test_nul_is_in_no_key(self, key, serve, repository):
        """No file name can have it; the real server only notices when the content comes, and ends."""
        with serve() as server:
            server.open(repository)
            for line in (b"CHECKPRESENT ", b"LOCKCONTENT ", b"REMOVE ", b"REMOVE-BEFORE 5 ", b"PUT  ", b"GET 0  "):
                assert server.ask(line + key) == b"ERROR unknown command"
            assert_usable(server)
            assert server.finish() == 0
            assert b"Traceback" not in server.errors and b"internal error" not in server.errors

    @pytest.mark.parametrize("length", [200, 243, 244, 250, 251, 252, 255, 256, 1000, 4096, 32700])
    def test_lengths(self, length, session):
        """Names that no file system takes are names of absent content."""
        key = b"FOO--" + b"x" * (length - 5)
        assert session.ask(b"CHECKPRESENT " + key) == b"FAILURE"
        assert session.ask(b"LOCKCONTENT " + key) == b"FAILURE"
        assert session.ask(b"REMOVE " + key) == b"SUCCESS"
        assert session.ask(b"GET 0  " + key) == b"DATA 0"
        session.expect("INVALID")
        session.line("FAILURE")
        assert_usable(session)
        assert session.finish() == 0

    def test_lf_ends_it(self, session):
        session.send(b"CHECKPRESENT FOO--x\nFOO\n")
        session.expect("FAILURE", "ERROR unknown command")


class TestAssociatedFiles:
    @pytest.mark.parametrize(
        "name",
        [b"../../../../escaped", b"a/../../b", b"..", b".git/config", b"a\0b", b"-x", b"\xff\xfe", b"x" * 10000],
    )
    def test_is_never_opened(self, name, session, repository):
        assert session.put(KN, NEW, file=name) == b"SUCCESS"
        assert session.get(KN, file=name, acknowledge=b"FAILURE") == NEW
        assert session.finish() == 0

    @pytest.mark.parametrize("name", [b"/etc/passwd", b"/", b"//x"])
    def test_absolute_is_unparsable(self, name, session):
        assert session.ask(b"PUT " + name + b" " + KN) == b"ERROR unknown command"
        assert session.ask(b"GET 0 " + name + b" " + KS) == b"ERROR unknown command"
        assert_usable(session)


class TestLengths:
    @pytest.mark.parametrize(
        "length", [b"99999999999999999999", b"18446744073709551616", b"9223372036854775808", b"9" * 4000]
    )
    def test_huge_and_then_gone(self, length, session, repository):
        """As long as bytes come they are taken, then they are kept."""
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.send(b"DATA " + length + b"\n" + NEW[:3000])
        session.close()
        session.expect("FAILURE")
        assert session.exit_code() == 1
        assert b"Traceback" not in session.errors and b"internal error" not in session.errors
        assert repository.tmp(KN).read_bytes() == NEW[:3000]

    @pytest.mark.parametrize("length", [b"-1", b"-99999999999999999999"])
    def test_negative(self, length, session, server_kind):
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        reply = session.ask(b"DATA " + length)
        assert reply == (b"ERROR expected DATA" if server_kind == "ours" else None)

    @pytest.mark.parametrize("offset", [b"12", b"13", b"9223372036854775808", b"99999999999999999999"])
    def test_offset_at_or_beyond_the_end(self, offset, session):
        assert session.ask(b"GET " + offset + b"  " + KS) == b"DATA 0"
        session.expect("VALID")
        session.line("SUCCESS")
        assert_usable(session)

    def test_more_than_the_key_says(self, session, repository):
        """It is read to the end, and then it is not what the key says."""
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.send(b"DATA 1000000\n" + b"x" * 1000000 + b"VALID\n")
        session.expect("FAILURE")
        assert tmp_size(repository, KN) is None
        assert_usable(session)


class TestClientsThatStop:
    @pytest.mark.parametrize("after", [0, 1, 5000, 9999])
    def test_in_data(self, after, session, repository, serve):
        """What came is kept, and the next upload goes on from there."""
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.send(b"DATA 10000\n" + NEW[:after])
        session.close()
        session.expect("FAILURE")
        assert session.exit_code() == 1
        assert tmp_size(repository, KN) == after
        assert repository.object(KN) is None
        assert repository.leftovers() == []
        with serve() as server:
            server.open(repository)
            assert server.ask(b"PUT  " + KN) == b"PUT-FROM %d" % after
            server.send(b"DATA %d\n" % (10000 - after) + NEW[after:] + b"VALID\n")
            server.expect("SUCCESS")
            assert server.finish() == 0
        assert repository.locations()[KN] == 1
        assert not list((repository.annex / "transfer").rglob("failed/download/*/*"))

    @pytest.mark.parametrize("length", [1, 10, len(b"CHECKPRESENT " + KS)])
    def test_in_a_line(self, length, session):
        session.send((b"REMOVE " + KS)[:length])
        assert session.finish() == 0

    def test_at_every_byte_of_an_upload(self, serve, repository):
        """Nothing is stored before the payload is whole, and it is there as soon as SUCCESS is said."""
        content = b"0123456789"
        key = sha256e(content)
        talk = b"VERSION 4\nPUT f " + key + b"\nDATA 10\n" + content + b"VALID\n"
        payload_end = len(talk) - len(b"VALID\n")
        for length in range(10, len(talk) + 1, 3):
            with serve() as server:
                server.send(talk[:length])
                server.close()
                replies = server.read_all()
                assert server.exit_code() in (0, 1)
            whole = length >= payload_end
            assert (b"SUCCESS\n" in replies.split(b"PUT-FROM")[-1]) == whole, length
            assert (repository.object(key) is not None) == whole, length
            if whole:
                break
            repository.tmp(key).unlink(missing_ok=True)

    def test_silence_is_no_reason_to_end(self, session):
        session.expect_nothing(2)
        session.line(b"LOCKCONTENT " + KS)
        session.expect("SUCCESS")
        session.expect_nothing(1)
        session.line("UNLOCKCONTENT")
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.send(b"DATA 10000\n" + NEW[:100])
        session.expect_nothing(1)
        session.send(NEW[100:])
        session.expect_nothing(1)
        session.line("VALID")
        session.expect("SUCCESS")
        assert session.finish() == 0

    def test_one_byte_at_a_time(self, session):
        talk = b"CHECKPRESENT %s\nGET 0 f %s\nSUCCESS\n" % (
            KS,
            KS,
        ) + b"PUT f %s\nDATA 6\nabsentVALID\nGET 2  %s\nSUCCESS\nBYPASS x\nFOO\n" % (KA, KA)
        for byte in talk:
            session.send(bytes([byte]))
            time.sleep(0.0005)
        session.expect("SUCCESS", "DATA 12")
        assert session.read(12) == SMALL
        session.expect("VALID", "PUT-FROM 0", "SUCCESS", "DATA 4")
        assert session.read(4) == b"sent"
        session.expect("VALID", "ERROR unknown command")
        assert session.finish() == 0

    def test_reading_slowly(self, session):
        session.line(b"GET 0  " + KB)
        got = b""
        session.expect("DATA 200000")
        while len(got) < 200000:
            got += session.read(min(3000, 200000 - len(got)))
            time.sleep(0.002)
        assert got == BIG
        session.expect("VALID")
        session.line("SUCCESS")
        assert session.finish() == 0


class TestClientsThatVanish:
    """Both pipes are gone, as when ssh is killed."""

    def vanish(self, server):
        server.process.stdin.close()
        server.process.stdout.close()
        server.ended = True
        return server.exit_code()

    def test_while_receiving(self, serve, repository):
        content = random.Random(1).randbytes(4 * MB)
        key = sha256e(content)
        with serve() as server:
            server.open(repository)
            server.line(b"GET 0  " + KS)
            server.expect("DATA 12")
            server.read(12)
            server.expect("VALID")
            server.line("SUCCESS")
            assert server.put(key, content) == b"SUCCESS"
            server.line(b"GET 0  " + key)
            server.expect(b"DATA %d" % len(content))
            assert self.vanish(server) in (0, 1)
            assert b"Traceback" not in server.errors
        assert hashlib.sha256(repository.object(key).read_bytes()).digest() == hashlib.sha256(content).digest()
        assert repository.leftovers() == []

    def test_while_sending(self, session, repository):
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.send(b"DATA 10000\n" + NEW[:6000])
        assert self.vanish(session) in (0, 1)
        assert tmp_size(repository, KN) == 6000
        assert repository.leftovers() == []

    def test_before_the_reply(self, session, repository):
        """What was stored stays stored, and its log line is in the branch, or in the journal for the next process."""
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        session.process.stdout.close()
        session.ended = True
        session.send(b"DATA 10000\n" + NEW + b"VALID\n")
        session.close()
        assert session.exit_code() == 0
        assert repository.object(KN).read_bytes() == NEW
        assert repository.locations()[KN] == 1

    def test_stdout_closed_early(self, session):
        session.process.stdout.close()
        session.ended = True
        session.send((b"CHECKPRESENT " + KS + b"\n") * 100)
        session.close()
        assert session.exit_code() == 0
        assert b"Traceback" not in session.errors

    def test_stdout_closed_before_the_first_line(self, serve, repository):
        with serve() as server:
            server.process.stdout.close()
            server.ended = True
            server.close()
            assert server.exit_code() in (0, 1)
            assert b"Traceback" not in server.errors and b"internal error" not in server.errors


SIGNALS = [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL]


class TestKilledServers:
    @pytest.mark.parametrize("number", SIGNALS)
    def test_while_receiving(self, number, session, repository, serve):
        """What arrived and was written is kept for resuming, and there is no lock that nobody holds."""
        content = random.Random(2).randbytes(MB)
        key = sha256e(content)
        assert session.ask(b"PUT  " + key) == b"PUT-FROM 0"
        session.send(b"DATA %d\n" % len(content) + content[: MB // 2])
        wait_for(lambda: (tmp_size(repository, key) or 0) >= MB // 2 - 65536)
        assert session.signal(number) == -number
        assert repository.held_locks() == []
        kept = tmp_size(repository, key)
        assert kept >= MB // 2 - 65536
        assert repository.tmp(key).read_bytes() == content[:kept]
        with serve() as server:
            server.open(repository)
            assert server.ask(b"PUT  " + key) == b"PUT-FROM %d" % kept
            server.send(b"DATA %d\n" % (len(content) - kept) + content[kept:] + b"VALID\n")
            server.expect("SUCCESS")
            assert server.finish() == 0
        assert repository.leftovers() == []

    @pytest.mark.parametrize("number", SIGNALS)
    def test_while_locked(self, number, session, repository, serve):
        """The client may count on the content for the rest of the ten minutes."""
        assert session.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        until = float(repository.beside(KS, ".rtm").read_text().rstrip("s"))
        assert 590 < until - time.time() <= 601
        assert session.signal(number) == -number
        assert float(repository.beside(KS, ".rtm").read_text().rstrip("s")) == until
        assert repository.git_annex("drop", "--force", f"--key={KS.decode()}", check=False) is not None
        assert repository.object(KS) is not None, "the real git-annex honours it too"
        with serve() as server:
            server.open(repository)
            assert server.ask(b"REMOVE " + KS) in (b"FAILURE", None)
        assert repository.object(KS) is not None

    @pytest.mark.parametrize("number", SIGNALS)
    def test_with_changes_not_yet_committed(self, number, session, repository, serve):
        assert session.put(KN, NEW) == b"SUCCESS"
        assert session.ask(b"REMOVE " + KS) == b"SUCCESS"
        assert session.signal(number) == -number
        assert repository.locations()[KN] == 1
        assert repository.locations()[KS] == 0
        with serve() as server:
            server.open(repository)
            assert server.put(KA, b"absent") == b"SUCCESS"
            assert server.finish() == 0
        assert repository.journal() == {}
        assert {key: repository.locations()[key] for key in (KN, KS, KA)} == {KN: 1, KS: 0, KA: 1}

    def test_between_messages(self, session):
        assert_usable(session)
        assert session.signal(signal.SIGTERM) == -signal.SIGTERM
        assert session.errors == b"" or b"Traceback" not in session.errors


def limit_file_size(size):
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


class TestFullDisk:
    """A limit on file sizes, which is met where a full disk is: in the middle of writing."""

    def test_while_receiving(self, serve, repository):
        content = random.Random(3).randbytes(MB)
        key = sha256e(content)
        with serve(preexec_fn=limit_file_size(MB // 2)) as server:
            server.open(repository)
            assert server.ask(b"PUT  " + key) == b"PUT-FROM 0"
            server.send(b"DATA %d\n" % len(content) + content)
            if not server.ended:
                server.expect_nothing()
            server.line("VALID")
            server.expect("FAILURE")
            assert_usable(server)
            assert b"File too large" in server.errors
            assert b"Traceback" not in server.errors
            assert server.ask(b"CHECKPRESENT " + key) == b"FAILURE"
            assert server.finish() == 0
        assert repository.object(key) is None
        assert repository.leftovers() == []
        kept = tmp_size(repository, key)
        assert kept == MB // 2
        assert repository.tmp(key).read_bytes() == content[:kept]
        with serve() as server:
            server.open(repository)
            assert server.put(key, content) == b"SUCCESS"
            assert server.finish() == 0

    def test_not_even_a_byte(self, serve, repository):
        """Not of content, nor of anything that is written on the way."""
        with serve(preexec_fn=limit_file_size(0)) as server:
            server.open(repository)
            assert server.ask(b"LOCKCONTENT " + KS) == b"FAILURE"
            reply = server.ask(b"PUT  " + KN)
            if reply == b"PUT-FROM 0":
                server.send(b"DATA 10000\n" + NEW + b"VALID\n")
                server.expect("FAILURE")
            else:
                assert reply.startswith(b"ERROR ")
            assert server.get(KS) == SMALL
            server.finish()
            assert b"Traceback" not in server.errors and b"internal error" not in server.errors
        assert repository.object(KN) is None
        assert repository.object(KS) is not None
        assert KN not in repository.locations()
        with serve() as server:
            server.open(repository)
            assert server.ask(b"REMOVE " + KS) == b"SUCCESS", "no retention time was left without a lock"
            assert server.put(KN, NEW) == b"SUCCESS"
            assert server.finish() == 0

    def test_removal_that_cannot_be_logged(self, serve, repository):
        """Either it is not removed, or it is removed and not acknowledged."""
        with serve(preexec_fn=limit_file_size(0)) as server:
            server.open(repository)
            reply = server.ask(b"REMOVE " + KS)
            assert reply is None or reply == b"FAILURE" or reply.startswith(b"ERROR "), reply
            server.close()
            server.read_all()
            server.exit_code()
            assert b"Traceback" not in server.errors and b"internal error" not in server.errors

    def test_small_filesystem(self, programs, repository, tmp_path):
        """A file system of 3 MB, in a mount namespace of the server's own."""
        no_reserve = {"GIT_CONFIG_COUNT": "1", "GIT_CONFIG_KEY_0": "annex.diskreserve", "GIT_CONFIG_VALUE_0": "0"}
        mount = tmp_path / "mount"
        mount.mkdir()
        after = tmp_path / "after"
        command = " ".join(programs.command(programs.kind))
        script = (
            f"mount -t tmpfs -o size=3m tmpfs '{mount}' && cp -a '{repository.path}/.' '{mount}' && "
            f"{command} p2pstdio '{mount}' 99999999-2222-3333-4444-555555555555; code=$?; "
            f"cp -a '{mount}' '{after}'; exit $code"
        )
        content = random.Random(4).randbytes(5 * MB)
        key = b"URL--http://example.com/large"  # says nothing of its size, so that the check beforehand lets it pass
        talk = (
            b"VERSION 4\nPUT  %s\nDATA %d\n" % (key, len(content))
            + content
            + b"VALID\nCHECKPRESENT %s\nCHECKPRESENT %s\n" % (key, KS)
        )
        done = subprocess.run(
            ["unshare", "-m" if os.geteuid() == 0 else "-rm", "sh", "-c", script],
            input=talk,
            capture_output=True,
            env=programs.environment(**no_reserve),
            timeout=60,
        )
        lines = done.stdout.splitlines()
        assert lines == [
            b"AUTH-SUCCESS " + repository.uuid.encode(),
            *(b"VERSION 4", b"PUT-FROM 0", b"FAILURE", b"FAILURE", b"SUCCESS"),
        ]
        assert b"No space left" in done.stderr and b"Traceback" not in done.stderr
        left = Repository(after, programs)
        assert left.object(key) is None
        kept = left.tmp(key).read_bytes()
        assert len(kept) > MB and content.startswith(kept)
        assert left.leftovers() == []
        subprocess.run(["rm", "-rf", str(after)], check=True)
        mount.rmdir()


class TestClientUuids:
    """A client's uuid becomes part of file names below annex/transfer, and nowhere else (spec: shell §7.2)."""

    @pytest.mark.parametrize(
        "uuid", ["..", ".", "a/b", "../../../../escaped", "/etc", "", " ", "a b", "caf\u00e9", "x" * 300, "lck"]
    )
    def test_stays_inside(self, uuid, serve, repository):
        before = set(transfer_directories(repository))
        with serve(client_uuid=uuid) as server:
            server.open(repository)
            reply = server.put(KN, NEW)
            assert reply == b"SUCCESS" or (reply is not None and reply.startswith(b"ERROR ")), reply
            assert server.get(KS, acknowledge=b"FAILURE") == SMALL
            assert server.ask(b"PUT  " + KA) is not None
            server.send(b"DATA 6\nabs")
            server.close()
            server.read_all()
            assert server.exit_code() in (0, 1)
            assert b"Traceback" not in server.errors and b"internal error" not in server.errors
        new = set(transfer_directories(repository)) - before
        assert all(len(path.parts) <= 2 or (path.parts[0] == "failed" and len(path.parts) <= 3) for path in new), new
        assert repository.leftovers() == []

    def test_bytes_that_are_no_text(self, serve, repository):
        with serve(client_uuid=b"\xff\xfe") as server:
            server.open(repository)
            assert server.get(KS) == SMALL
            assert server.finish() == 0


def transfer_directories(repository):
    top = repository.annex / "transfer"
    return [path.relative_to(top) for path in top.rglob("*") if path.is_dir()]


class TestMemory:
    """It does not depend on the size of the content."""

    SIZE = 300 * MB
    LIMIT = 40 * MB

    @pytest.fixture
    def large(self):
        """The key of a file of the size, and the chunk of which it consists."""
        chunk = random.Random(5).randbytes(MB)
        digest = hashlib.sha256()
        for _ in range(self.SIZE // MB):
            digest.update(chunk)
        return b"SHA256E-s%d--%s" % (self.SIZE, digest.hexdigest().encode()), chunk

    def test_flat(self, large, session, repository):
        key, chunk = large
        assert session.ask(b"PUT  " + key) == b"PUT-FROM 0"
        session.line(b"DATA %d" % self.SIZE)
        for _ in range(self.SIZE // MB):
            session.send(chunk)
        session.line("VALID")
        session.expect("SUCCESS")
        session.line(b"GET 0  " + key)
        session.expect(b"DATA %d" % self.SIZE)
        for _ in range(self.SIZE // MB):
            assert session.read(MB) == chunk
        session.expect("VALID")
        session.line("SUCCESS")
        assert_usable(session)
        assert session.peak_memory() < self.LIMIT
        assert session.finish() == 0
        path: Path = repository.object(key)
        path.parent.chmod(0o755)
        path.unlink()

    def test_does_not_grow_with_the_session(self, session):
        for _ in range(50):
            session.get(KB)
        before = session.peak_memory()
        for number in range(600):
            session.get(KB)
            key = b"FOO-s5--%d" % number
            assert session.put(key, b"%05d" % number) == b"SUCCESS"
            assert session.ask(b"REMOVE " + key) == b"SUCCESS"
        assert session.peak_memory() - before < 4 * MB
        assert session.finish() == 0
