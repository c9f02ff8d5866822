"""Children: what they are given, what is left of them, and programs that are not there."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell import process
from tests.leftovers import left_open


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = left_open()
    yield
    assert left_open() <= before


@pytest.fixture
def script(tmp_path, monkeypatch):
    """Install a shell script in PATH."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def install(text: str, mode: int = 0o755) -> list[bytes]:
        path = tmp_path / "program"
        path.write_text(text)
        path.chmod(mode)
        return [b"program"]

    return install


def test_output_and_status(script):
    done = process.run([*script("#!/bin/sh\nprintf '<%s>' \"$@\"; exit 3"), b"a b", b"", b"\xff"])
    assert (done.output, done.status) == (b"<a b><><\xff>", 3)


def test_a_signal_is_a_negative_status(script):
    assert process.run(script("#!/bin/sh\nkill -9 $$")).status == -9


@pytest.mark.parametrize("size", [0, 1, 65536, 1_000_000])
def test_input_and_output_of_any_size(size):
    data = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    assert process.run([b"cat"], data).output == data


def test_input_may_be_ignored():
    assert process.run([b"true"], b"x" * 1_000_000).status == 0


def test_without_input_there_is_nothing_to_read():
    assert process.run([b"cat"]).output == b""


def test_children_have_nothing_of_ours(tmp_path):
    with open(tmp_path / "open here", "w") as file, process.Pipe() as pipe:
        ours = {os.readlink(f"/proc/self/fd/{fd}") for fd in (file.fileno(), pipe.read_fd)}
        listing = process.run([b"ls", b"-l", b"/proc/self/fd"], stderr=None).output.decode()
    links = [line.split(" -> ") for line in listing.splitlines() if " -> " in line]
    descriptors = {name.split()[-1]: target for name, target in links}
    assert (descriptors["0"], descriptors["2"]) == (os.devnull, os.devnull)
    assert descriptors["1"].startswith("pipe:")
    assert ours.isdisjoint(descriptors.values())


def test_output_that_nobody_wants_is_dropped(capfd, script):
    pid = process.spawn(script("#!/bin/sh\necho out; echo err >&2"), stderr=None)
    assert process.wait(pid) == 0
    assert capfd.readouterr() == ("", "")


def test_errors_go_to_our_stderr_and_output_may(capfd, script):
    pid = process.spawn(script("#!/bin/sh\necho out; echo err >&2"), stdout=process.STDERR)
    assert process.wait(pid) == 0
    assert capfd.readouterr() == ("", "out\nerr\n")


def test_the_environment_can_be_another():
    assert process.run([b"env"], env={b"A": b"\xff"}).output == b"A=\xff\n"
    os.environb[b"ANNEXSHELL_TEST"] = b"\xfe"
    try:
        assert b"ANNEXSHELL_TEST=\xfe\n" in process.run([b"env"]).output
    finally:
        del os.environb[b"ANNEXSHELL_TEST"]


def test_children_die_of_sigpipe_although_we_do_not(script):
    assert signal.getsignal(signal.SIGPIPE) is signal.SIG_IGN
    with process.Pipe() as pipe:
        pid = process.spawn([b"yes"], stdout=pipe.write_fd, stderr=None)
        pipe.close_write()
        os.read(pipe.read_fd, 1)
        pipe.close_read()
        assert process.wait(pid) == -signal.SIGPIPE


def test_a_missing_program(script):
    with pytest.raises(process.ProgramNotFound) as caught:
        process.run([b"annexshell-no-such-program"])
    assert caught.value.strerror == "No such file or directory"
    assert "annexshell-no-such-program" in str(caught.value)


def test_a_program_that_is_not_executable(script):
    with pytest.raises(process.ProgramNotFound):
        process.run([os.fsencode(Path(__file__))])


def test_an_empty_path_has_no_programs(script, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(process.ProgramNotFound):
        process.run([b"git"])


def test_a_script_for_nobody(script):
    with pytest.raises(OSError):
        process.run(script("#!/nonexistent/interpreter\n"))


def test_no_child_is_waited_for_whose_output_we_do_not_read(monkeypatch):
    def broken(fd: int) -> bytes:
        os.read(fd, 1)
        raise MemoryError

    monkeypatch.setattr(process, "read_all", broken)
    with pytest.raises(MemoryError):
        process.run([b"yes"])


def test_the_ends_of_a_pipe_are_closed_once():
    with process.Pipe() as pipe:
        number = pipe.read_fd
        pipe.close_read()
        other = os.open(os.devnull, os.O_RDONLY)  # gets the lowest free number: that of the closed end
        assert other == number
        pipe.close_read()
        pipe.close_write()
        pipe.close_write()
    assert stat.S_ISCHR(os.fstat(other).st_mode)
    os.close(other)


def test_a_pipe_ends_when_its_writer_is_closed():
    with process.Pipe() as pipe:
        os.write(pipe.write_fd, b"abc")
        pipe.close_write()
        assert process.read_all(pipe.read_fd) == b"abc"
        assert os.get_inheritable(pipe.read_fd) is False


def test_temporary_input_elsewhere_than_on_linux(monkeypatch):
    monkeypatch.setattr(sys, "platform", "freebsd14")
    with process.TemporaryInput(b"abc") as input:
        assert input.fd is not None
        assert os.read(input.fd, 10) == b"abc"
        assert os.get_inheritable(input.fd) is False


def test_a_status_is_told_of_the_right_child():
    pids = [process.spawn([b"sh", b"-c", b"exit %d" % status]) for status in (1, 2, 3)]
    assert [process.wait(pid) for pid in reversed(pids)] == [3, 2, 1]


CARELESS = """
import os, signal, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
os.close(0)
os.execv(sys.executable, [sys.executable, "-c", sys.argv[1]])
"""


def test_a_careless_parent_is_made_good():
    program = """
import os
from annexshell import process
process.prepare()
assert os.read(0, 1) == b""
assert process.run([b"echo", b"hello"]).output == b"hello\\n"
print(sorted(os.listdir("/proc/self/fd"))[:3])
"""
    command = [sys.executable, "-c", CARELESS, program]
    assert subprocess.check_output(command, cwd=Path(__file__).parent.parent, text=True) == "['0', '1', '2']\n"
