"""Several processes on one port."""

from __future__ import annotations

import http.client
import itertools
import os
import signal
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from annexshell.http import supervisor
from annexshell.http.listening import CannotListen
from annexshell.http.locks import worker_of
from annexshell.http.supervisor import Supervisor, Worker
from tests.http.certificates import contexts, make_certificate
from tests.http.doors import HELLO, Connection, Place, key_of, target, wait_until
from tests.http.program import Program
from tests.shell import git

COUNT = 3


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    return place


@pytest.fixture
def program(place: Place) -> Iterator[Program]:
    with Program(place.directory, "--wideopen", f"--workers={COUNT}") as program:
        yield program


def lock(program: Program, **headers: str) -> str:
    lockid: str = program.post("lockcontent", key=HELLO, headers=headers).json["lockid"]
    return lockid


def locks_of_all(program: Program) -> dict[str, int]:
    """Locks, with the number of the worker that each is of; of all workers."""
    found: dict[str, int] = {}
    while len(set(found.values())) < COUNT:
        lockid = lock(program)
        worker = worker_of(lockid.encode())
        assert worker is not None
        found[lockid] = worker
        assert len(found) < 60, f"only workers {set(found.values())} answer"
    return found


def keep(client: Connection, lockid: str, **headers: str) -> None:
    client.send_head("POST", target("keeplocked", 4, lockid=lockid), headers, ())
    client.send_chunk(b'{"unlock":false}\n')


def is_removable(program: Program) -> bool:
    removed: bool = program.post("remove", key=HELLO).json["removed"]
    return removed


class TestTogether:
    def test_all_of_them_answer(self, program):
        assert len(program.workers()) == COUNT
        assert set(locks_of_all(program).values()) == set(range(COUNT))

    def test_any_of_them_ends_a_lock_at_once(self, program):
        # By connections to whichever worker gets them, so by chance some are right.
        for lockid in [*locks_of_all(program), *(lock(program) for _ in range(6))]:
            with closing(program.connect()) as client:
                keep(client, lockid)
                client.send_chunk(b'{"unlock":true}\n')
                assert client.answer().json == {"locked": False}  # before the end of the body
        assert is_removable(program)

    def test_a_client_that_goes_away_unlocks_nothing(self, program):
        for lockid in locks_of_all(program):
            for _ in range(2):
                with closing(program.connect()) as client:
                    keep(client, lockid)
                    client.sock.shutdown(socket.SHUT_WR)
        time.sleep(0.3)
        assert not is_removable(program)

    def test_an_end_without_a_word_unlocks_nothing(self, program):
        for lockid in locks_of_all(program):
            with closing(program.connect()) as client:
                keep(client, lockid)
                client.send_chunk(b"")
                assert client.answer().json == {"locked": False}
        assert not is_removable(program)

    def test_a_body_that_makes_no_sense_unlocks_nothing(self, program):
        for lockid in locks_of_all(program):
            with closing(program.connect()) as client:
                keep(client, lockid)
                client.send(b"what?\r\n")
                assert client.answer().status in (200, 400)
        assert not is_removable(program)

    def test_a_lock_that_there_is_not(self, program):
        for lockid in [
            *locks_of_all(program),
            "00000000-0000-4000-8000-000000000001",
            "00000000-0000-4000-8000-00000000ffff",
        ]:
            answer = program.post("keeplocked", uuid="00000000-0000-4000-8000-000000000000", lockid=lockid)
            assert answer.status == 404
        answer = program.post("keeplocked", lockid="00000000-0000-4000-8000-000000000001")
        assert answer.json == {"locked": False}

    def test_nobody_else_gets_in_between(self, program):
        (directory,) = program.runtime.iterdir()
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert sorted(path.name for path in directory.iterdir()) == [str(number) for number in range(COUNT)]
        program.stop()
        assert list(program.runtime.iterdir()) == []

    def test_passwords_hold_for_all(self, place):
        basic = {"Authorization": "Basic YWxpY2U6c2VjcmV0"}
        with Program(
            place.directory,
            "--authenv-http",
            f"--workers={COUNT}",
            environ={"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret"},
        ) as program:
            lockid = lock(program, **basic)
            for _ in range(12):
                assert program.post("keeplocked", lockid=lockid).status == 401
                assert program.post("keeplocked", lockid=lockid, headers=basic).json == {"locked": False}

    def test_with_tls(self, tmp_path, place):
        """Whoever gets a request passed on knows that it came by TLS, and believes that of nobody else."""
        certificate = make_certificate(tmp_path / "certificate")
        _, trust = contexts(certificate)
        basic = {"Authorization": "Basic YWxpY2U6c2VjcmV0"}
        with Program(
            place.directory,
            "--authenv",
            f"--workers={COUNT}",
            f"--certfile={certificate}",
            f"--privatekeyfile={certificate}",
            environ={"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret"},
        ) as program:
            lockid = program.post("lockcontent", program.socket(trust), key=HELLO, headers=basic).json["lockid"]
            for _ in range(12):
                answer = program.post("keeplocked", program.socket(trust), lockid=lockid, headers=basic)
                assert answer.json == {"locked": False}
        with Program(
            place.directory,
            "--authenv",
            f"--workers={COUNT}",
            environ={"GIT_ANNEX_P2PHTTP_PASSWORD_alice": "secret"},
        ) as program:
            for number in range(COUNT):
                for _ in range(4):
                    lockid = f"00000000-0000-4000-8000-{number:012x}"
                    lie = basic | {"X-Annexshell-Scheme": "https"}
                    assert program.post("keeplocked", lockid=lockid, headers=lie).status == 401

    def test_what_was_recorded_is_committed_at_the_end(self, place, program):
        keys = []
        for number in range(6):
            content = b"content %d" % number
            keys.append(key_of(content))
            with closing(program.connect()) as client:
                answer = client.ask(
                    "POST",
                    target("put", 4, key=keys[-1]),
                    {"X-git-annex-data-length": str(len(content))},
                    content,
                )
                assert answer.json["stored"] is True
        assert program.stop() == ""
        names = git(place.directory, "ls-tree", "-r", "--name-only", "git-annex")
        assert all(f"{key}.log" in names for key in keys)


