"""The sockets that requests come in by."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell.http import listening
from annexshell.http.listening import CannotListen, Listeners, listen

HAS_IPV6 = Path("/proc/net/if_inet6").exists() and "::1" in str(socket.getaddrinfo("::1", 1))


def connect(address: object, family: int = socket.AF_INET) -> socket.socket:
    client = socket.socket(family, socket.SOCK_STREAM)
    try:
        client.settimeout(10)
        client.connect(address)
    except BaseException:
        client.close()
        raise
    return client


def answers(listener: socket.socket, address: object) -> bool:
    """Whether a connection to ADDRESS comes in by LISTENER."""
    listener.settimeout(10)
    with connect(address, listener.family) as client:
        server, _ = listener.accept()
        with server:
            server.sendall(b"x")
            return client.recv(1) == b"x"


def families(listeners: Listeners) -> list[socket.AddressFamily]:
    return sorted(listener.family for listener in listeners._sockets)


def everywhere() -> list[socket.AddressFamily]:
    """The families that this machine has."""
    found = [socket.AF_INET]
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::", 0))
        found.append(socket.AF_INET6)
    except OSError:
        pass
    return found


class TestTcp:
    def test_one_address(self):
        with listen("127.0.0.1", 0) as listeners:
            (own,) = listeners.for_worker()
            with own:
                assert listeners.port
                assert answers(own, ("127.0.0.1", listeners.port))
                assert listeners.addresses() == [f"127.0.0.1:{listeners.port}"]

    def test_all_addresses_have_the_same_port(self):
        with listen(None, 0) as listeners:
            assert families(listeners) == everywhere()
            assert len({listener.getsockname()[1] for listener in listeners._sockets}) == 1
            for listener in listeners._sockets:
                host = "127.0.0.1" if listener.family == socket.AF_INET else "::1"
                if host == "127.0.0.1" or HAS_IPV6:
                    assert answers(listener, (host, listeners.port))
            assert f"0.0.0.0:{listeners.port}" in listeners.addresses()

    def test_a_host_name(self):
        with listen("localhost", 0) as listeners:
            assert any(address.startswith(("127.", "[::1]")) for address in listeners.addresses())

    def test_all_addresses_of_a_host(self, monkeypatch):
        give(monkeypatch, "127.0.0.1", "127.0.0.2")
        with listen("host", 0) as listeners:
            assert listeners.addresses() == [f"127.0.0.{n}:{listeners.port}" for n in (1, 2)]
            for listener in listeners._sockets:
                assert answers(listener, listener.getsockname())

    def test_addresses_that_this_machine_does_not_have_are_left_out(self, monkeypatch):
        give(monkeypatch, "192.0.2.1", "127.0.0.1")
        with listen("host", 0) as listeners:
            assert listeners.addresses() == [f"127.0.0.1:{listeners.port}"]

    def test_not_if_there_are_no_others(self, monkeypatch):
        give(monkeypatch, "192.0.2.1")
        with pytest.raises(CannotListen, match=r"cannot listen on 192\.0\.2\.1:0: Cannot assign requested address"):
            listen("host", 0)

    def test_an_unknown_host(self):
        with pytest.raises(CannotListen, match=r"cannot listen on nowhere\.invalid, port 9417: "):
            listen("nowhere.invalid")

    @pytest.mark.parametrize("host", ["a" * 70, "a..b", "\udcff"])
    def test_what_can_be_no_host(self, host):
        with pytest.raises(CannotListen):
            listen(host)

    @pytest.mark.parametrize("port", [-1, 65536])
    def test_what_can_be_no_port(self, port):
        with pytest.raises(CannotListen, match="is no port"):
            listen("127.0.0.1", port)

    @pytest.mark.parametrize("workers", [1, 3])
    def test_a_port_in_use(self, workers):
        in_use = pytest.raises(CannotListen, match=r"127\.0\.0\.1:\d+: Address already in use")
        with listen("127.0.0.1", 0, workers=1) as first, in_use:
            listen("127.0.0.1", first.port or 0, workers=workers)

    def test_a_port_that_is_in_use_on_one_address_only(self, monkeypatch):
        with listen("127.0.0.2", 0) as other:
            port = other.port or 0
            with monkeypatch.context() as patch:
                give(patch, "127.0.0.1", "127.0.0.2", port=port)
                with pytest.raises(CannotListen, match="Address already in use"):
                    listen("host", port)
            # What was opened for the first address is closed again.
            with listen("127.0.0.1", port):
                pass

    def test_connections_that_linger_are_no_obstacle_to_a_restart(self):
        with listen("127.0.0.1", 0) as first:
            port = first.port or 0
            (listener,) = first._sockets
            client = connect(("127.0.0.1", port))
            server, _ = listener.accept()
            server.close()  # first, so that it is this side that has to remember the connection
            client.close()
        with listen("127.0.0.1", port) as again:
            assert again.port == port

    def test_peers_that_vanish_are_noticed(self):
        with listen("127.0.0.1", 0) as listeners:
            (listener,) = listeners._sockets
            with connect(listener.getsockname()):
                server, _ = listener.accept()
                with server:
                    assert server.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                    assert server.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60

    def test_children_do_not_inherit_them(self):
        with listen("127.0.0.1", 0) as listeners:
            (own,) = listeners.for_worker()
            with own:
                assert not any(listener.get_inheritable() for listener in (own, *listeners._sockets))


def give(monkeypatch: pytest.MonkeyPatch, *hosts: str, port: int = 0) -> None:
    """Have every name lead to these addresses."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, port)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


