"""sendkey with the real rsync as its client, and with clients that do not keep to rsync's protocol."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest

from annexshell import landlock, rsync
from annexshell.annex import lockfile
from tests import vectors
from tests.commands.test_recvkey import CONTENT, KEY, files, filled, key_of
from tests.rsyncing import CLIENT, OPTIONS, RawClient, RsyncClient, kill, wait_for
from tests.shell import Shell, git, make_annex, make_ref, place

RECORDED = [
    case
    for case in vectors.load("shell-transfer")
    if case["command"] == "sendkey" and case["version"].startswith("10.2026")
]
FAILED = f"transfer/failed/upload/{CLIENT}/"
FIELDS = ["--", f"remoteuuid={CLIENT}", "--"]


@pytest.fixture
def repo(shell: Shell) -> Path:
    repo = make_annex(shell.home / "repo")
    make_ref(repo, "refs/heads/git-annex")
    return repo


@pytest.fixture
def client(shell: Shell, repo: Path) -> RsyncClient:
    return RsyncClient(shell.home, repo)


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["case"])
def test_as_recorded(case: dict[str, Any], client: RsyncClient, repo: Path) -> None:
    if case["case"] != "absent":
        (client.directory / "good").write_bytes(CONTENT)
        assert client.send(KEY, client.directory / "good").status == 0
    held = None
    options = list(OPTIONS)
    if case["case"] == "present, transfer lock of a download held":
        path = repo / f".git/annex/transfer/download/{CLIENT}/lck.{KEY}"
        path.parent.mkdir(parents=True, exist_ok=True)
        held = lockfile.acquire(os.fsencode(path), lockfile.EXCLUSIVE, wait=False)
    elif case["case"] == "present, client uses --bwlimit":
        options.append("--bwlimit=1000")
    elif case["case"] == "present, client uses -z":
        options.append("-z")
    fetched = client.directory / "fetched"
    done = client.fetch(KEY, fetched, options=options)
    if held is not None:
        held.close()
    if case["shell_exit"] is None:
        # Neither rsync understands the other; what they make of that depends on their versions.
        assert done.status
        assert done.client_status
    else:
        assert (done.status, done.client_status) == (case["shell_exit"], case["rsync_client_exit"]), done
        assert done.stderr.splitlines() == ["annexshell: " + line for line in case["shell_stderr"]]
    assert (fetched.exists() and fetched.read_bytes() == CONTENT) == case["received_ok"]
    mode = {name: stat.S_IMODE(status.st_mode) for name, status in files(repo).items()}
    assert mode == {filled(file["file"], KEY): int(file["mode"], 8) for file in case["annex_files_after"]}


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_sizes(size: int, client: RsyncClient, repo: Path) -> None:
    data = os.urandom(size)
    place(repo, key_of(data), data)
    done = client.fetch(key_of(data), client.directory / "fetched")
    assert (done.status, done.stderr) == (0, "")
    assert (client.directory / "fetched").read_bytes() == data


def test_what_the_client_has_of_it_is_not_sent_again(client: RsyncClient, repo: Path) -> None:
    data = os.urandom(1_000_000)
    place(repo, key_of(data), data)
    (client.directory / "fetched").write_bytes(data[:600_000])
    done = client.fetch(key_of(data), client.directory / "fetched", options=[*OPTIONS, "--stats"])
    assert done.status == 0
    assert (client.directory / "fetched").read_bytes() == data
    literal = done.client_said.partition("Literal data: ")[2].partition(" ")[0]
    assert int(literal.replace(",", "")) < 500_000


def test_insecure_keys(client: RsyncClient, repo: Path) -> None:
    key = "WORM-s18-m1--x"
    place(repo, key, CONTENT)
    git(repo, "config", "annex.securehashesonly", "true")
    done = client.fetch(key, client.directory / "fetched")
    assert done.stderr == "annexshell: annex.securehashesonly blocked transfer of WORM key\n"
    assert done.status == 1


def test_one_key_at_a_time(client: RsyncClient, repo: Path, shell: Shell) -> None:
    """Further ones do not count, as the conversation with rsync is over then."""
    place(repo, KEY, CONTENT)
    done = client.fetch(KEY, client.directory / "fetched", words=["nokey", *FIELDS])
    assert done.status == 0
    assert shell("sendkey", "repo", "nokey", KEY).complaint.startswith("bad key")


def test_an_object_that_changes_while_it_is_sent(repo: Path, shell: Shell) -> None:
    path = place(repo, KEY, CONTENT)
    for change in (lambda: path.write_bytes(b"something else of"), path.unlink, lambda: os.utime(path, (5, 5))):
        if not path.exists():
            path.write_bytes(CONTENT)

        def serve(*_: object, **__: object) -> int:
            change()  # noqa: B023
            return 0

        shell.monkeypatch.setattr(rsync, "serve", serve)
        result = shell("sendkey", "repo", KEY, *FIELDS)
        assert result.status == 1
        assert result.complaint == f"the content of {KEY} changed while it was sent"
        assert FAILED + KEY in files(repo)


def test_something_else_in_the_object_s_place(client: RsyncClient, repo: Path) -> None:
    secret = client.directory / "secret"
    secret.write_text("secret")
    path = place(repo, KEY, CONTENT)
    path.unlink()
    for make in (lambda: path.symlink_to(secret), lambda: os.mkfifo(path), path.mkdir):
        make()
        done = client.fetch(KEY, client.directory / "fetched")
        assert done.status == 1
        assert done.stderr.startswith("annexshell: ")
        assert not (client.directory / "fetched").exists()
        path.rmdir() if path.is_dir() else path.unlink()


# Transfers that end early.


def start_slowly(client: RsyncClient) -> subprocess.Popen[bytes]:
    argv = client.argv("sendkey", KEY, [client.directory / "fetched"], [*OPTIONS, "--bwlimit=100"], FIELDS)
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def test_a_client_that_goes(client: RsyncClient, repo: Path) -> None:
    place(repo, KEY, bytes(5_000_000))
    slow = start_slowly(client)
    wait_for(lambda: f"transfer/upload/{CLIENT}/{KEY}" in files(repo))
    kill(slow)
    wait_for(lambda: (client.directory / "status").exists())
    assert (client.directory / "status").read_text() == "1\n"
    assert not [name for name in files(repo) if name.startswith("transfer/upload")]
    assert FAILED + KEY in files(repo)


def test_a_signal(repo: Path) -> None:
    place(repo, KEY, CONTENT)
    raw = RawClient("sendkey", str(repo), KEY, *FIELDS)
    raw.greet()
    rsync_pid = raw.rsync()
    assert f"transfer/upload/{CLIENT}/{KEY}" in files(repo)
    raw.process.terminate()
    assert raw.process.wait(20) == -signal.SIGTERM
    wait_for(lambda: not os.path.exists(f"/proc/{rsync_pid}"))
    assert not [name for name in files(repo) if name.startswith("transfer/upload")]
    raw.end()


# Clients that want something else.


@pytest.mark.parametrize("rule", ["merge {}", ". {}", ".- {}", "merge,w- {}", ": {}", "dir-merge,- {}", "!\n. {}"])
def test_filter_rules_cannot_show_other_files(rule: str, repo: Path, shell: Shell) -> None:
    """To rsync, the client is somebody who may read what the server's account can."""
    secret = shell.home / "secret"
    secret.write_text("very secret\n")
    place(repo, KEY, CONTENT)
    raw = RawClient("sendkey", str(repo), KEY, *FIELDS)
    raw.greet()
    try:
        raw.filter(rule.format(secret).encode())
        raw.filter(b"")
    except BrokenPipeError:
        pass
    out, said = raw.end()
    assert raw.process.returncode == 1
    with landlock.Ruleset() as rules:
        if rules.exists:
            assert b"secret" not in out.replace(os.fsencode(secret), b"")
            assert "very" not in said


def test_a_client_that_makes_it_wait_for_something_else(repo: Path, shell: Shell) -> None:
    place(repo, KEY, CONTENT)
    os.mkfifo(shell.home / "pipe")
    patience = "from annexshell import rsync; rsync._GRACE = 0.2; rsync._LOOK = 0.1"
    raw = RawClient("sendkey", str(repo), KEY, *FIELDS, code=patience)
    raw.greet()
    raw.filter(f". {shell.home}/pipe".encode())
    raw.end()
    assert raw.process.returncode == 1
