"""Where the real server has a defect and ours does better: one test and more for each rule (spec: protocol §11).

Correct clients cannot tell the difference, except that they are not left hanging.
"""

from __future__ import annotations

import os
import time

import pytest

from tests.p2p.conftest import CONTENTS, KEYS
from tests.p2p.driver import file_name, sha256e

KS, KN, KB, KA, KF = (KEYS[name] for name in ("KS", "KN", "KB", "KA", "KF"))
SMALL, NEW, BIG, GARBAGE = (CONTENTS[name] for name in ("small", "new", "big", "garbage"))


def retention(repository, key):
    """The time until which the content is kept, seconds from now, or None."""
    path = repository.beside(key, ".rtm")
    return float(path.read_text().rstrip("s")) - time.time() if path.exists() else None


def assert_reason(reply):
    """An ERROR with something to read for the person at the other end."""
    assert reply is not None and reply.startswith(b"ERROR ") and len(reply) > 20, reply


def assert_usable(server):
    assert server.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"


class TestR1UnicodeSpacesDoNotSplitLines:
    @pytest.mark.parametrize("space", "\u00a0\u1680\u2003\u202f\u205f\u3000\u2028\x85\x1c\x1f")
    def test_put_and_get(self, space, session, repository):
        token = f"x{space}y".encode()
        assert session.put(KN, NEW, file=token) == b"SUCCESS"
        assert session.get(KN, file=token) == NEW
        assert session.finish() == 0
        assert repository.locations()[KN] == 1
        assert not any(b"y SHA256E" in name for name in repository.locations())

    def test_a_lone_a0_byte(self, session):
        assert session.get(KS, file=b"x\xa0y") == SMALL
        assert session.finish() == 0


class TestR2R11GetThatCannotBeFinishedEndsTheProcess:
    def test_truncated_while_sent(self, serve, repository):
        content = os.urandom(4 << 20)
        key = sha256e(content)
        with serve() as server:
            server.open(repository)
            assert server.put(key, content) == b"SUCCESS"
            path = repository.object(key)
            server.line(b"GET 0  " + key)
            server.expect(b"DATA %d" % len(content))
            assert server.read(1000) == content[:1000]
            path.chmod(0o644)
            os.truncate(path, 1 << 20)
            rest = server.read_all()
            assert len(rest) < len(content) - 1000
            assert rest == content[1000 : 1000 + len(rest)], "neither VALID nor INVALID, nor padding"
            assert server.exit_code() == 1
        assert repository.leftovers() == []

    def test_unreadable_object(self, session, repository):
        """Nothing is announced that will not come; whatever is said, the client is not left waiting."""
        path = repository.object(KS)
        path.unlink()
        path.mkdir()
        reply = session.ask(b"GET 0  " + KS)
        if reply == b"DATA 0":
            session.expect("INVALID")
            session.line("FAILURE")
            assert session.ask(b"CHECKPRESENT " + KB) == b"SUCCESS"
        else:
            assert reply is None and session.exit_code() == 1


class TestR3RemoveOfLockedContentIsAFailure:
    @pytest.mark.parametrize("request_", [b"REMOVE ", b"REMOVE-BEFORE 99999999999 "])
    def test_locked_by_another_session(self, request_, session, serve, repository):
        with serve() as holder:
            holder.open(repository)
            assert holder.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
            assert session.ask(request_ + KS) == b"FAILURE"
            assert_usable(session)
            holder.line("UNLOCKCONTENT")
            assert holder.ask(b"CHECKPRESENT " + KS) == b"SUCCESS"
            assert session.ask(request_ + KS) == b"SUCCESS"
        assert session.finish() == 0
        assert repository.object(KS) is None

    def test_retained(self, session, repository):
        path = repository.object(KS)
        path.parent.chmod(0o755)
        retained = path.with_name(path.name + ".rtm")
        retained.write_text(f"{time.time() + 100}s")
        assert session.ask(b"REMOVE " + KS) == b"FAILURE"
        retained.write_text(f"{time.time() - 1}s")
        assert session.ask(b"REMOVE " + KS) == b"SUCCESS"
        assert session.finish() == 0
        assert not path.parent.exists()
        assert repository.locations()[KS] == 0


