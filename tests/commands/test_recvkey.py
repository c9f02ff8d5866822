"""recvkey with the real rsync as its client, and with clients that do not keep to rsync's protocol."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shlex
import signal
import stat
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex import lockfile
from tests import vectors
from tests.rsyncing import CLIENT, OPTIONS, RawClient, RsyncClient, kill, wait_for
from tests.shell import UUID, Shell, git, make_annex, make_ref, make_repository

RECORDED = [
    case
    for case in vectors.load("shell-transfer")
    if case["command"] == "recvkey" and case["version"].startswith("10.2026")
]
CONTENT = b"eighteen bytes of\n"
WRONG = b"eighteen bytes or\n"
FAILED = f"transfer/failed/download/{CLIENT}/"


def key_of(content: bytes, name: str = "SHA256E-s{}--{}.txt") -> str:
    return name.format(len(content), hashlib.sha256(content).hexdigest())


KEY = key_of(CONTENT)


@pytest.fixture
def repo(shell: Shell) -> Path:
    repo = make_annex(shell.home / "repo")
    make_ref(repo, "refs/heads/git-annex")
    return repo


@pytest.fixture
def client(shell: Shell, repo: Path) -> RsyncClient:
    (shell.home / "good").write_bytes(CONTENT)
    (shell.home / "wrong").write_bytes(WRONG)
    return RsyncClient(shell.home, repo)


def files(repo: Path) -> dict[str, os.stat_result]:
    """What is in the annex, but for what is there in any case."""
    annex = repo / ".git" / "annex"
    annex = annex if annex.exists() or (repo / ".git").exists() else repo / "annex"
    found = {str(path.relative_to(annex)): path.lstat() for path in annex.rglob("*") if not path.is_dir()}
    own = re.compile(r"journal\.lck|othertmp\.lck|keysdb.*|sentinal.*|index.*|smudge.*|mergedrefs|restage.*")
    return {name: status for name, status in found.items() if not own.fullmatch(name)}


def content(repo: Path, key: str = KEY) -> bytes | None:
    found = list(repo.glob(f".git/annex/objects/*/*/{key}/{key}")) + list(repo.glob(f"annex/objects/*/*/{key}/{key}"))
    assert len(found) < 2
    return found[0].read_bytes() if found else None


# What git-annex-shell was seen to do.


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case["case"])
def test_as_recorded(case: dict[str, Any], client: RsyncClient, repo: Path) -> None:
    key = KEY if case["key"] == "KEY" else case["key"]
    for name, value in case["config"].items():
        git(repo, "config", name, value)
    words = ["--", f"remoteuuid={CLIENT}", "--"]
    source = "good"
    if "already present" in case["case"]:
        assert client.send(key, client.directory / "good").status == 0
    if case["case"] in ("wrong content, right size", "wrong content, annex.verify=false"):
        source = "wrong"
    elif case["case"] == "wrong size":
        source = "longer"
        (client.directory / source).write_bytes(CONTENT + b"more")
    elif case["case"] == "no fields section":
        words = []
    elif case["case"] == "remoteuuid with a slash":
        words = ["--", "remoteuuid=../../x", "--"]
    elif case["case"].startswith("GIT_ANNEX_SHELL"):
        client.environment[case["case"]] = "1"
    locks = []
    if case["case"] == "transfer lock of same key and remote held":
        for directory in ("lck", CLIENT):
            path = repo / ".git/annex/transfer/download" / directory / f"lck.{key}"
            path.parent.mkdir(parents=True)
            locks.append(lockfile.acquire(os.fsencode(path), lockfile.EXCLUSIVE, wait=False))
    done = client.send(key, client.directory / source, words=words)
    for lock in locks:
        lock.close()

    assert (done.status, done.client_status) == (case["shell_exit"], case["rsync_client_exit"]), done
    expected = [line.removeprefix("git-annex-shell: ") for line in case["shell_stderr"]]
    # How much space is missing is not the same everywhere; and of what is wrong we say more.
    for line in (re.split(r"\d", line)[0] if line.startswith("not enough") else line for line in expected):
        assert done.stderr.startswith(f"annexshell: {line}"), done
    assert bool(done.stderr) == bool(expected)
    mode = {name: stat.S_IMODE(status.st_mode) for name, status in files(repo).items()}
    assert mode.keys() == {filled(file["file"], key) for file in case["annex_files_after"]}
    for file in case["annex_files_after"]:
        assert mode[filled(file["file"], key)] == int(file["mode"], 8), file
    if done.status == 0:
        assert content(repo, key) == (client.directory / source).read_bytes()


def filled(name: str, key: str) -> str:
    """The recorded NAME of a file, for our key, whose hash directories are others."""
    if "KEY" not in name:
        return name
    name = name.replace("KEY", key)
    digest = hashlib.md5(key.encode()).hexdigest()
    if name.startswith("journal/"):
        return f"journal/{digest[:3]}_{digest[3:6]}_{key}.log"
    if name.startswith("objects/"):
        from annexshell.key import Key

        return f"objects/{Key(key.encode()).hashdirs_mixed().decode()}/{key}/{key}"
    return name


def test_nothing_is_committed(client: RsyncClient, repo: Path) -> None:
    before = git(repo, "rev-parse", "git-annex")
    assert client.send(KEY, client.directory / "good").status == 0
    assert git(repo, "rev-parse", "git-annex") == before
    (log,) = (repo / ".git/annex/journal").iterdir()
    assert log.read_text().split()[1:] == ["1", UUID]


def test_in_an_encrypted_repository(shell: Shell, client: RsyncClient) -> None:
    repo = client.repo = make_repository(shell.home / "crypt", bare=True, **{"core_gcrypt-id": ":id:abcdef"})
    key = "GPGHMACSHA1--aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
    done = client.send(key, client.directory / "good", words=["--uuid", "39d0c840-d914-55c6-9969-739920770697"])
    assert done.status == 1  # rsync's words are options without the two separators
    words = ["--uuid", "39d0c840-d914-55c6-9969-739920770697", "--", f"remoteuuid={CLIENT}", "--"]
    done = client.send(key, client.directory / "good", words=words)
    assert done.status == 0, done
    digest = hashlib.md5(key.encode()).hexdigest()
    assert files(repo).keys() == {f"objects/{digest[:3]}/{digest[3:6]}/{key}/{key}"}
    assert not (repo / "annex" / "journal").exists()
    assert git(repo, "for-each-ref") == ""


@pytest.mark.parametrize("size", [0, 1, 100_000, 3_000_000])
def test_sizes(size: int, client: RsyncClient, repo: Path) -> None:
    data = os.urandom(size)
    (client.directory / "file").write_bytes(data)
    key = key_of(data)
    done = client.send(key, client.directory / "file")
    assert (done.status, done.stderr) == (0, "")
    assert content(repo, key) == data


@pytest.mark.parametrize(
    "name", ["a b", "*", "[a]?", "-rf", "'\"$(id)", "a\\b", "a\nb", "%/&:", "\u00e9\u2028", os.fsdecode(b"\xff\x01")]
)
def test_odd_keys(name: str, client: RsyncClient, repo: Path) -> None:
    key = f"WORM-s18-m1--{name}"
    done = client.send(os.fsencode(key), client.directory / "good")
    assert done.status == 0, done
    fetched = client.fetch(os.fsencode(key), client.directory / "fetched")
    assert fetched.status == 0, fetched
    assert (client.directory / "fetched").read_bytes() == CONTENT
    assert len([file for file in files(repo) if file.startswith("objects/")]) == 1


def test_an_unnamed_client_is_not_shown_but_locks(client: RsyncClient, repo: Path) -> None:
    lock = repo / f".git/annex/transfer/download/lck/lck.{KEY}"
    lock.parent.mkdir(parents=True)
    held = lockfile.acquire(os.fsencode(lock), lockfile.EXCLUSIVE, wait=False)
    assert held is not None
    done = client.send(KEY, client.directory / "good", words=["--", "--"])
    held.close()
    assert done.status == 1
    assert "transfer already in progress" in done.stderr
    assert client.send(KEY, client.directory / "wrong", words=["--", "--"]).status == 1
    assert not files(repo)


def test_limits_of_bandwidth_are_obeyed(client: RsyncClient, repo: Path) -> None:
    data = os.urandom(200_000)
    (client.directory / "file").write_bytes(data)
    assert client.send(key_of(data), client.directory / "file", options=[*OPTIONS, "--bwlimit=10m"]).status == 0


def test_without_rsync(shell: Shell, repo: Path) -> None:
    programs = shell.home / "programs"
    programs.mkdir()
    git_path = subprocess.run(["which", "git"], capture_output=True, text=True, check=True).stdout.strip()
    (programs / "git").symlink_to(git_path)
    for name, key in (("recvkey", KEY), ("sendkey", KEY)):
        if name == "sendkey":
            (shell.home / "good").write_bytes(CONTENT)
            assert RsyncClient(shell.home, repo).send(KEY, shell.home / "good").status == 0
        result = shell(name, "repo", key, PATH=str(programs))
        assert (result.status, result.stdout) == (1, b"")
        assert result.complaint.startswith("cannot run rsync, by which this command transfers content")


# Transfers that end early.


def start_slowly(client: RsyncClient, key: str, file: Path) -> subprocess.Popen[bytes]:
    """A client that takes its time, together with its server in a process group of its own."""
    argv = client.argv("recvkey", key, [file], [*OPTIONS, "--bwlimit=200k"], ["--", f"remoteuuid={CLIENT}", "--"])
    return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)


def test_a_lost_connection_and_the_next_attempt(client: RsyncClient, repo: Path) -> None:
    data = os.urandom(2_000_000)
    key = key_of(data)
    file = client.directory / "file"
    file.write_bytes(data)
    temp = repo / ".git/annex/tmp" / key
    slow = start_slowly(client, key, file)
    wait_for(lambda: temp.exists() and temp.stat().st_size > 200_000)
    assert f"transfer/download/{CLIENT}/{key}" in files(repo)
    kill(slow)
    wait_for(lambda: (client.directory / "status").exists())
    assert (client.directory / "status").read_text() == "1\n"
    partial = temp.stat().st_size
    assert 200_000 < partial < len(data)
    assert files(repo).keys() == {f"tmp/{key}", FAILED + key}

    done = client.send(key, file, options=[*OPTIONS, "--stats"])
    assert done.status == 0, done
    matched = re.search(r"Matched data: ([\d,]+) bytes", done.client_said)
    assert matched
    assert int(matched[1].replace(",", "")) > partial * 0.9
    assert content(repo, key) == data
    assert not temp.exists()
    assert FAILED + key not in files(repo)


def test_a_signal(client: RsyncClient, repo: Path) -> None:
    raw = RawClient("recvkey", str(repo), KEY, "--", f"remoteuuid={CLIENT}", "--")
    raw.greet()
    rsync = raw.rsync()
    raw.process.terminate()
    assert raw.process.wait(20) == -signal.SIGTERM
    wait_for(lambda: not os.path.exists(f"/proc/{rsync}"))
    assert files(repo).keys() == {FAILED + KEY}
    raw.end()


def test_what_an_earlier_attempt_left_is_not_all(client: RsyncClient, repo: Path) -> None:
    """rsync is content with no file at all."""
    key = "GPGHMACSHA1--abc"  # which nobody can verify
    temp = repo / ".git/annex/tmp" / key
    temp.parent.mkdir(parents=True)
    temp.write_bytes(CONTENT[:9])
    done = client.send(key, client.directory / "missing")
    assert done.status == 1
    assert "did not send the content" in done.stderr
    assert content(repo, key) is None
    assert temp.read_bytes() == CONTENT[:9]
    assert client.send(key, client.directory / "good").status == 0
    assert content(repo, key) == CONTENT


def test_left_with_the_right_size_and_time(client: RsyncClient, repo: Path) -> None:
    """Which rsync takes for a file that need not be sent."""
    good = client.directory / "good"
    temp = repo / ".git/annex/tmp" / KEY
    temp.parent.mkdir(parents=True)
    temp.write_bytes(WRONG)
    os.utime(temp, ns=(good.stat().st_mtime_ns, good.stat().st_mtime_ns))
    assert client.send(KEY, good).status == 0
    assert content(repo, KEY) == CONTENT


# Clients that want something else.


def check_refused(done: Any, repo: Path, status: int = 1) -> None:
    assert done.status == status, done
    assert content(repo) is None
    assert files(repo).keys() <= {FAILED + KEY}
    assert not (repo / ".git/annex/tmp" / KEY).exists()


def test_several_files(client: RsyncClient, repo: Path) -> None:
    check_refused(client.send(KEY, client.directory / "good", client.directory / "wrong"), repo)
    assert client.send(KEY, client.directory / "good").status == 0


def test_directories(client: RsyncClient, repo: Path) -> None:
    directory = client.directory / "directory"
    directory.mkdir()
    check_refused(client.send(KEY, directory, options=["--dirs", "--inplace"]), repo)
    (directory / "file").write_bytes(CONTENT)
    check_refused(client.send(KEY, f"{directory}/", options=["--recursive", "--inplace"]), repo)
    assert client.send(KEY, client.directory / "good").status == 0


def test_modes(client: RsyncClient, repo: Path) -> None:
    (client.directory / "good").chmod(0o6777)
    assert client.send(KEY, client.directory / "good").status == 0
    (path,) = repo.glob(f".git/annex/objects/*/*/{KEY}/{KEY}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o444


REGULAR, DIRECTORY, SYMLINK, FIFO = (
    kind | 0o777 for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFIFO)
)
_LONG_NAME = b"\x40"
_TRANSFER, _BASIS, _NAMED = 1 << 15, 1 << 11, 1 << 12
_FUZZY = 0x83
PIECE = bytes(32768)  # as much as rsync takes at once


def raw(repo: Path, key: str, *entries: tuple[bytes, int], code: str = "") -> RawClient:
    """A client that announces files by their name and mode, of 18 bytes each."""
    client = RawClient("recvkey", str(repo), key, "--", f"remoteuuid={CLIENT}", "--", code=code)
    client.greet()
    for name, mode in entries:
        client.say(_LONG_NAME + struct.pack("<i", len(name)) + name + struct.pack("<iii", 18, 1, mode))
    client.say(b"\0" + struct.pack("<i", 0))
    return client


def contents(index: int, *pieces: bytes, flags: int = 0, more: bytes = b"", block: int = 0) -> bytes:
    """The content of a file as a sender says it, without the checksum that is to follow."""
    said = struct.pack("<iH", index, _TRANSFER | flags) + more
    said += struct.pack("<iiii", 1 if block else 0, block, 2 if block else 0, 0)
    return said + b"".join(struct.pack("<i", len(piece)) + piece for piece in pieces)


@pytest.mark.parametrize(
    "entries",
    [
        [(b"link", SYMLINK)],
        [(b"pipe", FIFO)],
        [(b"directory", DIRECTORY)],
        [(b".", DIRECTORY), (b"file", REGULAR)],
        [(b"one", REGULAR), (b"two", REGULAR)],
        [(b"/etc/x", REGULAR)],
        [(b"../x", REGULAR)],
        [(b"a/../../x", REGULAR)],
        [],
    ],
    ids=str,
)
def test_other_things_than_a_file(entries: list[tuple[bytes, int]], repo: Path, shell: Shell) -> None:
    everything = sorted(shell.home.rglob("*"))
    client = raw(repo, KEY, *entries)
    try:
        client.say(contents(0, CONTENT) + struct.pack("<i", 0) + bytes(16))
    except BrokenPipeError:
        pass
    client.end()
    assert client.process.returncode == 1
    assert files(repo).keys() == {FAILED + KEY}
    # Directories for locks, and so on, but nothing outside of the annex.
    assert [
        path for path in sorted(shell.home.rglob("*")) if path not in everything and "annex" not in str(path)
    ] == []


def test_any_name_is_that_of_the_temporary_file(repo: Path, shell: Shell) -> None:
    key = key_of(PIECE * 20)
    client = raw(repo, key, (b"config", stat.S_IFREG | 0o6777))
    client.say(contents(0, *[PIECE] * 19))
    temp = repo / ".git/annex/tmp" / key
    wait_for(lambda: temp.exists() and temp.stat().st_size >= len(PIECE))
    client.end()
    assert stat.S_IMODE(temp.stat().st_mode) & 0o7111 == 0
    assert files(repo).keys() == {f"tmp/{key}", FAILED + key}


@pytest.mark.parametrize("key", [KEY, "GPGHMACSHA1--abc"])
def test_more_than_was_announced(key: str, repo: Path) -> None:
    # Of content without a size there may be as much as the disk has beyond its reserve.
    small_disk = "from annexshell.annex import diskspace; diskspace._beyond_reserve = lambda repo: 5_000_000"
    client = raw(repo, key, (b"file", REGULAR), code=small_disk)
    sent = 0
    try:
        client.say(contents(0))
        while sent < 50_000_000:
            client.say(struct.pack("<i", len(PIECE)) + PIECE)
            sent += len(PIECE)
    except BrokenPipeError:
        pass
    said = client.end()[1]
    assert sent < (4_000_000 if key == KEY else 10_000_000), said
    assert client.process.returncode == 1
    assert "File too large" in said
    assert files(repo).keys() == {FAILED + key}


def test_content_of_another_file_as_the_basis(repo: Path, shell: Shell) -> None:
    """By which versions before 3.4 let whoever sends read any file, if he can fetch what he has stored."""
    secret = shell.home / "secret"
    secret.write_bytes(b"something that is not for this client" * 20)
    key = "GPGHMACSHA1--abc"
    client = raw(repo, key, (b"file", REGULAR))
    name = os.path.relpath(secret, repo / ".git/annex/tmp").encode()
    named = bytes([_FUZZY, len(name)]) + name
    try:
        client.say(contents(0, flags=_BASIS | _NAMED, more=named, block=700) + struct.pack("<ii", -1, 0) + bytes(16))
    except BrokenPipeError:
        pass
    client.end()
    assert client.process.returncode == 1
    for path in repo.rglob("*"):
        assert not path.is_file() or b"not for this client" not in path.read_bytes(), path


# What was in the way.


def test_a_link_in_place_of_the_temporary_file(client: RsyncClient, repo: Path) -> None:
    temp = repo / ".git/annex/tmp" / KEY
    temp.parent.mkdir(parents=True)
    temp.symlink_to(repo / ".git" / "config")
    config = (repo / ".git" / "config").read_bytes()
    done = client.send(KEY, client.directory / "good")
    assert done.status == 1
    assert "cannot write to the repository" in done.stderr
    assert (repo / ".git" / "config").read_bytes() == config
    temp.unlink()
    os.mkfifo(temp)
    done = client.send(KEY, client.directory / "good")
    assert done.status == 1
    assert "is not a regular file" in done.stderr


def test_a_second_name_of_the_temporary_file(client: RsyncClient, repo: Path) -> None:
    temp = repo / ".git/annex/tmp" / KEY
    temp.parent.mkdir(parents=True)
    other = client.directory / "other"
    other.write_bytes(b"precious")
    temp.hardlink_to(other)
    assert client.send(KEY, client.directory / "good").status == 0
    assert other.read_bytes() == b"precious"
    assert content(repo) == CONTENT


def test_a_partial_file_that_is_not_writable(client: RsyncClient, repo: Path) -> None:
    temp = repo / ".git/annex/tmp" / KEY
    temp.parent.mkdir(parents=True)
    temp.write_bytes(CONTENT[:5])
    temp.chmod(0o444)
    assert client.send(KEY, client.directory / "good").status == 0
    assert content(repo) == CONTENT


@pytest.mark.parametrize(
    "key", ["", "nokey", "SHA256E-s18--" + "x" * 300, "SHA256E-s" + "9" * 5000 + "--x", "A--../../x"]
)
def test_keys_that_cannot_be_stored(key: str, client: RsyncClient, repo: Path) -> None:
    done = client.send(key, client.directory / "good")
    expected = 0 if key.startswith("A") else 1
    assert done.status == expected, done
    assert len(done.stderr.splitlines()) == expected
    assert "Traceback" not in done.stderr
    stored = {name for name in files(repo) if not name.startswith("transfer/failed/")}
    assert len(stored) == (2 if expected == 0 else 0)


def test_a_full_disk(client: RsyncClient, repo: Path) -> None:
    """As a limit on the size of files is one."""
    data = os.urandom(500_000)
    key = key_of(data)
    (client.directory / "file").write_bytes(data)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    argv = client.argv("recvkey", key, [client.directory / "file"], OPTIONS, ["--", f"remoteuuid={CLIENT}", "--"])
    limited = ["bash", "-c", f"ulimit -f 100; {shlex.join(argv)}"]
    done = subprocess.run(limited, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    wait_for(lambda: (client.directory / "status").exists())
    assert done.returncode != 0
    assert (client.directory / "status").read_text() == "1\n"
    assert content(repo, key) is None
    assert resource.getrlimit(resource.RLIMIT_FSIZE) == limits
    assert client.send(key, client.directory / "file").status == 0
