"""Many writers in one repository for a while, through both programs and locally; nothing acknowledged is lost.

Every writer has keys of its own, so what was last acknowledged to it is what must be true at the end, in the
content store and in the location log. Everybody fights for the journal, the index and the branch, and for locks on a
few keys that all share. (Of those it is not checked what is logged at the end: real git-annex logs a PUT and a REMOVE
of one key at the same moment in either order.) ``--soak SECONDS`` makes it longer.
"""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable

import pytest

from tests.interop.harness import Program, Repo

# Real programs that speak less lose their own locks now and then, even when they are among themselves.
MODERN = 3


class Writers:
    """Threads that work until the time is up. The first failure stops all of them."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.failures: list[BaseException] = []
        self.rounds: dict[str, int] = {}
        self.threads: list[threading.Thread] = []

    def go_on(self, name: str) -> bool:
        self.rounds[name] = self.rounds.get(name, 0) + 1
        return not self.failures and time.monotonic() < self.end

    def start(self, function: Callable[..., None], *args: object) -> None:
        def work() -> None:
            try:
                function(self, *args)
            except BaseException as failure:
                self.failures.append(failure)

        self.threads.append(threading.Thread(target=work, name=function.__name__))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join()
        for failure in self.failures:
            raise failure


def key_for(content: bytes) -> str:
    return f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


class Ledger:
    """What was acknowledged: for each key whether the server repository has it."""

    def __init__(self) -> None:
        self.present: dict[str, bool] = {}
        self.contents: dict[str, bytes] = {}


def put_and_remove(writers: Writers, program: Program, repo: Repo, ledger: Ledger, name: str) -> None:
    """Short sessions of a client of its own keys, each session ending in a commit."""
    source = random.Random(name)
    contents = [f"{name} {n}\n".encode() * source.randint(1, 5000) for n in range(20)]
    for content in contents:
        ledger.contents[key_for(content)] = content
    while writers.go_on(name):
        with program.p2p(repo) as session:
            for content in source.sample(contents, source.randint(1, 8)):
                key = key_for(content)
                there = ledger.present.get(key, False)
                answer = session.ask(f"REMOVE {key}") if there else session.put(key, content)
                assert answer == "SUCCESS", f"{name}: {answer!r} {session.said}"
                ledger.present[key] = not there
            assert session.close() == 0


def fight_for_locks(writers: Writers, program: Program, repo: Repo, keys: dict[str, bytes], name: str) -> None:
    """Nobody removes what is locked; what is not locked may go, and be put again, at any time."""
    source = random.Random(name)
    places = {key: repo.place_for(key) for key in keys}
    while writers.go_on(name):
        with program.p2p(repo) as session:
            for _ in range(20):
                key, content = source.choice(list(keys.items()))
                if session.ask(f"LOCKCONTENT {key}") == "SUCCESS":
                    time.sleep(source.random() / 100)
                    if session.version >= MODERN or not program.is_real:
                        assert places[key].read_bytes() == content
                    session.send("UNLOCKCONTENT")
                answer = session.ask(f"REMOVE {key}") if source.random() < 0.5 else session.put(key, content)
                if program.is_real and answer in {"", "ERROR expected DATA"}:
                    break  # how the new one refuses, and the old one loses track
                busy = answer.startswith("ERROR transfer already in progress")
                assert busy or answer in {"SUCCESS", "FAILURE", "ALREADY-HAVE"}, f"{name}: {answer!r} {session.said}"


def add_and_sync_locally(writers: Writers, repo: Repo, ledger: Ledger, files: dict[str, str]) -> None:
    """The owner of the server repository works in it; FILES gets the key of each of his files."""
    number = 0
    while writers.go_on("local"):
        number += 1
        content = b"local %d\n" % number
        key = files[f"local{number}"] = key_for(content)
        (repo.path / f"local{number}").write_bytes(content)
        # It ends well, and has added nothing to the index, when others had that at the moment.
        for _ in range(50):
            repo.annex("add", "-c", "annex.addunlocked=false", "--quiet", "--backend=SHA256", f"local{number}")
            if repo.annex("lookupkey", f"local{number}", check=False):
                break
        ledger.present[key], ledger.contents[key] = True, content
        synced = repo.annex("sync", "--no-content", check=False)
        # git does not wait for others that have the index, as all programs here do now and then.
        assert synced or "index.lock" in synced.err, repr(synced)
        if number % 3 == 0:
            repo.annex("drop", "--force", f"local{number}")
            ledger.present[key] = False


def work_as_a_user(writers: Writers, client: Repo, ledger: Ledger, mine: dict[str, bool]) -> None:
    """A clone that copies, moves and syncs over ssh."""
    number, name = 0, client.path.name
    while writers.go_on(name):
        number += 1
        content = f"{name} {number}\n".encode() * 1000
        key = client.add(f"{name}-{number}", content, backend="SHA256")
        ledger.contents[key] = content
        client.annex("move" if number % 2 else "copy", "--to=origin", f"{name}-{number}")
        ledger.present[key], mine[key] = True, number % 2 == 0
        if number % 3 == 0:
            client.annex("move", "--from=origin", f"{name}-{number}")
            ledger.present[key], mine[key] = False, True
        client.commit(f"{name} {number}")
        client.annex("sync", "--no-content", check=False)  # loses races of pushes now and then; the next one wins


@pytest.mark.timeout(0)
@pytest.mark.parametrize("version", [8, 10])
def test_nothing_acknowledged_is_lost(make_server, make_client, server, real_shell, pytestconfig, version):
    repo = make_server(bare=False, version=version)
    clients = [make_client(repo, f"through-{host}", host=host) for host in ("rw", "real")]
    ledger, held = Ledger(), {client.uuid: {} for client in clients}
    shared = {key_for(content): content for n in range(3) if (content := b"shared %d" % n)}

    writers = Writers(pytestconfig.getoption("--soak"))
    for name, program in (("ours", server), ("theirs", real_shell)):
        writers.start(put_and_remove, program, repo, ledger, name)
        writers.start(fight_for_locks, program, repo, shared, f"locks-{name}")
    writers.start(put_and_remove, server, repo, ledger, "ours too")
    files: dict[str, str] = {}
    writers.start(add_and_sync_locally, repo, ledger, files)
    for client in clients:
        writers.start(work_as_a_user, client, ledger, held[client.uuid])
    writers.join()
    print(writers.rounds)
    assert min(writers.rounds.values()) > 1, "somebody did not get any work done"

    for client in clients:
        client.annex("sync", "--no-content")
    repo.annex("merge")
    assert {name: repo.key_of(name) for name in files} == files
    stored = {key: repo.content(key) for key in ledger.present}
    assert stored == {key: ledger.contents[key] if there else None for key, there in ledger.present.items()}
    locations = repo.all_locations()
    for key, there in ledger.present.items():
        expected = {repo.uuid} if there else set()
        expected |= {client.uuid for client in clients if held[client.uuid].get(key)}
        assert locations.get(key, set()) == expected, key
    # Who unlocks while others hold the lock may leave its retention time behind; the next one tidies up.
    with server.p2p(repo) as session:
        for key, content in shared.items():
            assert session.put(key, content) in {"SUCCESS", "ALREADY-HAVE"}
            assert session.ask(f"LOCKCONTENT {key}") == "SUCCESS"
            session.send("UNLOCKCONTENT")
        assert session.close() == 0
    assert not repo.leftovers()
    repo.git("fsck", "--no-dangling")
