"""The command's own part; what is said in the conversation is tested in tests/p2p."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.commands import link_shell
from annexshell.key import Key
from tests.shell import UUID, Shell, git, make_annex, make_repository

KEY = "SHA256E-s3--ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def repo(shell: Shell) -> Path:
    """An annex with the content of KEY."""
    repo = make_annex(shell.home / "repo")
    key = Key(KEY.encode())
    place = repo / ".git/annex/objects" / os.fsdecode(key.hashdirs_mixed()) / KEY / KEY
    place.parent.mkdir(parents=True)
    place.write_bytes(b"abc")
    place.chmod(0o444)
    return repo


def start(shell: Shell, *words: str) -> subprocess.Popen[bytes]:
    program = f"import sys; sys.path += {link_shell.import_path()}; sys.argv[0] = 'git-annex-shell'\n"
    program += "from annexshell.__main__ import main; sys.exit(main())"
    command = [sys.executable, "-IS", "-c", program, "p2pstdio", *words]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_greets_before_it_is_spoken_to(shell: Shell, repo: Path) -> None:
    with start(shell, "repo", "x") as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stdout.readline() == b"AUTH-SUCCESS %s\n" % UUID.encode()
        child.stdin.close()
        assert child.stdout.read() == b""
    assert child.returncode == 0


@pytest.mark.parametrize("uuid", [[], ["--uuid", "39d0c840-d914-55c6-9969-739920770697"]])
def test_a_repository_for_encrypted_content_has_no_uuid_to_tell(uuid: list[str], shell: Shell) -> None:
    repo = make_repository(shell.home / "crypt", bare=True, **{"core_gcrypt-id": ":id:abcdef"})
    said = [b"VERSION 2", b"PUT f %s" % KEY.encode(), b"DATA 3", b"abcVALID", b"CHECKPRESENT %s" % KEY.encode()]
    with start(shell, "crypt", "x", *uuid) as child:
        heard, _ = child.communicate(b"\n".join([*said, b"REMOVE %s" % KEY.encode(), b""]))
    assert heard.splitlines() == [b"AUTH-SUCCESS ", b"VERSION 2", b"PUT-FROM 0", *[b"SUCCESS"] * 3]
    assert child.returncode == 0
    assert git(repo, "for-each-ref") == ""
    assert not (repo / "annex/journal").exists()
    assert "annex." not in git(repo, "config", "--file", "config", "--list")


@pytest.mark.parametrize("client", ["..", "../..", "a/b", "", "/etc", "é", "x\ny", ".", "-"])
def test_a_clients_uuid_names_no_file_elsewhere(client: str, shell: Shell, repo: Path) -> None:
    with start(shell, "repo", client) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(b"VERSION 1\nGET 0 f %s\n" % KEY.encode())
        child.stdin.flush()
        answer = [child.stdout.readline() for _ in range(4)]
        made = [Path(directory) / name for directory, _, names in os.walk(shell.home) for name in names]
        child.communicate(b"SUCCESS\n")
    assert answer[2:] == [b"DATA 3\n", b"abcVALID\n"]
    assert child.returncode == 0
    transfer = repo / ".git/annex/transfer"
    found = [path.relative_to(transfer) for path in made if KEY in path.name and "objects" not in path.parts]
    for path in found:
        kind, _, name = path.parts
        assert kind == "upload"
        assert name in (KEY, f"lck.{KEY}")
    # Of the uuid only what a uuid is made of counts; if that is nothing, there are no such files.
    assert bool(found) == any(letter.isascii() and (letter.isalnum() or letter == "-") for letter in client)
    assert not (shell.home / "etc").exists()


@pytest.mark.parametrize(("limited", "said", "status"), [("", b"CONNECTDONE 5\n" * 2, 0), ("1", b"", 1)])
def test_connect_does_not_give_what_limited_takes_away(
    limited: str, said: bytes, status: int, shell: Shell, repo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_ANNEX_SHELL_LIMITED", limited)
    with start(shell, "repo", "x") as child:
        heard, _ = child.communicate(b"CONNECT git-receive-pack\nCONNECTDONE 5\n")
    assert heard.endswith(said)
    assert heard.startswith(b"AUTH-SUCCESS")
    assert (b"CONNECTDONE" in heard) == bool(said)
    assert child.returncode == status
