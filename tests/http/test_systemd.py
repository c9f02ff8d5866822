"""What systemd is told, what it hands over, and the units for it."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from annexshell.http import server, supervisor, systemd
from annexshell.http.listening import DEFAULT_PORT
from annexshell.http.server import Limits
from annexshell.http.systemd import CannotTakeSockets, take_sockets
from tests.http.doors import HELLO, Place, wait_until
from tests.http.program import Program

UNITS = Path(__file__).parents[2] / "systemd"


@pytest.fixture(params=["path", "abstract"])
def manager(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[socket.socket]:
    """A service manager that listens."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@annexshell-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.settimeout(10)
        receiver.bind(name.replace("@", "\0"))
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        yield receiver


class TestNotify:
    def test_what_is_said(self, manager):
        systemd.ready("Serving 3 repositories on [::]:9417")
        assert manager.recv(1000) == b"READY=1\nSTATUS=Serving 3 repositories on [::]:9417"
        systemd.status("one\nREADY=1")
        assert manager.recv(1000) == b"STATUS=one READY=1"
        systemd.stopping()
        assert manager.recv(1000).startswith(b"STOPPING=1\n")
        assert systemd.notify("A=\udcff") is True

    @pytest.mark.parametrize("name", [None, "", "relative", "vsock:2:3", "/nonexistent/socket", "/" + "x" * 200, "@"])
    def test_nobody_listens(self, monkeypatch, name):
        if name is None:
            monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
        else:
            monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert systemd.notify("READY=1") is False
        systemd.ready("")

    def test_a_manager_that_does_not_read(self, manager):
        """We do not wait for it."""
        for _ in range(10000):
            if not systemd.notify("STATUS=" + "x" * 1000):
                break
        else:
            pytest.fail("it took everything")


class TestWatchdog:
    @pytest.mark.parametrize(
        ("interval", "pid", "seconds"),
        [
            ("30000000", "", 30.0),
            ("500000", str(os.getpid()), 0.5),
            ("30000000", "1", None),
            ("", "", None),
            ("0", "", None),
            ("x", "", None),
            ("-5", "", None),
            ("\u00b2", "", None),
        ],
        ids=range(8),  # the same in every process
    )
    def test_what_the_manager_wants(self, monkeypatch, interval, pid, seconds):
        monkeypatch.setenv("WATCHDOG_USEC", interval)
        monkeypatch.setenv("WATCHDOG_PID", pid)
        assert systemd.watchdog() == seconds
        monkeypatch.delenv("WATCHDOG_USEC")
        assert systemd.watchdog() is None

    @pytest.fixture(params=[1, 2])
    def workers(self, request):
        return request.param

    def start(self, tmp_path, workers, interval="1500000"):
        place = Place(tmp_path / "annex")
        options = ("--wideopen", f"--workers={workers}")
        return Program(place.directory, *options, environ={"WATCHDOG_USEC": interval})

    def test_it_is_told_that_we_live_twice_in_its_interval(self, tmp_path, workers):
        with self.start(tmp_path, workers) as program:
            said = program.says_for(3)
            assert set(said) == {"WATCHDOG=1"}
            assert 2 <= len(said) <= 6 * workers
            program.stop()

    def test_and_nothing_if_we_do_not(self, tmp_path, workers):
        with self.start(tmp_path, workers) as program:
            program.tell(signal.SIGSTOP)
            program.says_for(0.1)
            assert program.says_for(1.5) == []
            program.tell(signal.SIGCONT)
            assert program.next_said() == "WATCHDOG=1"
            program.stop()

    def test_nobody_wants_to_know(self, tmp_path, workers):
        with self.start(tmp_path, workers, "") as program:
            assert program.says_for(1) == []
            program.stop()

    def test_a_worker_that_hangs_is_replaced(self, tmp_path):
        with self.start(tmp_path, 2) as program:
            before = program.workers()
            os.kill(before[1], signal.SIGSTOP)
            wait_until(lambda: len(set(program.workers()) - set(before)) == 1)
            assert before[0] in program.workers()
            time.sleep(1)  # the new one is not taken for the old one
            assert len(set(program.workers()) & set(before)) == 1
            assert program.post("gettimestamp").status == 200
            errors = program.stop()
        assert errors == (
            "  killing workers that hang: 1\n  worker 1 was killed by signal 9; starting another one in 1 s\n"
        )


