"""A proxy on disk, nodes behind it that run in threads of the test's process, and a client of its sessions.

What is between is annexshell's own: remotes are found in git config, and opened as ssh remotes are; only the program
that would be run is replaced by a thread at the other end of two pipes.
"""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from annexshell.access import READ_WRITE, Access
from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.logs import location
from annexshell.annex.permissions import Permissions
from annexshell.annex.repository import LocalRepository
from annexshell.errors import AnnexshellError
from annexshell.key import Key
from annexshell.p2p.proxysession import ProxySession
from annexshell.p2p.server import Server
from annexshell.p2p.wire import Connection
from annexshell.proxy import ProxiedRepository, check_can_proxy
from annexshell.relay import BytesSource
from annexshell.remotes.patience import Patience
from annexshell.repository import Upload
from annexshell.uuid import UUID
from tests.shell import make_annex

DEADLINE = 10.0  # seconds that anything is waited for
OWN = UUID(b"0b1f0c20-58a2-4430-bb53-655bdf39e0af")
NODE = UUID(b"2c760e98-40b6-4bca-b6d4-bc2694fe52f9")
OTHER = UUID(b"33333333-3333-4333-8333-333333333333")
CLUSTER = UUID(b"ac77f433-cb3e-8ffb-81a8-368e4f01014e")


# The proxy on disk ------------------------------------------------


def write_branch(directory: Path, files: Mapping[str, str]) -> None:
    """Have the git-annex branch consist of FILES."""
    commands = b"commit refs/heads/git-annex\ncommitter t <t@example.com> 1795342684 +0000\ndata 0\ndeleteall\n"
    for name, text in files.items():
        data = text.encode("utf-8", "surrogateescape")
        commands += b"M 100644 inline %s\ndata %d\n%s\n" % (name.encode(), len(data), data)
    command = ["git", "-C", str(directory), "fast-import", "--quiet", "--force"]
    subprocess.run(command, input=commands, check=True)


def set_config(directory: Path, settings: Mapping[str, str]) -> None:
    """Append SETTINGS to the git config of a bare repository, or of one with a work tree."""
    config = directory / "config"
    with open(config if config.exists() else directory / ".git" / "config", "a") as file:
        for name, value in settings.items():
            section, _, variable = name.rpartition(".")
            section, _, subsection = section.partition(".")
            file.write(f'[{section} "{subsection}"]\n' if subsection else f"[{section}]\n")
            file.write(f'\t{variable} = "{value}"\n')


class OnDisk:
    """A repository's branch, looked at from outside."""

    directory: Path

    def logged(self, key: Key, *, committed: bool = False) -> dict[UUID, bytes]:
        """What the location log says now, or what of it is COMMITTED: status by uuid."""
        repo = GitRepository(os.fsencode(self.directory))
        with Branch(repo, Permissions(repo)) as branch:
            name = branch.key_log(key)
            if not committed:
                text = branch.read(name)
            else:
                command = ["git", "-C", str(self.directory), "cat-file", "blob", f"git-annex:{name.decode()}"]
                text = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout
        return {UUID(uuid): status for uuid, (_, status) in location.parse(text).items()}


