"""``annexshell p2phttp`` as a process, started the way that a service manager would."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import annexshell
from tests.http.doors import DEADLINE, Answer, Connection, target

ROOT = Path(annexshell.__file__).parents[1]
# Puts descriptors where a service manager would, and says whose they are.
_WITH_SOCKETS = """
import fcntl, os, sys
passed = [fcntl.fcntl(int(fd), fcntl.F_DUPFD, 100) for fd in os.environ["PASSED"].split()]
for number, fd in enumerate(passed, 3):
    os.dup2(fd, number, inheritable=True)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(passed))}
os.execv(sys.executable, [sys.executable, "-m", "annexshell", *sys.argv[1:]])
"""


class Program:
    """A running server. Use it in a ``with``."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        environ: Mapping[str, str] | None = None,
        listening: Sequence[socket.socket] = (),
        is_group: bool = False,
    ) -> None:
        """LISTENING: the sockets of the service manager."""
        self._options = ("--port=0", "--bind=127.0.0.1", "--workers=1", *options)
        self._directory = directory
        # Short, for the path of a socket.
        self.scratch = tempfile.TemporaryDirectory(prefix="p2phttp-")
        self.runtime = Path(self.scratch.name, "run")
        self.runtime.mkdir()
        self._environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("GIT_", "LISTEN_"))},
            "HOME": self.scratch.name,
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
            "NOTIFY_SOCKET": f"{self.scratch.name}/notify",
            "RUNTIME_DIRECTORY": str(self.runtime),
            **(environ or {}),
        }
        self._listening = listening
        self._is_group = is_group
        self.said: list[str] = []  # to the service manager
        self.port = 0

    def __enter__(self) -> Program:
        self._manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._manager.bind(self._environ["NOTIFY_SOCKET"])
        self._manager.settimeout(DEADLINE)
        self.process = self.start()
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def start(self) -> subprocess.Popen[str]:
        passed = [listener.fileno() for listener in self._listening]
        start = ["-m", "annexshell"] if not passed else ["-c", _WITH_SOCKETS]
        return subprocess.Popen(
            [sys.executable, *start, "p2phttp", *self._options],
            cwd=self._directory,
            env=self._environ | {"PASSED": " ".join(map(str, passed))},
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=self._is_group,
        )

    def _wait_until_ready(self) -> None:
        try:
            said = self.next_said()
        except TimeoutError:
            self.process.kill()
            raise AssertionError(f"it does not begin: {self.process.communicate()}") from None
        assert said.startswith("READY=1\nSTATUS=Serving "), said
        found = re.search(r"127\.0\.0\.1:(\d+)", said)
        if found:
            self.port = int(found[1])

    def says_for(self, seconds: float) -> list[str]:
        """What it says in that time, be it nothing."""
        end, said = time.monotonic() + seconds, []
        while (left := end - time.monotonic()) > 0:
            if select.select([self._manager], [], [], left)[0]:
                said.append(self.next_said())
        return said

    def next_said(self) -> str:
        self.said.append(self._manager.recv(1 << 16).decode())
        return self.said[-1]

    def workers(self) -> list[int]:
        """Their pids."""
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]

    # Asking it.

    def socket(self, trust: ssl.SSLContext | None = None) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=DEADLINE)
        return plain if trust is None else trust.wrap_socket(plain, server_hostname="localhost")

    def connect(self, connected: socket.socket | None = None) -> Connection:
        connection = Connection("localhost", self.port, timeout=DEADLINE)
        connection.sock = connected or self.socket()
        connection.auto_open = 0
        return connection

    def post(self, action: str, connected: socket.socket | None = None, **query: Any) -> Answer:
        """By a connection of its own."""
        headers = {"Connection": "close", **query.pop("headers", {})}
        connection = self.connect(connected)
        try:
            return connection.ask("POST", target(action, **query), headers)
        finally:
            connection.close()

    # Ending it.

    def tell(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> str:
        """Gives what it has said on stderr. It has to end with 0."""
        self.tell(number)
        return self.ended()

    def ended(self, status: int = 0) -> str:
        output, errors = self.process.communicate(timeout=DEADLINE)
        assert (output, self.process.returncode) == ("", status), errors
        return errors

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()
        self._manager.close()
        self.scratch.cleanup()


def failure(directory: Path, *options: str, **environ: str) -> str:
    """What it says when it cannot begin, after which it has to end with 1."""
    program = Program(directory, *options, environ={"NOTIFY_SOCKET": "", **environ})
    with program.scratch:
        process = program.start()
        try:
            output, errors = process.communicate(timeout=DEADLINE)
        finally:
            process.kill()
    assert (output, process.returncode) == ("", 1), errors
    return errors
