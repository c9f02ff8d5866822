"""Encrypted repositories of type gcrypt: the server sees neither names nor content, and knows nothing of git-annex.

The client is the real git-annex with git-remote-gcrypt and GnuPG, over a real sshd. Content comes through recvkey and
sendkey, which run rsync, and not through p2pstdio.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.harness import Repo, Result, pseudorandom, run, wait_until

OBJECT = re.compile(r"annex/objects/[0-9a-f]{3}/[0-9a-f]{3}/(GPGHMACSHA1--[0-9a-f]{40})/\1")


class KeyRing:
    """A GnuPG home with one key that has no passphrase."""

    def __init__(self, home: str) -> None:
        self.env = {"GNUPGHOME": home}
        self.gpg(
            "--passphrase", "", "--quick-gen-key", "Test <test@example.com>", "future-default", "default", "never"
        )
        listing = self.gpg("--with-colons", "--list-keys")
        self.key = next(line.split(":")[9] for line in listing.splitlines() if line.startswith("fpr:"))

    def gpg(self, *arguments: str) -> str:
        return self.run("gpg", "--batch", "--quiet", "--pinentry-mode", "loopback", *arguments).stdout

    def run(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, check=True, env=os.environ | self.env, capture_output=True, text=True, timeout=60)

    def stop_agent(self) -> None:
        """It is a daemon that gpg has started, and would outlive the tests."""
        self.run("gpgconf", "--kill", "all")
        wait_until(lambda: not self.has_agent(), 20)

    def has_agent(self) -> bool:
        argv = ["gpg-connect-agent", "--no-autostart", "GETINFO pid", "/bye"]
        done = subprocess.run(argv, env=os.environ | self.env, capture_output=True, text=True, timeout=60)
        return done.stdout.startswith("D ")


@pytest.fixture(scope="module")
def keyring() -> Iterator[KeyRing]:
    # The agent's socket is in there, whose whole path has to be shorter than a temporary directory of pytest's.
    with tempfile.TemporaryDirectory(prefix="gpg", dir="/tmp") as home:
        made = KeyRing(home)
        try:
            yield made
        finally:
            made.stop_agent()


@pytest.fixture
def crypt(make_server: Callable[..., Repo]) -> Repo:
    """An empty bare repository on the server."""
    return make_server("crypt", init=False)


@pytest.fixture
def make_client(tmp_path: Path, client_env: dict[str, str], keyring: KeyRing) -> Callable[..., Repo]:
    """Makes annexes with a key, which clone URL if that is given."""

    def make(name: str = "client", url: str | None = None) -> Repo:
        env = client_env | keyring.env
        path = tmp_path / name
        run(
            ["git", "init", "--quiet", path] if url is None else ["git", "clone", "--quiet", url, path], env, tmp_path
        )
        client = Repo(path, env)
        client.annex("init", "--quiet", name)
        return client

    return make


@pytest.fixture
def initremote(keyring: KeyRing, crypt: Repo) -> Callable[..., Result]:
    """Makes the server's repository the special remote crypt."""

    def init(client: Repo, encryption: str = "hybrid", *more: str, host: str = "rw", check: bool = True) -> Result:
        keyid = [] if encryption == "shared" else [f"keyid={keyring.key}"]
        remote = ["crypt", "type=gcrypt", f"encryption={encryption}", f"gitrepo=ssh://{host}{crypt.path}"]
        return client.annex("initremote", *remote, *keyid, *more, check=check)

    return init


def objects(crypt: Repo) -> dict[str, Path]:
    """The objects on the server by key."""
    found = {}
    for path in (crypt.path / "annex" / "objects").rglob("*"):
        if path.is_file():
            match = OBJECT.fullmatch(str(path.relative_to(crypt.path)))
            assert match, path
            found[match[1]] = path
    return found


def check_untouched(crypt: Repo) -> None:
    """The server has an id, and otherwise does not know that git-annex uses it."""
    config = crypt.git("config", "--file=config", "--list").out
    assert re.search(r"^core\.gcrypt-id=:id:\S{20}$", config, re.MULTILINE), config
    assert "receive.denynonfastforwards=false" in config
    assert "annex." not in config
    assert "git-annex" not in crypt.git("for-each-ref").out
    assert not list((crypt.path / "annex").glob("journal*/*"))
    assert not (crypt.path / "annex" / "index").exists()
    assert crypt.leftovers() == []


def gcrypt_uuid(client: Repo) -> str:
    return client.git("config", "remote.crypt.annex-uuid").out.strip()


def test_everything_that_a_client_does(make_client, initremote, crypt):
    client = make_client()
    contents = {"large": pseudorandom(300_000), "small": b"small\n"}
    keys = {name: client.add(name, content) for name, content in contents.items()}
    client.commit()
    initremote(client, "hybrid", "chunk=200kB")
    assert client.git("config", "remote.crypt.annex-gcrypt").out.strip() == "shell"
    check_untouched(crypt)

    client.annex("copy", "--to=crypt", ".")
    stored = objects(crypt)
    assert len(stored) == 3  # the large one is in two chunks
    for path in stored.values():
        assert path.stat().st_mode & 0o222 == 0
        assert not any(content[:1000] in path.read_bytes() for content in contents.values())
    check_untouched(crypt)
    for key in keys.values():
        assert client.locations(key) == {client.uuid, gcrypt_uuid(client)}

    client.annex("drop", ".")
    client.annex("get", ".")
    assert {name: client.content(key) for name, key in keys.items()} == contents
    client.annex("fsck", "--from=crypt")

    client.annex("move", "--from=crypt", "large")
    assert len(objects(crypt)) == 1
    assert client.locations(keys["large"]) == {client.uuid}
    client.annex("move", "--to=crypt", "large")
    assert client.content(keys["large"]) is None
    assert objects(crypt).keys() == stored.keys()
    client.annex("drop", "--from=crypt", "small")
    assert client.annex("checkpresentkey", keys["small"], "crypt", check=False).status == 1
    assert client.annex("checkpresentkey", keys["large"], "crypt")
    client.annex("get", "large")
    assert client.content(keys["large"]) == contents["large"]
    check_untouched(crypt)


