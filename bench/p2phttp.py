"""git annex p2phttp and annexshell p2phttp, in turn, at the same work.

    python bench/p2phttp.py [--rounds 5] [--large 256] [--json] [--workers 1]

Short requests are made by wrk (https://github.com/wg/wrk; packaged by Debian), over connections that are kept. The
large key is read from a socket and written to one by this program, written in chunks of the size that git-annex has,
and read by curl besides, if there is one. Memory is that of a server that did all of this and nothing else.
"""

from __future__ import annotations

import re
import resource
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import stdio
from stdio import CLIENT, MIB, SMALL

KEYS = 200
JOBS = 4
SECONDS = 2
IDLE = 1000
CHUNK = 32752  # bytes
DEADLINE = 60.0  # seconds
# Asks for one path after the other. Made ready before the clock starts, as Lua would be what is measured.
SCRIPT = """
local requests, last = {}, 0
function init(arguments)
    for path in io.lines(arguments[2]) do
        requests[#requests + 1] = wrk.format(arguments[1], path)
    end
end
function request()
    last = last % #requests + 1
    return requests[last]
end
"""


class Load(stdio.Workload):
    """A repository with keys in it, and the command that serves it."""

    def __init__(self, program: Path, git_annex: Path, directory: Path, command: list[str]) -> None:
        super().__init__(program, git_annex, directory)
        self.command = command
        config = ["git", "-C", str(directory), "config", "annex.uuid"]
        self.uuid = subprocess.run(config, check=True, capture_output=True, text=True).stdout.strip()
        session = self.session()
        self.keys = []
        for _ in range(KEYS):
            key, data = self.content(SMALL)
            self.put(session, key, data)
            self.keys.append(key.decode())
        session.finish()

    def target(self, action: str, key: str) -> str:
        if action == "key":
            return f"/git-annex/{self.uuid}/v4/key/{key}?clientuuid={CLIENT}"
        return f"/git-annex/{self.uuid}/v4/{action}?key={key}&clientuuid={CLIENT}"

    def serve(self) -> Server:
        return Server(self)


class Server:
    """A running server, for the length of a ``with``."""

    def __init__(self, load: Load) -> None:
        self.load = load
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]

    def __enter__(self) -> Server:
        command = [*self.load.command, "--wideopen", f"-J{JOBS}", "--bind=127.0.0.1", f"--port={self.port}"]
        self.process = subprocess.Popen(command, cwd=self.load.repository)
        end = time.monotonic() + DEADLINE
        while True:
            try:
                self.connect().close()
                return self
            except ConnectionRefusedError:
                assert self.process.poll() is None and time.monotonic() < end, "the server does not start"
                time.sleep(0.01)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        self.process.wait()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)

    def url(self, target: str) -> str:
        return f"http://127.0.0.1:{self.port}{target}"

    def peak_memory(self) -> int:
        """Of all its processes, in bytes; what they share is counted for each."""
        pid = self.process.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return sum(map(stdio.peak_memory, (pid, *map(int, children))))


class Connection:
    """A connection that speaks HTTP as far as needed here."""

    def __init__(self, server: Server) -> None:
        self.socket = server.connect()

    def ask(self, method: str, target: str, *headers: str) -> None:
        lines = (f"{method} {target} HTTP/1.1", "Host: localhost", *headers, "", "")
        self.socket.sendall("\r\n".join(lines).encode())

    def answer(self, until: bytes = b"\r\n\r\n") -> bytes:
        """As far as it has come when it has UNTIL in it."""
        answer = b""
        while until not in answer:
            piece = self.socket.recv(1 << 16)
            assert piece, answer
            answer += piece
        assert answer.startswith(b"HTTP/1.1 200"), answer
        return answer

    def close(self) -> None:
        self.socket.close()


def requests(server: Server, method: str, action: str, connections: int, idle: int = 0) -> float:
    """How many a second are answered."""
    program = shutil.which("wrk")
    if program is None:
        sys.exit("bench: wrk is not installed; it is what makes the requests (apt install wrk)")
    load = server.load
    with tempfile.TemporaryDirectory() as name, ExitStack() as parts:
        for _ in range(idle):
            connection = Connection(server)
            parts.callback(connection.close)
            connection.ask("POST", load.target("checkpresent", load.keys[0]), "Content-Length: 0")
            connection.answer(b"}")
        script, paths = Path(name, "script.lua"), Path(name, "paths")
        script.write_text(SCRIPT)
        paths.write_text("".join(f"{load.target(action, key)}\n" for key in load.keys))
        command = [program, "-t1", f"-c{connections}", f"-d{SECONDS}s", "-s", script, server.url("/")]
        done = subprocess.run([*command, "--", method, paths], check=True, capture_output=True, text=True)
    found = re.search(r"Requests/sec: *([0-9.]+)", done.stdout)
    assert found and "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
    return float(found[1])


