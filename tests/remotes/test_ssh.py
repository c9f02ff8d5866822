from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import Hangup, PeerError, RemoteUnavailable
from annexshell.key import Key
from annexshell.p2p import messages as m
from annexshell.remotes import ssh as ssh_module
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import Ssh
from annexshell.remotes.ssh import SshRepository, open_ssh
from tests.remotes.sshremotes import OWN, TARGET, FakeSsh, make_repository, remote_at

KEY = Key(b"WORM-s3-m4--name")


pytestmark = pytest.mark.usefixtures("nothing_is_left")


@pytest.fixture
def repo(tmp_path: Path, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch) -> GitRepository:
    (tmp_path / "repo").mkdir()
    monkeypatch.chdir(tmp_path / "repo")
    return make_repository(tmp_path / "repo")


Opener = Callable[..., SshRepository]


@pytest.fixture
def connect(repo: GitRepository) -> Opener:
    def connect(
        host: str = "host", highest: int = 4, patience: Patience | None = None, **config: str
    ) -> SshRepository:
        remote = remote_at(Ssh(host.encode(), None, b"/srv/it's"), **config)
        opened = open_ssh(repo, remote, TARGET, highest, patience or Patience(20))
        assert isinstance(opened, SshRepository)
        return opened

    return connect


def failure(connect: Opener, *args: object, **options: object) -> str:
    with pytest.raises(RemoteUnavailable) as raised:
        connect(*args, **options)
    return str(raised.value)


def test_a_connection(connect: Opener, fake_ssh: FakeSsh) -> None:
    remote = connect()
    try:
        assert (remote.uuid, remote.protocol_version) == (TARGET, 4)
        assert remote.checkpresent(KEY)
        with pytest.raises(PeerError) as answer:
            remote.ask(m.LockContent(KEY))
        assert str(answer.value).startswith(f"p2pstdio /srv/it's {OWN} --uuid {TARGET} ")
    finally:
        remote.close()
    far = f"git-annex-shell 'p2pstdio' '/srv/it'\"'\"'s' '{OWN}' --uuid {TARGET}"
    shared = ["-S", ".git/annex/ssh/host", "-o", "ControlMaster=auto", "-o", "ControlPersist=yes"]
    assert fake_ssh.runs() == [["host", *shared, "-T", far]]


def test_closing_twice(connect: Opener) -> None:
    remote = connect()
    remote.close()
    remote.close()
    with pytest.raises(RemoteUnavailable):
        remote.checkpresent(KEY)


@pytest.mark.parametrize(
    ("wanted", "answered", "spoken"), [(4, None, 4), (1, None, 1), (0, None, 0), (4, "2", 2), (4, "none", 0)]
)
def test_versions(
    connect: Opener, monkeypatch: pytest.MonkeyPatch, wanted: int, answered: str | None, spoken: int
) -> None:
    if answered is not None:
        monkeypatch.setenv("FAKE_VERSION", answered)
    remote = connect(highest=wanted)
    remote.close()
    assert remote.protocol_version == spoken


