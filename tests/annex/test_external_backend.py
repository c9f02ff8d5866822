"""External backends: programs that behave, misbehave and hang."""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path

import pytest

from annexshell import log
from annexshell.annex import external_backend, verify
from annexshell.annex.external_backend import ExternalBackends
from annexshell.key import Key
from tests.annex.verifying import is_secure, verify_file
from tests.leftovers import descriptors, descriptors_before, left_open

HELLO_MD5 = b"5d41402abc4b2a76b9719d911017c592"
KEY = Key(b"XTEST-s5--" + HELLO_MD5)

# Answers as a git-annex-backend-XTEST would, except where an environment variable has another answer to a question.
PROGRAM = f"""#!{sys.executable} -IS
import os, sys
with open(os.environ["RECORD"], "ab", buffering=0) as record:
    record.write(b"started %d\\n" % os.getpid())
    for line in sys.stdin.buffer:
        record.write(line)
        word, *arguments = line.rstrip(b"\\n").split(b" ", 2)
        answer = os.environb.get(b"ANSWER_" + word)
        if answer is not None:
            exec(answer)
            continue
        if word == b"VERIFYKEYCONTENT":
            import hashlib
            key, path = arguments
            with open(path, "rb") as file:
                good = hashlib.md5(file.read()).hexdigest().encode() == key.partition(b"--")[2]
            answer = b"VERIFYKEYCONTENT-" + (b"SUCCESS" if good else b"FAILURE")
        else:
            answer = b"VERSION 1" if word == b"GETVERSION" else word + b"-YES"
        print(answer.decode(), flush=True)
    record.write(b"ended\\n")
"""


@pytest.fixture
def warnings(monkeypatch):
    said = []
    monkeypatch.setattr(log, "warn", lambda message: said.append(log.printable(message)))
    return said