class Proxy(OnDisk):
    """The repository OWN that may stand in front of its remote ``b``, which has the uuid NODE."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.git_dir = make_annex(directory, OWN.decode(), bare=True)
        set_config(
            directory,
            {
                "remote.b.url": "ssh://node/x",
                "remote.b.annex-uuid": NODE.decode(),
                "remote.b.annex-proxy": "true",
                "annex.sshcaching": "false",
            },
        )
        self.write_branch()

    def write_branch(self, **more: str) -> None:
        files = {
            "proxy.log": f"1795342684s {OWN.decode()} {NODE.decode()}:b\n",
            "uuid.log": f"{OWN.decode()} proxy timestamp=1795342684s\n",
        }
        write_branch(self.directory, files | {name.replace("_", "."): text for name, text in more.items()})

    def copy_to(self, directory: Path) -> Proxy:
        shutil.copytree(self.directory, directory)
        copy = Proxy.__new__(Proxy)
        copy.directory = copy.git_dir = directory
        return copy

    def target(self, uuid: UUID = NODE) -> ProxiedRepository:
        return check_can_proxy(GitRepository(os.fsencode(self.directory)), uuid)


class RealNode(OnDisk):
    """A repository on disk, served by annexshell at a VERSION of the protocol."""

    def __init__(self, directory: Path, uuid: UUID = NODE, version: int = 4) -> None:
        self.uuid = uuid
        self.version = version
        self.directory = make_annex(directory, uuid.decode(), bare=True)

    def open(self) -> LocalRepository:
        return LocalRepository(GitRepository(os.fsencode(self.directory)), OWN)

    def content(self, key: Key) -> bytes | None:
        path = self.open().find(key)
        return None if path is None else Path(os.fsdecode(path)).read_bytes()

    def partial(self, key: Key) -> bytes | None:
        path = self.directory / "annex" / "tmp" / os.fsdecode(key.filename)
        return path.read_bytes() if path.exists() else None

    def store(self, key: Key, content: bytes) -> None:
        repository = self.open()
        with repository.put(key, None) as upload:
            assert isinstance(upload, Upload)
            assert upload.receive(len(content), BytesSource(content), lambda: True)
        repository.close()

    def __call__(self, link: Link) -> None:
        """Serve one connection, as a script."""
        link.say(b"AUTH-SUCCESS %s\n" % self.uuid)
        repository = self.open()
        repository.protocol_version = self.version
        try:
            Server(repository, _Overheard(link), READ_WRITE).run()
        except (AnnexshellError, OSError) as reason:
            link.ended_by = reason
        finally:
            repository.close()


# Nodes ------------------------------------------------


class _Overheard(Connection):
    """A server's connection of which is kept what is read."""

    __slots__ = ("_heard", "_piece")

    def __init__(self, link: Link) -> None:
        super().__init__(link.read_fd, link.write_fd)
        self._heard = link.heard
        self._piece = False  # the last of what was heard is content

    def read_line(self) -> bytes | None:
        line = super().read_line()
        if line is not None:
            self._heard.append(line)
            self._piece = False
        return line

    def readinto(self, view: memoryview) -> int:
        count = super().readinto(view)
        data = bytes(view[:count])
        if self._piece:
            self._heard[-1] += data
        else:
            self._heard.append(data)
            self._piece = True
        return count

    def splice(self, out: int, count: int) -> int | None:
        return None


def _read(fd: int, ahead: bytes, length: int) -> tuple[bytes, bytes]:
    """LENGTH bytes, or those up to the end, of which some were read AHEAD; and what is ahead then."""
    parts, missing = [ahead[:length]], length - len(ahead[:length])
    while missing:
        if not select.select([fd], [], [], DEADLINE)[0]:
            raise AssertionError(f"{missing} bytes do not come")
        parts.append(os.read(fd, min(missing, 1 << 18)))
        if not parts[-1]:
            break
        missing -= len(parts[-1])
    return b"".join(parts), ahead[length:]


