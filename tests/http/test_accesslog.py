"""Lines about requests, and the file that they are written to."""

from __future__ import annotations

import json
import os
import re
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.errors import UsageError
from annexshell.http.accesslog import Entry, LogFile, as_json, combined, without_secrets
from tests.http.doors import wait_until

ENTRY = Entry(
    time=1394.25,
    remote="192.0.2.7",
    user=None,
    method="GET",
    target="/git-annex/u/key/WORM--a",
    protocol="HTTP/1.1",
    status=200,
    received=0,
    sent=6,
    complete=True,
    duration=0.0123456,
    referer="",
    agent="curl/8.0",
)


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def test_the_combined_format_is_that_of_other_web_servers():
    assert combined(ENTRY) == (
        b'192.0.2.7 - - [01/Jan/1970:05:53:14 +0530] "GET /git-annex/u/key/WORM--a HTTP/1.1" 200 6 "-" "curl/8.0"\n'
    )
    named = ENTRY._replace(remote=None, user=b"alice b", referer="http://here/")
    assert combined(named).startswith(b"- - alice_b [")
    assert b' "http://here/" ' in combined(named)


def test_what_was_no_request():
    entry = ENTRY._replace(method="", target="", protocol="", status=400)
    assert b' "-" 400 6 "-"' in combined(entry)
    found = json.loads(as_json(entry))
    assert found["method"] is found["target"] is found["protocol"] is None


def test_json_has_everything():
    assert json.loads(as_json(ENTRY)) == {
        "time": "1970-01-01T00:23:14.250Z",
        "remote": "192.0.2.7",
        "user": None,
        "method": "GET",
        "target": "/git-annex/u/key/WORM--a",
        "protocol": "HTTP/1.1",
        "status": 200,
        "received": 0,
        "sent": 6,
        "complete": True,
        "duration": 0.012346,
        "referer": None,
        "agent": "curl/8.0",
    }


# What a client says, as aiohttp gives it to us: bytes that are no UTF-8 are surrogates.
SAID = st.one_of(st.text(), st.binary().map(lambda data: data.decode("utf-8", "surrogateescape")))
COMBINED = re.compile(
    rb'[!-~]+ - [!-~]+ \[[^]]*\] "[ !#-~]* HTTP/1\.1" 200 6 "(?:[ !#-\[\]-~]|\\x[0-9a-f]{2})*" '
    rb'"(?:[ !#-\[\]-~]|\\x[0-9a-f]{2})*"\n'
)


@given(method=SAID, target=SAID, referer=SAID, agent=SAID, user=st.none() | st.binary())
def test_nothing_that_a_client_says_looks_like_something_else(
    method: str, target: str, referer: str, agent: str, user: bytes | None
):
    entry = ENTRY._replace(method=method, target=target, referer=referer, agent=agent, user=user)
    assert COMBINED.fullmatch(combined(entry))
    line = as_json(entry)
    assert all(0x20 <= byte < 0x7F for byte in line[:-1]) and line.endswith(b"\n")
    assert set(json.loads(line)) == set(json.loads(as_json(ENTRY)))


def test_control_characters_are_escaped():
    entry = ENTRY._replace(agent='a\r\nb"c\\d\x1b[31m\x7f\u202e\udcff', target="/\x00")
    line = combined(entry)
    assert rb'"a\x0d\x0ab\x22c\x5cd\x1b[31m\x7f\xe2\x80\xae\xff"' in line
    assert rb'"GET /\x00 HTTP/1.1"' in line
    values = json.loads(as_json(entry))
    assert values["agent"] == 'a\r\nb"c\\d\x1b[31m\x7f\u202e\\xff'
    assert b"\x1b" not in as_json(entry) and b"\x7f" not in as_json(entry)


def test_what_is_too_long_is_cut():
    assert len(combined(ENTRY._replace(target="/" * 65536, agent="\n" * 8000, referer="x" * 8000))) < 13_000


@pytest.mark.parametrize(
    ("target", "shown"),
    [
        ("/git-annex/u/v4/keeplocked?lockid=7a3&clientuuid=c", "/git-annex/u/v4/keeplocked?lockid=...&clientuuid=c"),
        ("/p?key=WORM--a;token=secret;offset=3", "/p?key=WORM--a;token=...;offset=3"),
        ("/p?keys=secret&bypass=b&access_token=secret", "/p?keys=...&bypass=b&access_token=..."),
        ("/p?%6cockid=secret", "/p?%6cockid=..."),
        ("/p?KEY=secret", "/p?KEY=..."),
        ("/p?a=b?lockid=secret", "/p?a=..."),
        ("http://me:secret@host/p?key=a", "http://host/p?key=a"),
        ("http://host/a@b", "http://host/a@b"),
        ("/p?key=a&data-present", "/p?key=a&data-present"),
        ("/p?", "/p?"),
    ],
)
def test_secrets_are_left_out(target: str, shown: str):
    assert without_secrets(target) == shown