class TestWorkers:
    def test_each_has_sockets_of_its_own(self):
        with listen("127.0.0.1", 0, workers=3) as listeners:
            address = ("127.0.0.1", listeners.port)
            with pytest.raises(ConnectionRefusedError):
                connect(address)  # nobody would ever accept it
            workers = [listeners.for_worker()[0] for _ in range(3)]
            try:
                for worker in workers:
                    worker.setblocking(False)
                clients = [connect(address) for _ in range(60)]
                got = [count_waiting(worker) for worker in workers]
                for client in clients:
                    client.close()
                assert sum(got) == 60
                assert min(got) > 0
                workers.pop().close()
                # What is left gets all of it.
                clients = [connect(address) for _ in range(20)]
                assert sum(map(count_waiting, workers)) == 20
                for client in clients:
                    client.close()
            finally:
                for worker in workers:
                    worker.close()

    def test_another_server_is_noticed(self):
        with listen("127.0.0.1", 0, workers=2) as first:
            (worker,) = first.for_worker()
            with worker, pytest.raises(CannotListen, match="Address already in use"):
                listen("127.0.0.1", first.port or 0, workers=2)

    def test_a_unix_socket_is_shared(self, tmp_path):
        path = tmp_path / "s"
        with listen(path=os.fsencode(path), workers=2) as listeners:
            workers = [listeners.for_worker()[0] for _ in range(2)]
            for worker in workers:
                assert answers(worker, str(path))
                worker.close()
            assert path.is_socket()

    def test_a_worker_that_ends_leaves_the_socket(self, tmp_path):
        path = tmp_path / "s"
        with listen(path=os.fsencode(path), workers=2) as listeners:
            pid = os.fork()
            if pid == 0:
                try:
                    listeners.close()
                finally:
                    os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert path.is_socket()
        assert not path.exists()


def count_waiting(listener: socket.socket) -> int:
    count = 0
    try:
        while True:
            listener.accept()[0].close()
            count += 1
    except BlockingIOError:
        return count