class Link:
    """The node's end of one connection. What is read from it is kept as lines and pieces of content."""

    def __init__(self, argv: list[bytes], read_fd: int, write_fd: int) -> None:
        self.argv = argv
        self.read_fd = read_fd
        self.write_fd = write_fd
        self.heard: list[bytes] = []
        self.ended_by: BaseException | None = None
        self._ahead = b""

    def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self.write_fd, view) :]

    def _more(self) -> bool:
        if not select.select([self.read_fd], [], [], DEADLINE)[0]:
            raise AssertionError("the node was told nothing")
        piece = os.read(self.read_fd, 1 << 16)
        self._ahead += piece
        return bool(piece)

    def line(self) -> bytes | None:
        """The next line, None when the proxy has hung up; what came of an incomplete one is heard as well."""
        while b"\n" not in self._ahead:
            if not self._more():
                if self._ahead:
                    self.heard.append(self._ahead)
                return None
        line, self._ahead = self._ahead.split(b"\n", 1)
        self.heard.append(line)
        return line

    def content(self, length: int) -> bytes:
        """The next LENGTH bytes, fewer when the proxy has hung up."""
        data, self._ahead = _read(self.read_fd, self._ahead, length)
        if data:
            self.heard.append(data)
        return data

    def greet(self, version: int = 4, uuid: bytes = NODE) -> None:
        self.say(b"AUTH-SUCCESS %s\n" % uuid)
        asked = self.line()
        assert asked is not None and asked.startswith(b"VERSION "), asked
        self.say(b"VERSION %d\n" % min(version, int(asked[8:])))

    def wait_for_end(self) -> None:
        """Hear everything until the proxy hangs up."""
        while self.line() is not None:
            pass

    def close(self) -> None:
        for fd in (self.write_fd, self.read_fd):
            os.close(fd)


class Nodes:
    """What runs instead of ssh. ``scripts`` are for the connections to come, the last one for all further ones."""

    def __init__(self) -> None:
        self.scripts: list[Callable[[Link], object]] = []
        self.links: list[Link] = []
        self.threads: list[threading.Thread] = []
        self.open = 0  # connections that the proxy did not close
        self.failures: list[BaseException] = []

    def start(self, argv: list[bytes], environment: Mapping[bytes, bytes]) -> NodeThread:
        """In place of Child()."""
        script = self.scripts.pop(0) if len(self.scripts) > 1 else self.scripts[0]
        return NodeThread(self, argv, script)

    @property
    def heard(self) -> list[bytes]:
        """All that was heard on all connections, one after the other."""
        return [line for link in self.links for line in link.heard]


class NodeThread:
    """In place of annexshell.remotes.child.Child."""

    def __init__(self, nodes: Nodes, argv: list[bytes], script: Callable[[Link], object]) -> None:
        self._nodes = nodes
        read_fd, self.write_fd = os.pipe()
        self.read_fd, write_fd = os.pipe()
        self.link = Link(argv, read_fd, write_fd)
        self._script = script
        self._thread = threading.Thread(target=self._run, daemon=True)
        nodes.links.append(self.link)
        nodes.threads.append(self._thread)
        nodes.open += 1
        self._thread.start()

    def _run(self) -> None:
        try:
            self._script(self.link)
        except BrokenPipeError:
            pass  # the proxy has heard enough
        except BaseException as error:
            self._nodes.failures.append(error)
        finally:
            self.link.close()

    def close(self, grace: float = 0) -> int:
        if self.write_fd >= 0:
            os.close(self.write_fd)
            os.close(self.read_fd)
            self.write_fd = self.read_fd = -1
            self._nodes.open -= 1
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the node does not end"
        return 0


@pytest.fixture(scope="module")
def proxy_template(tmp_path_factory: pytest.TempPathFactory) -> Proxy:
    return Proxy(tmp_path_factory.mktemp("proxy") / "proxy")


