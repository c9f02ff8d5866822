"""Real ssh servers on the loopback interface: OpenSSH's sshd, and asyncssh in a thread.

Every profile is a way to run the server program, chosen by the client through the host name: PROFILE for the first
server and PROFILE.KIND for a certain one.
"""

from __future__ import annotations

import asyncio
import getpass
import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import asyncssh


class ClientConfig:
    """The ssh client's configuration file and key pairs, one pair for each profile."""

    def __init__(self, directory: Path, profiles: Mapping[str, str]) -> None:
        self.directory = directory
        self.profiles = dict(profiles)  # name → forced command
        self.path = directory / "ssh_config"
        self.command = f"ssh -F {self.path}"
        for name in profiles:
            make_key(self.private_key(name))
        self.path.write_text("")

    def private_key(self, profile: str) -> Path:
        return self.directory / f"key_{profile}"

    def public_key(self, profile: str) -> str:
        return self.private_key(profile).with_suffix(".pub").read_text().strip()

    def add_host(self, names: str, profile: str, port: int, user: str) -> None:
        with self.path.open("a") as file:
            file.write(
                f"Host {names}\n"
                f"  HostName 127.0.0.1\n  Port {port}\n  User {user}\n"
                f"  IdentityFile {self.private_key(profile)}\n  IdentitiesOnly yes\n  IdentityAgent none\n"
                "  PreferredAuthentications publickey\n  BatchMode yes\n  LogLevel ERROR\n"
                "  StrictHostKeyChecking no\n  UserKnownHostsFile /dev/null\n  GlobalKnownHostsFile /dev/null\n"
                "  ConnectTimeout 20\n"
            )


def make_key(path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "test", "-f", path], check=True)


def find_sshd() -> str | None:
    """sshd has to be started by its absolute path, which is seldom in a user's PATH."""
    return shutil.which("sshd", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"]))


class Sshd:
    """OpenSSH's server, run in the foreground by whoever runs the tests."""

    kind = "sshd"

    def __init__(self, program: str, directory: Path, client: ClientConfig) -> None:
        self.program = program
        self.directory = directory
        self.client = client

    def start(self) -> None:
        make_key(self.directory / "host_key")
        keys = []
        for profile, command in self.client.profiles.items():
            escaped = command.replace('"', '\\"')
            keys.append(f'command="{escaped}",restrict {self.client.public_key(profile)}\n')
        (self.directory / "authorized_keys").write_text("".join(keys))
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks itself up; made at boot elsewhere
        for _ in range(5):
            self.port = free_port()
            self.write_config()
            if self.try_start():
                return
        raise AssertionError(f"sshd does not start:\n{self.log()}")

    def write_config(self) -> None:
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {self.directory}/host_key",
            f"AuthorizedKeysFile {self.directory}/authorized_keys",
            "PidFile none",
            "StrictModes no",  # the temporary directory may be below one that others can write
            "UsePAM no",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "KexAlgorithms curve25519-sha256",  # the newest takes longer than everything else in a short session
            "PermitRootLogin yes",
            "AcceptEnv GIT_PROTOCOL",
            "MaxStartups 1000",
            "MaxSessions 1000",
        ]
        config = self.directory / "sshd_config"
        # Clients killed in the middle are part of the tests; newer ones would lock the address out for it.
        for optional in (["PerSourcePenalties no"], []):
            config.write_text("\n".join(lines + optional) + "\n")
            if not subprocess.run([self.program, "-t", "-f", config], capture_output=True).returncode:
                break

    def try_start(self) -> bool:
        self.process = subprocess.Popen(
            [self.program, "-D", "-f", self.directory / "sshd_config", "-E", self.directory / "log"],
            stdin=subprocess.DEVNULL,
        )
        for _ in range(200):
            if self.process.poll() is not None:
                return False
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self.port)) == 0:
                    return True
            time.sleep(0.05)
        self.stop()
        return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def user(self, profile: str) -> str:
        return getpass.getuser()

    def log(self) -> str:
        path = self.directory / "log"
        return path.read_text() if path.exists() else "(no log)"


class AsyncSsh:
    """A server that needs nothing but Python. The user's name is the profile."""

    kind = "asyncssh"

    def __init__(self, directory: Path, client: ClientConfig) -> None:
        self.directory = directory
        self.client = client
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, name="asyncssh", daemon=True)

    def start(self) -> None:
        keys = self.directory / "authorized_keys"
        keys.write_text("".join(self.client.public_key(profile) + "\n" for profile in self.client.profiles))
        self.thread.start()
        self.acceptor = asyncio.run_coroutine_threadsafe(self.listen(keys), self.loop).result(30)
        self.port = self.acceptor.get_port()

    async def listen(self, keys: Path) -> asyncssh.SSHAcceptor:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
            authorized_client_keys=str(keys),
            process_factory=self.serve,
            encoding=None,
            line_editor=False,
        )

    async def serve(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        profile = str(process.get_extra_info("username"))
        env = dict(os.environ) | {"SSH_ORIGINAL_COMMAND": process.command or ""}
        if "GIT_PROTOCOL" in process.env:
            env["GIT_PROTOCOL"] = process.env["GIT_PROTOCOL"]
        pipe = asyncio.subprocess.PIPE
        child = await asyncio.create_subprocess_exec(
            "/bin/sh", "-c", self.client.profiles[profile], stdin=pipe, stdout=pipe, stderr=pipe, env=env
        )
        assert child.stdin and child.stdout and child.stderr
        # As sshd does: the child's stdin ends with the client's, the session ends with the child and its output.
        incoming = asyncio.ensure_future(pump(process.stdin, child.stdin))
        outgoing = asyncio.gather(pump(child.stdout, process.stdout), pump(child.stderr, process.stderr))
        closed = asyncio.ensure_future(process.wait_closed())
        await asyncio.wait({outgoing, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not outgoing.done():  # the client is gone, and whoever waits for it to take something waits forever
            outgoing.cancel()
            child.stdin.close()
            await asyncio.gather(child.stdout.read(), child.stderr.read())
        status = await child.wait()
        incoming.cancel()
        closed.cancel()
        process.exit(status if status >= 0 else 128 - status)

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.acceptor.close)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(30)

    def user(self, profile: str) -> str:
        return profile


async def pump(source: Any, sink: Any) -> None:
    """Move bytes until the source ends; once the sink is gone, throw them away."""
    gone = False
    try:
        while data := await source.read(1 << 17):
            if not gone:
                try:
                    sink.write(data)
                    await sink.drain()
                except OSError:
                    gone = True
    except (OSError, asyncssh.Error):
        pass
    finally:
        if isinstance(sink, asyncio.StreamWriter):
            sink.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