class TestR4LockOutlivesAnEndWithoutUnlock:
    @pytest.mark.parametrize("last", [b"", b"UNLOCKCONT", b"UNLOCKCONTENT"])
    def test_eof_keeps_the_retention_time(self, last, serve, repository):
        with serve() as server:
            server.open(repository)
            assert server.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
            server.send(last)
            assert server.finish() == 0
        assert 590 < retention(repository, KS) <= 600
        with serve() as server:
            server.open(repository)
            assert server.ask(b"REMOVE " + KS) == b"FAILURE"
            assert server.finish() == 0
        expire(repository, KS)
        with serve() as server:
            server.open(repository)
            assert server.ask(b"REMOVE " + KS) == b"SUCCESS"
            assert server.finish() == 0
        assert repository.object(KS) is None
        assert repository.leftovers() == []

    @pytest.mark.parametrize("last", [b"UNLOCKCONTENT", b"CHECKPRESENT " + KS, b"FOO", b""])
    def test_a_line_releases_it(self, last, session, repository):
        assert session.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        session.line(last)
        if last != b"UNLOCKCONTENT":
            session.expect("ERROR expected UNLOCKCONTENT")
        assert session.finish() == 0
        assert repository.leftovers() == []


def expire(repository, key):
    path = repository.beside(key, ".rtm")
    path.parent.chmod(0o755)
    path.chmod(0o644)
    path.write_text(f"{time.time() - 1}s")


NOT_NUMBERS = (
    *(b"+1", b"-1", b"-0", b"1_0", b" 1", b"1x", b"0x1", b"0o1", b"(1)", b"1.0", b"1e1", b"", b"1\0"),
    "\u0661".encode(),
)
NEGATIVE = (b"-1", b"-0")  # a time may be: the clock starts at zero, and a proof may have expired before


class TestR5NumbersAreDigits:
    @pytest.mark.parametrize("line", [b"VERSION %s", b"GET %s  " + KS, b"REMOVE-BEFORE %s " + KS, b"DATA %s"])
    def test_top_level(self, line, session):
        numbers = [number for number in NOT_NUMBERS if not (b"BEFORE" in line and number in NEGATIVE)]
        replies = {number: session.ask(line % number) for number in numbers}
        assert {number for number, reply in replies.items() if reply != b"ERROR unknown command"} == set()
        assert_usable(session)

    def test_times_may_be_negative(self, session):
        assert session.ask(b"REMOVE-BEFORE -5 " + KS) == b"FAILURE"
        assert session.ask(b"REMOVE-BEFORE -5 " + KA) == b"SUCCESS"
        assert_usable(session)

    def test_length_of_an_upload(self, session):
        for number in NOT_NUMBERS:
            assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
            assert session.ask(b"DATA " + number) == b"ERROR expected DATA", number
        assert_usable(session)

    def test_leading_zeros_and_large_numbers_are_numbers(self, session):
        assert session.ask("VERSION 0004") == b"VERSION 4"
        assert session.ask("VERSION 9" + "9" * 300) == b"VERSION 4"
        assert session.ask(b"GET 9" + b"9" * 300 + b"  " + KS) == b"DATA 0"
        session.expect("VALID")
        session.line("SUCCESS")
        assert session.get(KS, 3) == SMALL[3:]

    def test_more_digits_than_python_converts(self, session):
        """int() refuses more than 4300 digits; a line may have 32767 characters."""
        assert session.ask("VERSION " + "9" * 20000) == b"VERSION 4"
        assert session.ask(b"GET " + b"9" * 20000 + b"  " + KS) == b"DATA 0"
        session.expect("VALID")
        session.line("SUCCESS")
        assert session.ask(b"REMOVE-BEFORE " + b"9" * 20000 + b" " + KA) == b"SUCCESS"
        assert_usable(session)


