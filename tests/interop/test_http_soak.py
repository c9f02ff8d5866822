"""An HTTP server among clients of all kinds: nobody is kept waiting, nothing is lost, and nothing is left behind.

Rude clients go at any byte, stall, or make no sense. Real git-annex clients are interrupted and killed. Meanwhile
others do what clients do, and have to get on with it all the time. In the end the server is what it was before.
``--soak SECONDS`` makes it longer.
"""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.http.doors import Answer, Connection, quoted, target
from tests.interop.footprints import Footprint, footprint
from tests.interop.harness import Program, Repo, environment, key_file, make_home, run, running, wait_until
from tests.interop.proxies import git_annex_knows_proxies, processes_at
from tests.interop.rudeclients import Figures, Rude, Targets, key_for
from tests.interop.sshservers import free_port
from tests.interop.webservers import Door

# Seconds in which a client gets a step further whatever others do, and a server has let go of those who went, even
# on a machine that is slow and has other things to do.
LONGEST_WAIT = 30.0
RUDE = 8  # clients at a time
# Threads that wait for work are kept, as many as were once needed at the same time.
SPARE_THREADS = 2 * RUDE
SPARE_MEMORY = 48 << 20  # bytes that allocators keep, of what was once needed at the same time
NEVER = "4b8e0d4e-5c5c-4c1c-9f0e-4c57d2f5c001"  # the uuid of a node that does not answer
PLUS: dict[str, Any] = {"plusuuids": []}
# Of contents that are there, and of those that several upload at once; so that small and large ones are handled.
SIZES = ((5, 60_000, 3_000_000), (400_000, 70_001))


# The server --------------------------------------------


class Soaked(Door):
    """A server whose words are kept, and that tells of itself."""

    def __init__(self, home: Path, directory: Path, scratch: Path, *options: str, **how: Any) -> None:
        self._stderr = scratch / "said"
        self._metrics_port = free_port()
        super().__init__(home, directory, *options, f"--metrics=127.0.0.1:{self._metrics_port}", **how)

    def start(self) -> None:
        with open(self._stderr, "wb") as stderr:
            self.process = subprocess.Popen(
                self._argv, env=self._env, cwd=self.directory, stdin=subprocess.DEVNULL, stderr=stderr
            )
        wait_until(self._is_listening)

    @property
    def said(self) -> str:
        return self._stderr.read_text(errors="replace")

    def gauge(self, name: str) -> int:
        answer = ask(self._metrics_port, "GET", "/metrics")
        found = re.search(rf"^annexshell_http_{name} (\S+)$", answer.body.decode(), re.MULTILINE)
        assert found, answer
        return int(float(found[1]))

    def rest(self) -> Footprint:
        """What it uses besides what it keeps on purpose: locks, and connections to nodes, each with its lifeline."""
        kept = self.gauge("locks") + 2 * self.gauge("idle_connections")
        found = footprint(self.process.pid)
        return found._replace(descriptors=found.descriptors - kept)

    def at_rest(self) -> Footprint:
        # Whoever asks for all this may be among what is counted.
        return min(self.rest() for _ in range(20))


def ask(port: int, *question: Any) -> Answer:
    """One request by a connection of its own."""
    connection = connect(port)
    try:
        return connection.ask(*question)
    finally:
        connection.close()


def connect(port: int) -> Connection:
    return Connection("127.0.0.1", port, timeout=LONGEST_WAIT)


# Those who mean well --------------------------------------------


class Ledger:
    """What was acknowledged: by uuid and key, whether the content is there. Each key is one client's own."""

    def __init__(self) -> None:
        self.present: dict[tuple[str, str], bool] = {}


