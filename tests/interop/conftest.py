"""The world of the interop tests: clients with a home of their own, ssh servers, repositories behind them.

``--server=real`` has the real git-annex-shell serve, to tell a wrong test from a wrong program.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.interop.harness import Program, Repo, annexshell_program, environment, make_home, real_program, run
from tests.interop.proxies import git_annex_knows_proxies, http_server, make_proxied, make_proxy
from tests.interop.sshservers import AsyncSsh, ClientConfig, Sshd, find_sshd

__all__ = ["http_server", "make_proxied", "make_proxy"]

MOUNT = ("mount", "-t", "tmpfs")


def can_mount() -> bool:
    """Root can, but for containers. Others have test_file_size_limit to see a write fail."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() or subprocess.run([*MOUNT, "annexshell-test", directory], capture_output=True).returncode:
            return False
        subprocess.run(["umount", directory], check=True)
    return True


# Where a part of what is needed may be missing it is done without; in CI nothing may be.
IN_CI = bool(os.environ.get("CI"))
collect_ignore = [] if IN_CI or can_mount() else ["test_disk_full.py"]
if not (IN_CI or (shutil.which("git-remote-gcrypt") and shutil.which("gpg"))):
    collect_ignore.append("test_gcrypt.py")
if not (IN_CI or (os.geteuid() == 0 and find_sshd())):
    collect_ignore.append("test_policy.py")  # sshd has root own the programs that it asks for keys
if not git_annex_knows_proxies():
    collect_ignore += ["test_proxy_chains.py", "test_proxy_command.py", "test_proxy_permission.py"]
    collect_ignore += ["test_http_client.py", "test_http_door.py", "test_http_nginx.py"]  # which are newer still


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.interop)
    if config.getoption("--server") == "real":
        items[:] = [item for item in items if not needs_ours(item)]


def needs_ours(item: pytest.Item) -> bool:
    """Whether it is about something that git-annex-shell does not do, as a proxy or at all."""
    if item.path.name == "test_notifychanges.py":
        return item.name not in item.module.TOLD_BY_ALL
    if "test_proxy" not in item.path.name:
        return item.path.name in ("test_audit.py", "test_policy.py")
    if item.path.name == "test_proxy_failures.py" or "test_directory_of_the_proxy_alone" in item.name:
        return True
    return not git_annex_knows_proxies() or (hasattr(item, "callspec") and "http" in item.callspec.params.values())


@pytest.fixture(scope="session")
def server_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_home(tmp_path_factory.mktemp("server") / "home")


@pytest.fixture(scope="session")
def real_shell(server_home: Path, git_annex_path: Path) -> Program:
    """The real git-annex-shell."""
    return real_program(server_home, git_annex_path)


@pytest.fixture(scope="session")
def server(server_home: Path, git_annex_path: Path, real_shell: Program, pytestconfig: pytest.Config) -> Program:
    """The program under test."""
    if pytestconfig.getoption("--server") == "real":
        return real_shell
    return annexshell_program(server_home, git_annex_path)


@pytest.fixture(scope="session")
def audit_log(server_home: Path) -> Path:
    """The audit log of all that is reached through the host "audited"."""
    return server_home / "audit.log"


@pytest.fixture(scope="session")
def ssh(
    tmp_path_factory: pytest.TempPathFactory, server: Program, real_shell: Program, audit_log: Path
) -> Iterator[ClientConfig]:
    """Running ssh servers; gives the client's configuration, in which every host name is a profile."""
    links = tmp_path_factory.mktemp("links")
    with_ours = server.env | {"PATH": f"{links}{os.pathsep}{real_shell.env['PATH']}"}
    old = {version: [sys.executable, str(Path(__file__).with_name("oldpeer.py")), version] for version in "01"}
    profiles = {
        "rw": server.forced_command(),
        "readonly": server.forced_command({"GIT_ANNEX_SHELL_READONLY": "1"}),
        "appendonly": server.forced_command({"GIT_ANNEX_SHELL_APPENDONLY": "1"}),
        "filelimit": server.forced_command(prefix=["prlimit", f"--fsize={1 << 20}"]),
        "audited": server.forced_command(words=["--log", str(audit_log), "--user", "alice"]),
        "linked": server.linked(links).forced_command(),
        "login": server.login_command(links),
        "real": real_shell.forced_command(),
        "real-with-ours": Program(real_shell.argv, with_ours).forced_command(),
        "v0": server.forced_command(prefix=old["0"]),
        "v1": server.forced_command(prefix=old["1"]),
        "real-v1": real_shell.forced_command(prefix=old["1"]),
    }
    client = ClientConfig(tmp_path_factory.mktemp("ssh"), profiles)
    servers: list[Sshd | AsyncSsh] = [AsyncSsh(tmp_path_factory.mktemp("asyncssh"), client)]
    sshd = find_sshd()
    if IN_CI and not sshd:
        pytest.fail("there is no sshd; install openssh-server", pytrace=False)
    if sshd:
        servers.insert(0, Sshd(sshd, tmp_path_factory.mktemp("sshd"), client))
    started: list[Sshd | AsyncSsh] = []
    try:
        for index, one in enumerate(servers):
            one.start()
            started.append(one)
            for profile in profiles:
                names = f"{profile}.{one.kind}" + (f" {profile}" if index == 0 else "")
                client.add_host(names, profile, one.port, one.user(profile))
        yield client
    finally:
        for one in started:
            one.stop()