class TestWhenOneDies:
    def test_another_is_started(self, program):
        before = program.workers()
        os.kill(before[1], signal.SIGKILL)
        wait_until(lambda: len(program.workers()) == COUNT and program.workers() != before)
        wait_until(lambda: _answers(program, 1))
        errors = program.stop()
        assert errors == "  worker 1 was killed by signal 9; starting another one in 1 s\n"

    def test_its_locks_stay_on_disk(self, program):
        lockid = next(lockid for lockid, worker in locks_of_all(program).items() if worker == 2)
        pid = program.workers()[2]
        clients = [program.connect() for _ in range(4)]
        for client in clients:
            keep(client, lockid)
        time.sleep(0.2)
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _is_running(pid))
        for client in clients:
            with closing(client):
                try:
                    client.send_chunk(b'{"unlock":true}\n')
                    client.send_chunk(b"")
                    assert client.answer().json == {"locked": False}  # what it is told for any lock that is not there
                except (ConnectionError, http.client.BadStatusLine):
                    pass  # it was connected to that worker
        for _ in range(6):
            assert program.post("keeplocked", lockid=lockid).json == {"locked": False}
        assert not is_removable(program)

    def test_its_locks_stay_even_if_the_others_end_theirs(self, program):
        locks = [*locks_of_all(program).items(), *locks_of_all(program).items()]
        pid = program.workers()[1]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not _is_running(pid))
        for lockid, worker in locks:
            if worker != 1:
                with closing(program.connect()) as client:
                    keep(client, lockid)
                    client.send_chunk(b'{"unlock":true}\n')
                    assert client.answer().json == {"locked": False}
        assert not is_removable(program)

    def test_all_end_when_the_parent_does(self, program):
        workers = program.workers()
        program.process.kill()
        wait_until(lambda: not any(map(_is_running, workers)))


