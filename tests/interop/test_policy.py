"""A policy that a real sshd asks about keys, and real clients that may do different things."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from annexshell.policy import document
from tests import policies
from tests.interop.harness import Program, Repo, Result, run
from tests.interop.sshservers import ClientConfig, Sshd, find_sshd
from tests.policies import rule

REFUSED = "may not use {} on this server, or it does not exist"
PEOPLE = ("alice", "bob", "carol", "dave")


class PolicySshd(Sshd):
    """One that asks annexshell for the keys, and has a file that annexshell printed besides."""

    program_to_ask: Path
    policy: Path

    def write_config(self) -> None:
        super().write_config()
        config = self.directory / "sshd_config"
        command = f'{self.program_to_ask} authorized-keys --program {self.program_to_ask} --policy "{self.policy}"'
        lines = [
            f'AuthorizedKeysCommand {command} --account %u --key "%t %k"',
            "AuthorizedKeysCommandUser root",
            f"AuthorizedKeysFile {self.directory}/static_keys",
        ]
        config.write_text(
            "\n".join([*lines, config.read_text()])
        )  # the first word on a subject is the one that counts


class Place:
    """Where the policies are."""

    def __init__(self, directory: Path, client: ClientConfig) -> None:
        self.asked = directory / "policy.toml"  # by sshd, at each login
        self.printed = directory / "po \"li' cy$.toml"  # whose keys are in a file
        self._client = client

    def write(self, *rules: str, accounts: str = "root", people: tuple[str, ...] = PEOPLE[:3]) -> None:
        users = "".join(f"[users.{name}]\nkeys = ['{self._client.public_key(name)}']\n" for name in people)
        policies.write(self.asked, *rules, users=f"accounts = ['{accounts}']\n{users}")


@pytest.fixture(scope="module")
def program(server: Program) -> Iterator[Path]:
    """annexshell where sshd wants a program to be: all directories above it belong to root and to nobody else."""
    with tempfile.TemporaryDirectory(prefix="annexshell-test.", dir="/var/lib") as directory:
        os.chmod(directory, 0o755)
        script = Path(directory, "annexshell")
        script.write_text(f'#!/bin/sh\nexec {server.settings(None)} {shlex.join(server.argv)} "$@"\n')
        script.chmod(0o755)
        yield script


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    client = ClientConfig(tmp_path_factory.mktemp("ssh"), dict.fromkeys(PEOPLE, "false"))
    return Place(tmp_path_factory.mktemp("policy"), client)


@pytest.fixture(scope="module")
def ssh(place: Place, program: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClientConfig]:
    """Hosts are called like the users whose key is used."""
    sshd = find_sshd()
    assert sshd, "there is no sshd; install openssh-server"
    client = place._client
    one = PolicySshd(sshd, tmp_path_factory.mktemp("sshd"), client)
    one.program_to_ask, one.policy = program, place.asked
    policies.write(place.printed, users=f"[users.dave]\nkeys = ['{client.public_key('dave')}']\n")
    lines = subprocess.run(
        [program, "authorized-keys", "--program", program, "--policy", place.printed], capture_output=True, check=True
    )
    (one.directory / "static_keys").write_bytes(lines.stdout)
    one.start()
    try:
        for name in PEOPLE:
            client.add_host(name, name, one.port, "root")
            client.add_host(f"{name}.daemon", name, one.port, "daemon")
        yield client
    finally:
        one.stop()


@pytest.fixture
def say(ssh: ClientConfig, client_env: dict[str, str], tmp_path: Path) -> Callable[..., Result]:
    """Sends a command line to a host."""

    def say(host: str, *command: str, **how: object) -> Result:
        return run(["ssh", "-F", ssh.path, host, "--", *command], client_env, tmp_path, check=False)

    return say


MakeRepo = Callable[..., Repo]
Say = Callable[..., Result]


def test_two_keys_with_different_rights(
    place: Place, make_server: MakeRepo, make_client: MakeRepo, tmp_path: Path
) -> None:
    music, secret = make_server("music"), make_server("secret")
    place.write(rule("alice", str(music.path), "write"), rule("*", f"{tmp_path}/mus*", "read"))

    alice = make_client(music, "one", host="alice", sshcaching="false")
    key = alice.add("song", b"la la la")
    alice.commit()
    alice.annex("copy", "--to=origin", "song")
    alice.annex("sync", "--no-content")
    assert music.content(key) == b"la la la"
    assert music.git("rev-parse", "main").out == alice.git("rev-parse", "main").out

    bob = make_client(music, "two", host="bob", sshcaching="false")
    bob.git("merge", "-q", "origin/main")
    bob.annex("get", "song")
    assert bob.content(key) == b"la la la"
    more = bob.add("more", b"tra la")
    bob.commit()
    assert not bob.annex("copy", "--to=origin", "more", check=False)
    dropped = bob.annex("drop", "--from=origin", "--force", "song", check=False)
    assert not dropped
    assert "this repository is read-only" in dropped.said
    pushed = bob.git("push", "origin", "HEAD:refs/heads/bob", check=False)
    assert not pushed
    assert f"bob may fetch from {music.path}, but not use git-receive-pack there" in pushed.err
    bob.git("fetch", "-q", "origin")
    assert music.content(key) == b"la la la"
    assert music.content(more) is None
    assert "bob" not in music.git("branch", "--list").out

    alice.annex("drop", "--from=origin", "--force", "song")
    assert music.content(key) is None
    alice.git("push", "-q", "origin", "HEAD:refs/heads/alice")

    for person in (alice, bob):
        name = "alice" if person is alice else "bob"
        for directory in (secret.path, tmp_path / "nothing", f"{music.path}/../secret", f"{music.path}/objects"):
            fetched = person.git("ls-remote", f"ssh://{name}{directory}", check=False)
            assert f"{name} {REFUSED.format(directory)}" in fetched.err
            assert not fetched.out
        person.git("remote", "add", "secret", f"ssh://{name}{secret.path}")
        assert not person.annex("copy", "--to=secret", "--all", check=False)
        assert person.git("config", "remote.secret.annex-uuid", check=False).out == ""
        # Nor does it help to know the uuid.
        person.git("config", "remote.secret.annex-uuid", secret.uuid)
        person.git("config", "remote.secret.annex-ignore", "false")
        assert not person.annex("copy", "--to=secret", "--all", check=False)
    assert not secret.all_locations()


def test_a_repository_to_add_to(place: Place, make_server: MakeRepo, make_client: MakeRepo) -> None:
    inbox = make_server("inbox", init=False)
    place.write(rule("alice", str(inbox.path), "append", "push"))
    alice = make_client(inbox, host="alice", sshcaching="false")
    key = alice.add("file", b"content")
    alice.commit()
    alice.annex("sync", "--content")  # which initialises it
    assert inbox.content(key) == b"content"
    dropped = alice.annex("drop", "--from=origin", "--force", "file", check=False)
    assert not dropped
    assert "append-only" in dropped.said
    assert inbox.content(key) == b"content"


def test_who_may_log_in(place: Place, make_server: MakeRepo, say: Say) -> None:
    music = make_server("music")
    command = f"git-annex-shell 'configlist' '{music.path}'"
    rules = [rule("*", str(music.path), "read")]
    place.write(*rules)
    for name in ("alice", "bob", "carol"):
        assert f"annex.uuid={music.uuid}\n" in say(name, command).out
    assert "Permission denied" in say("alice.daemon", command).err
    # What is changed counts from the next login on.
    place.write(*rules, people=("alice",))
    assert say("alice", command)
    assert "Permission denied" in say("bob", command).err
    place.write(*rules, accounts="annex")
    assert "Permission denied" in say("alice", command).err
    place.write(*rules)
    assert say("alice", command)
    place.asked.chmod(0o666)
    assert "Permission denied" in say("alice", command).err


def test_what_a_client_says_of_itself_does_not_count(place: Place, make_server: MakeRepo, say: Say) -> None:
    music = make_server("music")
    place.write(rule("alice", str(music.path), "write"))
    command = f"git-annex-shell 'configlist' '{music.path}'"
    assert say("alice", command)
    for words in (
        [command],
        ["--user alice -c", shlex.quote(command)],
        ["--policy /dev/null --user alice -c", shlex.quote(command)],
        [f"git-annex-shell --user alice 'configlist' '{music.path}'"],
        ["git-annex-shell -c --user alice -c", shlex.quote(command)],
        ["true"],
        [f"cat {music.path}/config"],
        ["; id"],
        ["$(id)"],
        [],
    ):
        result = say("bob", *words)
        assert (result.status, result.out) == (1, "")
        assert result.err
        assert "uid=" not in result.err


def test_lines_in_a_file(place: Place, make_server: MakeRepo, make_client: MakeRepo, say: Say) -> None:
    """With everything in the policy's name that sshd, a shell or both could take for something else."""
    music = make_server("music")
    key = f"[users.dave]\nkeys = ['{place._client.public_key('dave')}']\n"
    policies.write(place.printed, rule("dave", str(music.path), "write"), users=key)
    assert document.load(os.fsencode(place.printed)).rules
    dave = make_client(music, host="dave", sshcaching="false")
    stored = dave.add("file", b"dave's")
    dave.commit()
    dave.annex("copy", "--to=origin", "file")
    assert music.content(stored) == b"dave's"
    assert REFUSED.format("x") in say("dave", "git-annex-shell 'configlist' 'x'").err
