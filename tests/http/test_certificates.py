"""The server's certificate: what can be one, what is spoken with it, and how it is replaced."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives import serialization

from annexshell.errors import UsageError
from annexshell.http.certificates import Certificates, from_options
from tests.http.doors import HELLO, SERVED, Place, key_of, received, wait_until
from tests.http.program import Program, failure

LARGE = os.urandom(3_000_000)


class Issued:
    """Files of a certificate for localhost, which an authority below the one that is trusted has given."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.root = trustme.CA()
        self.leaf = self.root.create_child_ca().issue_cert("localhost")
        self.certificate = directory / "cert.pem"
        self.key = directory / "key.pem"
        self.chain = directory / "chain.pem"
        self.write()

    def write(self) -> None:
        certificate, *rest = (part.bytes() for part in self.leaf.cert_chain_pems)
        self.certificate.write_bytes(certificate.rstrip(b"\n"))  # as some editors leave it
        self.key.write_bytes(self.leaf.private_key_pem.bytes())
        self.chain.write_bytes(b"".join(rest))

    def load(self) -> Certificates:
        return Certificates(str(self.certificate), str(self.key), [str(self.chain)])

    @property
    def options(self) -> list[str]:
        return [f"--certfile={self.certificate}", f"--privatekeyfile={self.key}", f"--chainfile={self.chain}"]

    def trust(self) -> ssl.SSLContext:
        """For clients."""
        context = ssl.create_default_context()
        self.root.configure_trust(context)
        return context


@pytest.fixture
def issued(tmp_path: Path) -> Issued:
    return Issued(tmp_path / "certificates")