def test_our_restrictions_stay_here(connect: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_ANNEX_SHELL_DIRECTORY", "/here")
    monkeypatch.setenv("SSH_ORIGINAL_COMMAND", "what the client said")
    remote = connect()
    with pytest.raises(PeerError) as answer:
        remote.ask(m.LockContent(KEY))
    remote.close()
    assert str(answer.value).endswith("dir= orig= mode=")


def test_gits_ssh_shares_no_connection(
    connect: Opener, fake_ssh: FakeSsh, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_ANNEX_USE_GIT_SSH", "1")
    monkeypatch.setenv("GIT_SSH_COMMAND", "FAKE_UNUSED=1 ssh")
    connect().close()
    assert [run[0] for run in fake_ssh.runs()] == ["host"]
    assert len(fake_ssh.runs()[0]) == 2
    assert not (tmp_path / "repo/.git/annex/ssh").exists()


# Failures.


def test_ssh_that_fails(connect: Opener, capfd: pytest.CaptureFixture[str]) -> None:
    assert failure(connect, "refused") == "ssh to refused failed, see its message above"
    assert capfd.readouterr().err == "ssh: connect to host refused port 22: Connection refused\n"


def test_ssh_that_is_missing(connect: Opener, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    git = tmp_path / "only-git"
    git.mkdir()
    monkeypatch.setenv("PATH", str(git))
    assert failure(connect) == "ssh is not in PATH here; install it"


def test_a_missing_program(connect: Opener) -> None:
    said = failure(connect, annex_shell="no-such-shell")
    assert said == ("no-such-shell is missing on host; install it there, or set remote.r.annex-shell to where it is")
    assert failure(connect, "restricted").startswith("git-annex-shell cannot be run on restricted; ")


def test_another_exit_status(connect: Opener) -> None:
    assert failure(connect, "gone") == "remote r closed the connection before it greeted (exit status 3)"


@pytest.mark.parametrize(("host", "line"), [("noisy", "Welcome to the machine"), ("closed", "This account is")])
def test_noise_before_the_protocol(connect: Opener, host: str, line: str) -> None:
    said = failure(connect, host)
    assert f"its first line was: '{line}" in said
    assert said.endswith(f" (the shell's start-up files on {host} must not print anything)")


def test_a_line_that_does_not_end(connect: Opener) -> None:
    assert "overlong line" in failure(connect, "garbled")


def test_another_repository(connect: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UUID", "somebody-else")
    assert f"expected repository UUID {TARGET} but found UUID somebody-else" in failure(connect)


@pytest.mark.parametrize("host", ["silent", "stubborn"])
def test_silence_is_not_waited_for_longer_than_wanted(
    connect: Opener, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    from annexshell.remotes import child

    monkeypatch.setattr(child, "_LAST_GRACE", 0.2)
    began = time.monotonic()
    said = failure(connect, host, patience=Patience(0.3))
    assert time.monotonic() - began < 4
    assert "0.3 seconds" in said


def test_replies_have_a_limit_of_their_own(connect: Opener) -> None:
    """Connecting may take longer than that."""
    remote = connect("slow", patience=Patience(20, 0.2))
    with pytest.raises(RemoteUnavailable):
        remote.gettimestamp()
    assert not remote.usable
    remote._child.close(0)
    remote.close()


def test_no_limit_for_connecting_but_for_replies(connect: Opener) -> None:
    remote = connect("slow", patience=Patience(None, 0.2))
    with pytest.raises(RemoteUnavailable):
        remote.gettimestamp()
    remote._child.close(0)
    remote.close()


def test_nobody_waits_for_a_remote_whose_client_is_gone(connect: Opener) -> None:
    reader, writer = os.pipe()
    try:
        os.close(reader)
        began = time.monotonic()
        with pytest.raises(Hangup):
            connect("silent", patience=Patience(None, for_whom=writer))
        assert time.monotonic() - began < 4
    finally:
        os.close(writer)


def test_one_that_dies_is_unavailable(connect: Opener) -> None:
    remote = connect()
    with pytest.raises(RemoteUnavailable):
        remote.remove(KEY)
    remote.close()


def test_one_that_does_not_end_is_ended(connect: Opener, fake_ssh: FakeSsh, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ssh_module.Child.close, "__defaults__", (0.1,))
    remote = connect()
    remote.send(m.GetTimestamp())
    began = time.monotonic()
    remote.close()
    assert time.monotonic() - began < 4


def test_a_failure_leaves_no_share_behind(connect: Opener, tmp_path: Path) -> None:
    from annexshell.annex import lockfile

    for host in ("refused", "noisy", "gone"):
        failure(connect, host)
        path = os.fsencode(tmp_path / f"repo/.git/annex/ssh/{host}.lock")
        lock = lockfile.acquire(path, lockfile.EXCLUSIVE, wait=False, create=False)
        assert lock is not None
        lock.close()