class Written:
    """What is in a file, once it is there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def wait_for(self, content: bytes) -> None:
        wait_until(lambda: self.path.exists() and self.path.read_bytes() == content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "access.log"


def opened(path: Path) -> LogFile:
    return LogFile(os.fsencode(path), delay=0.01)


def test_lines_are_appended_and_nothing_waits_for_the_end(path: Path):
    path.write_bytes(b"before\n")
    log = opened(path)
    log.write(b"one\n")
    log.write(b"two\n")
    Written(path).wait_for(b"before\none\ntwo\n")
    log.write(b"three\n")
    log.close()
    assert path.read_bytes() == b"before\none\ntwo\nthree\n"


def test_a_new_file_is_not_for_everybody(path: Path):
    opened(path).close()
    assert path.stat().st_mode & 0o137 == 0


def test_a_file_that_was_moved_away_is_followed_by_a_new_one(path: Path):
    log = opened(path)
    log.write(b"one\n")
    Written(path).wait_for(b"one\n")
    rotated = path.rename(path.with_suffix(".1"))
    log.write(b"two\n")
    Written(path).wait_for(b"two\n")
    path.unlink()
    log.write(b"three\n")
    Written(path).wait_for(b"three\n")
    log.close()
    assert rotated.read_bytes() == b"one\n"


def test_while_there_can_be_no_new_file_the_old_one_is_used(path: Path, capfd: pytest.CaptureFixture[str]):
    directory = path.parent / "directory"
    directory.mkdir()
    log = opened(directory / "access.log")
    moved = directory.rename(path.parent / "moved")
    log.write(b"one\n")
    log.write(b"two\n")
    Written(moved / "access.log").wait_for(b"one\ntwo\n")
    directory.mkdir()
    log.write(b"three\n")
    Written(directory / "access.log").wait_for(b"three\n")
    log.close()
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "going on with the file that was moved away" in said


def test_several_processes_write_whole_lines(path: Path):
    program = (
        "import sys; from annexshell.http.accesslog import LogFile\n"
        "log = LogFile(sys.argv[1].encode(), delay=0.001)\n"
        "for _ in range(2000): log.write(sys.argv[2].encode() * 50 + b'\\n')\n"
        "log.close()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", program, str(path), letter]) for letter in "ab"]
    assert [process.wait() for process in processes] == [0, 0]
    lines = path.read_bytes().splitlines()
    assert sorted(set(lines)) == [b"a" * 50, b"b" * 50]
    assert len(lines) == 4000


def test_a_pipe_that_nobody_reads_does_not_stop_anybody(capfd: pytest.CaptureFixture[str]):
    read_fd, write_fd = os.pipe()
    os.set_blocking(write_fd, False)  # as whoever made it may have it for reasons of his own
    kept = os.dup(1)
    os.dup2(write_fd, 1)
    try:
        log = LogFile(None, delay=0.0)
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        os.close(write_fd)
    count = 40_000
    began = time.monotonic()
    for number in range(count):
        log.write(b"%099d\n" % number)
    assert time.monotonic() - began < 5
    received: list[bytes] = []

    def read() -> None:
        while piece := os.read(read_fd, 1 << 16):
            received.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    wait_until(lambda: not log._pending)
    log.write(b"%099d\n" % count)
    log.close()
    reader.join()
    os.close(read_fd)
    lines = b"".join(received).splitlines()
    assert {len(line) for line in lines} == {99}
    numbers = list(map(int, lines))
    assert numbers == sorted(numbers)
    assert numbers[-1] == count
    lost = sum(map(int, re.findall(r"(\d+) lines of the access log were lost", capfd.readouterr().err)))
    assert lost + len(numbers) == count + 1
    assert lost > 10_000


def test_a_full_disk_costs_lines_but_none_is_mixed_with_another(path: Path, capfd: pytest.CaptureFixture[str]):
    before = b"-" * 4074 + b"\n"  # the limit is also that of files where messages may go
    path.write_bytes(before)
    log = opened(path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4100, hard))  # Python ignores SIGXFSZ
    try:
        log.write(b"0123456789\n")
        Written(path).wait_for(before + b"0123456789\n")
        log.write(b"abcdefghijklmnopqrst\n")
        Written(path).wait_for(before + b"0123456789\nabcdefghijklmn")
        wait_until(lambda: log._complaint)
        log.write(b"lost\n")
        wait_until(lambda: log._failed == 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    log.write(b"after\n")
    log.close()
    assert path.read_bytes() == before + b"0123456789\nabcdefghijklmn\nafter\n"
    said = capfd.readouterr().err.splitlines()
    assert said == [
        f"  cannot write the access log: {path}: File too large",
        "  2 lines of the access log were lost",
    ]


def test_what_cannot_be_opened_is_told_at_the_start(path: Path):
    with pytest.raises(UsageError, match=r"cannot write the access log: .*missing/access\.log: No such file"):
        opened(path.parent / "missing" / "access.log")
    with pytest.raises(UsageError, match="Is a directory"):
        opened(path.parent)


def test_a_process_can_fork_before_it_writes(path: Path):
    log = opened(path)
    pid = os.fork()
    if not pid:
        log.write(b"child\n")
        log.close()
        os._exit(0)
    os.waitpid(pid, 0)
    log.write(b"parent\n")
    log.close()
    assert path.read_bytes() == b"child\nparent\n"
