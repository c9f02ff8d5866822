"""The server's life, seen from outside: how it begins, what it is told, how it ends."""

from __future__ import annotations

import os
import signal
import socket
import stat
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest

from tests.http.doors import HELLO, Place, key_of, quoted, target, wait_until
from tests.http.program import ROOT, Program
from tests.shell import git


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    return place


def serve(place: Place, *options: str, **how: object) -> Program:
    return Program(place.directory, "--wideopen", *options, **how)  # type: ignore[arg-type]


def is_committed(place: Place, key: object) -> bool:
    return str(key) in git(place.directory, "ls-tree", "-r", "--name-only", "git-annex")


class TestTheEnd:
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_of_a_server_that_nobody_uses(self, place, number):
        with serve(place) as program, program.socket(), closing(program.connect()) as idle:
            assert idle.ask("POST", target("gettimestamp", 4)).status == 200
            began = time.monotonic()
            assert program.stop(number) == ""
            assert time.monotonic() - began < 5
            assert program.next_said().startswith("STOPPING=1\n")
            assert idle.sock.recv(1) == b""
            with pytest.raises(ConnectionRefusedError):
                program.socket()

    def test_an_upload_is_completed_and_committed(self, place):
        content = os.urandom(3 << 20)
        key = key_of(content)
        with serve(place) as program, closing(program.connect()) as client:
            client.send_head("POST", target("put", 4, key=key), {"X-git-annex-data-length": str(len(content))}, ())
            client.send_chunk(content[: 1 << 20])
            wait_until(lambda: place.partial(key))
            program.tell(signal.SIGTERM)
            program.next_said()
            time.sleep(0.3)
            client.send_chunk(content[1 << 20 :])
            client.send_chunk(b"")
            answer = client.answer()
            assert answer.json == {"stored": True, "plusuuids": []}
            assert answer.headers["connection"] == "close"
            program.ended()
        assert place.content(key) == content
        assert f"{key}.log" in git(place.directory, "ls-tree", "-r", "--name-only", "git-annex")

    def test_a_download_is_completed(self, place):
        content = os.urandom(8 << 20)
        key = place.store(key_of(content), content)
        with serve(place) as program, closing(program.connect()) as client:
            client.send_head("GET", f"/git-annex/{place.uuid}/key/{quoted(key)}", {})
            client.sock.recv(1, socket.MSG_PEEK)
            program.tell(signal.SIGTERM)
            program.next_said()
            time.sleep(0.2)
            assert client.answer("GET").body == content
            program.ended()

    def test_what_does_not_end_is_cut_off(self, place):
        big = place.store(key_of(b"\0" * (16 << 20)), b"\0" * (16 << 20))
        absent = key_of(b"x" * 1000)
        with (
            serve(place, "--grace=0.5") as program,
            closing(program.connect()) as reader,
            closing(program.connect()) as writer,
        ):
            reader.send_head("GET", f"/git-annex/{place.uuid}/key/{quoted(big)}", {})
            reader.sock.recv(1, socket.MSG_PEEK)
            writer.send_head("POST", target("put", 4, key=absent), {"X-git-annex-data-length": "1000"}, ())
            writer.send_chunk(b"x" * 500)
            wait_until(lambda: place.partial(absent))
            began = time.monotonic()
            program.stop()
            assert 0.5 <= time.monotonic() - began < 6
            assert not reader.answer("GET").complete
            with pytest.raises((ConnectionError, OSError)):
                writer.answer()
        # It can be resumed, and nobody is in its way.
        assert place.partial(absent) == b"x" * 500

    def test_locks_do_not_delay_it_and_are_kept_on_disk(self, place):
        with serve(place) as program, closing(program.connect()) as client:
            lockid = program.post("lockcontent", key=HELLO).json["lockid"]
            client.send_head("POST", target("keeplocked", 4, lockid=lockid), {}, ())
            client.send_chunk(b'{"unlock":false}\n')
            time.sleep(0.2)
            began = time.monotonic()
            program.stop()
            assert time.monotonic() - began < 8
        with serve(place) as program:
            assert program.post("remove", key=HELLO).json == {"removed": False, "plusuuids": []}
        assert place.content(HELLO) == b"hello\n"

    def test_a_client_that_unlocks_at_that_moment_is_heard(self, place):
        with serve(place) as program, closing(program.connect()) as client:
            lockid = program.post("lockcontent", key=HELLO).json["lockid"]
            client.send_head("POST", target("keeplocked", 4, lockid=lockid), {}, ())
            client.send_chunk(b'{"unlock":false}\n')
            program.tell(signal.SIGTERM)
            program.next_said()
            client.send_chunk(b'{"unlock":true}\n')
            client.send_chunk(b"")
            assert client.answer().json == {"locked": False}
            program.ended()
        with serve(place) as program:
            assert program.post("remove", key=HELLO).json["removed"] is True

    def test_a_second_signal_ends_it_at_once(self, place):
        with serve(place) as program, closing(program.connect()) as client:
            client.send_head("POST", target("put", 4, key=key_of(b"abc")), {"X-git-annex-data-length": "3"}, ())
            client.send_chunk(b"a")
            wait_until(lambda: place.partial(key_of(b"abc")))
            program.tell(signal.SIGTERM)
            program.next_said()
            began = time.monotonic()
            program.tell(signal.SIGINT)
            program.ended(-signal.SIGINT)
            assert time.monotonic() - began < 10

    def test_a_node_that_never_answers_is_not_waited_for(self, tmp_path, place):
        """Its thread cannot be told to stop."""
        node = "33333333-3333-4333-8333-333333333333"
        (tmp_path / "bin").mkdir()
        silent = tmp_path / "bin" / "ssh"
        silent.write_text(f"#!/bin/sh\necho $$ >> {tmp_path}/asked\nexec sleep 1000\n")
        silent.chmod(0o755)
        git(place.directory, "config", "remote.node.url", "ssh://silent/annex")
        git(place.directory, "config", "remote.node.annex-uuid", node)
        git(place.directory, "config", "remote.node.annex-proxy", "true")
        journal = place.git_dir / "annex" / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        (journal / "proxy.log").write_text(f"1s {place.uuid} {node}:node\n")
        with (
            serve(place, "--grace=0.3", environ={"PATH": f"{silent.parent}:{os.environ['PATH']}"}) as program,
            closing(program.connect()) as client,
        ):
            client.send_head("POST", target("checkpresent", 4, node, key=HELLO), {})
            wait_until((tmp_path / "asked").exists)
            began = time.monotonic()
            program.stop()
            assert time.monotonic() - began < 10
        for pid in (tmp_path / "asked").read_text().split():
            wait_until(lambda pid=pid: not Path(f"/proc/{pid}").exists() or _ended(int(pid)))

    def test_from_a_terminal(self, place):
        """There SIGINT goes to the git processes as well."""
        with serve(place, is_group=True) as program:
            assert program.post("remove", key=HELLO).json["removed"] is True
            os.killpg(program.process.pid, signal.SIGINT)
            program.ended()
        assert f"{HELLO}.log" in git(place.directory, "ls-tree", "-r", "--name-only", "git-annex")


