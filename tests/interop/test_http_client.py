"""Our client of the HTTP API against git-annex's own server."""

from __future__ import annotations

import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import NotLocked, NotPresent, PeerError, RemoteUnavailable, TransferRefused
from annexshell.http import lock
from annexshell.http.client import HttpRepository
from annexshell.key import Key
from annexshell.relay import BytesSource, ShortSource, to_callable
from annexshell.remotes.http import open_http
from annexshell.remotes.patience import Patience
from annexshell.remotes.remote import AnnexHttp, Remote
from annexshell.repository import AlreadyHave
from annexshell.uuid import UUID
from tests.http.certificates import make_certificate
from tests.interop.harness import Repo, pseudorandom, running, wait_until
from tests.leftovers import descriptors, descriptors_before

LARGE = pseudorandom(3_000_000)
VERSIONS = range(5)


class Server:
    """A running ``git annex p2phttp`` for one repository."""

    def __init__(self, repo: Repo, port: int, scheme: str) -> None:
        self.repo = repo
        self.port = port
        self.scheme = scheme
        self.uuid = UUID(repo.uuid.encode())

    def url(self, user: str = "") -> bytes:
        return f"{self.scheme}://{user}localhost:{self.port}/git-annex/".encode()


@pytest.fixture
def serve(make_server: Callable[..., Repo]) -> Iterator[Callable[..., Server]]:
    """Starts servers, with these options and environment variables, for a new repository."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*options: str, **env: str) -> Server:
        repo = make_server("server", bare=False)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        started.append(
            subprocess.Popen(
                ["git-annex", "p2phttp", "-J2", "--bind=127.0.0.1", f"--port={port}", *options],
                env=repo.env | env,
                cwd=repo.path,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        )

        def is_listening() -> bool:
            assert started[-1].poll() is None
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        wait_until(is_listening)
        return Server(repo, port, "annex+https" if "--certfile" in " ".join(options) else "annex+http")

    yield start
    for process in started:
        with running(process):
            pass


@pytest.fixture
def connect(tmp_path: Path, make_server: Callable[..., Repo]) -> Iterator[Callable[..., HttpRepository]]:
    """Opens a server's repository for a client of its own."""
    gateway = make_server("gateway", bare=True)
    opened: list[HttpRepository] = []

    def open_it(server: Server, highest: int = 4, *, user: str = "", target: UUID | None = None) -> HttpRepository:
        repo = GitRepository(os.fsencode(gateway.path))
        remote = Remote(repo.config, b"node", AnnexHttp(server.url(user)), 100.0, read_uuid=lambda: server.uuid)
        repository = open_http(repo, remote, target or server.uuid, highest, Patience(20, 20))
        assert isinstance(repository, HttpRepository)
        opened.append(repository)
        return repository

    yield open_it
    for repository in opened:
        repository.close()


def read(repository: HttpRepository, key: Key, offset: int = 0, file: bytes | None = None) -> bytes:
    data = bytearray()
    with repository.get(key, offset, file) as content:
        to_callable(content.source, content.length, data.extend)
        assert content.still_valid()
        content.acknowledge(True)
    return bytes(data)


def key_for(server: Server, content: bytes, backend: str = "SHA256") -> Key:
    path = server.repo.path / "content"
    path.write_bytes(content)
    return Key(server.repo.annex("calckey", f"--backend={backend}", "content").out.strip().encode())


@pytest.mark.parametrize("version", VERSIONS)
def test_everything_at_each_version(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository], version: int
) -> None:
    server = serve("--wideopen")
    present = Key(server.repo.add("a file", LARGE).encode())
    empty = Key(server.repo.add("empty", b"").encode())
    new = key_for(server, b"new content")
    remote = connect(server, version)
    assert (remote.uuid, remote.protocol_version) == (server.uuid, version)
    assert remote.checkpresent(present) and not remote.checkpresent(new)

    assert read(remote, present) == LARGE
    assert read(remote, present, 2_999_990, b"some/\xff/file & more") == LARGE[-10:]
    assert read(remote, present, len(LARGE)) == b""
    assert read(remote, empty) == b""
    for absent in (new, Key(b"WORM--absent"), Key(b"SHA256-s1--a/b+c%&=")):
        for offset in (0, 100):
            with pytest.raises(NotPresent):
                remote.get(absent, offset, None)

    assert isinstance(remote.put(present, None), AlreadyHave)
    with remote.put(new, b"new") as upload:
        assert not isinstance(upload, AlreadyHave)
        assert upload.offset == 0
        assert not upload.check_stored()
        assert upload.receive(11, BytesSource(b"new content"), lambda: True)
        assert upload.check_stored().done == (version == 4)
    assert server.repo.content(str(new)) == b"new content"
    assert server.repo.locations(str(new)) == {server.repo.uuid}

    now = remote.gettimestamp()
    assert abs(now - time.clock_gettime(time.CLOCK_BOOTTIME)) < 3
    assert not remote.remove(new, before=now - 1)
    assert remote.checkpresent(new)
    assert remote.remove(new, before=now + 100)
    assert server.repo.object(str(new)) is None
    assert remote.remove(present) and remote.remove(present)
    assert server.repo.locations(str(present)) == set()