class Installed:
    """A directory of programs at the front of PATH, and what was said to them."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = directory
        self.monkeypatch = monkeypatch
        self.record = directory / "record"
        self.record.touch()
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")
        monkeypatch.setenv("RECORD", str(self.record))
        self.add("XTEST", PROGRAM)

    def add(self, variety: str, text: str) -> None:
        path = self.directory / f"git-annex-backend-{variety}"
        path.write_text(text)
        path.chmod(0o755)

    def answer(self, question: str, python: str) -> None:
        self.monkeypatch.setenv(f"ANSWER_{question}", python)

    def lines(self) -> list[str]:
        return self.record.read_text().splitlines()

    def pids(self) -> list[int]:
        return [int(line.split()[1]) for line in self.lines() if line.startswith("started")]


@pytest.fixture
def installed(tmp_path, monkeypatch):
    (tmp_path / "bin").mkdir()
    return Installed(tmp_path / "bin", monkeypatch)


@pytest.fixture
def hello(tmp_path):
    path = tmp_path / "hello there"
    path.write_bytes(b"hello")
    return os.fsencode(path)


@pytest.fixture
def wrong(tmp_path):
    path = tmp_path / "wrong"
    path.write_bytes(b"hellO")
    return os.fsencode(path)


@pytest.fixture(autouse=True)
def no_child_is_left():
    before = left_open()
    yield
    assert left_open() <= before


def test_one_program_verifies_one_key_after_the_other(installed, hello, wrong, warnings):
    before = descriptors_before()
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is True
        assert programs.verify(KEY, wrong) is False
        assert programs.verify(KEY, hello) is True
        assert programs.is_cryptographically_secure(b"XTEST") is True
        assert programs.is_cryptographically_secure(b"XTESTE") is True
    assert descriptors() == before
    question = f"VERIFYKEYCONTENT {KEY} "
    assert installed.lines() == [
        f"started {installed.pids()[0]}",
        "GETVERSION",
        "CANVERIFY",
        "ISCRYPTOGRAPHICALLYSECURE",
        question + os.fsdecode(hello),
        question + os.fsdecode(wrong),
        question + os.fsdecode(hello),
        "ended",
    ]
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        (b"XTEST-s5--" + HELLO_MD5, b"XTEST-s5--" + HELLO_MD5),
        (b"XTESTE-s5--" + HELLO_MD5 + b".tar.gz", b"XTEST-s5--" + HELLO_MD5),
        (b"XTEST-s5--" + HELLO_MD5 + b".tar.gz", b"XTEST-s5--" + HELLO_MD5),
        (b"XTEST--" + HELLO_MD5, b"XTEST--" + HELLO_MD5),
        (b"XTEST-s5-m7-S3-C1--" + HELLO_MD5, b"XTEST-s5-m7-S3-C1--" + HELLO_MD5),
        (b"XTESTE-s5--" + HELLO_MD5 + b".b--c", b"XTEST-s5--" + HELLO_MD5),
    ],
)
def test_a_program_does_not_know_of_extensions(text, asked, installed, hello):
    assert verify.hasher(Key(text)) is None
    assert verify_file(Key(text), hello) is True
    assert installed.lines()[4] == os.fsdecode(b"VERIFYKEYCONTENT " + asked + b" " + hello)


def test_a_verifier_keeps_its_program_for_the_next_question(installed, hello, wrong):
    with verify.Verifier() as verifier:
        assert verifier.verify(KEY, hello) is True
        assert verifier.verify(KEY, wrong) is False
        assert verifier.is_secure(KEY) is True
        assert verifier.can_verify(KEY) is True
    assert len(installed.pids()) == 1


def test_an_equivalent_key_may_have_a_program(installed, hello, wrong):
    vurl = Key(b"VURL--x")
    with verify.Verifier(lambda key: [KEY]) as verifier:
        assert verifier.verify(vurl, hello) is True
        assert verifier.verify(vurl, wrong) is False
        assert verifier.is_secure(vurl) is True
    assert len(installed.pids()) == 1


def test_a_program_that_is_not_installed_leaves_keys_unverified(installed, hello, warnings):
    key = Key(b"XMISSINGE-s5--a.b")
    with ExternalBackends() as programs:
        assert programs.verify(key, hello) is None
        assert programs.verify(key, hello) is None
        assert programs.is_cryptographically_secure(key.variety) is False
    assert len(warnings) == 1 and "git-annex-backend-XMISSING" in warnings[0]


@pytest.mark.parametrize("variety", [b"X/../evil", b"X" + b"y" * 300])
def test_the_name_of_a_program_is_no_path(variety, installed, hello, warnings, monkeypatch):
    (installed.directory / "git-annex-backend-X").mkdir()
    (installed.directory / "git-annex-backend-XTEST").rename(installed.directory / "evil")
    monkeypatch.chdir(installed.directory)
    assert verify_file(Key(variety + b"--a"), hello) is None
    assert is_secure(Key(variety + b"--a")) is False
    assert installed.pids() == []
    assert len(warnings) == 2


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("GETVERSION", "print('VERSION 2', flush=True)"),
        ("GETVERSION", "print('ERROR not today', flush=True)"),
        ("GETVERSION", "sys.exit(3)"),
        ("GETVERSION", "os.close(1)"),
        ("GETVERSION", "print('x' * 100000, flush=True)"),
        ("CANVERIFY", "print('CANVERIFY-MAYBE', flush=True)"),
        ("CANVERIFY", "print('ISCRYPTOGRAPHICALLYSECURE-YES', flush=True)"),
        ("ISCRYPTOGRAPHICALLYSECURE", "print('', flush=True)"),
    ],
)
def test_an_unsuitable_program_leaves_keys_unverified(question, answer, installed, hello, warnings):
    installed.answer(question, answer)
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is None
        assert programs.is_cryptographically_secure(KEY.variety) is False
    assert len(installed.pids()) == 1
    assert len(warnings) == 1 and "git-annex-backend-XTEST" in warnings[0]


def test_a_program_may_decline_to_verify(installed, hello, warnings):
    installed.answer("CANVERIFY", "print('CANVERIFY-NO', flush=True)")
    installed.answer("ISCRYPTOGRAPHICALLYSECURE", "print('ISCRYPTOGRAPHICALLYSECURE-NO', flush=True)")
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is None
        assert programs.is_cryptographically_secure(KEY.variety) is False
    assert warnings == []


@pytest.mark.parametrize(
    "answer",
    [
        "print('ERROR cannot \\x1b[31mread', flush=True)",
        "print('VERIFYKEYCONTENT-MAYBE', flush=True)",
        "print('VERIFYKEYCONTENT-SUCCESS ', flush=True)",
        "sys.exit(0)",
        "os.kill(os.getpid(), 9)",
        "os.write(1, b'VERIFYKEYCONTENT-SUCCESS'); sys.exit(0)",
    ],
)
def test_a_program_that_breaks_has_verified_nothing_and_is_replaced(answer, installed, hello, warnings):
    installed.answer("VERIFYKEYCONTENT", answer)
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is False
        assert programs.verify(KEY, hello) is False
        assert len(set(installed.pids())) == 2
        installed.monkeypatch.delenv("ANSWER_VERIFYKEYCONTENT")
        assert programs.verify(KEY, hello) is True
    assert len(warnings) == 2 and "\x1b" not in warnings[0]


def test_a_program_may_tell_what_it_is_doing(installed, hello, monkeypatch):
    said = []
    monkeypatch.setattr(log, "debug", said.append)
    installed.answer(
        "VERIFYKEYCONTENT",
        "print('PROGRESS 1\\nDEBUG reading\\nPROGRESS 5\\nVERIFYKEYCONTENT-SUCCESS', flush=True)",
    )
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is True
        assert programs.verify(KEY, hello) is True
    assert said == ["git-annex-backend-XTEST: reading"] * 2


@pytest.mark.parametrize("busy", ["time.sleep(60)", "[print('PROGRESS', n, flush=True) for n in range(10**9)]"])
def test_a_program_that_hangs_is_killed(busy, installed, hello, warnings, monkeypatch):
    monkeypatch.setattr(external_backend, "_VERIFY_SECONDS", 0.2)
    monkeypatch.setattr(external_backend, "_END_SECONDS", 0.1)
    installed.answer(
        "VERIFYKEYCONTENT", "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + busy
    )
    started = time.monotonic()
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is False
    assert time.monotonic() - started < 20
    assert len(warnings) == 1


def test_a_program_that_does_not_introduce_itself_is_killed(installed, hello, warnings, monkeypatch):
    monkeypatch.setattr(external_backend, "_QUESTION_SECONDS", 0.2)
    monkeypatch.setattr(external_backend, "_END_SECONDS", 0.1)
    installed.answer("GETVERSION", "import time; time.sleep(60)")
    with ExternalBackends() as programs:
        assert programs.verify(KEY, hello) is None
    assert len(warnings) == 1


def test_a_program_that_ignores_the_end_is_killed_at_close(installed, hello, monkeypatch):
    monkeypatch.setattr(external_backend, "_END_SECONDS", 0.1)
    installed.add("XSTAY", PROGRAM + "import time; time.sleep(60)\n")
    with ExternalBackends() as programs:
        assert programs.verify(Key(b"XSTAY--" + HELLO_MD5), hello) is True


@pytest.mark.parametrize("name", [b"a\nVERIFYKEYCONTENT XTEST--b", b"a\r"])
def test_a_key_cannot_put_words_into_our_mouth(name, installed, hello, warnings):
    with ExternalBackends() as programs:
        assert programs.verify(Key(b"XTEST-s5--" + name), hello) is False
    assert not any(line.startswith("VERIFYKEYCONTENT") for line in installed.lines())
    assert len(warnings) == 1


def test_a_missing_file_is_an_error_and_no_verdict(installed, hello):
    with ExternalBackends() as programs:
        with pytest.raises(FileNotFoundError):
            programs.verify(KEY, hello + b"x")
        assert programs.verify(KEY, hello) is True


def test_a_file_that_is_not_executable_is_no_program(installed, hello, warnings):
    path = installed.directory / "git-annex-backend-XPLAIN"
    path.write_text(PROGRAM)
    assert verify_file(Key(b"XPLAIN--a"), hello) is None
    assert len(warnings) == 1


def test_the_digest_of_the_fixture():
    assert hashlib.md5(b"hello").hexdigest().encode() == HELLO_MD5