@pytest.fixture
def client_env(tmp_path: Path, ssh: ClientConfig, git_annex_path: Path) -> dict[str, str]:
    """The environment of a client, with nothing in its home but the way to our ssh servers."""
    assert shutil.which("ssh"), "the ssh program (openssh-client) is needed"
    home = make_home(
        tmp_path / "home",
        f"\tssh-options = -F {ssh.path}\n\tsshcaching = false\n[core]\n\tsshCommand = {ssh.command}\n",
    )
    return environment(home, git_annex_path)


@pytest.fixture
def make_server(tmp_path: Path, server_home: Path, git_annex_path: Path) -> Callable[..., Repo]:
    """Makes repositories as their owner would on the server, with the real git-annex."""

    def make(name: str = "server", *, bare: bool = True, version: int = 10, init: bool = True) -> Repo:
        path = tmp_path / name
        env = environment(server_home, git_annex_path)
        run(["git", "init", "--quiet", *(["--bare"] if bare else []), path], env, tmp_path)
        repo = Repo(path, env)
        if not bare:
            # The same commit in all of them, so that a client can merge the branches of several servers.
            dates = {"GIT_AUTHOR_DATE": "@1700000000 +0000", "GIT_COMMITTER_DATE": "@1700000000 +0000"}
            run(["git", "commit", "--quiet", "--allow-empty", "--message", "start"], env | dates, path)
        if init:
            repo.annex("init", "--quiet", f"--version={version}", name)
            assert repo.git("config", "annex.version").out.strip() == str(version)
        return repo

    return make


@pytest.fixture
def make_pair(make_server: Callable[..., Repo], make_client: Callable[..., Repo]) -> Callable[..., tuple[Repo, Repo]]:
    """Makes a server repository and one client of it."""

    def make(*, bare: bool = True, version: int = 10, host: str = "rw", **settings: str) -> tuple[Repo, Repo]:
        server = make_server(bare=bare, version=version)
        return server, make_client(server, host=host, **settings)

    return make


@pytest.fixture
def make_client(tmp_path: Path, client_env: dict[str, str], ssh: ClientConfig) -> Iterator[Callable[..., Repo]]:
    """Makes clones of a server repository, reached through a host (= profile)."""
    made: list[Repo] = []

    def make(server: Repo, name: str = "client", *, host: str = "rw", **settings: str) -> Repo:
        assert host in ssh.path.read_text().split(), f"no ssh server for {host}"
        path = tmp_path / name
        run(["git", "clone", "--quiet", f"ssh://{host}{server.path}", path], client_env, tmp_path)
        repo = Repo(path, client_env)
        made.append(repo)
        repo.config(**settings)
        repo.annex("init", "--quiet", name)
        return repo

    yield make
    for repo in made:
        for socket in (repo.git_dir / "annex" / "ssh").glob("*"):
            if socket.is_socket():  # its master is not a child of anybody any more
                subprocess.run(
                    ["ssh", "-O", "exit", "-S", socket.name, "any"],
                    cwd=socket.parent,
                    capture_output=True,
                    timeout=30,
                )


@pytest.fixture
def small_disk() -> Callable[[Path, int], AbstractContextManager[Path]]:
    """Puts a filesystem of a certain size in place of an existing directory, with what is in it."""

    @contextmanager
    def mount(directory: Path, size: int) -> Iterator[Path]:
        content = directory.with_name(directory.name + ".before")
        shutil.copytree(directory, content, symlinks=True)
        subprocess.run([*MOUNT, "-o", f"size={size}", "annexshell-test", directory], check=True)
        try:
            shutil.copytree(content, directory, symlinks=True, dirs_exist_ok=True)
            yield directory
        finally:
            subprocess.run(["umount", "-l", directory], check=True)

    return mount