@pytest.mark.parametrize("backend", ["SHA256", "WORM"])
@pytest.mark.parametrize("version", (0, 4))
def test_uploads_that_are_not_completed(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository], version: int, backend: str
) -> None:
    server = serve("--wideopen")
    remote = connect(server, version)
    key = Key(b"WORM--no-size") if backend == "WORM" else key_for(server, LARGE)

    def put(data: bytes, length: int, validity: bool | None) -> object:
        def answer() -> object:
            with remote.put(key, None) as upload:
                assert not isinstance(upload, AlreadyHave)
                rest = data[upload.offset :]
                offsets.append(upload.offset)
                return upload.receive(length - upload.offset, BytesSource(rest), lambda: validity).done

        def is_free() -> bool:
            try:
                results.append(answer())
            except (PeerError, TransferRefused):
                return False  # it has not noticed yet that the upload before this one was given up
            return True

        results: list[object] = []
        offsets.clear()
        wait_until(is_free)
        return results[0]

    offsets: list[int] = []
    assert put(b"", 0, False) is False
    assert put(LARGE, len(LARGE), False) is False
    assert not remote.checkpresent(key)
    # What was sent of it is kept, but for the last byte.
    wait_until(lambda: server.repo.temporary(str(key)).stat().st_size == len(LARGE) - 1)
    server.repo.temporary(str(key)).write_bytes(LARGE[:1_000_000])
    with pytest.raises(ShortSource):
        put(LARGE[:2_000_000], len(LARGE), True)
    assert offsets == [1_000_000]
    assert not remote.checkpresent(key)
    wait_until(lambda: server.repo.temporary(str(key)).stat().st_size == 2_000_000)
    assert put(LARGE, len(LARGE), None) is True
    assert offsets == [2_000_000]
    assert server.repo.content(str(key)) == LARGE


def test_corrupt_content_is_not_stored(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, b"right")
    with remote.put(key, None) as upload:
        assert not upload.receive(5, BytesSource(b"wrong"), lambda: True)
    with remote.put(key, None) as upload:
        assert upload.receive(5, BytesSource(b"right"), lambda: True)


def test_an_upload_that_somebody_else_completes(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository]
) -> None:
    """Of which the server reads no more than it likes."""
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, LARGE * 10)
    upload = remote.put(key, None)
    assert not isinstance(upload, AlreadyHave)
    with remote.put(key, None) as other:
        assert not isinstance(other, AlreadyHave)
        assert other.receive(len(LARGE) * 10, BytesSource(LARGE * 10), lambda: True)
    with upload:
        assert upload.receive(len(LARGE) * 10, BytesSource(LARGE * 10), lambda: True)
    assert remote.checkpresent(key)


def test_a_temporary_file_that_is_too_large(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository]
) -> None:
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, b"content")
    temporary = server.repo.temporary(str(key))
    temporary.parent.mkdir(parents=True, exist_ok=True)
    temporary.write_bytes(b"too large to be the content")
    with remote.put(key, None) as upload:
        assert not isinstance(upload, AlreadyHave)
        assert upload.offset == 0
        assert upload.receive(7, BytesSource(b"content"), lambda: True)


def can_drop(server: Server, key: Key) -> bool:
    return bool(server.repo.annex("drop", "--force", "--key", str(key), check=False))


