"""Where the lines of the audit log go."""

from __future__ import annotations

import collections
import errno
import itertools
import json
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from annexshell.auditsinks import File, Syslog

ROOT = Path(__file__).parents[1]


def run_child(program: str, *arguments: str | Path) -> subprocess.Popen[bytes]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", program, *arguments], env=env, stdin=subprocess.PIPE)


# Files.


def test_a_new_file_is_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        File(bytes(tmp_path / "log")).write(b"line", False)
    finally:
        os.umask(before)
    assert (tmp_path / "log").read_bytes() == b"line\n"
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_an_existing_file_is_added_to_and_keeps_its_mode(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    path.chmod(0o640)
    File(bytes(path)).write(b"line", False)
    assert path.read_bytes() == b"before\nline\n"
    assert path.stat().st_mode & 0o777 == 0o640


def test_a_file_that_was_renamed(tmp_path: Path) -> None:
    path = tmp_path / "log"
    old = File(bytes(path))
    old.write(b"1", False)
    path.rename(tmp_path / "log.1")
    old.write(b"2", False)
    File(bytes(path)).write(b"3", False)
    assert (tmp_path / "log.1").read_bytes() == b"1\n2\n"
    assert path.read_bytes() == b"3\n"


def test_a_file_that_was_emptied(tmp_path: Path) -> None:
    """As logrotate's copytruncate does."""
    path = tmp_path / "log"
    file = File(bytes(path))
    file.write(b"1", False)
    os.truncate(path, 0)
    file.write(b"2", False)
    assert path.read_bytes() == b"2\n"


def test_children_do_not_get_it(tmp_path: Path) -> None:
    assert not os.get_inheritable(File(bytes(tmp_path / "log"))._fd)


def test_links_are_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"")
    (tmp_path / "log").symlink_to(target)
    with pytest.raises(OSError, match="symbolic links"):
        File(bytes(tmp_path / "log"))
    assert target.read_bytes() == b""


@pytest.mark.parametrize("is_read", [False, True])
def test_pipes_are_not_waited_for(is_read: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "log")
    reader = os.open(tmp_path / "log", os.O_RDONLY | os.O_NONBLOCK) if is_read else None
    with pytest.raises(OSError, match="not a regular file"):
        File(bytes(tmp_path / "log"))
    if reader is not None:
        os.close(reader)


def test_devices_are_no_logs() -> None:
    with pytest.raises(OSError, match="not a regular file"):
        File(b"/dev/null")


WRITER = """
import sys
from annexshell.auditsinks import File
file = File(sys.argv[1].encode())
sys.stdin.read()
for number in range(1000):
    size = (number * 37) % 9000 if number % 10 == 0 else 200
    file.write(b'{"writer":"%b","number":%d,"filler":"%b"}' % (sys.argv[2].encode(), number, b"x" * size), False)
"""


def test_lines_of_processes_do_not_mix(tmp_path: Path) -> None:
    """Also those that are longer than a pipe would take at once."""
    writers = [run_child(WRITER, tmp_path / "log", name) for name in ("a", "b")]
    for writer in writers:
        assert writer.stdin
        writer.stdin.close()  # both begin at once
    for writer in writers:
        assert writer.wait(60) == 0
    records = [json.loads(line) for line in (tmp_path / "log").read_bytes().splitlines()]
    for name in ("a", "b"):
        assert [record["number"] for record in records if record["writer"] == name] == list(range(1000))
    assert len(records) == 2000


def test_a_line_begun_by_another_is_seen_as_what_it_is(tmp_path: Path) -> None:
    """Each line here is written by who has just opened the file, while another writes long ones."""
    with run_child(WRITER, tmp_path / "log", "a") as writer:
        assert writer.stdin
        writer.stdin.close()
        while writer.poll() is None:
            file = File(bytes(tmp_path / "log"))
            file.write(b'{"writer":"b"}', False)
            os.close(file._fd)
    lines = (tmp_path / "log").read_bytes().splitlines()
    assert b"" not in lines
    written = collections.Counter(json.loads(line)["writer"] for line in lines)
    assert written["a"] == 1000 and written["b"] > 0


FULL = """
import resource, sys
from annexshell.auditsinks import File
file = File(sys.argv[1].encode())
resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
said = []
for line in (b"1" * 80, b"2" * 80, b"3" * 80):
    try:
        file.write(line, False)
        said.append("written")
    except OSError as reason:
        said.append(reason.strerror)
resource.setrlimit(resource.RLIMIT_FSIZE, (10000, resource.RLIM_INFINITY))
file.write(b"4", False)
file.write(b"5", False)
print(*said, sep="\\n")
"""