class Polite:
    """Has contents stored, told, locked, sent and removed, each of them its own."""

    def __init__(self, name: str, port: int, uuid: str, ledger: Ledger, figures: Figures) -> None:
        self.name = name
        self._port = port
        self._uuid = uuid
        self._ledger = ledger
        self._figures = figures
        self._source = random.Random(name)

    def round(self) -> None:
        content = self._source.randbytes(self._source.choice((2, 10_000, 70_000, 1_000_000)))
        key = key_for(content)
        self._connection = connect(self._port)
        assert self._post("checkpresent", key=key) == {"present": False}
        assert self._post("putoffset", key=key) == {"offset": 0}
        length = {"X-git-annex-data-length": str(len(content))}
        body: Any = content if self._source.random() < 0.5 else [content[:1], content[1:]]
        assert self._ask("POST", target("put", uuid=self._uuid, key=key), length, body).json == PLUS | {
            "stored": True
        }
        self._ledger.present[self._uuid, key] = True
        assert self._post("checkpresent", key=key) == {"present": True}
        path = f"/git-annex/{self._uuid}/key/{quoted(key)}"
        answer = self._ask("GET", path)
        assert (answer.status, answer.complete, answer.body) == (200, True, content)

        lockid = self._post("lockcontent", key=key)["lockid"]
        assert self._post("remove", key=key) == PLUS | {"removed": False}
        unlock = [b'{"unlock":false}\n', b'{"unlock":true}\n']
        keep = target("keeplocked", uuid=self._uuid, lockid=lockid)
        assert self._ask("POST", keep, {}, unlock).json == {"locked": False}
        if self._source.random() < 0.5:
            assert self._post("remove", key=key) == PLUS | {"removed": True}
            self._ledger.present[self._uuid, key] = False
        self._connection.close()

    def _post(self, action: str, **query: object) -> Any:
        return self._ask("POST", target(action, uuid=self._uuid, **query)).json

    def _ask(self, method: str, path: str, headers: dict[str, str] | None = None, body: Any = None) -> Answer:
        answer = self._connection.ask(method, path, headers, body)
        self._figures.advance(self.name)
        return answer


class Finisher:
    """Completes uploads that others begin and give up, and removes what came of it, for them to begin again."""

    def __init__(self, name: str, targets: Targets, figures: Figures) -> None:
        self.name = name
        self._targets = targets
        self._figures = figures

    def round(self) -> None:
        for key, content in self._targets.shared.items():
            for uuid in (self._targets.served, self._targets.node):
                self._complete(uuid, key, content)
                answer = ask(self._targets.port, "GET", f"/git-annex/{uuid}/key/{quoted(key)}")
                assert (answer.status, answer.body) == (200, content)
                answer = self._post("remove", uuid, key)
                assert answer.json == PLUS | {"removed": True}
                self._figures.advance(self.name)

    def _complete(self, uuid: str, key: str, content: bytes) -> None:
        end = time.monotonic() + LONGEST_WAIT
        while not self._is_completed(uuid, key, content):
            assert time.monotonic() < end, "those who have gone do not let go of it"
            time.sleep(0.05)

    def _is_completed(self, uuid: str, key: str, content: bytes) -> bool:
        answer = self._post("putoffset", uuid, key)
        if _is_busy(answer):
            return False
        offset = answer.json.get("offset")
        if offset is None:
            return True  # somebody else was faster
        path = target("put", uuid=uuid, key=key, offset=offset)
        length = {"X-git-annex-data-length": str(len(content) - offset)}
        answer = ask(self._targets.port, "POST", path, length, content[offset:])
        return not _is_busy(answer) and answer.json["stored"]

    def _post(self, action: str, uuid: str, key: str) -> Answer:
        return ask(self._targets.port, "POST", target(action, uuid=uuid, key=key))


def _is_busy(answer: Answer) -> bool:
    """Whether somebody else uploads it."""
    return answer.status == 500 and answer.body.startswith(b"transfer already in progress")


class User:
    """A person with a real git-annex."""

    def __init__(self, name: str, client: Repo, ledger: Ledger, figures: Figures) -> None:
        self.name = name
        self._client = client
        self._ledger = ledger
        self._figures = figures
        self._number = 0

    def round(self) -> None:
        self._number += 1
        content = random.Random(self._number).randbytes(200_000)
        file = f"{self.name} {self._number}"
        key = self._client.add(file, content)
        remotes = ["origin", "node"] if self._number % 2 else ["node", "origin"]
        first, second = remotes
        self._annex("copy", f"--to={first}", file)
        self._annex("drop", file)
        self._annex("get", f"--from={first}", file)
        self._annex("move", f"--to={second}", file)
        self._annex("drop", f"--from={first}", file)  # after it was locked at the second
        self._annex("fsck", f"--from={second}", file)
        self._annex("get", file)
        assert self._client.content(key) == content
        for remote, there in ((first, False), (second, True)):
            self._ledger.present[self._client.git("config", f"remote.{remote}.annex-uuid").out.strip(), key] = there

    def _annex(self, *args: str) -> None:
        self._client.annex(*args, timeout=2 * LONGEST_WAIT)
        self._figures.advance(self.name)