def environment(**more: str) -> dict[str, str]:
    return {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "1", **more}


class TestTakeSockets:
    def test_nothing_was_handed_over(self):
        assert take_sockets({}) == []
        assert take_sockets(environment(LISTEN_FDS="0")) == []
        environ = environment(LISTEN_PID="1", LISTEN_FDS="1", OTHER="x")
        assert take_sockets(environ) == []
        assert environ == {"OTHER": "x"}

    @pytest.mark.parametrize("names", ["", "a", "a:b:c"])
    def test_several(self, names):
        first = free_descriptors(2)
        addresses = []
        for fd in (first, first + 1):
            with socket.create_server(("127.0.0.1", 0)) as ours:
                addresses.append(ours.getsockname())
                os.dup2(ours.fileno(), fd)
        taken = take_sockets(environment(LISTEN_FDS="2", LISTEN_FDNAMES=names), first)
        assert [one.getsockname() for one in taken] == addresses
        for one in taken:
            assert not one.get_inheritable()
            one.close()

    @pytest.mark.parametrize("count", ["", "-1", "x", "1 ", "²"])
    def test_a_count_that_is_none(self, count):
        with pytest.raises(CannotTakeSockets, match="is not a number"):
            take_sockets(environment(LISTEN_FDS=count))

    def test_a_descriptor_that_is_closed(self):
        with pytest.raises(CannotTakeSockets, match="is not a socket: Bad file descriptor"):
            take_sockets(environment(), free_descriptors(1))

    def test_a_descriptor_that_is_a_file(self):
        first = free_descriptors(1)
        with open(os.devnull) as file:
            os.dup2(file.fileno(), first)
        try:
            with pytest.raises(CannotTakeSockets, match=r"\(name\) is not a socket"):
                take_sockets(environment(LISTEN_FDNAMES="name"), first)
        finally:
            os.close(first)

    def test_a_connection(self):
        """As with Accept=yes."""
        ours, theirs = socket.socketpair()
        with ours, theirs, pytest.raises(CannotTakeSockets, match="does not listen"):
            take_sockets(environment(), ours.fileno())

    def test_a_datagram_socket(self):
        refused = pytest.raises(CannotTakeSockets, match="does not listen")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ours, refused:
            take_sockets(environment(), ours.fileno())


class TestProgram:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_all_sockets_that_it_is_given_are_served(self, tmp_path, workers):
        place = Place(tmp_path / "annex")
        place.store(HELLO, b"hello\n")
        local = socket.socket(socket.AF_UNIX)
        with socket.create_server(("127.0.0.1", 0)) as tcp, local, tempfile.TemporaryDirectory() as directory:
            local.bind(f"{directory}/s")
            local.listen()
            names = {"LISTEN_FDNAMES": "web:annexshell-p2phttp.socket"}
            options = ("--wideopen", f"--workers={workers}")
            with Program(place.directory, *options, environ=names, listening=[tcp, local]) as program:
                # In the words of "systemctl status".
                assert f"127.0.0.1:{tcp.getsockname()[1]}, {directory}/s" in program.said[0]
                for ours in (tcp, local):
                    connected = socket.socket(ours.family)
                    connected.settimeout(20)
                    connected.connect(ours.getsockname())
                    assert program.post("checkpresent", connected, key=HELLO).json == {"present": True}
                program.tell(signal.SIGTERM)
                assert program.next_said() == "STOPPING=1\nSTATUS=Finishing what was begun"
                program.ended()
            # They are the manager's, and stay.
            assert os.path.exists(f"{directory}/s")
            socket.create_connection(tcp.getsockname(), timeout=20).close()

    def test_who_has_none_is_not_mistaken(self, tmp_path):
        """For another process, as its environment may be ours."""
        place = Place(tmp_path / "annex")
        with Program(place.directory, "--wideopen", environ={"LISTEN_PID": "1", "LISTEN_FDS": "1"}) as program:
            assert program.post("gettimestamp").status == 200
            assert program.stop() == ""


