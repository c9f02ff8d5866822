"""User names and passwords, asked of git's credential helpers once a server wants them (spec: http §9.6)."""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import threading
from urllib.parse import urlsplit

from annexshell import log
from annexshell.errors import PeerError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.http.urls import Base

_HELPER_TIMEOUT = 60.0  # seconds


class Credential:
    """A user name and password, and how git described them. Neither is ever shown."""

    __slots__ = ("authorization", "description", "is_approved")

    def __init__(self, user: bytes, password: bytes, description: bytes | None = None) -> None:
        # The URL-safe alphabet is the only one that git-annex's server knows (spec: http §8.2).
        self.authorization = "Basic " + base64.urlsafe_b64encode(user + b":" + password).decode()
        self.description = description  # None if they do not come from git
        self.is_approved = False


class GitCredentials:
    """The credential helpers that are configured in a repository; they are never let ask anybody."""

    def __init__(self, repo: GitRepository, url: bytes, timeout: float | None = _HELPER_TIMEOUT) -> None:
        self._repo = repo
        self._url = url
        self._timeout = timeout

    def fill(self, challenges: Sequence[str]) -> Credential | None:
        """What is stored for the url; None if nothing is."""
        question = [b"url=" + self._url]
        question += (b"wwwauth[]=" + _one_line(challenge) for challenge in challenges)
        answer = self._run(b"fill", b"\n".join(question) + b"\n\n")
        if answer is None:
            return None
        fields = dict(line.split(b"=", 1) for line in answer.split(b"\n") if b"=" in line)
        if b"username" not in fields or b"password" not in fields:
            return None
        return Credential(fields[b"username"], fields[b"password"], answer)

    def approve(self, credential: Credential) -> None:
        if credential.description is not None:
            self._run(b"approve", credential.description)

    def reject(self, credential: Credential) -> None:
        if credential.description is not None:
            self._run(b"reject", credential.description)

    def _run(self, action: bytes, input: bytes) -> bytes | None:
        """What ``git credential ACTION`` says; None if it fails."""
        # An empty GIT_ASKPASS stands for all the ways to name a program that asks. Whoever is at this machine's
        # terminal or screen, it is not the user of the remote: hence the session, which has no terminal.
        environment = {**os.environb, b"GIT_TERMINAL_PROMPT": b"0", b"GIT_ASKPASS": b"", b"GCM_INTERACTIVE": b"never"}
        try:
            git = subprocess.Popen(
                self._repo.git(b"credential", action),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=None if log.debugging() else subprocess.DEVNULL,
                start_new_session=True,
            )
        except OSError as reason:
            log.debug(f"cannot run git credential: {reason.strerror}")
            return None
        with git:
            try:
                output, _ = git.communicate(input, self._timeout)
            except BaseException as reason:
                # The helper too, which holds the other end of the pipe.
                os.killpg(git.pid, signal.SIGKILL)
                if not isinstance(reason, subprocess.TimeoutExpired):
                    raise
                log.warn("the git credential helper took too long")
                return None
        return output if git.returncode == 0 else None


class Credentials:
    """What is sent to one server: nothing until it asks, then the same with every request."""

    def __init__(self, base: Base, helpers: GitCredentials) -> None:
        self._base = base
        self._helpers = helpers
        self._current: Credential | None = None
        self._mutex = threading.Lock()  # held while a helper runs, so that it runs once for all threads

    def get(self, base: Base) -> Credential | None:
        """What to send with a request to BASE, to which we may have been redirected."""
        return self._current if self._may_go_to(base) else None

    def _may_go_to(self, base: Base) -> bool:
        return base.host == self._base.host and (base.tls or not self._base.tls)

    def refused(self, sent: Credential | None, base: Base, challenges: Sequence[str]) -> None:
        """A request with SENT was answered 401. Returns if it is to be repeated, else raises PeerError."""
        with self._mutex:
            if not self._may_go_to(base):
                raise PeerError("it redirects to another host, which wants a password", str(self._base))
            if sent is None:
                if self._current is None:
                    self._current = self._find(challenges)
                return
            if self._current is sent:
                self._current = None
                self._helpers.reject(sent)
            if self._current is None:
                raise PeerError("401 Unauthorized: it does not accept the password", str(self._base))

    def _find(self, challenges: Sequence[str]) -> Credential:
        if self._base.user is not None and self._base.password is not None:
            return Credential(self._base.user, self._base.password)
        found = self._helpers.fill(challenges)
        if found is None:
            raise PeerError(
                "401 Unauthorized: it wants a password, and git credential has none for it in this repository",
                str(self._base),
            )
        return found

    def accepted(self, sent: Credential | None) -> None:
        """A request with SENT was answered 200."""
        if sent is None or sent.is_approved:
            return
        with self._mutex:
            if not sent.is_approved:
                sent.is_approved = True
                self._helpers.approve(sent)


def url_for_credentials(annex_url: bytes, base: Base, git_url: bytes | None) -> bytes:
    """Under which url git's helpers know the password: that of the git remote if it is on the same host."""
    if git_url is not None and git_url.startswith((b"http://", b"https://")) and b"\n" not in git_url:
        try:
            host = urlsplit(git_url.decode()).hostname
        except ValueError:
            host = None
        if host is not None and host == base.host:
            return git_url
    return annex_url


def _one_line(text: str) -> bytes:
    return "".join(c for c in text if c.isprintable()).encode()