# Those who do not --------------------------------------------


class Interrupted:
    """Somebody whose git-annex is interrupted, or killed, again and again."""

    COMMANDS = (
        ("copy", "--to=origin", "."),
        ("copy", "--to=node", "."),
        ("get", "."),
        ("get", "--from=node", "."),
        ("drop", "."),
        ("move", "--to=origin", "."),
        ("copy", "-J3", "--to=origin", "."),
        ("get", "-J3", "."),
    )

    def __init__(self, name: str, client: Repo, figures: Figures) -> None:
        self.name = name
        self._client = client
        self._figures = figures
        self._source = random.Random(name)
        self._files = {f"file {number}": self._source.randbytes(800_000) for number in range(8)}
        self.contents = {key_for(content): content for content in self._files.values()}
        for file, content in self._files.items():
            (client.path / file).write_bytes(content)
        client.annex("add", "--quiet", "--backend=SHA256E", ".")
        client.commit()

    def round(self) -> None:
        self._tidy()
        command = self._source.choice(self.COMMANDS)
        number = self._source.choice((signal.SIGINT, signal.SIGKILL))
        with running(self._client.start_annex(*command)) as process:
            time.sleep(0.15 + self._source.random())
            ended = process.poll() is not None
            if not ended:
                os.killpg(process.pid, number)
            process.wait(LONGEST_WAIT)
        self._figures.advance(self.name)
        self._figures.rude([f"git-annex {command[0]}"], "git-annex was done" if ended else f"git-annex {number.name}")

    def check(self) -> None:
        """Nothing is lost."""
        self._tidy()
        self._client.annex("get", ".")
        assert {file: (self._client.path / file).read_bytes() for file in self._files} == self._files

    def _tidy(self) -> None:
        """Remove what a git that was killed leaves behind, and its user has to remove."""
        for path in (*self._client.git_dir.glob("*.lock"), *(self._client.git_dir / "annex").glob("*.lock")):
            path.unlink()


# All of them --------------------------------------------


class Crowd:
    """Threads that do something again and again until told to stop. The first failure stops all."""

    def __init__(self) -> None:
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []
        self.failures: list[BaseException] = []

    def start(self, step: Callable[[], None], pause: float = 0.0) -> None:
        def work() -> None:
            try:
                while not self._over.is_set():
                    step()
                    self._over.wait(pause)
            except BaseException as failure:
                self.failures.append(failure)
                self._over.set()

        self._threads.append(threading.Thread(target=work))
        self._threads[-1].start()

    def work(self, seconds: float) -> None:
        self._over.wait(seconds)
        self.stop()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()
        for failure in self.failures:
            raise failure


def at_once(steps: Iterable[Callable[[], None]]) -> None:
    with ThreadPoolExecutor() as threads:
        for done in [threads.submit(step) for step in steps]:
            done.result()


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def node(make_server: Callable[..., Repo]) -> Repo:
    return make_server("node")


@pytest.fixture
def served(make_server: Callable[..., Repo], node: Repo) -> Repo:
    """Stands in front of the node, and of one that never answers."""
    served = make_server("served")
    there = {"node": (f"ssh://near{node.path}", node.uuid), "never": ("ssh://never/nowhere", NEVER)}
    for name, (url, uuid) in there.items():
        served.git("remote", "add", name, url)
        served.git("config", f"remote.{name}.annex-uuid", uuid)
        served.git("config", f"remote.{name}.annex-proxy", "true")
    if git_annex_knows_proxies():
        served.annex("updateproxy")
    else:
        log = served.git_dir / "annex" / "journal" / "proxy.log"
        log.write_text(f"{int(time.time())}s {served.uuid} {node.uuid}:node {NEVER}:never\n")
        served.annex("merge")
    return served


