"""git-annex-shell and annexshell, in turn, standing in front of another repository.

    python bench/proxy.py [--rounds 5] [--large 256] [--json]

Each program has nodes of its own kind: behind a path on this machine, which either reaches in the way that it likes
best, and behind pipes, to a server that is started by what takes ssh's place. What relaying alone costs is shown by
`cat` between two pipes with the same content; for that the keys have no hash, as cat has nothing to verify. The time
to the first byte is measured through a real sshd on the loopback interface, if there is one: cold, and with a kept
connection.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import stdio
from stdio import MIB, SMALL, Session

FAKE_SSH = '#!/bin/sh\nshift\nexec /bin/sh -c "$1"\n'


class Proxy:
    """A proxying repository for one program, with a node behind a path and one behind ssh."""

    def __init__(self, name: str, program: Path, tools: Tools, directory: Path) -> None:
        self.name = name
        self.program = program
        self.repository = directory / f"{name}-proxy.git"
        self.environment = tools.environment
        tools.make_repository(self.repository)
        self.uuids = {}
        for kind in ("path", "ssh", "sshd"):
            node = directory / f"{name}-{kind}.git"
            self.uuids[kind] = tools.make_repository(node)
            url = str(node) if kind == "path" else f"ssh://{'node' if kind == 'sshd' else 'here'}{node}"
            tools.git(self.repository, "remote", "add", kind, url)
            for setting, value in (("uuid", self.uuids[kind]), ("proxy", "true"), ("shell", str(program))):
                tools.git(self.repository, "config", f"remote.{kind}.annex-{setting}", value)
        tools.git(self.repository, "annex", "updateproxy")
        self.count = 0

    def session(self, kind: str, environment: Mapping[str, str] | None = None) -> Session:
        environment = self.environment if environment is None else environment
        return Session(self.program, self.repository, "--uuid", self.uuids[kind], env=environment)

    def put(self, session: Session, key: bytes, data: bytes) -> None:
        session.ask(b"PUT  %s\n" % key, b"PUT-FROM 0")
        session.say(b"DATA %d\n" % len(data))
        session.say(data)
        session.ask(b"VALID\n", b"SUCCESS")

    def get(self, session: Session, key: bytes, size: int) -> None:
        session.ask(b"GET 0  %s\n" % key, b"DATA")
        session.skip(size)
        assert session.line() == b"VALID"
        session.say(b"SUCCESS\n")


class Tools:
    """The programs, and the environment in which they find each other."""

    def __init__(self, directory: Path, git_annex: str | None) -> None:
        self.real = stdio.real_program(directory, git_annex)
        self.node_program = stdio.our_program(directory)
        fake = directory / "fake-ssh"
        fake.write_text(FAKE_SSH)
        fake.chmod(0o755)
        self.environment = dict(
            os.environ,
            PATH=f"{self.real.parent}:{os.environ['PATH']}",
            GIT_ANNEX_USE_GIT_SSH="1",
            GIT_SSH=str(fake),
        )

    def git(self, repository: Path, *words: str) -> str:
        done = subprocess.run(
            ["git", "-C", repository, *words], check=True, env=self.environment, capture_output=True, text=True
        )
        return done.stdout.strip()

    def make_repository(self, path: Path) -> str:
        subprocess.run(["git", "init", "-q", "--bare", path], check=True)
        self.git(path, "config", "user.name", "bench")
        self.git(path, "config", "user.email", "bench@localhost")
        self.git(path, "annex", "init", "-q", "bench")
        return self.git(path, "config", "annex.uuid")


def content(count: int, size: int, *, hashed: bool = True) -> tuple[bytes, bytes]:
    """A key and its content."""
    data = (b"%d " % count).ljust(64)[:64] * (size // 64) + b"x" * (size % 64)
    if not hashed:
        return b"WORM-s%d-m1--content%d" % (size, count), data
    return b"SHA256E-s%d--%s.dat" % (size, hashlib.sha256(data).hexdigest().encode()), data


def checkpresent(proxy: Proxy, kind: str) -> float:
    proxy.count += 1
    key, data = content(proxy.count, SMALL)
    session = proxy.session(kind)
    proxy.put(session, key, data)
    result = stdio.rate(2000, lambda _: session.ask(b"CHECKPRESENT %s\n" % key, b"SUCCESS"))
    session.finish()
    return result


def large(proxy: Proxy, kind: str, size: int, which: str, *, hashed: bool = True) -> float:
    """MiB a second, or the proxy's peak memory in MiB."""
    proxy.count += 1
    key, data = content(proxy.count, size, hashed=hashed)
    session = proxy.session(kind)
    results = {"put": size / MIB * stdio.rate(1, lambda _: proxy.put(session, key, data))}
    results["get"] = size / MIB * stdio.rate(2, lambda _: proxy.get(session, key, size))
    session.ask(b"REMOVE %s\n" % key, b"SUCCESS")
    results["memory"] = session.finish() / MIB
    return results[which]