@pytest.mark.parametrize("extended", [False, True])
def test_locks(
    serve: Callable[..., Server],
    connect: Callable[..., HttpRepository],
    extended: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if extended:
        monkeypatch.setattr(lock, "_EXTENDED_AFTER", 0.1)
    server = serve("--wideopen")
    key = Key(server.repo.add("f", b"content").encode())
    remote = connect(server)
    with remote.lockcontent(key):
        if extended:
            time.sleep(1)
        assert not can_drop(server, key)
        with pytest.raises(PeerError, match="remove failed with HTTP status 500: Something went wrong"):
            remote.remove(key)
        second = remote.lockcontent(key)
    # In this order, or git-annex would not end the first lock's retention time with the lock (spec: objects §7).
    with second:
        assert not can_drop(server, key)
        assert remote.checkpresent(key)
    assert can_drop(server, key)
    with pytest.raises(NotLocked):
        remote.lockcontent(key)


def test_a_lock_that_is_kept(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    key = Key(server.repo.add("f", b"content").encode())
    remote = connect(server)
    with remote.lockcontent(key) as held:
        held.keep()
    remote.close()
    time.sleep(1)
    assert not can_drop(server, key)


def test_one_repository_used_by_several_threads(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository]
) -> None:
    server = serve("--wideopen")
    key = Key(server.repo.add("f", LARGE).encode())
    remote = connect(server)
    results: list[bytes] = []
    threads = [threading.Thread(target=lambda: results.append(read(remote, key))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [LARGE] * 4


PASSWORDS = {"GIT_ANNEX_P2PHTTP_PASSWORD_me": "se:cret+/?~\xfc", "GIT_ANNEX_P2PHTTP_PASSWORD_other": "x"}


def test_passwords(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--authenv-http", **PASSWORDS)
    remote = connect(server, user="me:se%3Acret%2B%2F%3F~%C3%BC@")
    assert remote.protocol_version == 4
    key = key_for(server, b"content")
    with remote.put(key, None) as upload:
        assert upload.receive(7, BytesSource(b"content"), lambda: True)
    assert read(remote, key) == b"content"
    for user in ("me:wrong@", ""):
        with pytest.raises(RemoteUnavailable, match="401 Unauthorized") as failure:
            connect(server, user=user)
        assert "wrong@" not in str(failure.value)


def test_a_password_for_writing_only(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--authenv-http", "--unauth-readonly", **PASSWORDS)
    key = key_for(server, b"content")
    remote = connect(server, user="other:x@")
    with remote.put(key, None) as upload:
        assert upload.receive(7, BytesSource(b"content"), lambda: True)
    anonymous = connect(server)
    assert read(anonymous, key) == b"content"
    with pytest.raises(PeerError, match="401"):
        anonymous.remove(key)
    with anonymous.lockcontent(key):
        pass
    assert remote.remove(key)


def test_who_may_not_write(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--unauth-readonly", "--unauth-nolocking")
    key = Key(server.repo.add("f", b"content").encode())
    remote = connect(server)
    assert read(remote, key) == b"content"
    with pytest.raises(PeerError, match="403"):
        remote.remove(key)
    with pytest.raises(TransferRefused, match="403"):
        remote.put(key, None)
    with pytest.raises(NotLocked, match="403"):
        remote.lockcontent(key)


def test_a_repository_that_is_not_served(
    serve: Callable[..., Server], connect: Callable[..., HttpRepository]
) -> None:
    server = serve("--wideopen")
    with pytest.raises(RemoteUnavailable, match="does not serve repository 11111111"):
        connect(server, target=UUID(b"11111111-1111-4111-8111-111111111111"))


def test_tls(
    serve: Callable[..., Server],
    connect: Callable[..., HttpRepository],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    certificate = make_certificate(tmp_path / "certificate.pem")
    server = serve("--authenv", f"--certfile={certificate}", f"--privatekeyfile={certificate}", **PASSWORDS)
    with pytest.raises(RemoteUnavailable, match="its certificate is not trusted"):
        connect(server)
    monkeypatch.setenv("GIT_SSL_CAINFO", str(certificate))
    remote = connect(server, user="other:x@")
    key = key_for(server, LARGE)
    with remote.put(key, None) as upload:
        assert upload.receive(len(LARGE), BytesSource(LARGE), lambda: True)
    monkeypatch.setattr(lock, "_EXTENDED_AFTER", 0.1)
    with remote.lockcontent(key):
        time.sleep(1)
        assert read(remote, key) == LARGE
        assert not can_drop(server, key)
    assert remote.remove(key)


def test_two_uploads_at_once(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    server = serve("--wideopen")
    remote = connect(server)
    key = key_for(server, LARGE)

    def try_another() -> bool:
        with pytest.raises(TransferRefused, match="HTTP status 500"):
            remote.put(key, None)
        return True

    with remote.put(key, None) as upload:
        assert upload.receive(len(LARGE), BytesSource(LARGE), try_another)


def test_downloads_that_were_given_up(serve: Callable[..., Server], connect: Callable[..., HttpRepository]) -> None:
    """They leave neither the server nor us with anything open."""
    server = serve("--wideopen")
    key = Key(server.repo.add("f", LARGE).encode())
    remote = connect(server)
    before = len(descriptors_before())
    for _ in range(20):
        with remote.get(key, 0, None) as content:
            content.source.readinto(memoryview(bytearray(10)))
    assert read(remote, key) == LARGE
    assert len(descriptors()) == before