@pytest.fixture
def start(
    tmp_path: Path, server_home: Path, server: Program, served: Repo, parts: ExitStack
) -> Callable[..., Soaked]:
    """Starts a server of what is SERVED, which reaches its node by what it takes for ssh."""
    links = tmp_path / "links"
    links.mkdir()
    ssh = tmp_path / "ssh"
    # Its arguments are a host and a command there.
    ssh.write_text(f'#!/bin/sh\n[ "$1" != never ] || exec sleep 1000\nPATH="{links}:$PATH"\neval "exec $2"\n')
    ssh.chmod(0o755)
    env = server.linked(links).env | {"GIT_ANNEX_USE_GIT_SSH": "1", "GIT_SSH": str(ssh)}

    def start(*options: str) -> Soaked:
        door = Soaked(server_home, served.path, tmp_path, "--wideopen", *options, env=env)
        parts.callback(door.kill)
        return door

    return start


@pytest.fixture
def make_user(tmp_path: Path, git_annex_path: Path, served: Repo, node: Repo) -> Callable[[str, Soaked], Repo]:
    home = make_home(tmp_path / "home", '[annex "security"]\n\tallowed-ip-addresses = all\n')

    def make(name: str, door: Soaked) -> Repo:
        repo = Repo(tmp_path / name, environment(home, git_annex_path))
        run(["git", "init", "--quiet", repo.path], repo.env, tmp_path)
        repo.annex("init", "--quiet", name)
        for remote, there in (("origin", served), ("node", node)):
            repo.git("config", f"remote.{remote}.url", "http://localhost:1/nowhere.git")
            repo.git("config", f"remote.{remote}.annexUrl", door.url)
            repo.git("config", f"remote.{remote}.annex-uuid", there.uuid)
        return repo

    return make


# What is to be true in the end --------------------------------------------


def is_quiet(door: Soaked) -> bool:
    return not door.gauge("running_requests") and not door.gauge("transfers")


def is_no_more(now: Footprint, before: Footprint, workers: int) -> bool:
    # A git, and a node's connection that is kept.
    return (
        now.descriptors <= before.descriptors
        and now.children <= 2 * workers
        and now.threads <= before.threads + SPARE_THREADS * workers
        and now.memory <= before.memory + SPARE_MEMORY * workers
    )


def check_contents(served: Repo, node: Repo, ledger: Ledger, targets: Targets) -> None:
    there: dict[str, set[str]] = {}  # keys by uuid
    for repo in (served, node):
        objects = (repo.git_dir / "annex" / "objects").rglob("SHA256E-*")
        for path in [path for path in objects if path.is_file() and not path.suffix]:
            assert key_for(path.read_bytes()) == path.name
            there.setdefault(repo.uuid, set()).add(path.name)
    expected = ledger.present | dict.fromkeys(targets.stored, True)
    expected = {(uuid, key): present for (uuid, key), present in expected.items() if key not in targets.shared}
    assert {(uuid, key): key in there[uuid] for uuid, key in expected} == expected
    # What is told of the node by the one that stands in front of it is the same.
    for repo in (served, node):
        locations = repo.all_locations()
        for (uuid, key), present in expected.items():
            if uuid == node.uuid or repo is served:
                assert (uuid in locations.get(key, set())) == present, (repo.path, uuid, key)


def check_leftovers(served: Repo, node: Repo, targets: Targets, mine: set[str], locked: int) -> None:
    """There is nothing but the beginnings of contents, and the locks of those who have not come back."""
    for repo in (served, node):
        left = repo.leftovers()
        assert not [path for path in left if {"transfer", "othertmp"} & set(path.relative_to(repo.git_dir).parts)]
        beginnings = {path for path in left if path.parent == repo.git_dir / "annex" / "tmp"}
        contents = {key_file(key): content for key, content in (targets.contents | targets.shared | mine).items()}
        for path in beginnings:
            if path.name in contents and path.name not in targets.spoiled:
                assert contents[path.name].startswith(path.read_bytes())
        locks = {path.stem for path in left if path not in beginnings}
        assert locks <= {key_file(key) for key in {*targets.present, *mine}}
        assert bool(locks) <= bool(locked)


def unlock(targets: Targets) -> None:
    """All that anybody was told of."""
    for lockid in targets.lockids:
        path = target("keeplocked", uuid=targets.served, lockid=lockid)
        assert ask(targets.port, "POST", path, {}, b'{"unlock":true}').json == {"locked": False}