def test_a_second_clone(make_client, initremote, crypt):
    first = make_client("first")
    key = first.add("file", pseudorandom(100_000))
    first.commit()
    initremote(first, "shared")
    first.annex("copy", "--to=crypt", "file")
    first.git("push", "--quiet", "crypt", "main", "git-annex")

    second = make_client("second", f"gcrypt::ssh://rw{crypt.path}")
    enabled = second.annex("enableremote", "crypt", f"gitrepo=ssh://rw{crypt.path}")
    if "verifyremote" in enabled.said:  # newer ones want to know whether we meant it
        second.annex("verifyremote", "crypt", "--safe", "1")
    assert second.git("config", "remote.crypt.annex-gcrypt").out.strip() == "shell"
    assert gcrypt_uuid(second) == gcrypt_uuid(first)
    second.annex("get", "file")
    assert second.content(key) == first.content(key)

    more = second.add("more", b"more\n")
    second.commit()
    second.annex("copy", "--to=crypt", "more")
    second.git("push", "--quiet", "crypt", "git-annex")
    first.git("fetch", "--quiet", "crypt")
    first.annex("get", "--key", more)
    assert first.content(more) == b"more\n"
    assert first.locations(more) == {first.uuid, second.uuid, gcrypt_uuid(first)}
    check_untouched(crypt)


def test_what_an_earlier_attempt_left(make_client, initremote, crypt):
    """Encrypted content is another one each time, so that nothing can be appended to what is there."""
    client = make_client()
    content = pseudorandom(100_000)
    key = client.add("file", content)
    client.commit()
    initremote(client)
    client.annex("copy", "--to=crypt", "file")
    ((crypted, path),) = objects(crypt).items()
    before = path.read_bytes()
    client.annex("drop", "--from=crypt", "file")
    crypt.temporary(crypted).parent.mkdir(exist_ok=True)
    crypt.temporary(crypted).write_bytes(before[:60_000])
    client.annex("move", "--to=crypt", "file")
    assert path.read_bytes() != before
    client.annex("get", "file")
    assert client.content(key) == content
    check_untouched(crypt)


def test_restricted_clients(make_client, initremote, crypt):
    client = make_client()
    content = b"content\n"
    key = client.add("file", content)
    other = client.add("other", b"other\n")
    client.commit()
    initremote(client)
    client.annex("copy", "--to=crypt", "file")

    client.git("config", "remote.crypt.url", f"gcrypt::ssh://readonly{crypt.path}")
    client.annex("drop", "file")
    client.annex("get", "file")
    assert client.content(key) == content
    for words in (["copy", "--to=crypt", "other"], ["drop", "--from=crypt", "file"]):
        refused = client.annex(*words, check=False)
        assert refused.status == 1
        assert "GIT_ANNEX_SHELL_READONLY" in refused.said
    assert len(objects(crypt)) == 1

    client.git("config", "remote.crypt.url", f"gcrypt::ssh://appendonly{crypt.path}")
    client.annex("copy", "--to=crypt", "other")
    refused = client.annex("drop", "--from=crypt", "file", check=False)
    assert refused.status == 1
    assert "GIT_ANNEX_SHELL_APPENDONLY" in refused.said
    assert len(objects(crypt)) == 2
    client.annex("drop", "other")
    client.annex("get", "other")
    assert client.content(other) == b"other\n"
    check_untouched(crypt)


def test_not_in_a_repository_that_git_annex_uses(make_client, initremote, crypt):
    crypt.annex("init", "--quiet", "crypt")
    client = make_client()
    refused = initremote(client, check=False)
    assert refused.status == 1
    assert "this repository already has a git-annex uuid" in refused.said
    assert not crypt.git("config", "core.gcrypt-id", check=False)


def test_another_id_in_its_place(make_client, initremote, crypt, server):
    """The server's repository has been set up for another remote since the client saw it."""
    client = make_client()
    key = client.add("file", b"content\n")
    client.commit()
    initremote(client)
    client.annex("copy", "--to=crypt", "file")
    crypt.git("config", "core.gcrypt-id", ":id:abcdefghijklmnopqrst")
    client.annex("drop", "--force", "file")
    for words in (["get"], ["drop", "--force", "--from=crypt"], ["fsck", "--fast", "--from=crypt"]):
        refused = client.annex(*words, "file", check=False)
        assert refused.status == 1
        assert f"expected repository UUID {gcrypt_uuid(client)} but found UUID " in refused.said
    assert len(objects(crypt)) == 1
    # git-annex-shell has the client believe, and write down, that the content is gone.
    assert client.annex("checkpresentkey", key, "crypt", check=False).status == (1 if server.is_real else 100)
    assert client.locations(key) == (set() if server.is_real else {gcrypt_uuid(client)})
