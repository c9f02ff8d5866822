from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.remotes import sshcaching
from annexshell.remotes.remote import Ssh
from annexshell.remotes.sshcaching import ControlSocket, Turn, socket_for, socket_name, stop_unused
from tests.remotes.sshremotes import FakeSsh, make_repository

HOST = Ssh(b"host", None, b"/x")


pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def top(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a repository can be, which is our working directory."""
    path = tmp_path / "repo"
    path.mkdir()
    monkeypatch.chdir(path)
    return path


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as one:
        one.bind(str(path))
    path.with_name(path.name + ".lock").touch()


def share(repo: GitRepository, place: Ssh = HOST) -> ControlSocket:
    shared = ControlSocket.share(repo, place, {})
    assert shared is not None
    return shared


# The name and the path.


@pytest.mark.parametrize(
    ("host", "port", "expected"),
    [
        (b"host", None, b"host"),
        (b"host", 22, b"host!22"),
        (b"fe80::1%eth0", None, b"fe80::1eth0"),
        (b"%" + b"h" * 32, None, b"h" * 32),
        (b"h" * 33, None, b"58a40f041a4448d483ec20fba541a36c"),
        (b"h" * 30, 22, b"97c1fe9274eb3477fd52bf969baa26f4"),
        ("é".encode() * 32, None, "é".encode() * 32),
        ("é".encode() * 33, None, b"077487916da57cf9188bbd0c5e604050"),
        (b"a/b", None, hashlib.md5(b"a/b").hexdigest().encode()),
        (b"..", None, hashlib.md5(b"..").hexdigest().encode()),
        (b".%", None, hashlib.md5(b".").hexdigest().encode()),
        (b"%", None, hashlib.md5(b"").hexdigest().encode()),
    ],
)
def test_names(host: bytes, port: int | None, expected: bytes) -> None:
    """Recorded, but for the last ones: with these git-annex leaves the directory."""
    assert socket_name(Ssh(host, port, b"/x")) == expected


def at(annexdir: bytes, **config: bytes) -> GitRepository:
    settings: dict[bytes, list[bytes | None]] = {b"annex." + name.encode(): [value] for name, value in config.items()}
    return cast(GitRepository, SimpleNamespace(config=Config(settings), annexdir=annexdir))


@pytest.mark.parametrize(
    ("annexdir", "cwd", "expected"),
    [
        (b"/srv/u/.git/annex", b"/srv/u", b".git/annex/ssh/host"),
        (b"/srv/u/.git/annex", b"/", b"srv/u/.git/annex/ssh/host"),
        (b"/srv/u/.git/annex", b"/srv/u/a/b/c", b"/srv/u/.git/annex/ssh/host"),
        (b"/srv/" + b"d" * 58 + b"/.git/annex", b"/", b"srv/" + b"d" * 58 + b"/.git/annex/ssh/host"),
        (b"/srv/" + b"d" * 59 + b"/.git/annex", b"/", None),
        (b"/srv/" + b"d" * 59 + b"/.git/annex", b"/srv", b"d" * 59 + b"/.git/annex/ssh/host"),
        (b"/srv/100%/.git/annex", b"/srv", None),
        (b"/srv/${x}/.git/annex", b"/srv", None),
        (b"/srv/~u/.git/annex", b"/srv", None),
    ],
)
def test_paths(annexdir: bytes, cwd: bytes, expected: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getcwdb", lambda: cwd)
    assert socket_for(at(annexdir), HOST, {}) == expected


def test_a_working_directory_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert socket_for(at(b"/srv/u/.git/annex"), HOST, {}) == b"/srv/u/.git/annex/ssh/host"
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("config", "elsewhere", "expected"),
    [
        ({}, None, b"/srv/annex/ssh/host"),
        ({}, b"/run/s", b"/srv/annex/ssh/host"),
        ({"sshcaching": b"false"}, b"/run/s", None),
        ({"crippledfilesystem": b"true"}, None, None),
        ({"crippledfilesystem": b"true"}, b"", None),
        ({"crippledfilesystem": b"true", "sshcaching": b"true"}, None, None),
        ({"crippledfilesystem": b"true"}, b"/run/s", b"/run/s/ssh/host"),
        ({"crippledfilesystem": b"true", "sshcaching": b"false"}, b"/run/s", None),
    ],
)
def test_settings(
    config: dict[str, bytes], elsewhere: bytes | None, expected: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "getcwdb", lambda: b"/a/very/deep/directory/that/is/far/away")
    environment = {} if elsewhere is None else {b"GIT_ANNEX_SSH_SOCKET_DIR": elsewhere}
    assert socket_for(at(b"/srv/annex", **config), HOST, environment) == expected


# Sharing.


def classic_lock(path: Path, kind: str) -> int:
    """In a process of its own, the status of asking for a classic lock as git-annex does: 0 if it is free."""
    script = f"import fcntl, os; fcntl.lockf(os.open({str(path)!r}, os.O_RDWR), fcntl.{kind} | fcntl.LOCK_NB)"
    return subprocess.run([sys.executable, "-c", script], stderr=subprocess.DEVNULL).returncode


def test_a_share_is_a_lock_that_others_respect(top: Path, fake_ssh: FakeSsh) -> None:
    lock = top / ".git/annex/ssh/host.lock"
    with share(make_repository(top)) as shared:
        assert shared.path == b".git/annex/ssh/host"
        assert lock.read_bytes() == b""
        assert classic_lock(lock, "LOCK_SH") == 0
        assert classic_lock(lock, "LOCK_EX") != 0
    assert classic_lock(lock, "LOCK_EX") == 0
    assert fake_ssh.runs() == []


def test_the_last_one_has_the_master_stop(top: Path, fake_ssh: FakeSsh, capfd: pytest.CaptureFixture[str]) -> None:
    repo = make_repository(top)
    first = share(repo)
    make_socket(top / ".git/annex/ssh/host")
    with share(repo):
        first.close()
        first.close()
        assert fake_ssh.runs() == []
    options = ["-o", "ControlMaster=auto", "-o", "ControlPersist=yes", "localhost"]
    assert fake_ssh.runs() == [["-O", "stop", "-S", ".git/annex/ssh/host", *options]]
    assert os.listdir(top / ".git/annex/ssh") == ["host.lock"]
    assert capfd.readouterr() == ("", "")


def test_masters_that_were_left_are_stopped_first(top: Path, fake_ssh: FakeSsh) -> None:
    repo = make_repository(top)
    directory = top / ".git/annex/ssh"
    directory.mkdir()
    for name in ("left", "host", "used"):
        make_socket(directory / name)
    (directory / "foreign").touch()
    with (directory / "used.lock").open() as used:
        fcntl.fcntl(used, fcntl.F_OFD_SETLK, sshcaching.lockfile._FLOCK[fcntl.F_RDLCK])
        with share(repo):
            assert sorted(run[3] for run in fake_ssh.runs()) == [".git/annex/ssh/host", ".git/annex/ssh/left"]
            assert set(os.listdir(directory)) == {"foreign", "host.lock", "left.lock", "used", "used.lock"}
    assert len(fake_ssh.runs()) == 2


def test_a_shared_lock_of_git_annex_keeps_the_master(top: Path, fake_ssh: FakeSsh) -> None:
    directory = top / ".git/annex/ssh"
    make_repository(top)
    directory.mkdir()
    make_socket(directory / "host")
    script = (
        "import fcntl, os, sys\n"
        f"fd = os.open({str(directory / 'host.lock')!r}, os.O_RDONLY)\n"
        "fcntl.lockf(fd, fcntl.LOCK_SH)\nprint('locked', flush=True)\nsys.stdin.read()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", script], stdin=pipe, stdout=pipe) as other:
        assert other.stdout is not None
        other.stdout.readline()
        stop_unused(os.fsencode(directory))
        assert fake_ssh.runs() == []
        other.communicate(b"")
    stop_unused(os.fsencode(directory))
    assert len(fake_ssh.runs()) == 1


def test_a_master_that_does_not_stop_is_not_waited_for_long(
    top: Path, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sshcaching, "_STOP_TIMEOUT", 0.1)
    fake_ssh.write("ssh", "#!/bin/sh\nexec sleep 60\n")
    repo = make_repository(top)
    with share(repo):
        make_socket(top / ".git/annex/ssh/host")
        began = time.monotonic()
    assert time.monotonic() - began < 4
    assert os.listdir(top / ".git/annex/ssh") == ["host.lock"]


def test_who_stops_the_master_is_waited_for(top: Path, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make_repository(top)
    with share(repo) as shared:
        path = shared.path + b".lock"
    lock = sshcaching.lockfile.acquire(path, sshcaching.lockfile.EXCLUSIVE, wait=False)
    assert lock is not None
    threading.Timer(0.2, lock.close).start()
    with share(repo):
        assert lock.fd == -1
    with sshcaching.lockfile.waited_for(path, sshcaching.lockfile.EXCLUSIVE):
        monkeypatch.setattr(sshcaching, "_STOP_TIMEOUT", 0.1)
        assert ControlSocket.share(repo, HOST, {}) is None


@pytest.mark.parametrize(("shared", "mode", "directory"), [("group", 0o660, 0o770), ("umask", 0o600, 0o700)])
def test_modes_are_those_of_the_repository(
    top: Path, fake_ssh: FakeSsh, shared: str, mode: int, directory: int
) -> None:
    before = os.umask(0o077)
    try:
        with share(make_repository(top, **{"core.sharedRepository": shared})):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE((top / ".git/annex/ssh/host.lock").stat().st_mode) == mode
    assert stat.S_IMODE((top / ".git/annex/ssh").stat().st_mode) == directory


def test_sockets_elsewhere(top: Path, tmp_path: Path, fake_ssh: FakeSsh) -> None:
    repo = make_repository(top, **{"annex.crippledfilesystem": "true"})
    place = {b"GIT_ANNEX_SSH_SOCKET_DIR": os.fsencode(tmp_path / "s" / "t")}
    with ControlSocket.share(repo, HOST, place) as shared:  # type: ignore[union-attr]
        assert os.path.abspath(shared.path) == os.fsencode(tmp_path / "s" / "t" / "ssh" / "host")
        assert (tmp_path / "s/t/ssh/host.lock").exists()
    assert not (top / ".git/annex/ssh").exists()


def test_nothing_is_shared_where_nothing_can_be_written(top: Path, fake_ssh: FakeSsh) -> None:
    repo = make_repository(top)
    (top / ".git/annex/ssh").write_text("not a directory")
    assert ControlSocket.share(repo, HOST, {}) is None


def test_no_directory_is_made_in_place_of_a_repository_that_is_gone(top: Path, fake_ssh: FakeSsh) -> None:
    repo = make_repository(top)
    (top / ".git").rename(top / "elsewhere")
    assert ControlSocket.share(repo, HOST, {}) is None
    assert not (top / ".git").exists()


# Taking turns.


def test_others_wait_until_there_is_a_master(top: Path, fake_ssh: FakeSsh) -> None:
    repo = make_repository(top)
    events: list[str] = []

    def connect() -> None:
        with share(repo) as shared, Turn(shared, None):
            events.append("begin")
            time.sleep(0.1)
            (top / ".git/annex/ssh/host").touch()
            events.append("end")

    threads = [threading.Thread(target=connect) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert events[:2] == ["begin", "end"]
    assert not sshcaching._being_made


def test_a_failure_lets_the_others_try(top: Path, fake_ssh: FakeSsh) -> None:
    with share(make_repository(top)) as shared:
        with pytest.raises(ZeroDivisionError), Turn(shared, None):
            raise ZeroDivisionError
        with Turn(shared, 0):
            with Turn(shared, 0.05):
                pass  # no longer than that
            with Turn(None, 0):
                pass
        assert not sshcaching._being_made