def report(way: str, seconds: float, figures: Figures, before: Footprint, after: Footprint) -> None:
    print(f"\n{way}, {seconds:g} seconds")
    for title, counts in (("requests", figures.requests), ("ended by", figures.ends)):
        print(f"{title}: {sum(counts.values())}")
        for name, count in sorted(counts.items()):
            print(f"    {name:30} {count:7}")
    print("progress: steps, and the longest wait for one")
    for name, gap in figures.gaps.items():
        print(f"    {name:30} {figures.progress[name]:7} {gap:7.2f} s")
    for name, first, last in zip(Footprint._fields, before, after, strict=True):
        print(f"{name:30} {first:11,} at first {last:11,} at last")


# Which part of the time, and with what.
WAYS = {"one process": (0.3, 1), "two workers": (0.15, 2)}


@pytest.mark.timeout(0)
@pytest.mark.parametrize("way", WAYS)
def test_nobody_waits_and_nothing_is_left(
    served: Repo,
    node: Repo,
    start: Callable[..., Soaked],
    make_user: Callable[[str, Soaked], Repo],
    pytestconfig: pytest.Config,
    way: str,
) -> None:
    share, workers = WAYS[way]
    seconds = share * pytestconfig.getoption("--soak")
    door = start("--jobs=2", f"--workers={workers}", f"--proxyconnections={workers}", "--lockedfiles=10000")
    ledger, figures, source = Ledger(), Figures(), random.Random(way)
    present, shared = ({key_for(content): content for content in map(source.randbytes, sizes)} for sizes in SIZES)
    targets = Targets(door.port, served.uuid, node.uuid, NEVER, present, shared)
    rude = [Interrupted(name, make_user(name, door), figures) for name in ("interrupted", "interrupted too")]
    well = [
        Polite("plain", door.port, served.uuid, ledger, figures),
        Polite("plain too", door.port, served.uuid, ledger, figures),
        Polite("proxied", door.port, node.uuid, ledger, figures),
        Finisher("finisher", targets, figures),
        User("git-annex", make_user("user", door), ledger, figures),
    ]
    store(targets)
    for one in well:
        figures.begin(one.name)
    at_once(one.round for one in well)  # everything is done once before anybody is rude
    wait_until(lambda: is_quiet(door), LONGEST_WAIT)
    before = door.at_rest()

    crowd, silent = Crowd(), list[socket.socket]()
    for one in (*well, *rude):
        figures.begin(one.name)
        crowd.start(one.round)
    for number in range(RUDE):
        crowd.start(Rude(targets, figures, silent, number).behave, 0.002)
    try:
        crowd.work(seconds)
    finally:
        for client in silent:
            client.close()

    at_once(one.round for one in (*well, *rude))
    unlock(targets)
    end = time.monotonic() + LONGEST_WAIT
    while not is_quiet(door) or not is_no_more(door.rest(), before, workers):
        if time.monotonic() > end:
            break
        time.sleep(0.1)
    after = door.at_rest()
    report(way, seconds, figures, before, after)
    assert is_quiet(door) and is_no_more(after, before, workers), "it does not let go of something"
    locked = door.gauge("locks")
    at_once(victim.check for victim in rude)
    assert max(figures.gaps.values()) < LONGEST_WAIT

    door.stop()
    assert processes_at(served.path, node.path) == []
    assert not [line for line in door.said.splitlines() if "internal error" in line or "Traceback" in line]
    check_contents(served, node, ledger, targets)
    mine = {key: content for victim in rude for key, content in victim.contents.items()}
    check_leftovers(served, node, targets, mine, locked)
    for repo in (served, node):
        repo.annex("fsck", "--all", "--in=here", "--quiet")
        repo.git("fsck", "--no-dangling")


def store(targets: Targets) -> None:
    """What is there from the beginning, in both."""
    for uuid in (targets.served, targets.node):
        for key, content in targets.present.items():
            path = target("put", uuid=uuid, key=key)
            answer = ask(targets.port, "POST", path, {"X-git-annex-data-length": str(len(content))}, content)
            assert answer.json == PLUS | {"stored": True}
            targets.stored.append((uuid, key))