@pytest.fixture
def proxy(proxy_template: Proxy, tmp_path: Path) -> Proxy:
    return proxy_template.copy_to(tmp_path / "proxy")


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Threads in place of ssh processes; that each was hung up on, and none met what it did not expect."""
    nodes = Nodes()
    monkeypatch.setattr("annexshell.remotes.ssh.Child", nodes.start)
    yield nodes
    assert nodes.failures == []
    assert nodes.open == 0


# The client ------------------------------------------------


class Client:
    """The client's end of a session, over pipes or a socket pair."""

    def __init__(self, read_fd: int, write_fd: int, *, sock: socket.socket | None = None) -> None:
        self.read_fd = read_fd
        self.write_fd = write_fd
        self._sock = sock
        self._ahead = b""

    @classmethod
    def over_pipes(cls) -> tuple[Client, int, int]:
        """A client, and the server's descriptors to read from and to write to."""
        server_read, write_fd = os.pipe()
        read_fd, server_write = os.pipe()
        return cls(read_fd, write_fd), server_read, server_write

    @classmethod
    def over_socket(cls) -> tuple[Client, int, int]:
        ours, theirs = socket.socketpair()
        fd = theirs.detach()
        return cls(ours.fileno(), ours.fileno(), sock=ours), fd, os.dup(fd)

    def say(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if not select.select([], [self.write_fd], [], DEADLINE)[1]:
                raise AssertionError("the server does not listen")
            view = view[os.write(self.write_fd, view[:4096]) :]

    def line(self, deadline: float = DEADLINE) -> bytes | None:
        """The next line, None at the end."""
        while b"\n" not in self._ahead:
            if not self._more(deadline):
                assert not self._ahead, self._ahead
                return None
        line, self._ahead = self._ahead.split(b"\n", 1)
        return line

    def _more(self, deadline: float = DEADLINE) -> bool:
        if not select.select([self.read_fd], [], [], deadline)[0]:
            raise AssertionError("the server says nothing")
        piece = os.read(self.read_fd, 1 << 16)
        self._ahead += piece
        return bool(piece)

    def ask(self, line: bytes) -> bytes | None:
        self.say(line + b"\n")
        return self.line()

    def content(self, length: int) -> bytes:
        """The next LENGTH bytes; fewer at the end."""
        data, self._ahead = _read(self.read_fd, self._ahead, length)
        return data

    def rest(self) -> bytes:
        """All up to the end."""
        while self._more():
            pass
        data, self._ahead = self._ahead, b""
        return data

    def say_no_more(self) -> None:
        """Close the writing half."""
        if self._sock is not None:
            self._sock.shutdown(socket.SHUT_WR)
        elif self.write_fd >= 0:
            os.close(self.write_fd)
        self.write_fd = -1

    def listen_no_more(self) -> None:
        assert self._sock is None
        os.close(self.read_fd)
        self.read_fd = -1

    def close(self) -> None:
        if self._sock is not None:
            self._sock.close()
        else:
            for fd in (self.write_fd, self.read_fd):
                if fd >= 0:
                    os.close(fd)
        self.read_fd = self.write_fd = -1


class Session(Client):
    """A client and its session in a thread, which ends as the ``p2pstdio`` command does. Use it in a ``with``."""

    error: BaseException | None  # what ended the session, None for an orderly end
    target: ProxiedRepository

    @classmethod
    def start(
        cls,
        target: ProxiedRepository,
        *,
        access: Access = READ_WRITE,
        reply_timeout: float | None = None,
        over_socket: bool = False,
    ) -> Session:
        session, read_fd, write_fd = cls.over_socket() if over_socket else cls.over_pipes()
        assert isinstance(session, Session)
        session.error = None
        session.target = target
        target.patience = Patience(DEADLINE, reply_timeout, for_whom=write_fd)
        server = ProxySession(target, Connection(read_fd, write_fd), access)
        session._thread = threading.Thread(target=session._serve, args=(server, read_fd, write_fd), daemon=True)
        session._thread.start()
        return session

    def _serve(self, server: ProxySession, read_fd: int, write_fd: int) -> None:
        try:
            try:
                server.run()
            finally:
                self.target.close()
        except BaseException as error:
            self.error = error
        finally:
            os.close(write_fd)
            os.close(read_fd)

    def open(self, version: int | None) -> None:
        """Say VERSION, unless that is None."""
        if version is not None:
            assert self.ask(b"VERSION %d" % version) == b"VERSION %d" % version

    def join(self) -> None:
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive(), "the session does not end"

    def finish(self) -> bytes:
        """Say no more, and wait for the end; gives what the server still had to say."""
        self.say_no_more()
        rest = self.rest()
        self.join()
        return rest

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.join()