def _ended(pid: int) -> bool:
    os.kill(pid, signal.SIGKILL)
    return True


class TestKilled:
    """By SIGKILL, or by a machine that loses its power."""

    @staticmethod
    def kill(program: Program) -> None:
        program.process.kill()
        program.ended(-signal.SIGKILL)

    def test_what_was_locked_stays_so_until_its_time_is_over(self, place):
        with serve(place) as program, closing(program.connect()) as client:
            lockid = program.post("lockcontent", key=HELLO).json["lockid"]
            client.send_head("POST", target("keeplocked", 4, lockid=lockid), {}, ())
            client.send_chunk(b'{"unlock":false}\n')
            assert program.post("remove", key=HELLO).json["removed"] is False
            self.kill(program)
        retention = place.beside(HELLO, ".rtm")
        with serve(place) as program:
            assert program.post("remove", key=HELLO).json == {"removed": False, "plusuuids": []}
            # The id means nothing any more.
            assert program.post("keeplocked", lockid=lockid).json == {"locked": False}
            assert program.post("remove", key=HELLO).json["removed"] is False
            retention.write_text(f"{time.time() - 1}s\n")
            assert program.post("remove", key=HELLO).json["removed"] is True

    def test_an_upload_is_gone_on_with(self, place):
        content = os.urandom(3 << 20)
        key = key_of(content)
        with serve(place) as program, closing(program.connect()) as client:
            client.send_head("POST", target("put", 4, key=key), {"X-git-annex-data-length": str(len(content))}, ())
            client.send_chunk(content[: 1 << 20])
            wait_until(lambda: len(place.partial(key) or b"") >= 1 << 20)
            self.kill(program)
        with serve(place) as program, closing(program.connect()) as client:
            offset = program.post("putoffset", key=key).json["offset"]
            assert offset == 1 << 20
            headers = {"X-git-annex-data-length": str(len(content) - offset)}
            answer = client.ask("POST", target("put", 4, key=key, offset=offset), headers, content[offset:])
            assert answer.json == {"stored": True, "plusuuids": []}
        assert place.content(key) == content

    def test_what_was_recorded_is_committed_later(self, place):
        with serve(place) as program:
            assert program.post("remove", key=HELLO).json["removed"] is True
            self.kill(program)
        assert f" 0 {place.uuid}".encode() in place.logged(HELLO)
        with serve(place) as program:
            assert program.post("remove", key=key_of(b"x")).json["removed"] is True
            wait_until(lambda: is_committed(place, HELLO))

    @pytest.mark.parametrize("workers", [1, 2])
    def test_its_socket_is_replaced(self, place, workers):
        with tempfile.TemporaryDirectory() as directory:  # of a short name
            path = Path(directory) / "http.sock"

            def connect() -> socket.socket:
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(20)
                client.connect(str(path))
                return client

            options = [f"--socket={path}", f"--workers={workers}"]
            with serve(place, *options) as program:
                running = program.workers() if workers > 1 else []
                self.kill(program)
            wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in running))
            assert path.is_socket()
            with pytest.raises(ConnectionRefusedError):
                connect()
            with serve(place, *options) as program:
                assert program.post("checkpresent", connect(), key=HELLO).json == {"present": True}
                assert program.stop() == ""
            assert not path.exists()