class TestR6TheValidityLineIsConsumedBeforeAFailure:
    """Something else than a directory or file stands where the server needs one."""

    @pytest.fixture(params=["object", "tmp"])
    def obstacle(self, request, repository):
        if request.param == "tmp":
            repository.tmp(KN).mkdir(parents=True)
            return
        # Where the object's own directory would be.
        format_ = "--format=.git/annex/objects/${hashdirmixed}${key}/${key}"
        place = repository.git_annex("examinekey", format_, KN).decode()
        path = repository.path / place
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        path.parent.write_text("in the way")

    def test_put(self, obstacle, session):
        reply = session.ask(b"PUT  " + KN)
        if reply is not None and reply.startswith(b"ERROR "):
            assert_usable(session)
            return
        assert reply is not None and reply.startswith(b"PUT-FROM ")
        rest = NEW[int(reply[9:]) :]
        session.send(b"DATA %d\n" % len(rest) + rest)
        if not session.ended:
            session.expect_nothing()
        session.line("VALID")
        reply = session.read_line()
        assert reply in (b"FAILURE", None)
        if reply is None:
            assert session.exit_code() == 1
        else:
            assert_usable(session)
            assert session.ask(b"CHECKPRESENT " + KN) == b"FAILURE"


class TestR7UnverifiableKeysAreNotResumed:
    @pytest.mark.parametrize(
        "key", [KEYS["KF"], KEYS["KW"], KEYS["KU"], b"XNOSUCHPROGRAM-s10000--x", b"XNOSUCHPROGRAME--x.dat"]
    )
    @pytest.mark.parametrize("size", [4000, 10000, 12000])
    def test_another_version_of_the_content_is_not_mixed_in(self, key, size, session, repository):
        repository.put_tmp(key, GARBAGE[:size])
        assert session.ask(b"PUT  " + key) == b"PUT-FROM 0"
        assert repository.tmp(key).stat().st_size == size, "truncated only under the transfer lock"
        session.send(b"DATA 10000\n" + NEW + b"VALID\n")
        session.expect("SUCCESS")
        assert repository.object(key).read_bytes() == NEW

    def test_hang_up_leaves_only_the_new_bytes(self, session, repository):
        repository.put_tmp(KF, GARBAGE[:9000])
        assert session.ask(b"PUT  " + KF) == b"PUT-FROM 0"
        session.send(b"DATA 10000\n" + NEW[:3000])
        session.close()
        session.expect("FAILURE")
        assert session.exit_code() == 1
        assert repository.tmp(KF).read_bytes() == NEW[:3000]

    def test_nothing_is_truncated_without_the_transfer_lock(self, session, serve, repository):
        repository.put_tmp(KF, GARBAGE[:9000])
        with serve() as first:
            first.open(repository)
            assert first.ask(b"PUT  " + KF) == b"PUT-FROM 0"
            assert_reason(session.ask(b"PUT  " + KF))
            assert repository.tmp(KF).read_bytes() == GARBAGE[:9000]
            first.send(b"DATA 10000\n" + NEW[:8000])
            wait_for(lambda: repository.tmp(KF).stat().st_size == 8000)
            assert_reason(session.ask(b"PUT  " + KF))
            first.send(NEW[8000:] + b"VALID\n")
            first.expect("SUCCESS")
        assert repository.object(KF).read_bytes() == NEW


def wait_for(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.01)


