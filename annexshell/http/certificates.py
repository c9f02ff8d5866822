"""The server's TLS certificate (spec: http §10.1)."""

from __future__ import annotations

import ssl
import tempfile
from typing import TYPE_CHECKING

from annexshell import log
from annexshell.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence


class Certificates:
    """The files of --certfile and its like, and the context that has what they say."""

    def __init__(self, certificate: str, key: str, chain: Sequence[str] = ()) -> None:
        """Raises UsageError if they cannot be used."""
        self._certificate = certificate
        self._key = key
        self._chain = tuple(chain)
        self.context = self._new_context()

    def reload(self) -> None:
        """Read the files again; connections from now on get what they say. If they cannot be used nothing changes."""
        try:
            # Aside, as a context takes the certificate before it sees that the key is another's.
            self._new_context()
            self._load_into(self.context)
        except UsageError as reason:
            log.warn(f"{reason}; going on with the certificate of before")
        else:
            log.debug("read the certificate again")

    def _new_context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        self._load_into(context)
        return context

    def _load_into(self, context: ssl.SSLContext) -> None:
        try:
            with tempfile.NamedTemporaryFile(suffix=".pem") as together:
                # OpenSSL takes a chain from the certificate's own file only.
                for name in (self._certificate, *self._chain):
                    with open(name, "rb") as part:
                        together.write(part.read() + b"\n")
                together.flush()
                context.load_cert_chain(together.name, self._key, _refuse_passphrase)
        except ssl.SSLError as reason:
            raise UsageError(f"cannot use {self._certificate} with {self._key}: {_explain(reason)}") from reason
        except OSError as reason:
            name = reason.filename or self._key
            raise UsageError(f"cannot read {name}: {reason.strerror or reason}") from reason


def from_options(certificate: str | None, key: str | None, chain: Sequence[str]) -> Certificates | None:
    """None: no TLS. Raises UsageError."""
    if certificate is None and key is None and not chain:
        return None
    if certificate is None or key is None:
        raise UsageError("You must use both --certfile and --privatekeyfile options to enable HTTPS.")
    return Certificates(certificate, key, chain)


def _refuse_passphrase() -> str:
    # OpenSSL would ask for it, on a terminal that a service does not have.
    raise UsageError("the private key is encrypted; give --privatekeyfile one that is not")


def _explain(reason: ssl.SSLError) -> str:
    """Without the place in OpenSSL's source code."""
    if reason.reason == "KEY_VALUES_MISMATCH":
        return "the key is not that of the certificate"
    return (reason.reason or "not in PEM format").replace("_", " ").lower()