def cat(size: int, directory: Path) -> float:
    """MiB a second of `cat` in the proxy's place: a file sent into a pipe, and read from the next one."""
    file = directory / "cat-content"
    file.write_bytes(content(0, size)[1])
    with file.open("rb") as stream:
        sender = f"import os\nn = {size}\nwhile n: n -= os.sendfile(1, 0, None, n)\n"
        source = subprocess.Popen([sys.executable, "-c", sender], stdin=stream, stdout=subprocess.PIPE)
        relay = subprocess.Popen(["cat"], stdin=source.stdout, stdout=subprocess.PIPE, bufsize=0)
        assert source.stdout and relay.stdout
        source.stdout.close()
        buffer = bytearray(MIB)
        left = size - os.readv(relay.stdout.fileno(), [buffer])
        first = left
        started = time.perf_counter()
        while left:
            left -= os.readv(relay.stdout.fileno(), [buffer])
        seconds = time.perf_counter() - started
        relay.stdout.close()
        source.wait()
        relay.wait()
    file.unlink()
    return first / MIB / seconds


def first_byte(proxy: Proxy, environment: Mapping[str, str]) -> float:
    """Milliseconds from the start of the proxy to the first byte of content of its node behind sshd."""
    started = time.perf_counter()
    session = proxy.session("sshd", environment)
    session.ask(b"GET 0  %s\n" % content(0, SMALL)[0], b"DATA")
    session.skip(1)
    seconds = time.perf_counter() - started
    session.skip(SMALL - 1)
    assert session.line() == b"VALID"
    session.say(b"SUCCESS\n")
    session.finish()
    return seconds * 1000


def rows(size: int) -> list[tuple[str, str, str, bool, Callable[[Proxy], float]]]:
    """name, unit, budget, whether less is better, measurement."""
    found: list[tuple[str, str, str, bool, Callable[[Proxy], float]]] = []
    for kind, where in (("path", "path"), ("ssh", "pipes")):
        for which, name in (("get", "GET"), ("put", "PUT")):

            def measure(proxy: Proxy, kind: str = kind, which: str = which) -> float:
                return large(proxy, kind, size, which)

            found.append((f"{name} of a large key, node behind {where}", "MiB/s", ">= 2x", False, measure))
    found.append(("CHECKPRESENT, node behind path", "/s", ">= 1x", False, lambda p: checkpresent(p, "path")))
    found.append(("CHECKPRESENT, node behind pipes", "/s", ">= 1x", False, lambda p: checkpresent(p, "ssh")))
    found.append(("peak memory", "MiB", "<= 0.6x", True, lambda p: large(p, "ssh", size, "memory")))
    return found