class TestR8RefusedUploadsKeepTheConnection:
    def test_before_anything_is_sent_when_another_receives_it(self, session, serve, repository):
        with serve(client_uuid="99999999-2222-3333-4444-555555555555") as other:
            other.open(repository)
            assert other.ask(b"PUT  " + KN) == b"PUT-FROM 0"
            other.send(b"DATA 10000\n" + NEW[:4000])
            wait_for(lambda: repository.tmp(KN).exists() and repository.tmp(KN).stat().st_size == 4000)
            assert_reason(session.ask(b"PUT  " + KN))
            assert_usable(session)
            other.send(NEW[4000:] + b"VALID\n")
            other.expect("SUCCESS")
        assert session.ask(b"PUT  " + KN) == b"ALREADY-HAVE"

    @pytest.mark.parametrize("version", [0, 1, 4])
    def test_the_offset_given_holds(self, version, serve, repository):
        """Whoever got PUT-FROM has the transfer lock: nobody else changes the temp file before its DATA."""
        with serve() as first, serve() as second:
            first.open(repository)
            second.open(repository, version=version)
            assert first.ask(b"PUT  " + KN) == b"PUT-FROM 0"
            assert_reason(second.ask(b"PUT  " + KN))
            assert_usable(second)
            first.send(b"DATA 10000\n" + NEW + b"VALID\n")
            first.expect("SUCCESS")

    @pytest.mark.parametrize("last", [b"ERROR changed my mind\n", b"FOO\n", b"DATA-PRESENT\n", b"DATA 0\nINVALID\n"])
    def test_an_upload_given_up_is_free_for_another(self, last, session, serve, repository):
        with serve() as other:
            other.open(repository)
            assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
            session.send(last + b"BYPASS\nCHECKPRESENT " + KS + b"\n")
            while session.read_line() != b"SUCCESS":
                pass
            assert other.put(KN, NEW) == b"SUCCESS"

    def test_another_program_takes_the_lock_meanwhile(self, session, repository, programs):
        """The payload and the validity line are taken in before the answer, whatever went wrong."""
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        with programs.server(repository, kind="real") as other:
            other.open(repository)
            assert other.ask(b"PUT  " + KN) == b"PUT-FROM 0"
            other.send(b"DATA 10000\n" + NEW + b"VALID\n")
            assert other.read_all() == b""
            assert other.exit_code() == 1
        session.send(b"DATA 10000\n" + NEW + b"VALID\n")
        session.expect("SUCCESS")

    @pytest.mark.parametrize(
        ("name", "value", "key"),
        [
            ("annex.diskreserve", "100 terabytes", KN),
            ("annex.securehashesonly", "true", KEYS["KMD5"]),
            ("annex.pidlock", "true", KN),
        ],
    )
    def test_configured(self, name, value, key, serve, repository):
        repository.set_config(name, value)
        with serve() as server:
            server.open(repository)
            assert_reason(server.ask(b"PUT  " + key))
            server.line("ERROR expected PUT_FROM or ALREADY_HAVE")  # what both clients answer
            assert_usable(server)
            assert server.finish() == 0
        assert not repository.tmp(key).exists()
        assert repository.object(key) is None

    @pytest.mark.parametrize("length", [244, 251, 252, 255, 300])
    def test_keys_whose_log_cannot_be_written(self, length, session, repository):
        key = b"FOO--" + b"x" * (length - 5)
        assert_reason(session.ask(b"PUT  " + key))
        assert_usable(session)
        assert session.finish() == 0
        assert repository.object(key) is None

    def test_the_longest_key_that_can_be_logged(self, session, repository):
        key = b"FOO--" + b"x" * 238
        assert session.put(key, NEW) == b"SUCCESS"
        assert session.finish() == 0
        assert repository.locations()[key] == 1

    @pytest.mark.parametrize("uuid", ["", "..", "."])
    def test_client_without_a_usable_uuid(self, uuid, serve, repository):
        with serve(client_uuid=uuid) as server:
            server.open(repository)
            assert_reason(server.ask(b"PUT  " + KN))
            assert_usable(server)
            assert server.get(KS) == SMALL
            assert server.finish() == 0


class TestR9OversizedTempFilesCountAsAbsent:
    def test_truncated_when_data_starts(self, session, repository):
        repository.put_tmp(KN, GARBAGE[:12000])
        assert session.ask(b"PUT  " + KN) == b"PUT-FROM 0"
        assert repository.tmp(KN).stat().st_size == 12000
        session.send(b"DATA 10000\n" + NEW[:5000])
        session.close()
        session.expect("FAILURE")
        assert session.exit_code() == 1
        assert repository.tmp(KN).read_bytes() == NEW[:5000]

    def test_one_of_exactly_the_size_is_not_oversized(self, session, repository):
        repository.put_tmp(KN, NEW)
        assert session.put(KN, NEW) == b"SUCCESS"


class TestR10OneErrorAfterAnErrorIsIgnored:
    def test_ignored(self, session):
        session.line("FOO")
        session.expect("ERROR unknown command")
        session.line("ERROR expected something else")
        session.expect_nothing()
        assert_usable(session)
        assert session.finish() == 0

    @pytest.mark.parametrize(
        ("lines", "replies"),
        [
            ([b"ERROR x"], []),
            ([b"FOO", b"ERROR x", b"ERROR x"], [b"ERROR unknown command"]),
            ([b"FOO", b"CHECKPRESENT " + KS, b"ERROR x"], [b"ERROR unknown command", b"SUCCESS"]),
            ([b"CHECKPRESENT " + KA, b"ERROR x"], [b"FAILURE"]),
        ],
    )
    def test_every_other_ends_the_session(self, lines, replies, session):
        for line in lines:
            session.line(line)
        session.expect(*replies)
        assert session.read_all() == b""
        assert session.exit_code() == 0