def shake_hands(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """The client's end. Raises ssl.SSLError."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_hostname="localhost"),
    ]
    for _ in range(5):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                pass
    return ends[1]


class TestFiles:
    def test_with_a_chain(self, issued: Issued) -> None:
        shake_hands(issued.load().context, issued.trust())
        with pytest.raises(ssl.SSLCertVerificationError):
            alone = Certificates(str(issued.certificate), str(issued.key))
            shake_hands(alone.context, issued.trust())

    def test_the_chain_may_be_in_the_certificates_file(self, issued: Issued) -> None:
        issued.certificate.write_bytes(issued.certificate.read_bytes() + b"\n" + issued.chain.read_bytes())
        shake_hands(Certificates(str(issued.certificate), str(issued.key)).context, issued.trust())

    def test_and_all_in_one_file(self, issued: Issued) -> None:
        parts = (issued.key, issued.certificate, issued.chain)
        together = issued.certificate.with_name("all.pem")
        together.write_bytes(b"\n".join(part.read_bytes() for part in parts))
        shake_hands(Certificates(str(together), str(together)).context, issued.trust())

    def test_the_key_of_another(self, issued: Issued, tmp_path: Path) -> None:
        issued.key.write_bytes(Issued(tmp_path / "other").key.read_bytes())
        with pytest.raises(UsageError, match=r"the key is not that of the certificate$"):
            issued.load()

    @pytest.mark.parametrize("name", ["certificate", "key", "chain"])
    def test_a_file_that_is_missing(self, issued: Issued, name: str) -> None:
        path: Path = getattr(issued, name)
        path.unlink()
        with pytest.raises(UsageError, match=f"^cannot read {path}: No such file"):
            issued.load()

    @pytest.mark.parametrize("name", ["certificate", "key", "chain"])
    @pytest.mark.parametrize(
        "content", [b"nonsense\n", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
    )
    def test_a_file_that_makes_no_sense(self, issued: Issued, name: str, content: bytes) -> None:
        path: Path = getattr(issued, name)
        path.write_bytes(content)
        if name == "chain" and b"BEGIN" not in content:
            issued.load()  # text between certificates is none of theirs
            return
        with pytest.raises(UsageError, match=f"^cannot use {issued.certificate} with {issued.key}: [a-z ]+$"):
            issued.load()

    def test_an_encrypted_key(self, issued: Issued) -> None:
        key = serialization.load_pem_private_key(issued.key.read_bytes(), None)
        issued.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.BestAvailableEncryption(b"secret"),
            )
        )
        with pytest.raises(UsageError, match="the private key is encrypted"):
            issued.load()

    def test_options(self, issued: Issued) -> None:
        certificate, key, chain = map(str, (issued.certificate, issued.key, issued.chain))
        assert from_options(None, None, ()) is None
        assert from_options(certificate, key, (chain,)) is not None
        for wrong in ((certificate, None, ()), (None, key, ()), (None, None, (chain,))):
            with pytest.raises(UsageError, match=r"^You must use both --certfile and --privatekeyfile options to"):
                from_options(*wrong)


class TestReload:
    def test_connections_from_then_on_get_the_new_one(self, issued: Issued, tmp_path: Path) -> None:
        certificates = issued.load()
        before = certificates.context
        new = _renew(issued, tmp_path)
        shake_hands(before, issued.trust())
        certificates.reload()
        assert certificates.context is before
        shake_hands(before, new.trust())
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(before, issued.trust())

    @pytest.mark.parametrize("name", ["certificate", "key", "chain"])
    @pytest.mark.parametrize("how", ["missing", "half"])
    def test_if_it_makes_no_sense_the_old_one_stays(
        self, issued: Issued, tmp_path: Path, capfd: pytest.CaptureFixture[str], name: str, how: str
    ) -> None:
        certificates = issued.load()
        _renew(issued, tmp_path)
        path: Path = getattr(issued, name)
        if how == "missing":
            path.unlink()
        else:
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        certificates.reload()
        said = capfd.readouterr().err
        assert said.endswith("; going on with the certificate of before\n") and said.count("\n") == 1
        shake_hands(certificates.context, issued.trust())

    def test_while_only_the_certificate_has_been_renewed(self, issued: Issued, tmp_path: Path) -> None:
        """The key will be, in a moment."""
        certificates = issued.load()
        new = Issued(tmp_path / "new")
        shutil.copy(new.certificate, issued.certificate)
        certificates.reload()
        shake_hands(certificates.context, issued.trust())
        shutil.copy(new.key, issued.key)
        shutil.copy(new.chain, issued.chain)
        certificates.reload()
        shake_hands(certificates.context, new.trust())


def _renew(issued: Issued, tmp_path: Path) -> Issued:
    """The new one, the files of which are where those of the old one were."""
    new = Issued(tmp_path / "new")
    for name in ("certificate", "key", "chain"):
        shutil.copy(getattr(new, name), getattr(issued, name))
    return new


class TestVersions:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
    def test_that_are_spoken(self, issued: Issued, version: ssl.TLSVersion) -> None:
        client = issued.trust()
        client.minimum_version = client.maximum_version = version
        client.set_alpn_protocols(["h2", "http/1.1"])
        agreed = shake_hands(issued.load().context, client)
        assert agreed.version() == {"TLSv1_2": "TLSv1.2", "TLSv1_3": "TLSv1.3"}[version.name]
        assert agreed.selected_alpn_protocol() == "http/1.1"

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
    def test_that_are_not(self, issued: Issued, version: ssl.TLSVersion) -> None:
        client = issued.trust()
        client.set_ciphers("ALL:@SECLEVEL=0")  # or it would not even try
        client.minimum_version = client.maximum_version = version
        with pytest.raises(ssl.SSLError) as refused:
            shake_hands(issued.load().context, client)
        assert refused.value.reason == "UNSUPPORTED_PROTOCOL"


# The program --------------------------------------------


@pytest.fixture
def place(tmp_path: Path) -> Place:
    place = Place(tmp_path / "annex")
    place.store(HELLO, b"hello\n")
    place.store(key_of(LARGE), LARGE)
    return place


@pytest.fixture(params=["", "--workers=2"])
def serve(request: pytest.FixtureRequest, place: Place, issued: Issued) -> Iterator[Callable[..., Program]]:
    def start(*options: str) -> Program:
        return Program(place.directory, "--wideopen", *issued.options, *filter(None, [request.param]), *options)

    yield start


def is_served(program: Program, trust: ssl.SSLContext) -> bool:
    try:
        return bool(program.post("checkpresent", program.socket(trust), key=HELLO).json["present"])
    except ssl.SSLCertVerificationError:
        return False


def test_a_renewed_certificate_is_taken_at_a_signal(
    serve: Callable[..., Program], issued: Issued, tmp_path: Path
) -> None:
    with serve() as program:
        trust = issued.trust()
        assert is_served(program, trust)
        # What is going on goes on with what it began with.
        with program.socket(trust) as connected:
            client = program.connect(connected)
            client.send_head("GET", f"/git-annex/{SERVED}/key/{key_of(LARGE)}", {})
            new = _renew(issued, tmp_path)
            program.tell(signal.SIGHUP)
            wait_until(lambda: is_served(program, new.trust()))
            for _ in range(6):  # whichever worker it is
                wait_until(lambda: not is_served(program, trust))
            assert client.answer("GET").body == LARGE
        issued.key.unlink()
        program.tell(signal.SIGHUP)
        assert is_served(program, new.trust())
        said = program.stop()
    assert set(said.splitlines()) <= {
        f"  cannot read {issued.key}: No such file or directory; going on with the certificate of before"
    }


def test_what_is_no_tls_is_closed(serve: Callable[..., Program], issued: Issued) -> None:
    with serve() as program:
        for _ in range(4):
            with program.socket() as plain:
                plain.sendall(b"POST /git-annex/x/v4/put HTTP/1.1\r\nHost: localhost\r\n\r\n")
                try:
                    assert received(plain)[:1] in (b"", b"\x15")
                except ConnectionResetError:
                    pass  # it did not take all of that
        assert is_served(program, issued.trust())
        assert program.stop() == ""


def test_by_a_unix_socket(serve: Callable[..., Program], issued: Issued) -> None:
    with serve("--socket=http.sock") as program:
        with socket.socket(socket.AF_UNIX) as plain:
            plain.settimeout(20)
            plain.connect(str(Path(program._directory, "http.sock")))
            connected = issued.trust().wrap_socket(plain, server_hostname="localhost")
            assert program.post("checkpresent", connected, key=HELLO).json == {"present": True}
        assert program.stop() == ""


def test_what_cannot_be_used_is_told_at_the_start(place: Place, issued: Issued, tmp_path: Path) -> None:
    key = Issued(tmp_path / "other").key
    options = [f"--certfile={issued.certificate}", f"--privatekeyfile={key}"]
    assert "the key is not that of the certificate" in failure(place.directory, "--wideopen", *options)
    assert "You must use both" in failure(place.directory, "--wideopen", options[0])
