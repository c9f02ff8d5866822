from __future__ import annotations

import os
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from annexshell import process
from annexshell.remotes import child
from annexshell.remotes.child import Child, environment_for_children
from tests.leftovers import left_open


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = left_open()
    yield
    assert left_open() <= before


def shell(script: str) -> Child:
    return Child([b"sh", b"-c", script.encode()], os.environb)


def test_it_is_talked_to_by_two_pipes() -> None:
    with Child([b"cat"], os.environb) as cat:
        os.write(cat.write_fd, b"hello\n")
        assert os.read(cat.read_fd, 100) == b"hello\n"
        assert cat.close() == 0
        assert cat.close() == 0
        assert (cat.read_fd, cat.write_fd) == (-1, -1)


def test_its_stderr_is_ours(capfd: pytest.CaptureFixture[str]) -> None:
    with shell("echo explanation >&2; exit 7") as one:
        assert one.close() == 7
    assert capfd.readouterr().err == "explanation\n"


def test_other_children_do_not_keep_its_pipes_open() -> None:
    """Or it would not notice that we have hung up."""
    with Child([b"cat"], os.environb) as cat, shell("exec sleep 60") as other:
        assert cat.close() == 0  # by itself, before it was made to
        assert other.close(0) == -signal.SIGTERM


def test_one_that_has_something_to_finish_may_do_so() -> None:
    with shell("cat > /dev/null; sleep 0.3; exit 4") as one:
        assert one.close() == 4


def test_one_that_does_not_end_is_terminated() -> None:
    one = shell("exec sleep 60")
    assert one.close(0.05) == -signal.SIGTERM


def test_one_that_ignores_that_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "_LAST_GRACE", 0.1)
    one = shell("trap '' TERM HUP; echo ready; while :; do sleep 0.1; done")
    os.read(one.read_fd, 100)
    assert one.close(0.05) == -signal.SIGKILL


def test_waiting_that_is_interrupted_leaves_no_process() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    one = shell("exec sleep 60")
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(KeyboardInterrupt):
            one.close()
    finally:
        signal.signal(signal.SIGALRM, before)


def test_a_missing_program_leaves_nothing_behind() -> None:
    with pytest.raises(process.ProgramNotFound):
        Child([b"there-is-no-such-program"], os.environb)


@pytest.mark.parametrize("free", [0, 1, 2, 3])
def test_too_few_descriptors_leave_nothing_behind(free: int) -> None:
    """Two pipes have four ends."""
    highest = max(int(fd) for fd in os.listdir("/proc/self/fd"))
    filled = []
    while (fd := os.open(os.devnull, os.O_RDONLY)) <= highest:
        filled.append(fd)
    os.close(fd)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + free, limit[1]))
    try:
        with pytest.raises(OSError):
            Child([b"cat"], os.environb)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)
        for fd in filled:
            os.close(fd)


def test_what_restricts_us_does_not_restrict_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_ANNEX_SHELL_DIRECTORY", "/only/here")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "something")
    monkeypatch.setenv("GIT_ANNEX_SHELL_READONLY", "1")
    environment = environment_for_children()
    assert b"GIT_ANNEX_SHELL_DIRECTORY" not in environment
    assert b"SSH_ORIGINAL_COMMAND" not in environment
    assert environment[b"GIT_ANNEX_SHELL_READONLY"] == b"1"
    assert os.environ["SSH_ORIGINAL_COMMAND"] == "something"


def test_it_has_nothing_else_of_ours(tmp_path: Path) -> None:
    """Least of all what we speak to a client on."""
    with (tmp_path / "secret").open("w"), Child([b"sh", b"-c", b"ls -l /proc/$$/fd"], os.environb) as one:
        open_there = process.read_all(one.read_fd)
    assert b"pipe" in open_there
    assert b"secret" not in open_there