def large(server: Server, size: int, which: str) -> float:
    """MiB a second."""
    load = server.load
    key, data = load.content(size)
    target = load.target("put", key.decode())
    headers = (f"X-git-annex-data-length: {size}", "Transfer-Encoding: chunked", "Connection: close")
    pieces = (data[start : start + CHUNK] for start in range(0, size, CHUNK))
    body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    rates = {"put": size / MIB * stdio.rate(1, lambda _: _put(server, target, headers, body))}
    target = load.target("key", key.decode())
    rates["get"] = size / MIB * stdio.rate(2, lambda _: _get(server, target, size))
    if which == "curl":
        curl = ["curl", "-sSf", "-o", "/dev/null", server.url(target)]
        rates["curl"] = size / MIB * stdio.rate(2, lambda _: subprocess.run(curl, check=True))
    remover = Connection(server)
    remover.ask("POST", load.target("remove", key.decode()), "Content-Length: 0", "Connection: close")
    assert b'"removed":true' in remover.answer(b"true}")
    remover.close()
    return rates[which]


def _put(server: Server, target: str, headers: tuple[str, ...], body: bytes) -> None:
    connection = Connection(server)
    connection.ask("POST", target, *headers)
    connection.socket.sendall(body)
    assert b'"stored":true' in connection.answer(b"true}")
    connection.close()


def _get(server: Server, target: str, size: int) -> None:
    connection = Connection(server)
    connection.ask("GET", target, "Connection: close")
    left = size - len(connection.answer().partition(b"\r\n\r\n")[2])
    buffer = bytearray(MIB)
    while count := connection.socket.recv_into(buffer):
        left -= count  # or more, as chunks have a length each
    assert left <= 0, left
    connection.close()


def peak_memory(load: Load, size: int) -> float:
    """MiB."""
    with load.serve() as server:
        requests(server, "POST", "checkpresent", 64)
        requests(server, "GET", "key", 8)
        large(server, size, "get")
        return server.peak_memory() / MIB


def rows(servers: dict[str, Server], size: int) -> list[stdio.Row]:
    """SERVERS are found by the uuid of what they serve."""

    def with_server(function, *arguments):  # type: ignore[no-untyped-def]
        return lambda load: function(servers[load.uuid], *arguments)

    check = ("POST", "checkpresent")
    found: list[stdio.Row] = [
        ("checkpresent, 1 connection", "/s", ">= 1x", False, with_server(requests, *check, 1)),
        ("checkpresent, 8 connections", "/s", ">= 1.5x", False, with_server(requests, *check, 8)),
        ("checkpresent, 64 connections", "/s", ">= 1.5x", False, with_server(requests, *check, 64)),
        (f"checkpresent, 8 beside {IDLE} idle", "/s", ">= 1.5x", False, with_server(requests, *check, 8, IDLE)),
        ("GET of 1 kB keys, 8 connections", "/s", ">= 2x", False, with_server(requests, "GET", "key", 8)),
        ("GET of a large key", "MiB/s", ">= 1x", False, with_server(large, size, "get")),
        ("PUT of a large SHA256E key", "MiB/s", ">= 2x", False, with_server(large, size, "put")),
        ("peak memory", "MiB", "<= 1x", True, lambda load: peak_memory(load, size)),
    ]
    if shutil.which("curl"):
        found.insert(6, ("GET of a large key by curl", "MiB/s", ">= 1x", False, with_server(large, size, "curl")))
    return found


def main() -> int:
    parser = stdio.arguments(__doc__)
    parser.add_argument("--workers", help="processes of annexshell (default: as it has by default)")
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4 * IDLE)), hard))
    with tempfile.TemporaryDirectory() as name, ExitStack() as parts:
        directory = Path(name)
        program = stdio.real_program(directory, options.git_annex)
        theirs = [str(program.with_name("git-annex")), "p2phttp"]
        real = Load(program, program, directory / "real.git", theirs)
        mine = [sys.executable, "-m", "annexshell", "p2phttp"]
        if options.workers:
            mine.append(f"--workers={options.workers}")
        ours = Load(stdio.our_program(directory), program, directory / "ours.git", mine)
        servers = {load.uuid: parts.enter_context(load.serve()) for load in (real, ours)}
        results = stdio.measure(options.rounds, rows(servers, options.large * MIB), real, ours)
    return stdio.report(results, "annexshell p2phttp against git annex p2phttp", as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