class TestTheEnd:
    def test_one_signal_to_all_of_them(self, place):
        """As a terminal sends it."""
        with Program(place.directory, "--wideopen", "--workers=2", is_group=True) as program:
            with closing(program.connect()) as client:
                content = b"0123456789"
                key = key_of(content)
                client.send_head("POST", target("put", 4, key=key), {"X-git-annex-data-length": "10"}, ())
                client.send_chunk(content[:5])
                wait_until(lambda: place.partial(key))
                os.killpg(program.process.pid, signal.SIGINT)
                assert program.next_said().startswith("STOPPING=1")
                time.sleep(0.2)
                client.send_chunk(content[5:])
                client.send_chunk(b"")
                assert client.answer().json["stored"] is True
            program.ended()
        assert place.content(key) == content

    def test_a_second_signal(self, place, program):
        with closing(program.connect()) as client:
            client.send_head("POST", target("put", 4, key=key_of(b"abc")), {"X-git-annex-data-length": "3"}, ())
            client.send_chunk(b"a")
            wait_until(lambda: place.partial(key_of(b"abc")))
            workers = program.workers()
            program.tell(signal.SIGTERM)
            program.next_said()
            time.sleep(0.1)
            began = time.monotonic()
            program.stop()
            assert time.monotonic() - began < 10
            assert not any(map(_is_running, workers))


def _answers(program: Program, number: int) -> bool:
    return worker_of(lock(program).encode()) == number


def _is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        # Its sockets are open until the last of its threads has ended.
        return state != "Z" or len(os.listdir(f"/proc/{pid}/task")) > 1
    except OSError:
        return False


class TestSupervisor:
    """Without a server."""

    def run(self, work: Any, count: int = 2, patience: float = 1.0) -> int:
        """The exit status, in a process that no other signals than ours reach."""
        pid = os.fork()
        if not pid:
            status = 99
            try:
                status = Supervisor(count, work, patience).run()
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def test_one_that_cannot_begin_ends_all(self, tmp_path):
        def work(role: Worker) -> None:
            if role.place.number == 1:
                raise OSError(13, "no luck")
            role.ready()
            (tmp_path / "began").touch()
            signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
            time.sleep(60)

        began = time.monotonic()
        assert self.run(work) == 1
        assert time.monotonic() - began < 10

    def test_one_that_does_not_end_is_killed(self, monkeypatch):
        monkeypatch.setattr(supervisor, "EXTRA", 0.1)

        def work(role: Worker) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            role.ready()
            if role.place.number == 0:
                os.kill(os.getppid(), signal.SIGTERM)
            time.sleep(60)

        began = time.monotonic()
        assert self.run(work, patience=0.1) == 0
        assert time.monotonic() - began < 10

    def test_the_pause_becomes_longer(self, monkeypatch, tmp_path):
        monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.1)
        starts = tmp_path / "starts"

        def work(role: Worker) -> None:
            with open(starts, "a") as file:
                file.write(f"{time.monotonic()}\n")
            role.ready()
            if len(starts.read_text().split()) == 5:
                os.kill(os.getppid(), signal.SIGTERM)
            if len(starts.read_text().split()) < 5:
                os._exit(3)

        assert self.run(work, count=1) == 0
        times = [float(line) for line in starts.read_text().split()]
        pauses = [later - before for before, later in itertools.pairwise(times)]
        assert len(pauses) == 4
        for pause, least in zip(pauses, (0.1, 0.2, 0.4, 0.8), strict=True):
            assert least <= pause < least + 5

    def test_no_place_for_sockets(self, monkeypatch):
        for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(tempfile, "tempdir", "/proc/none")
        with pytest.raises(CannotListen, match=r"No such file or directory; set RUNTIME_DIRECTORY .* --workers=1"):
            Supervisor(2, lambda role: None, 1.0).run()

    def test_signals_reach_none_that_was_just_started_again(self, monkeypatch, tmp_path):
        monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.1)

        def work(role: Worker) -> None:
            is_second = (tmp_path / "began").exists()
            (tmp_path / "began").touch()
            if is_second:
                os.kill(os.getppid(), signal.SIGHUP)
                time.sleep(0.3)
                os.kill(os.getppid(), signal.SIGTERM)
                time.sleep(60)
            role.ready()
            time.sleep(0.2)
            os._exit(5)

        assert self.run(work, count=1) == 0
        assert (tmp_path / "began").exists()

    def test_signals_reach_no_worker_that_has_no_handler(self):
        """SIGHUP would end it."""

        def work(role: Worker) -> None:
            if role.place.number == 0:
                os.kill(os.getppid(), signal.SIGHUP)
                time.sleep(0.3)
                signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getppid(), signal.SIGTERM))
                role.ready()
                time.sleep(0.2)
                os.kill(os.getppid(), signal.SIGHUP)
            else:
                role.ready()
                signal.signal(signal.SIGHUP, signal.SIG_IGN)
            time.sleep(60)

        assert self.run(work) == 0
