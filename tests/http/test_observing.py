"""What can be seen of a server while it works."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from annexshell.annex.branch import Branch
from annexshell.errors import RepositoryError
from annexshell.http import listening, users
from annexshell.http.accesslog import LogFile
from annexshell.http.observing import Watch
from annexshell.http.server import Limits
from tests.http.doors import CLIENT, HELLO, SERVED, Door, Place, key_of, target, wait_until
from tests.http.program import Program, failure

CHECK = target("checkpresent", key=HELLO)
LARGE = b"0123456789abcdef" * (1 << 17)
HUGE = LARGE * 16  # more than fits in between


class Numbers:
    """What Prometheus gets to know."""

    def __init__(self, text: str) -> None:
        self._values = {
            (sample.name.removeprefix("annexshell_http_"), tuple(sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float | None:
        return self._values.get((name, tuple(sorted(labels.items()))))


def fetch(port: int, path: str = "/metrics", method: str = "GET") -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers.get("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


class Watched:
    """A server in this process, with metrics and a log."""

    def __init__(self, open_door: Callable[..., Door], path: Path, **options: Any) -> None:
        self._path = path
        self._listeners = listening.listen_beside("127.0.0.1", 0)
        assert self._listeners.port is not None
        self.port = self._listeners.port
        watch = Watch(LogFile(os.fsencode(path), delay=0.01), "json", self._listeners, options.pop("proxy", False))
        self.door = open_door(watch=watch, **options)

    def numbers(self) -> Numbers:
        status, kind, text = fetch(self.port)
        assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
        return Numbers(text)

    def entries(self, count: int) -> list[dict[str, Any]]:
        wait_until(lambda: self._path.read_bytes().count(b"\n") >= count)
        return [json.loads(line) for line in self._path.read_bytes().splitlines()]

    def entry(self, number: int = 0) -> dict[str, Any]:
        return self.entries(number + 1)[number]


@pytest.fixture
def open_watched(open_door: Callable[..., Door], tmp_path: Path) -> Iterator[Callable[..., Watched]]:
    opened: list[Watched] = []

    def start(**options: Any) -> Watched:
        opened.append(Watched(open_door, tmp_path / "access.log", **options))
        return opened[-1]

    yield start
    for watched in opened:
        watched._listeners.close()


@pytest.fixture
def watched(open_watched: Callable[..., Watched]) -> Watched:
    return open_watched()


# Health


@pytest.mark.parametrize("options", [{"wideopen": True}, {"authenv_http": True}])
def test_health_is_for_everybody(open_door: Callable[..., Door], options: dict[str, bool]):
    door = open_door(**options)
    answer = door.ask("GET", "/healthz")
    assert (answer.status, answer.body) == (200, b"ok\n")
    assert answer.headers["cache-control"] == "no-store"
    answer = door.ask("HEAD", "/healthz")
    assert (answer.status, answer.body) == (200, b"")
    assert door.ask("POST", "/healthz").status == 405
    assert door.ask("GET", "/healthz/more").status == 404


def test_health_is_no_news(watched: Watched):
    assert watched.door.ask("GET", "/healthz").status == 200
    watched.door.ask("GET", "/else")
    assert [entry["target"] for entry in watched.entries(1)] == ["/else"]


def test_who_is_stopping_is_not_well(open_watched: Callable[..., Watched], place: Place):
    key = place.store(key_of(HUGE), HUGE)
    watched = open_watched(limits=Limits(grace=10.0))
    with closing(watched.door.connect()) as stalled:
        stalled.send_head("GET", f"/git-annex/{SERVED}/key/{key}", {})
        wait_until(lambda: watched.numbers().of("transfers") == 1)
        watched.door._loop.call_soon_threadsafe(watched.door._stop.set)
        wait_until(lambda: fetch(watched.port, "/healthz")[0] == 503)
        assert fetch(watched.port, "/healthz")[2] == "stopping\n"
        assert stalled.answer("GET").complete


# Metrics


def test_requests_are_counted_by_action_and_status(watched: Watched):
    before = watched.numbers()
    assert before.of("requests_total", action="checkpresent", status="200") is None
    assert before.of("request_duration_seconds_count", action="remove") == 0
    for _ in range(3):
        watched.door.ask("POST", CHECK)
    watched.door.post("checkpresent", key="nonsense")
    watched.door.ask("GET", "/else")
    watched.door.ask("POST", "/git-annex/U/v4/sudo")
    watched.door.get(HELLO)
    watched.door.get(HELLO, "")
    numbers = watched.numbers()
    assert numbers.of("requests_total", action="checkpresent", status="200") == 3
    assert numbers.of("requests_total", action="checkpresent", status="400") == 1
    assert numbers.of("requests_total", action="other", status="404") == 2
    assert numbers.of("requests_total", action="key", status="200") == 2
    assert numbers.of("request_duration_seconds_count", action="checkpresent") == 4
    assert numbers.of("request_duration_seconds_bucket", action="checkpresent", le="30.0") == 4
    assert 0 < (numbers.of("request_duration_seconds_sum", action="checkpresent") or 0) < 20
    assert numbers.of("running_requests") == 0


def test_bytes_are_counted(watched: Watched, place: Place):
    key = key_of(LARGE)
    assert watched.door.put(key, LARGE).json["stored"]
    numbers = watched.numbers()
    assert numbers.of("received_bytes_total") == len(LARGE)
    stored = numbers.of("sent_bytes_total") or 0
    assert stored == len(b'{"plusuuids":[],"stored":true}')
    assert watched.door.get(key).body == LARGE
    assert watched.door.get(HELLO).body == b"hello\n"
    assert watched.door.get(HELLO, method="HEAD").status == 200
    assert watched.numbers().of("sent_bytes_total") == stored + len(LARGE) + 6


def test_what_goes_on_is_counted_before_it_has_ended(watched: Watched, place: Place):
    key = place.store(key_of(HUGE), HUGE)
    watched.door.post("lockcontent", key=HELLO)
    with closing(watched.door.connect()) as upload, closing(watched.door.connect()) as download:
        upload.send_head("POST", target("put", key=key_of(b"12345")), {"X-git-annex-data-length": "5"}, [])
        upload.send_chunk(b"123")
        download.send_head("GET", f"/git-annex/{SERVED}/key/{key}", {})
        wait_until(lambda: watched.numbers().of("transfers") == 2)
        wait_until(lambda: watched.numbers().of("received_bytes_total") == 3)
        numbers = watched.numbers()
        assert numbers.of("running_requests") == 2
        assert numbers.of("locks") == 1
        assert numbers.of("repositories") == 1
        assert numbers.of("idle_connections") == 0
    wait_until(lambda: watched.numbers().of("running_requests") == 0)
    numbers = watched.numbers()
    assert numbers.of("incomplete_answers_total", action="put") == 1
    assert numbers.of("incomplete_answers_total", action="key") == 1
    assert numbers.of("requests_total", action="put", status="499") == 1
    assert numbers.of("requests_total", action="key", status="200") == 1


def test_refused_logins_are_counted(open_watched: Callable[..., Watched]):
    environ = {b"GIT_ANNEX_P2PHTTP_PASSWORD_alice": b"secret"}
    watched = open_watched(environ=environ, authenv_http=True)
    watched.door.ask("POST", CHECK)  # did not try
    watched.door.ask("POST", CHECK, {"Authorization": "Basic YWxpY2U6c2VjcmV0"})
    assert watched.numbers().of("refused_logins_total") == 0
    watched.door.ask("POST", CHECK, {"Authorization": "Basic YWxpY2U6d3Jvbmc="})
    assert watched.numbers().of("refused_logins_total") == 1


def test_commits_are_counted(watched: Watched):
    assert watched.numbers().of("commits_total", result="done") == 0
    assert watched.door.put(key_of(b"new"), b"new").json["stored"]
    wait_until(lambda: watched.numbers().of("commits_total", result="done") == 1)


def test_commits_that_fail_are_counted(watched: Watched, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Branch) -> None:
        raise RepositoryError("no")

    with monkeypatch.context() as patch:
        patch.setattr(Branch, "commit", fail)
        assert watched.door.put(key_of(b"new"), b"new").json["stored"]
        wait_until(lambda: watched.numbers().of("commits_total", result="failed") == 1)
    assert watched.numbers().of("commits_total", result="done") == 0


def test_there_is_nothing_else_where_metrics_are(watched: Watched):
    assert fetch(watched.port, CHECK)[0] == 404
    assert fetch(watched.port, "/metrics", "POST")[0] == 405
    assert fetch(watched.port, "/metrics", "HEAD")[0] == 200
    assert fetch(watched.port, "/healthz")[::2] == (200, "ok\n")
    assert watched.door.ask("GET", "/metrics").status == 404


def test_workers_are_counted_together(tmp_path: Path):
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Program(place.directory, "--wideopen", "--workers=3", f"--metrics=127.0.0.1:{port}") as program:
        for _ in range(30):
            assert program.post("checkpresent", key=HELLO).json["present"]
        for _ in range(4):
            assert program.post("lockcontent", key=HELLO).json["locked"]

        def numbers() -> Numbers:
            return Numbers(fetch(port)[2])

        for _ in range(6):  # whichever of them answers
            assert numbers().of("requests_total", action="checkpresent", status="200") == 30
        wait_until(lambda: numbers().of("locks") == 4)
        # One that is killed takes its locks with it, but not what it has counted.
        os.kill(program.workers()[0], signal.SIGKILL)
        wait_until(lambda: "starting another one" in program.process.stderr.readline())  # type: ignore[union-attr]
        assert numbers().of("requests_total", action="checkpresent", status="200") == 30
        wait_until(lambda: len(program.workers()) == 3)
        for _ in range(30):
            wait_until(lambda: program.post("checkpresent", key=HELLO).status == 200)
        wait_until(lambda: numbers().of("requests_total", action="checkpresent", status="200") == 60)
        program.stop()


# The log


def test_a_request_is_logged(watched: Watched):
    began = time.time()
    watched.door.ask("POST", CHECK, {"User-Agent": "git-annex/10", "Referer": "x\ty"})
    entry = watched.entry()
    assert 0 <= entry.pop("duration") < 20
    moment = time.strptime(entry.pop("time")[:19] + "+0000", "%Y-%m-%dT%H:%M:%S%z")
    assert abs(time.mktime(moment) - time.timezone - began) < 20
    assert entry == {
        "remote": "127.0.0.1",
        "user": None,
        "method": "POST",
        "target": f"/git-annex/{SERVED}/v4/checkpresent?clientuuid={CLIENT}&key={HELLO}",
        "protocol": "HTTP/1.1",
        "status": 200,
        "received": 0,
        "sent": len(b'{"present":true}'),
        "complete": True,
        "referer": "x\ty",
        "agent": "git-annex/10",
    }


@pytest.mark.parametrize("shape", ["plain", "tls"])
def test_what_was_moved_is_logged(open_watched: Callable[..., Watched], shape: str):
    watched = open_watched(shape=shape)
    assert watched.door.put(key_of(LARGE), LARGE).json["stored"]
    assert watched.door.get(key_of(LARGE)).body == LARGE
    assert watched.door.get(key_of(LARGE), headers={"Range": "bytes=100-299"}).status == 206
    put, whole, part = watched.entries(3)
    assert (put["received"], put["sent"], put["status"]) == (len(LARGE), 30, 200)
    assert (whole["received"], whole["sent"], whole["status"]) == (0, len(LARGE), 200)
    assert (part["sent"], part["status"], part["complete"]) == (200, 206, True)


def test_who_logged_in_is_logged_and_no_secret_is(open_watched: Callable[..., Watched], tmp_path: Path):
    token, line = users.new_token("carol")
    tokens = tmp_path / "tokens"
    tokens.write_text(line + "\n")
    passwords = tmp_path / "passwords"  # bob has "bobs secret"
    passwords.write_text("bob:$2y$05$AvzKXLgFwDqFZGcVyrD/k.J5t0tEq7wXgwJFJhIgDMAW2QtQGDkTu\n")
    environ = {b"GIT_ANNEX_P2PHTTP_PASSWORD_alice": b"secret", b"GIT_ANNEX_P2PHTTP_PERMISSIONS_alice": b"readonly"}
    watched = open_watched(
        environ=environ,
        authenv_http=True,
        unauth_readonly=True,
        tokens=os.fsencode(tokens),
        htpasswd=os.fsencode(passwords),
    )

    def ask(login: str | None, path: str = CHECK) -> None:
        watched.door.ask("POST", path, {} if login is None else {"Authorization": login})

    ask(None)
    ask("Basic YWxpY2U6c2VjcmV0")
    ask("Basic YWxpY2U6d3Jvbmc=")  # wrong
    ask(f"Bearer {token}")
    ask("Basic YWxpY2U6c2VjcmV0", target("remove", key=HELLO))
    ask("nonsense")
    entries = watched.entries(6)
    assert [(entry["user"], entry["status"]) for entry in entries] == [
        (None, 200),
        ("alice", 200),
        (None, 200),
        ("carol", 200),
        ("alice", 403),
        (None, 400),
    ]
    text = str(entries)
    assert "YWxpY2U6" not in text and token not in text and "Authorization" not in text


def test_the_id_of_a_lock_is_not_logged(watched: Watched):
    lockid = watched.door.post("lockcontent", key=HELLO).json["lockid"]
    watched.door.ask("POST", target("keeplocked", lockid=lockid), body=[b'{"unlock":true}'])
    entry = watched.entry(1)
    assert lockid not in str(entry)
    assert "lockid=..." in entry["target"]
    assert entry["received"] == len(b'{"unlock":true}')


def test_a_client_that_goes_is_logged(watched: Watched):
    with closing(watched.door.connect()) as connection:
        connection.send_head("POST", target("put", key=key_of(b"12345")), {"X-git-annex-data-length": "5"}, [])
        connection.send_chunk(b"123")
        wait_until(lambda: watched.numbers().of("received_bytes_total") == 3)
    entry = watched.entry()
    assert (entry["status"], entry["received"], entry["sent"], entry["complete"]) == (499, 3, 0, False)


@pytest.mark.parametrize("shape", ["plain", "tls"])
@pytest.mark.parametrize(
    "data",
    [
        b"what?\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
    ],
)
def test_what_is_no_request_is_logged_and_counted(open_watched: Callable[..., Watched], shape: str, data: bytes):
    watched = open_watched(shape=shape)
    with watched.door.socket() as connection:
        connection.sendall(data)
        head, _, body = connection.recv(1 << 16).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.0 400 Bad Request\r\n")
    (entry,) = watched.entries(1)
    assert [entry[name] for name in ("method", "target", "protocol", "agent", "user")] == [None] * 5
    assert (entry["remote"], entry["status"], entry["complete"]) == ("127.0.0.1", 400, True)
    assert (entry["received"], entry["sent"]) == (0, len(body))
    numbers = watched.numbers()
    assert numbers.of("requests_total", action="other", status="400") == 1
    assert numbers.of("sent_bytes_total") == len(body)
    assert numbers.of("running_requests") == 0


def test_a_request_before_nonsense_is_logged_as_ever(watched: Watched):
    request = f"POST {CHECK} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode()
    with watched.door.socket() as connection:
        connection.sendall(request)
        assert connection.recv(1 << 16).startswith(b"HTTP/1.1 200 OK\r\n")
        connection.sendall(b"what?\r\n\r\n")
        assert connection.recv(1 << 16).startswith(b"HTTP/1.0 400 Bad Request\r\n")
        assert connection.recv(1) == b""
    assert [(entry["method"], entry["status"]) for entry in watched.entries(2)] == [("POST", 200), (None, 400)]


def test_a_body_that_makes_no_sense_is_logged_with_its_request(watched: Watched):
    with closing(watched.door.connect()) as connection:
        connection.send_head("POST", target("put", key=key_of(b"12345")), {"X-git-annex-data-length": "5"}, [])
        connection.send_chunk(b"123")
        wait_until(lambda: watched.numbers().of("received_bytes_total") == 3)
        connection.send(b"what?\r\n")
        assert connection.answer().status == 400
        assert connection.sock is None or connection.sock.recv(1) == b""
    watched.door.ask("GET", "/after")
    assert [(entry["method"], entry["status"]) for entry in watched.entries(2)] == [("POST", 400), ("GET", 404)]


def test_content_that_is_not_valid_to_its_end_is_logged(watched: Watched, place: Place):
    key = place.store(key_of(HUGE), HUGE)
    path = place.object(key)
    assert path is not None
    with closing(watched.door.connect()) as connection:
        connection.send_head("GET", f"/git-annex/{SERVED}/key/{key}", {})
        wait_until(lambda: watched.numbers().of("transfers") == 1)
        os.chmod(path, 0o600)
        os.truncate(path, 1000)
        assert not connection.answer("GET").complete
    entry = watched.entry()
    assert (entry["status"], entry["complete"]) == (200, False)


def test_a_client_behind_a_proxy_is_believed_only_if_we_are_told_to(open_watched: Callable[..., Watched]):
    watched = open_watched()
    watched.door.ask("POST", CHECK, {"X-Forwarded-For": "192.0.2.1"})
    assert watched.entry()["remote"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("said", "logged"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("10.0.0.1, 192.0.2.1", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("unknown", "127.0.0.1"),
        ("192.0.2.1,", "127.0.0.1"),
        ('192.0.2.1"', "127.0.0.1"),
        (None, "127.0.0.1"),
    ],
)
def test_what_the_proxy_says(open_watched: Callable[..., Watched], said: str | None, logged: str):
    watched = open_watched(proxy=True)
    watched.door.ask("POST", CHECK, {} if said is None else {"X-Forwarded-For": said})
    assert watched.entry()["remote"] == logged


def test_logs_cannot_be_forged(watched: Watched):
    watched.door.exchange(
        b'POST /a\x0b\xff"\x7f HTTP/1.1\r\nHost: x\r\nUser-Agent: \xe2\x80\xa8\x1b[2J"\r\nConnection: close\r\n\r\n'
    )
    watched.door.ask("GET", "/after")
    assert all(0x20 <= ord(character) < 0x7F for character in Path(watched._path).read_text().replace("\n", ""))


# The command line


@pytest.fixture
def annex(tmp_path: Path) -> Place:
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    return place


def test_the_log_is_complete_when_the_program_has_ended(annex: Place, tmp_path: Path):
    path = tmp_path / "access.log"
    with Program(annex.directory, "--wideopen", f"--access-log={path}", "--workers=2") as program:
        for _ in range(20):
            program.post("checkpresent", key=HELLO)
        program.stop()
    lines = path.read_text().splitlines()
    assert len(lines) == 20
    pattern = r'127\.0\.0\.1 - - \[[^]]+\] "POST /git-annex/[^ ]+ HTTP/1\.1" 200 16 "-" "-"'
    assert all(re.fullmatch(pattern, line) for line in lines), lines


def test_the_log_on_standard_output_and_who_comes_by_a_socket(annex: Place, tmp_path: Path):
    options = ("--wideopen", "--access-log=-", "--access-log-format=json", f"--socket={tmp_path}/s")
    with Program(annex.directory, *options) as program:
        connected = socket.socket(socket.AF_UNIX)
        connected.connect(f"{tmp_path}/s")
        assert program.post("checkpresent", connected, key=HELLO).json["present"]
        program.tell(signal.SIGTERM)
        output, errors = program.process.communicate(timeout=20)
    assert (program.process.returncode, errors) == (0, "")
    assert json.loads(output)["remote"] is None


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (("--metrics=9418",), "is not a host and a port"),
        (("--metrics=localhost:x",), "is not a host and a port"),
        (("--metrics=192.0.2.1:9418",), "cannot listen on 192.0.2.1:9418"),
        (("--access-log=/missing/log",), "cannot write the access log: /missing/log: No such file"),
        (("--access-log-format=csv",), "csv"),
    ],
)
def test_what_cannot_work_is_told_at_the_start(annex: Place, options: tuple[str, ...], complaint: str):
    assert complaint in failure(annex.directory, "--wideopen", *options)