def free_descriptors(count: int) -> int:
    """The first of several that are not in use."""
    with open(os.devnull) as file:
        return file.fileno() + 100 + count


def settings(unit: str, section: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    current = ""
    for line in (UNITS / unit).read_text().splitlines():
        if line.startswith("["):
            current = line[1:-1]
        elif line and not line.startswith("#") and current == section:
            name, equals, value = line.partition("=")
            assert equals, line
            found.setdefault(name, []).append(value)
    return found


class TestUnits:
    def test_the_service_is_started_as_it_is_written(self):
        service = settings("annexshell-p2phttp.service", "Service")
        assert service["Type"] == ["notify"]
        (command,) = service["ExecStart"]
        words = shlex.split(command)
        assert words[:3] == ["/usr/bin/env", "annexshell", "p2phttp"]
        (directory,) = (word.removeprefix("--directory=") for word in words if word.startswith("--directory="))
        assert service["ReadWritePaths"] == [directory]

    def test_it_may_finish_before_its_children_are_killed(self):
        service = settings("annexshell-p2phttp.service", "Service")
        assert service["KillMode"] == ["mixed"]
        (timeout,) = service["TimeoutStopSec"]
        assert int(timeout.removesuffix("s")) > Limits().grace + server.CLOSING + supervisor.EXTRA

    def test_it_is_started_again_if_it_hangs(self):
        service = settings("annexshell-p2phttp.service", "Service")
        assert service["WatchdogSec"] == ["2min"]
        assert service["Restart"] == ["on-failure"]  # which that is

    def test_its_options_are_ours(self, tmp_path):
        place = Place(tmp_path / "annex")
        (command,) = settings("annexshell-p2phttp.service", "Service")["ExecStart"]
        options = [
            f"--directory={tmp_path}" if word.startswith("--directory=") else word
            for word in shlex.split(command)[3:]
        ]
        # As in the file that the unit names.
        users = {"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret", "GIT_ANNEX_P2PHTTP_PERMISSIONS_alice": "readonly"}
        (listening,) = settings("annexshell-p2phttp.socket", "Socket")["ListenStream"]
        assert listening == str(DEFAULT_PORT)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            waiting = socket.create_connection(listener.getsockname(), timeout=20)
            with Program(tmp_path, *options, environ=users, listening=[listener]) as program:
                basic = {"Authorization": "Basic YWxpY2U6c2VjcmV0"}
                answer = program.post("gettimestamp", waiting, uuid=place.uuid, headers=basic)
                assert answer.status == 200
                program.stop()

    def test_it_may_do_what_a_repository_needs(self):
        """Shared repositories have directories with the set-group-ID bit."""
        service = settings("annexshell-p2phttp.service", "Service")
        assert not {"RestrictSUIDSGID", "DynamicUser", "PrivateUsers", "PrivateNetwork"} & service.keys()
        assert service["NoNewPrivileges"] == ["yes"]
        assert service["ProtectSystem"] == ["strict"]

    def test_the_socket_is_for_the_server_and_not_for_each_connection(self):
        assert settings("annexshell-p2phttp.socket", "Socket")["Accept"] == ["no"]
        assert settings("annexshell-p2phttp.socket", "Socket")["ListenStream"] == ["9417"]

    def test_names_of_settings_are_those_of_systemd(self):
        """As far as systemd is there to say so; it takes no notice of what it does not know."""
        for unit in sorted(UNITS.iterdir()):
            try:
                checked = subprocess.run(
                    ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, timeout=60
                )
            except FileNotFoundError:
                continue
            about_it = [line for line in checked.stderr.splitlines() if unit.name in line]
            assert not [line for line in about_it if "Unknown" in line or "ailed to parse" in line], checked.stderr
