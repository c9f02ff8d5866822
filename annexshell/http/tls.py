"""Which certificates are trusted: those that git is told to trust for the same url."""

from __future__ import annotations

import os
import ssl

from annexshell import process
from annexshell.errors import RemoteUnavailable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.http.urls import Base

_FALSE = frozenset((b"false", b"no", b"off", b"0", b""))


class Trust:
    """A repository's settings. Nothing is read before it is needed."""

    def __init__(self, repo: GitRepository) -> None:
        self._repo = repo
        self._contexts: dict[tuple[bool, str, int], ssl.SSLContext] = {}

    def context(self, base: Base) -> ssl.SSLContext:
        """For connections to BASE. Raises RemoteUnavailable."""
        context = self._contexts.get(base.origin)
        if context is None:
            context = self._contexts[base.origin] = self._make_context(base)
        return context

    def _make_context(self, base: Base) -> ssl.SSLContext:
        settings = self._git_settings(base)
        ca_file = os.environb.get(b"GIT_SSL_CAINFO") or settings.get(b"http.sslcainfo")
        ca_path = os.environb.get(b"GIT_SSL_CAPATH") or settings.get(b"http.sslcapath")
        try:
            context = ssl.create_default_context(
                cafile=os.path.expanduser(ca_file) if ca_file else None,
                capath=os.path.expanduser(ca_path) if ca_path else None,
            )
        except OSError as reason:  # an ssl.SSLError is one too
            raise RemoteUnavailable(f"cannot read the certificates of http.sslCAInfo: {reason.strerror}") from reason
        verify = settings.get(b"http.sslverify", b"true").lower() not in _FALSE
        if not verify or b"GIT_SSL_NO_VERIFY" in os.environb:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def _git_settings(self, base: Base) -> dict[bytes, bytes]:
        """The http.* settings that hold for the url of BASE, which may have some of its own."""
        argv = self._repo.git(b"config", b"--null", b"--get-urlmatch", b"http", base.web_url.encode())
        try:
            listing = process.run(argv, stderr=None).output
        except OSError as reason:
            raise RemoteUnavailable(f"cannot run git: {reason.strerror}") from reason
        settings = {}
        for entry in listing.split(b"\0")[:-1]:
            name, newline, value = entry.partition(b"\n")
            settings[name.lower()] = value if newline else b"true"
        return settings
