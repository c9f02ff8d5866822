"""Certificates for servers on this machine."""

from __future__ import annotations

import ssl
from pathlib import Path

import trustme

from annexshell.http.certificates import Certificates


def make_certificate(path: Path) -> Path:
    """Write to PATH a key, a certificate for localhost, and that of the authority that vouches for it."""
    authority = trustme.CA()
    leaf = authority.issue_cert("localhost")
    parts = (leaf.private_key_pem, *leaf.cert_chain_pems, authority.cert_pem)
    path.write_bytes(b"".join(part.bytes() for part in parts))
    return path


def contexts(certificate: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """For a server that has it, and for a client that trusts it."""
    server = Certificates(str(certificate), str(certificate)).context
    return server, ssl.create_default_context(cafile=certificate)