class TestUnixSocket:
    def test_for_us_alone_and_gone_afterwards(self, tmp_path):
        path = tmp_path / "s"
        before = os.umask(0)
        try:
            with listen("ignored.invalid", 1, os.fsencode(path)) as listeners:
                assert os.umask(0) == 0  # as it was
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
                assert answers(listeners._sockets[0], str(path))
                assert listeners.addresses() == [str(path)]
                assert listeners.port is None
            assert not path.exists()
        finally:
            os.umask(before)

    def test_one_that_was_left_behind_is_replaced(self, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
            left.listen()
        assert path.is_socket()
        with listen(path=os.fsencode(path)) as listeners:
            assert answers(listeners._sockets[0], str(path))

    def test_one_that_is_served_is_refused(self, tmp_path):
        path = tmp_path / "s"
        with listen(path=os.fsencode(path)) as first:
            with pytest.raises(CannotListen, match=f"another server is listening on {path}"):
                listen(path=os.fsencode(path))
            accepted, _ = first._sockets[0].accept()  # the one that tried whether anybody is there
            accepted.close()
            assert answers(first._sockets[0], str(path))

    def test_also_when_that_server_is_too_busy_to_answer(self, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as busy:
            busy.bind(str(path))
            busy.listen(0)
            with connect(str(path), socket.AF_UNIX):
                with pytest.raises(CannotListen, match="another server"):
                    listen(path=os.fsencode(path))
                assert path.is_socket()

    def test_a_socket_of_another_kind_in_use_stays(self, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(str(path))
            with pytest.raises(CannotListen, match=r"/s: Protocol wrong type for socket"):
                listen(path=os.fsencode(path))
            assert path.is_socket()

    @pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
    def test_what_is_not_a_socket_is_not_touched(self, tmp_path, kind):
        path = tmp_path / "s"
        if kind == "file":
            path.write_text("precious")
        elif kind == "directory":
            path.mkdir()
        else:
            path.symlink_to("precious")
        with pytest.raises(CannotListen, match=f"{path} exists and is not a socket"):
            listen(path=os.fsencode(path))
        assert os.path.lexists(path)
        assert kind != "file" or path.read_text() == "precious"

    def test_what_another_server_has_put_in_its_place_is_not_removed(self, tmp_path):
        path = tmp_path / "s"
        with listen(path=os.fsencode(path)):
            path.rename(tmp_path / "before")
            with socket.socket(socket.AF_UNIX) as other:
                other.bind(str(path))
        assert path.is_socket()

    def test_it_may_be_gone_already(self, tmp_path):
        with listen(path=os.fsencode(tmp_path / "s")):
            (tmp_path / "s").unlink()

    def test_a_relative_path_stays_the_same(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with listen(path=b"s") as listeners:
            monkeypatch.chdir("/")
            assert listeners.addresses() == [str(tmp_path / "s")]
        assert not (tmp_path / "s").exists()

    def test_a_missing_directory(self, tmp_path):
        with pytest.raises(CannotListen, match=f"cannot listen on {tmp_path}/no/s: No such file or directory"):
            listen(path=os.fsencode(tmp_path / "no" / "s"))

    def test_a_path_that_is_too_long(self, tmp_path):
        directory = tmp_path / ("d" * 100)
        directory.mkdir()
        with pytest.raises(CannotListen, match="too long"):
            listen(path=os.fsencode(directory / "s"))

    def test_of_many_that_start_at_once_over_an_old_one_only_one_does(self, tmp_path):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(path))
        begin = threading.Barrier(8)
        started: list[Listeners] = []

        def start() -> None:
            begin.wait()
            try:
                started.append(listen(path=os.fsencode(path)))
            except CannotListen:
                pass

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        (only,) = started
        with only:
            assert path.is_socket()

    def test_somebody_who_locks_the_directory_cannot_keep_us_from_starting(self, tmp_path, monkeypatch):
        monkeypatch.setattr(listening, "_LOCK_PATIENCE", 0.05)
        fd = os.open(tmp_path, os.O_RDONLY)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with listen(path=os.fsencode(tmp_path / "s")) as listeners:
                assert answers(listeners._sockets[0], str(tmp_path / "s"))
        finally:
            os.close(fd)


# Moves a descriptor to where a service manager would have it, and says whose it is.
HAND_OVER = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="web")
os.execv(sys.executable, [sys.executable, "-c", sys.argv[2]])
"""
SERVE = """
import os
from annexshell.http.listening import listen
with listen() as listeners:
    (own,) = listeners.for_worker()
    connection, _ = own.accept()
    left = [name for name in os.environ if name.startswith("LISTEN_")]
    connection.sendall(repr((listeners.addresses(), os.get_inheritable(3), left)).encode())
"""


class TestServiceManager:
    def test_its_sockets_are_used(self):
        with socket.create_server(("127.0.0.1", 0)) as ours:
            child = subprocess.Popen(
                [sys.executable, "-c", HAND_OVER, str(ours.fileno()), SERVE],
                pass_fds=[ours.fileno()],
                cwd=Path(listening.__file__).parents[2],
            )
            try:
                with connect(ours.getsockname()) as client:
                    said = client.recv(1000).decode()
                assert said == repr(([f"127.0.0.1:{ours.getsockname()[1]}"], False, []))
                assert child.wait(10) == 0
            finally:
                child.kill()
                child.wait()

    def test_a_unix_socket_of_its_is_not_removed(self, tmp_path, monkeypatch):
        path = tmp_path / "s"
        with socket.socket(socket.AF_UNIX) as ours:
            ours.bind(str(path))
            ours.listen()
            hand_over(monkeypatch, ours)
            with listen() as listeners:
                assert listeners.addresses() == [str(path)]
            assert path.is_socket()

    def test_options_are_not_used_then(self, tmp_path, monkeypatch, capfd):
        with socket.create_server(("127.0.0.1", 0)) as ours:
            hand_over(monkeypatch, ours)
            with listen(path=os.fsencode(tmp_path / "s"), workers=2) as listeners:
                assert listeners.port == ours.getsockname()[1]
                workers = [listeners.for_worker()[0] for _ in range(2)]
                for worker in workers:
                    with worker:
                        assert answers(worker, ours.getsockname())
        assert not (tmp_path / "s").exists()
        assert "the service manager gave us sockets" in capfd.readouterr().err

    def test_what_cannot_be_used(self, monkeypatch):
        with socket.socket() as idle:
            hand_over(monkeypatch, idle)
            with pytest.raises(CannotListen, match=r"\(web\) does not listen; use ListenStream= and Accept=no"):
                listen()

    def test_those_of_another_process_are_not_ours(self, monkeypatch):
        monkeypatch.setenv("LISTEN_PID", str(os.getppid()))
        monkeypatch.setenv("LISTEN_FDS", "5")
        with listen("127.0.0.1", 0) as listeners:
            assert len(listeners.addresses()) == 1
        assert "LISTEN_FDS" not in os.environ


def hand_over(monkeypatch: pytest.MonkeyPatch, listener: socket.socket) -> None:
    """Hand over a duplicate of LISTENER."""
    from annexshell.http import systemd

    take: Callable[..., list[socket.socket]] = systemd.take_sockets
    fd = os.dup(listener.fileno())
    monkeypatch.setattr(systemd, "take_sockets", lambda: take(first=fd))
    monkeypatch.setenv("LISTEN_PID", str(os.getpid()))
    monkeypatch.setenv("LISTEN_FDS", "1")
    monkeypatch.setenv("LISTEN_FDNAMES", "web")


def test_without_ipv6(monkeypatch):
    """As where the kernel has been told to do without: all addresses are those that there are."""
    create = socket.socket

    def refuse(family: int, *rest: object, **how: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return create(family, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "socket", refuse)
    with listen(None, 0) as listeners:
        assert listeners.addresses() == [f"0.0.0.0:{listeners.port}"]
