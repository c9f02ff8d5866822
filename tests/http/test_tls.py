"""Which servers are trusted, and everything else once more over TLS."""

from __future__ import annotations

import os
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from annexshell.errors import PeerError, RemoteUnavailable
from annexshell.key import Key
from annexshell.relay import BytesSource, to_callable
from annexshell.remotes.patience import Patience
from annexshell.repository import AlreadyHave
from tests.http.certificates import make_certificate
from tests.http.scripted import Gateway, Server, content, ok, status

KEY = Key(b"SHA256-s5--key")
BIG = os.urandom(5_000_000)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.fixture(params=["1.2", "1.3"])
def server(certificate: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    version = ssl.TLSVersion.TLSv1_2 if request.param == "1.2" else ssl.TLSVersion.TLSv1_3
    context.minimum_version = context.maximum_version = version
    with Server(context) as running:
        yield running


def git_config(*words: str) -> None:
    subprocess.run(["git", "config", "--global", *words], check=True)


def test_an_unknown_certificate(gateway: Gateway, server: Server) -> None:
    with pytest.raises(RemoteUnavailable, match=r"its certificate is not trusted: self.signed"):
        gateway.open(server)


def test_a_certificate_for_somebody_else(gateway: Gateway, server: Server, certificate: Path) -> None:
    git_config("http.sslCAInfo", str(certificate))
    with pytest.raises(RemoteUnavailable, match="its certificate is not trusted: IP address mismatch"):
        gateway.open(server, url=b"annex+https://127.0.0.1:%d/" % server.port)


def test_what_git_trusts(
    gateway: Gateway, server: Server, certificate: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "ca.pem").write_bytes(certificate.read_bytes())
    for name, value in (
        ("http.sslCAInfo", "~/ca.pem"),
        ("http.sslVerify", "false"),
        (f"http.https://localhost:{server.port}.sslVerify", "false"),
    ):
        git_config(name, value)
        gateway.open(server).close()
        git_config("--unset", name)
    git_config("http.https://elsewhere.sslVerify", "false")
    with pytest.raises(RemoteUnavailable):
        gateway.open(server)
    for variable, value in (("GIT_SSL_CAINFO", str(certificate)), ("GIT_SSL_NO_VERIFY", "1")):
        with monkeypatch.context() as patch:
            patch.setenv(variable, value)
            gateway.open(server).close()


def test_certificates_that_cannot_be_read(gateway: Gateway, server: Server, home: Path) -> None:
    git_config("http.sslCAInfo", str(home / "missing"))
    with pytest.raises(RemoteUnavailable, match=r"cannot read the certificates of http\.sslCAInfo"):
        gateway.open(server)


def test_no_tls_there(gateway: Gateway) -> None:
    with Server() as plain, pytest.raises(RemoteUnavailable, match="cannot connect to"):
        gateway.open(plain, url=b"annex+https://localhost:%d/" % plain.port)


def test_requests_and_content(gateway: Gateway, server: Server, certificate: Path) -> None:
    git_config("http.sslCAInfo", str(certificate))
    got: list[bytes] = []
    server.answers.update(
        key=content(BIG),
        putoffset=ok(offset=0),
        put=lambda request: got.append(request.body) or ok(stored=True),
        lockcontent=ok(locked=True, lockid="id"),
        keeplocked=ok(locked=False),
    )
    remote = gateway.open(server)
    with remote.lockcontent(KEY):
        assert remote.checkpresent(KEY)
    with remote.get(KEY, 0, None) as sent:
        data = bytearray()
        to_callable(sent.source, sent.length, data.extend)
        assert sent.still_valid() and data == BIG
    for valid in (True, False):
        with remote.put(KEY, None) as upload:
            assert not isinstance(upload, AlreadyHave)
            assert upload.receive(len(BIG), BytesSource(BIG), lambda valid=valid: valid).done == valid
    assert got[0] == BIG
    assert server.connections == 1
    remote.close()


def test_a_server_that_answers_early(gateway: Gateway, server: Server, certificate: Path) -> None:
    git_config("http.sslCAInfo", str(certificate))
    remote = gateway.open(server)
    server.answers.update(putoffset=ok(offset=0), put=lambda request: ok(stored=True))
    with remote.put(KEY, None) as upload:
        assert not isinstance(upload, AlreadyHave)
        assert upload.receive(len(BIG) * 4, BytesSource(BIG * 4), lambda: True)
    server.answers.update(put=lambda request: status(500, "full"))
    with remote.put(KEY, None) as upload, pytest.raises(PeerError, match="put failed with HTTP status 500: full"):
        assert not isinstance(upload, AlreadyHave)
        upload.receive(len(BIG) * 4, BytesSource(BIG * 4), lambda: True)
    assert remote.checkpresent(KEY)
    remote.close()


def test_a_server_that_hangs(gateway: Gateway, server: Server, certificate: Path) -> None:
    git_config("http.sslCAInfo", str(certificate))
    remote = gateway.open(server, patience=Patience(5, 0.3))
    server.answers.update(checkpresent=None, putoffset=ok(offset=0), put=None)
    with pytest.raises(RemoteUnavailable, match="in time"):
        remote.checkpresent(KEY)
    with remote.put(KEY, None) as upload, pytest.raises(RemoteUnavailable, match="in time"):
        assert not isinstance(upload, AlreadyHave)
        upload.receive(len(BIG) * 4, BytesSource(BIG * 4), lambda: True)
    remote.close()


def test_from_http_to_https(gateway: Gateway, server: Server, certificate: Path) -> None:
    git_config("http.sslCAInfo", str(certificate))

    def redirect(request: object) -> bytes:
        return status(301, "", f"Location: https://localhost:{server.port}{request.target}")

    with Server(checkpresent=redirect) as plain:
        remote = gateway.open(plain)
        assert remote.checkpresent(KEY)
        assert len(plain.requests) == 1
        remote.close()