def result(
    what: str, unit: str, budget: str, less_is_better: bool, pairs: list[tuple[float, float]], against: str
) -> dict[str, object]:
    theirs, mine = (statistics.median(column) for column in zip(*pairs, strict=True))
    limit = float(budget.split()[1].rstrip("x"))
    ratio = statistics.median(b / a for a, b in pairs)
    met = ratio <= limit if less_is_better else ratio >= limit
    print(".", end="", file=sys.stderr, flush=True)
    return {"what": what, "unit": unit, "against": against, "theirs": theirs, "annexshell": mine} | {
        "ratio": ratio,
        "budget": budget,
        "met": met,
    }


def in_turn(rounds: int, real: Proxy, ours: Proxy, action: Callable[[Proxy], float]) -> list[tuple[float, float]]:
    pairs = []
    for turn in range(rounds):
        found = {proxy.name: action(proxy) for proxy in ((real, ours) if turn % 2 == 0 else (ours, real))}
        pairs.append((found[real.name], found[ours.name]))
    return pairs


def measure(
    rounds: int, size: int, tools: Tools, real: Proxy, ours: Proxy, directory: Path
) -> list[dict[str, object]]:
    results = []
    for name, unit, budget, less, action in rows(size):
        results.append(result(name, unit, budget, less, in_turn(rounds, real, ours, action), "git-annex"))
    for which, name in (("get", "GET"), ("put", "PUT")):
        pairs = [(cat(size, directory), large(ours, "ssh", size, which, hashed=False)) for _ in range(rounds)]
        results.append(result(f"{name} through pipes", "MiB/s", ">= 0.9x", False, pairs, "cat"))
    results += measure_sshd(rounds, tools, real, ours, directory)
    print(file=sys.stderr)
    return results


def measure_sshd(rounds: int, tools: Tools, real: Proxy, ours: Proxy, directory: Path) -> list[dict[str, object]]:
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from tests.interop.sshservers import ClientConfig, Sshd, find_sshd

    program = find_sshd()
    if program is None:
        print("no sshd: the time to the first byte is left out", file=sys.stderr)
        return []
    # A path to a program other than git-annex-shell is not for a forced command to be understood.
    client = ClientConfig(directory, {"node": 'eval "$SSH_ORIGINAL_COMMAND"'})
    server = Sshd(program, directory, client)
    server.start()
    results = []
    try:
        client.add_host("node", "node", server.port, server.user("node"))
        kept = directory / "kept"
        bin = directory / "ssh-bin"
        bin.mkdir()
        (bin / "ssh").write_text(f'#!/bin/sh\nexec /usr/bin/ssh -F {client.path} "$@"\n')
        (bin / "ssh").chmod(0o755)
        environment = dict(tools.environment, PATH=f"{bin}:{tools.environment['PATH']}")
        del environment["GIT_ANNEX_USE_GIT_SSH"], environment["GIT_SSH"]
        for proxy in (real, ours):
            session = proxy.session("sshd", environment)
            proxy.put(session, *content(0, SMALL))
            session.finish()
            tools.git(proxy.repository, "config", "annex.sshcaching", "false")
        for name in ("cold", "kept"):
            if name == "kept":
                text = client.path.read_text()
                client.path.write_text(f"ControlMaster auto\nControlPath {kept}\nControlPersist 60\n{text}")
                first_byte(ours, environment)
            pairs = in_turn(rounds * 2, real, ours, lambda p: first_byte(p, environment))
            what = f"time to first byte through sshd, connection {name}"
            results.append(result(what, "ms", "<= 4x", True, pairs, "git-annex"))
        subprocess.run([bin / "ssh", "-O", "exit", "node"], capture_output=True)
    finally:
        server.stop()
    return results


def main() -> int:
    options = stdio.arguments(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        tools = Tools(directory, options.git_annex)
        real = Proxy("git-annex", tools.real, tools, directory)
        ours = Proxy("annexshell", tools.node_program, tools, directory)
        results = measure(options.rounds, options.large * MIB, tools, real, ours, directory)
    return stdio.report(results, "annexshell as a proxy", as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