class TestWithout:
    def test_uvloop(self, tmp_path, place):
        (tmp_path / "uvloop.py").write_text("raise ImportError\n")
        with serve(place, environ={"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}) as program:
            assert program.post("checkpresent", key=HELLO).json == {"present": True}
            assert program.stop() == ""


class TestSockets:
    @pytest.mark.parametrize("workers", [1, 2])
    def test_a_unix_socket(self, place, workers):
        key = key_of(b"abc")
        with tempfile.TemporaryDirectory() as directory:  # of a short name
            path = Path(directory) / "http.sock"

            def connect() -> socket.socket:
                client = socket.socket(socket.AF_UNIX)
                client.settimeout(20)
                client.connect(str(path))
                return client

            options = ["--wideopen", f"--socket={path}", f"--workers={workers}"]
            with Program(place.directory, *options) as program, closing(program.connect(connect())) as client:
                assert stat.S_IMODE(path.stat().st_mode) == 0o700
                assert str(path) in program.said[0]
                assert program.post("checkpresent", connect(), key=HELLO).json == {"present": True}
                client.send_head("POST", target("put", 4, key=key), {"X-git-annex-data-length": "3"}, ())
                client.send_chunk(b"a")
                wait_until(lambda: place.partial(key))
                program.tell(signal.SIGTERM)
                program.next_said()
                # Nobody comes any more, while it goes on.
                wait_until(lambda: not path.exists())
                client.send_chunk(b"bc")
                client.send_chunk(b"")
                assert client.answer().json["stored"] is True
                assert program.ended() == ""

    @pytest.mark.parametrize("workers", [1, 2])
    def test_of_the_service_manager(self, place, workers):
        """It keeps them: connections wait while we are started again."""
        tcp = socket.create_server(("127.0.0.1", 0))
        with tcp:
            port = tcp.getsockname()[1]
            for _ in range(2):
                waiting = socket.create_connection(("127.0.0.1", port), timeout=20)
                with serve(place, f"--workers={workers}", listening=[tcp]) as program:
                    assert program.post("checkpresent", waiting, key=HELLO).json == {"present": True}
                    assert "are not used" in program.stop()

    def test_a_tcp_port_that_is_taken_again_at_once(self, place):
        with serve(place) as program:
            port = program.port
            with closing(program.connect()) as client:
                assert client.ask("POST", target("gettimestamp", 4)).status == 200
                program.stop()
        with Program(place.directory, "--wideopen", f"--port={port}") as program:
            assert program.port == port