def test_a_full_disk(tmp_path: Path) -> None:
    """The line that was cut stays the only one that makes no sense."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "log"], env=env, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == ["written", "No space left on device", "File too large"]
    assert (tmp_path / "log").read_bytes().splitlines() == [b"1" * 80, b"2" * 19, b"4", b"5"]


def test_a_line_that_another_process_could_not_finish(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"time":"20')
    for line in (b"1", b"2"):
        File(bytes(path)).write(line, False)
    assert path.read_bytes() == b'{"time":"20\n1\n2\n'


def test_a_line_that_another_process_has_not_finished_yet(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b'{"time":"20')
    rest = threading.Timer(0.2, lambda: os.write(os.open(path, os.O_WRONLY | os.O_APPEND), b'26"}\n'))
    rest.start()
    File(bytes(path)).write(b"1", False)
    rest.join()
    assert path.read_bytes() == b'{"time":"2026"}\n1\n'


def test_an_unfinished_line_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also on a disk that stays full."""
    path = tmp_path / "log"
    path.write_bytes(b'{"time":"20')
    file, slept, moments = File(bytes(path)), list[float](), itertools.count()

    def no_space(fd: int, data: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(time, "sleep", slept.append)
    monkeypatch.setattr(time, "monotonic", lambda: next(moments) / 10)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", no_space)
        with pytest.raises(OSError, match="No space"):
            file.write(b"1", False)
        waited = len(slept)
        assert waited
        with pytest.raises(OSError, match="No space"):
            file.write(b"1", False)
    file.write(b"2", False)
    assert len(slept) == waited
    assert path.read_bytes() == b'{"time":"20\n2\n'


def test_who_may_only_add_can_do_that(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"before\n")
    really_open = os.open

    def open_for_writing(path: bytes, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_ACCMODE != os.O_WRONLY:
            raise PermissionError(13, "Permission denied")
        return really_open(path, flags, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", open_for_writing)
        file = File(bytes(path))
    file.write(b"line", False)
    assert path.read_bytes() == b"before\nline\n"


# Syslog.


class Daemon:
    """What listens at /dev/log."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.start()

    def start(self) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(str(self.path))
        self.socket.settimeout(10)

    def stop(self) -> None:
        self.socket.close()
        self.path.unlink()

    def receive(self) -> bytes:
        return self.socket.recv(1 << 20)


@pytest.fixture
def daemon(tmp_path: Path) -> Daemon:
    return Daemon(tmp_path / "l")


def test_a_message(daemon: Daemon) -> None:
    log = Syslog(bytes(daemon.path))
    log.write(b'{"a":1}', False)
    log.write(b'{"a":2}', True)
    first, second = daemon.receive().decode(), daemon.receive().decode()
    moment = time.strftime("%b %e ")
    # auth.info and auth.notice
    assert first.startswith(f"<38>{moment}") and second.startswith(f"<37>{moment}")
    assert first.endswith(f' annexshell[{os.getpid()}]: {{"a":1}}')
    assert len(first) == len(f'<38>Jan  1 00:00:00 annexshell[{os.getpid()}]: {{"a":1}}')


def test_the_first_address_that_is_there(daemon: Daemon, tmp_path: Path) -> None:
    Syslog(bytes(tmp_path / "none"), bytes(daemon.path)).write(b"x", False)
    assert daemon.receive().endswith(b": x")


def test_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Syslog(bytes(tmp_path / "none"))


def test_a_daemon_that_is_started_anew(daemon: Daemon) -> None:
    log = Syslog(bytes(daemon.path))
    log.write(b"1", False)
    daemon.stop()
    with pytest.raises(OSError):
        log.write(b"2", False)
    daemon.start()
    log.write(b"3", False)
    assert daemon.receive().endswith(b": 3")
    daemon.stop()
    daemon.start()
    log.write(b"4", False)
    assert daemon.receive().endswith(b": 4")


def test_a_daemon_that_takes_nothing(daemon: Daemon) -> None:
    """It is waited for once, and briefly."""
    log = Syslog(bytes(daemon.path))
    log.write(b"0", False)
    began = time.monotonic()
    failed = 0
    for _ in range(2000):
        try:
            log.write(b"x" * 1000, False)
        except OSError as reason:
            assert reason.strerror == "the syslog daemon takes nothing"
            failed += 1
    assert failed > 100
    assert time.monotonic() - began < 5
    for _ in range(2000 - failed + 1):
        daemon.receive()
    log.write(b"again", False)
    assert daemon.receive().endswith(b": again")


def test_a_daemon_that_takes_its_time(daemon: Daemon) -> None:
    """Nothing is lost for a moment's delay."""
    received: list[bytes] = []

    def listen() -> None:
        while not received or not received[-1].endswith(b": end"):
            received.append(daemon.receive())

    log = Syslog(bytes(daemon.path))
    thread = threading.Thread(target=listen)
    thread.start()
    for _ in range(2000):
        log.write(b"x" * 1000, False)
    log.write(b"end", False)
    thread.join(30)
    assert len(received) == 2001
