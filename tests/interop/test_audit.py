"""What the audit log tells of what the real git-annex does over a real sshd."""

from __future__ import annotations

import getpass
import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from tests.interop.harness import Repo, file_size, pseudorandom, wait_until
from tests.interop.sshservers import find_sshd

Line = dict[str, Any]


class Log:
    """What is told of one repository from now on."""

    def __init__(self, path: Path, repository: Repo) -> None:
        self.path = path
        self.repository = repository
        self.start = file_size(path)

    def take(self) -> list[Line]:
        """The lines since the last time, when all sessions are over, for which clients do not wait."""
        wait_until(lambda: not self.is_in_session())
        lines = self.read()
        self.start = file_size(self.path)
        return lines

    def is_in_session(self) -> bool:
        sessions = [(line["session"], line["outcome"]) for line in self.read() if line["action"] == "session"]
        begun = {session for session, outcome in sessions if outcome == "begun"}
        return begun > {session for session, outcome in sessions if session in begun and outcome != "begun"}

    def read(self) -> list[Line]:
        lines = [json.loads(line) for line in self.path.read_bytes()[self.start :].splitlines()]
        return [line for line in lines if line.get("directory") == str(self.repository.path)]


def keys_of(lines: list[Line], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(line.get(field) for field in fields) for line in lines if line["action"] != "session"]


@pytest.fixture
def audited(make_server: Any, make_client: Any, audit_log: Path) -> tuple[Repo, Repo, Log]:
    server = make_server()
    log = Log(audit_log, server)
    return server, make_client(server, host="audited"), log


def test_everyday(audited: tuple[Repo, Repo, Log], make_client: Any) -> None:
    server, client, log = audited
    small, large = b"small", pseudorandom(3_000_000)
    keys = {client.add(name, content): len(content) for name, content in (("small", small), ("large", large))}
    client.commit()
    clone = log.take()
    assert {line["command"]: line["outcome"] for line in clone} == {
        "git-upload-pack": "handed-over",
        "configlist": "ok",
    }

    client.annex("copy", "--to=origin")
    lines = log.take()
    assert sorted(keys_of(lines, "action", "outcome", "key", "bytes")) == sorted(
        ("store", "ok", key, size) for key, size in keys.items()
    )
    for line in lines:
        assert line["user"] == "alice"
        assert line["account"] == getpass.getuser()
        if find_sshd():
            assert line["address"] == "127.0.0.1" and 1024 <= line["port"] <= 65535
        if line["command"] == "p2pstdio":
            assert line["repository"] == server.uuid
            assert line["client"] == client.uuid
        assert line.get("seconds", 0) < 60
    sessions = [line for line in lines if line["action"] == "session" and line["command"] == "p2pstdio"]
    assert [line["outcome"] for line in sessions] == ["begun", "ok"] * (len(sessions) // 2)

    client.annex("sync")
    assert {"git-upload-pack", "git-receive-pack"} <= {line["command"] for line in log.take()}

    other = make_client(server, "other", host="audited")
    log.take()
    other.annex("get", "small", "large")
    lines = log.take()
    assert sorted(keys_of(lines, "action", "outcome", "key", "bytes", "client")) == sorted(
        ("send", "ok", key, size, other.uuid) for key, size in keys.items()
    )

    # The server's copy is what allows it, and is locked meanwhile.
    other.annex("drop", "small")
    (key,) = (key for key, size in keys.items() if size == len(small))
    assert keys_of(log.take(), "action", "outcome", "key") == [("lock", "ok", key), ("unlock", "ok", key)]

    client.annex("drop", "--from=origin", "large")
    (key,) = (key for key, size in keys.items() if size == len(large))
    assert keys_of(log.take(), "action", "outcome", "key") == [("remove", "ok", key)]
    assert server.content(key) is None

    # Whether it is there is asked, but not told of.
    client.annex("fsck", "--from=origin", "--fast", "small")
    assert keys_of(log.take(), "action") == []


def test_a_transfer_that_is_taken_up_again(audited: tuple[Repo, Repo, Log]) -> None:
    server, client, log = audited
    content = pseudorandom(1_000_000)
    key = client.add("file", content)
    partial = server.temporary(key)
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(content[:400_000])
    log.take()
    client.annex("copy", "--to=origin", "file")
    assert keys_of(log.take(), "action", "outcome", "key", "bytes", "offset") == [
        ("store", "ok", key, 600_000, 400_000)
    ]


def test_content_that_is_wrong(audited: tuple[Repo, Repo, Log]) -> None:
    _, client, log = audited
    key = client.add("file", b"content")
    path = client.object(key)
    assert path is not None
    path.chmod(0o644)
    path.write_bytes(b"contend")
    log.take()
    assert not client.annex("copy", "--to=origin", "file", check=False)
    lines = keys_of(log.take(), "action", "outcome", "key", "bytes", "reason")
    assert lines and set(lines) == {("store", "failed", key, 7, "verification of content failed")}


def test_who_is_refused(audited: tuple[Repo, Repo, Log]) -> None:
    _, client, log = audited
    client.git("config", "remote.origin.annex-uuid", str(uuid.uuid4()))
    client.add("file", b"content")
    log.take()
    assert not client.annex("copy", "--to=origin", "file", check=False)
    lines = [line for line in log.read() if line["command"] == "p2pstdio"]
    assert lines and {line["outcome"] for line in lines} == {"refused"}
    assert all(line["reason"].startswith("expected repository UUID") for line in lines)


def test_a_server_without_its_log(audited: tuple[Repo, Repo, Log], audit_log: Path) -> None:
    """Clients fail for now, and do not give up the remote for good."""
    _, client, log = audited
    client.add("file", b"content")
    away = audit_log.rename(audit_log.with_suffix(".away"))
    audit_log.mkdir()
    try:
        result = client.annex("copy", "--to=origin", "file", check=False)
    finally:
        audit_log.rmdir()
        away.rename(audit_log)
    assert not result and "the audit log of this server cannot be opened (Is a directory)" in result.said
    client.annex("copy", "--to=origin", "file")
    assert [line["action"] for line in log.take()].count("store") == 1