class TestR12ChildrenCannotReachTheConversation:
    NOISE = "echo NOISE; echo NOISE >&2; cat; echo ran >> '{marker}'"

    @pytest.fixture
    def marker(self, repository, tmp_path):
        marker = tmp_path / "marker"
        noise = self.NOISE.format(marker=marker)
        repository.set_config("annex.freezecontent-command", noise)
        repository.set_config("annex.thawcontent-command", noise)
        hooks = repository.git_dir / "hooks"
        hooks.mkdir(exist_ok=True)
        for name in ("pre-commit-annex", "post-update-annex", "reference-transaction", "post-commit"):
            (hooks / name).write_text(f"#!/bin/sh\n{noise}\n")
            (hooks / name).chmod(0o755)
        return marker

    def test_hooks(self, marker, session, repository):
        assert session.put(KN, NEW) == b"SUCCESS"
        assert session.ask(b"LOCKCONTENT " + KS) == b"SUCCESS"
        session.line("UNLOCKCONTENT")
        assert session.get(KS) == SMALL
        assert session.ask(b"REMOVE " + KS) == b"SUCCESS"
        session.send(b"CHECKPRESENT " + KN + b"\nCHECKPRESENT " + KS + b"\n")
        session.expect("SUCCESS", "FAILURE")
        assert session.finish() == 0
        assert marker.exists()
        assert repository.locations()[KN] == 1


class TestConnectIsRelayed:
    """The real server ends the session; ours relays, as it is done on other transports (spec: protocol §5.8)."""

    def read_data(self, server):
        """The payload of all DATA messages, and the line that ends them."""
        got = b""
        while (line := server.read_line()) is not None and line.startswith(b"DATA "):
            got += server.read(int(line[5:]))
        return got, line

    @pytest.mark.parametrize("env", [{}, {"GIT_ANNEX_SHELL_READONLY": "1"}])
    def test_upload_pack(self, env, serve, repository):
        with serve(env=env) as server:
            server.open(repository, version=None)
            server.line("CONNECT git-upload-pack")
            server.send(b"DATA 4\n0000")
            refs, line = self.read_data(server)
            assert repository.git("rev-parse", "git-annex").strip() in refs
            assert refs.endswith(b"0000")
            assert line == b"CONNECTDONE 0"
            server.expect("CONNECTDONE 0")
            assert server.read_all() == b""
            assert server.exit_code() == 0

    def test_receive_pack_in_pieces(self, session, repository):
        commit = repository.git("rev-parse", "HEAD").strip()
        session.line("CONNECT git-receive-pack")
        command = b"0" * 40 + b" " + commit + b" refs/heads/pushed\0 report-status"
        line = b"%04x" % (len(command) + 4) + command + b"0000"
        empty_pack = repository.programs.run("git", "pack-objects", "--stdout", "-q", cwd=repository.path)
        for byte in line + empty_pack:
            session.send(b"DATA 1\n%c" % byte)
        got, line = self.read_data(session)
        assert b"ok refs/heads/pushed" in got
        assert line == b"CONNECTDONE 0"
        session.expect("CONNECTDONE 0")
        assert session.read_all() == b""
        assert repository.git("rev-parse", "pushed").strip() == commit

    def test_the_client_says_it_is_done(self, session):
        session.send(b"CONNECT git-upload-pack\nCONNECTDONE 3\n")
        _, line = self.read_data(session)
        assert line == b"CONNECTDONE 3"
        session.expect("CONNECTDONE 3")
        assert session.read_all() == b""

    def test_anything_else(self, session):
        session.send(b"CONNECT git-upload-pack\nCHECKPRESENT " + KS + b"\n")
        _, line = self.read_data(session)
        assert line == b"ERROR expected DATA or CONNECTDONE"
        session.expect("CONNECTDONE 1", "CONNECTDONE 1")
        assert session.read_all() == b""

    def test_hang_up(self, session):
        session.line("CONNECT git-upload-pack")
        session.close()
        session.read_all()
        session.exit_code()


def test_the_log_name_limit_is_that_of_the_file_name():
    """243 bytes and the suffix, the hash directories and the separators fit into 255."""
    assert len(b"xxx_yyy_") + len(file_name(b"FOO--" + b"x" * 238)) + len(b".log") == 255
