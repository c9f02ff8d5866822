"""``p2phttp``: the git-annex API over HTTP (spec: http §10)."""

from __future__ import annotations

import asyncio
import os
import ssl
from contextlib import ExitStack
from typing import TYPE_CHECKING

from annexshell.checks import drop_git_variables
from annexshell.errors import UsageError
from annexshell.http import listening, users
from annexshell.http.auth import open_gate
from annexshell.http.repositories import Repositories
from annexshell.http.server import Limits, serve

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence
    from typing import Any

    from annexshell.http.auth import Options

_NO_JOBS = "Use -Jn or set annex.jobs to configure the number of worker threads."


class TlsFiles:
    """The files of --certfile and its like; None for what was not given."""

    def __init__(self, certificate: str | None, key: str | None, chain: Sequence[str]) -> None:
        self.certificate = certificate
        self.key = key
        self.chain = tuple(chain)

    def context(self) -> ssl.SSLContext | None:
        """Raises UsageError, OSError."""
        if self.certificate is None and self.key is None:
            return None
        if self.certificate is None or self.key is None:
            raise UsageError("You must use both --certfile and --privatekeyfile options to enable HTTPS.")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_alpn_protocols(["http/1.1"])
        try:
            context.load_cert_chain(_chained(self.certificate, self.chain), self.key)
        except ssl.SSLError as reason:
            raise UsageError(f"--certfile {self.certificate} and --privatekeyfile {self.key}: {reason}") from reason
        return context


def _chained(certificate: str, chain: Sequence[str]) -> str:
    """A file with the certificate and those that it rests upon, in that order."""
    if not chain:
        return certificate
    import tempfile

    with tempfile.NamedTemporaryFile("wb", suffix=".pem", delete=False) as file:
        for name in (certificate, *chain):
            with open(name, "rb") as part:
                file.write(part.read() + b"\n")
    return file.name


def run(
    directories: Sequence[str],
    options: Options,
    limits: Limits,
    tls: TlsFiles,
    *,
    port: int = listening.DEFAULT_PORT,
    bind: str | None = None,
    socket_path: str | None = None,
    jobs: int | None = None,
) -> int:
    """Serve until a signal ends it; gives the exit status. Raises AnnexshellError, OSError when it cannot begin."""
    drop_git_variables()  # only the directories say which repositories are meant
    context = tls.context()
    with ExitStack() as parts:
        repositories = parts.enter_context(
            Repositories.below(map(os.fsencode, directories)) if directories else Repositories.single(b".")
        )
        gate = open_gate(options)
        users.forget_passwords(os.environb)
        limits = limits._replace(jobs=jobs or _configured_jobs(repositories, single=not directories))
        path = None if socket_path is None else os.fsencode(socket_path)
        listeners = parts.enter_context(listening.listen(bind, port, path))
        addresses = ", ".join(listeners.addresses())
        _run(serve(listeners.for_worker(), repositories, gate, limits, context, f"Listening on {addresses}"))
    return 0


def _configured_jobs(repositories: Repositories, *, single: bool) -> int:
    """What annex.jobs says; many repositories have no common one."""
    configured = repositories.repos()[0].config.get(b"annex.jobs") if single and repositories.repos() else None
    if configured == b"cpus":
        return os.cpu_count() or 1
    if configured is None or not configured.isdigit() or not int(configured):
        raise UsageError(_NO_JOBS)
    return int(configured)


def _run(main: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)
