"""The real git-annex, as people use it, with repositories that annexshell serves over HTTP."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

from tests.http.certificates import make_certificate
from tests.interop.conftest import IN_CI
from tests.interop.harness import Repo, environment, make_home, pseudorandom, run, wait_until
from tests.interop.proxies import git_annex_knows_proxies
from tests.interop.webservers import Door, Front, Static, Wire, can_trust, trusting

SHAPES = ["plain", *(["tls"] if IN_CI or can_trust() else [])]
LARGE = pseudorandom(3_000_000)
# Tests that fail with every server, as clients do not know how to make its address unavailable (spec: http §9.10).
UNAVAILABLE = {"removeKey", "storeKey", "checkPresent"}


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path / "home", '[annex "security"]\n\tallowed-ip-addresses = all\n')


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def serve(server_home: Path, parts: ExitStack) -> Callable[..., Door]:
    """Starts servers."""

    def start(where: Repo | Path, *options: str, **how: Any) -> Door:
        door = Door(server_home, where.path if isinstance(where, Repo) else where, *options, **how)
        parts.callback(door.kill)
        return door

    return start


@pytest.fixture
def front(parts: ExitStack) -> Callable[..., Front]:
    def start(door: Door, *refuses: Callable[[str], bool]) -> Front:
        front = Front(door, *refuses)
        parts.callback(front.stop)
        return front

    return start


@pytest.fixture
def make_client(tmp_path: Path, home: Path, git_annex_path: Path) -> Callable[..., Repo]:
    """Makes repositories that have servers as remotes, given as NAME=(REPO, URL); git itself has no way there."""

    def make(name: str = "client", **remotes: tuple[Repo, str]) -> Repo:
        repo = Repo(tmp_path / name, environment(home, git_annex_path))
        run(["git", "init", "--quiet", repo.path], repo.env, tmp_path)
        repo.annex("init", "--quiet", name)
        for remote, (server, url) in remotes.items():
            repo.git("config", f"remote.{remote}.url", "http://localhost:1/nowhere.git")
            repo.git("config", f"remote.{remote}.fetch", f"+refs/heads/*:refs/remotes/{remote}/*")
            repo.git("config", f"remote.{remote}.annexUrl", url)
            repo.git("config", f"remote.{remote}.annex-uuid", server.uuid)
        return repo

    return make


def learn(client: Repo, *servers: Repo) -> None:
    """Have the client know what is in the git-annex branches of servers."""
    for server in servers:
        client.git("fetch", "--quiet", server.path, f"+git-annex:refs/remotes/{server.path.name}/git-annex")
    client.annex("merge", "--quiet")


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bare", [True, False])
def test_there_and_back(
    make_server: Callable[..., Repo],
    make_client: Callable[..., Repo],
    serve: Callable[..., Door],
    tmp_path: Path,
    shape: str,
    bare: bool,
) -> None:
    server = make_server(bare=bare)
    certificate = make_certificate(tmp_path / "certificate.pem") if shape == "tls" else None
    door = serve(server, certificate=certificate)
    client = make_client(origin=(server, door.url))
    if certificate:
        client.env["PATH"] = trusting(tmp_path / "trusting", certificate, client.env["PATH"])
    key = client.add("a file", LARGE)

    client.annex("copy", "--to=origin", "a file")
    assert server.content(key) == LARGE
    client.annex("copy", "--to=origin", "a file")
    client.annex("drop", "a file")
    assert client.locations(key) == {server.uuid}
    client.annex("fsck", "--from=origin", "a file")
    client.annex("get", "a file")
    assert client.content(key) == LARGE
    client.annex("drop", "--from=origin", "a file")
    assert server.object(key) is None

    client.annex("move", "--to=origin", "a file")
    assert (client.object(key), server.content(key)) == (None, LARGE)
    client.annex("move", "--from=origin", "a file")
    assert (client.content(key), server.object(key)) == (LARGE, None)
    # It is known in the branch there as soon as it has been quiet.
    wait_until(lambda: server.git("show", "git-annex:uuid.log", check=False).status == 0)
    door.stop()
    assert server.leftovers() == []
    assert not [path for path in (server.git_dir / "annex" / "journal").glob("*") if path.is_file()]


@pytest.mark.parametrize("end", ["", "/"])
def test_below_a_path(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door], end: str
) -> None:
    server = make_server()
    door = serve(server, "--wideopen", "--path-prefix=/some/path")
    client = make_client(origin=(server, f"annex+http://localhost:{door.port}/some/path{end}"))
    key = client.add("a file+&%20", LARGE)
    client.annex("copy", "--to=origin", ".")
    client.annex("drop", ".")
    client.annex("move", "--from=origin", ".")
    assert (client.content(key), server.object(key)) == (LARGE, None)
    client.git("config", "remote.origin.annexUrl", door.url)
    assert client.annex("copy", "--to=origin", ".", check=False).status == 1


def test_dropping_what_is_locked_elsewhere(
    make_server: Callable[..., Repo],
    make_client: Callable[..., Repo],
    serve: Callable[..., Door],
    front: Callable[..., Front],
) -> None:
    here, there = make_server("here"), make_server("there")
    first, second = front(serve(here)), front(serve(there))
    client = make_client(here=(here, first.url), there=(there, second.url))
    key = client.add("a file", LARGE)
    client.annex("copy", "--to=here", "a file")
    client.annex("move", "--to=there", "a file")
    client.annex("drop", "--from=here", "a file")
    assert second.asked_for("lockcontent") and second.asked_for("keeplocked")
    assert first.asked_for("gettimestamp") and first.asked_for("remove-before")
    assert (here.object(key), there.content(key)) == (None, LARGE)
    assert client.annex("drop", "--from=there", "a file", check=False).status == 1
    assert there.content(key) == LARGE
    assert there.leftovers() == []


def test_everything_that_git_annex_tests(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    server = make_server()
    client = make_client(origin=(server, serve(server).url))
    result = client.annex("testremote", "--fast", "origin", check=False, timeout=200)
    failed = {line.partition(":")[0].strip() for line in result.out.splitlines() if line.rstrip().endswith("FAIL")}
    assert failed <= UNAVAILABLE, result
    assert f"{len(UNAVAILABLE)} out of " in result.out or not failed


def test_many_small_files_at_once(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    server = make_server()
    # Transfers that are never over would soon have others refused.
    client = make_client(origin=(server, serve(server, "--wideopen", "--transfers=24").url))
    contents = {f"d{number % 5}/{number}": pseudorandom(number * 7, number) for number in range(60)}
    for name, content in contents.items():
        path = client.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    client.annex("add", "--quiet", "-J2", ".")
    client.annex("copy", "-J10", "--to=origin", "--quiet", ".")
    client.annex("drop", "-J4", "--quiet", ".")
    assert client.annex("find", "--in=here").out == ""
    client.annex("get", "-J10", "--quiet", ".")
    for name, content in contents.items():
        assert (client.path / name).read_bytes() == content
    client.annex("move", "-J4", "--to=origin", "--quiet", ".")
    client.annex("move", "-J4", "--from=origin", "--quiet", ".")
    assert len(client.annex("find", "--in=here").out.splitlines()) == len(contents)
    assert server.leftovers() == []


def test_what_was_begun_is_gone_on_with(
    make_server: Callable[..., Repo],
    make_client: Callable[..., Repo],
    serve: Callable[..., Door],
    front: Callable[..., Front],
) -> None:
    server = make_server()
    gate = front(serve(server))
    client = make_client(origin=(server, gate.url))
    key = client.add("a file", LARGE)
    server.temporary(key).parent.mkdir(parents=True, exist_ok=True)
    server.temporary(key).write_bytes(LARGE[:2_000_000])
    client.annex("move", "--to=origin", "a file")
    assert server.content(key) == LARGE
    assert any("offset=2000000" in query for query in gate.asked_for("put"))
    client.temporary(key).parent.mkdir(parents=True, exist_ok=True)
    client.temporary(key).write_bytes(LARGE[:1_000_000])
    client.annex("get", "a file")
    assert client.content(key) == LARGE
    assert any("offset=1000000" in query for query in gate.asked_for("key"))


@pytest.mark.parametrize("lowest", range(4))
def test_older_versions(
    make_server: Callable[..., Repo],
    make_client: Callable[..., Repo],
    serve: Callable[..., Door],
    front: Callable[..., Front],
    lowest: int,
) -> None:
    """Whoever is in front may not know the newer ones."""
    server = make_server()
    gate = front(serve(server), lambda path: any(f"/v{version}/" in path for version in range(lowest + 1, 5)))
    client = make_client(origin=(server, gate.url))
    key = client.add("a file", LARGE)
    client.annex("copy", "--to=origin", "a file")
    client.annex("drop", "--from=origin", "a file")
    assert server.object(key) is None
    client.annex("copy", "--to=origin", "a file")
    assert server.content(key) == LARGE
    # The client cannot ask for its lock to be ended, so this has to be the last.
    client.annex("drop", "a file")
    assert gate.asked_for("lockcontent")
    client.annex("get", "--from=origin", "a file")
    assert client.content(key) == LARGE
    assert {path.split("/")[3] for _, path, status in gate.asked if status == 200} == {f"v{lowest}"}


def test_content_that_is_lost(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    """Nothing is not taken for the content, even where nothing else would tell the difference."""
    server = make_server()
    client = make_client(origin=(server, serve(server).url))
    keys = [client.add("worm", b"worm", backend="WORM"), client.add("sha", b"sha")]
    client.annex("move", "--to=origin", ".")
    client.git("annex", "registerurl", "URL--lost", "http://localhost:1/lost")
    client.annex("fromkey", "--force", "URL--lost", "lost")
    client.annex("setpresentkey", "URL--lost", server.uuid, "1")
    for key in keys:
        place = server.object(key)
        assert place is not None
        place.parent.chmod(0o755)
        place.unlink()
    for name in ("worm", "sha", "lost"):
        result = client.annex("get", "--from=origin", name, check=False)
        assert result.status == 1
        assert not (client.path / name).exists()


def ask(door: Door, action: str, uuid: str, body: bytes = b"", length: int | None = None, **query: str) -> Any:
    """What is answered to a request of somebody else."""
    words = urlencode({"clientuuid": "somebody", **query})
    headers = {"Content-Length": str(len(body))}
    if length is not None:
        headers["X-git-annex-data-length"] = str(length)
    url = f"http://127.0.0.1:{door.port}/git-annex/{uuid}/v4/{action}?{words}"
    with urlopen(Request(url, body, headers), timeout=60) as answer:
        return json.load(answer)


def test_what_another_client_has_stored_just_before(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door], parts: ExitStack
) -> None:
    """The client sends it all the same, and takes what is not read to its end for a failure."""
    server = make_server()
    door = serve(server)
    content = pseudorandom(30_000_000)
    stored: list[Any] = []

    def store() -> None:
        stored.append(ask(door, "put", server.uuid, content, len(content), key=key))

    wire = Wire(door, b"/v4/put?", store)
    parts.callback(wire.stop)
    client = make_client(origin=(server, wire.url))
    key = client.add("a file", content)
    client.annex("copy", "--to=origin", "a file")
    assert stored == [{"plusuuids": [], "stored": True}]
    assert client.locations(key) == {client.uuid, server.uuid}


def test_an_upload_that_is_not_allowed(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    """It is refused before it is sent, and the client says why."""
    server = make_server()
    client = make_client(origin=(server, serve(server, "--unauth-readonly").url))
    client.add("a file", pseudorandom(30_000_000))
    result = client.annex("copy", "--to=origin", "a file", check=False)
    assert result.status == 1 and "403 Forbidden" in result.err


def test_what_clients_lock_git_annex_does_not_drop_here(
    make_server: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    server = make_server(bare=False)
    key = server.add("a file", LARGE)
    door = serve(server)

    def drop() -> int:
        return server.annex("drop", "--force", "a file", check=False).status

    locks = [ask(door, "lockcontent", server.uuid, key=key)["lockid"] for _ in range(2)]
    assert drop() == 1
    for lockid in locks:
        assert server.content(key) == LARGE
        ask(door, "keeplocked", server.uuid, b'{"unlock":true}', lockid=lockid)
    assert drop() == 0
    ask(door, "put", server.uuid, LARGE, len(LARGE), key=key)
    ask(door, "lockcontent", server.uuid, key=key)
    door.kill()
    # The lock is gone, but not what the client was promised.
    assert drop() == 1
    assert server.content(key) == LARGE


ODD_NAMES = [
    "a+b&c=d;e%2Ff #1?",
    "[brackets]",
    "\u00e9\u4e2d\U0001f600 name",
    b"not \xff\xfe utf-8",
    'quo"te\\back\nline',
    "-dash",
    "x" * 200,
]


def test_odd_names(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    server = make_server(bare=False)
    client = make_client(origin=(server, serve(server).url))
    names = [os.fsencode(client.path) + b"/" + os.fsencode(name) for name in ODD_NAMES]
    for name in names:
        with open(name, "wb") as file:
            file.write(name)
    client.annex("add", "--quiet", "--backend=SHA256E", "x" * 200)
    client.annex("add", "--quiet", "--backend=WORM", ".")
    client.annex("move", "--to=origin", ".")
    assert [name for name in names if os.path.exists(name)] == []
    assert len(objects(server)) == len(names)
    client.annex("get", ".")
    for name in names:
        with open(name, "rb") as file:
            assert file.read() == name
    client.annex("drop", "--from=origin", ".")
    assert objects(server) == []
    client.annex("fsck", ".")


def objects(repo: Repo) -> list[Path]:
    return [path for path in (repo.git_dir / "annex" / "objects").rglob("*") if path.is_file()]


def test_unlocked_files_there(
    make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    server = make_server(bare=False)
    key = server.add("a file", b"content", unlocked=True)
    server.commit()
    door = serve(server)
    client = make_client(origin=(server, door.url))
    client.git("pull", "--quiet", server.path, "main")
    learn(client, server)
    client.annex("get", "a file")
    client.annex("drop", "--from=origin", "a file")
    assert (server.path / "a file").read_bytes() == b"/annex/objects/" + key.encode() + b"\n"
    client.annex("copy", "--to=origin", "a file")
    assert (server.path / "a file").read_bytes() == b"content"
    door.stop()
    assert server.git("status", "--porcelain").out == ""


def test_several_repositories(
    tmp_path: Path, make_server: Callable[..., Repo], make_client: Callable[..., Repo], serve: Callable[..., Door]
) -> None:
    (tmp_path / "all" / "deep").mkdir(parents=True)
    one = make_server("all/one.git")
    door = serve(tmp_path, "--wideopen", f"--directory={tmp_path / 'all'}")
    two = make_server("all/deep/two", bare=False)
    client = make_client(one=(one, door.url), two=(two, door.url))
    keys = [client.add(f"file{number}", b"%d" % number) for number in range(3)]
    client.annex("copy", "--to=one", "file0", "file1")
    client.annex("copy", "--to=two", "file1", "file2")
    assert [(one.content(key), two.content(key)) for key in keys] == [(b"0", None), (b"1", b"1"), (None, b"2")]
    client.annex("drop", "file0", "file1", "file2")
    client.annex("drop", "--from=one", "file1")
    client.annex("get", ".")
    while two.path.exists():  # what was recorded in it may just be committed
        shutil.rmtree(two.path, ignore_errors=True)
    assert client.annex("drop", "--force", "--from=two", "file2", check=False).status == 1
    client.annex("drop", "--from=one", "file0")
    assert one.object(keys[0]) is None


class TestCredentials:
    @pytest.fixture
    def helper(self, tmp_path: Path, home: Path) -> Path:
        """What git credential asks; it remembers what for."""
        log = tmp_path / "credentials"
        program = tmp_path / "helper"
        program.write_text(
            f'#!/bin/sh\necho "$1" >>"{log}"\ncat >>"{log}"\n[ "$1" = get ] && cat "$HOME/login"\nexit 0\n'
        )
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        with open(home / ".gitconfig", "a") as config:
            config.write(f"[credential]\n\thelper = {program}\n")
        return log

    ENV: ClassVar = {
        "GIT_ANNEX_P2PHTTP_PASSWORD_me": "se:cr\u00e9t~?>",
        "GIT_ANNEX_P2PHTTP_PASSWORD_reader": "x",
        "GIT_ANNEX_P2PHTTP_PERMISSIONS_reader": "readonly",
    }

    def test_are_asked_for_when_they_are_needed(
        self,
        make_server: Callable[..., Repo],
        make_client: Callable[..., Repo],
        serve: Callable[..., Door],
        home: Path,
        helper: Path,
    ) -> None:
        server = make_server()
        door = serve(server, "--authenv-http", "--unauth-readonly", env=self.ENV)
        client = make_client(origin=(server, door.url))
        (home / "login").write_text("username=me\npassword=se:cr\u00e9t~?>\n")
        key = client.add("a file", LARGE)
        client.annex("copy", "--to=origin", "a file")
        said = helper.read_text()
        assert "get\n" in said and "store\n" in said and "erase\n" not in said
        assert server.content(key) == LARGE
        helper.write_text("")
        # Reading, and keeping others from removing, is everybody's right.
        client.annex("drop", "a file")
        client.annex("get", "a file")
        assert helper.read_text() == ""

    def test_those_that_are_wrong_are_forgotten(
        self,
        make_server: Callable[..., Repo],
        make_client: Callable[..., Repo],
        serve: Callable[..., Door],
        home: Path,
        helper: Path,
    ) -> None:
        server = make_server()
        door = serve(server, "--authenv-http", "--unauth-readonly", env=self.ENV)
        client = make_client(origin=(server, door.url))
        key = client.add("a file", b"content")
        (home / "login").write_text("username=me\npassword=wrong\n")
        assert client.annex("copy", "--to=origin", "a file", check=False).status == 1
        assert "erase\n" in helper.read_text()
        (home / "login").write_text("username=reader\npassword=x\n")
        assert client.annex("copy", "--to=origin", "a file", check=False).status == 1
        assert server.object(key) is None


def test_a_fresh_clone_finds_the_way(
    tmp_path: Path,
    home: Path,
    git_annex_path: Path,
    make_server: Callable[..., Repo],
    serve: Callable[..., Door],
    parts: ExitStack,
) -> None:
    maker = make_server("maker", bare=False)
    key = maker.add("a file", LARGE)
    maker.commit()
    server = make_server("server.git")
    maker.git("remote", "add", "origin", server.path)
    maker.git("push", "--quiet", "origin", "main")
    maker.annex("copy", "--quiet", "--to=origin", "a file")
    learn(server, maker)
    door = serve(server)
    server.git("config", "annex.url", door.url)
    server.git("update-server-info")
    static = Static(tmp_path)
    parts.callback(static.stop)

    client = Repo(tmp_path / "clone", environment(home, git_annex_path))
    run(["git", "clone", "--quiet", f"{static.url}server.git", client.path], client.env, tmp_path)
    client.annex("init", "--quiet", "clone")
    client.annex("get", "--from=origin", "a file")
    assert client.content(key) == LARGE
    assert client.git("config", "remote.origin.annexurl").out.strip() == door.url
    other = client.add("another", b"content")
    client.annex("copy", "--to=origin", "another")
    assert server.content(other) == b"content"


if git_annex_knows_proxies():

    def test_repositories_behind_it(
        make_server: Callable[..., Repo],
        make_proxy: Callable[..., Repo],
        make_client: Callable[..., Repo],
        serve: Callable[..., Door],
    ) -> None:
        node = make_server("node")
        proxy = make_proxy(node=(node, "path"))
        door = serve(proxy)
        client = make_client(origin=(proxy, door.url))
        learn(client, proxy)
        key = client.add("a file", LARGE)
        client.annex("copy", "--to=origin-node", "a file")
        assert (node.content(key), proxy.object(key)) == (LARGE, None)
        assert proxy.locations(key) == {node.uuid}
        client.annex("drop", "a file")
        client.annex("fsck", "--from=origin-node", "a file")
        client.annex("get", "--from=origin-node", "a file")
        client.annex("drop", "--from=origin-node", "a file")
        assert (node.object(key), client.content(key)) == (None, LARGE)
        client.annex("move", "--to=origin-node", "a file")
        client.annex("move", "--from=origin-node", "a file")
        assert (node.object(key), client.content(key)) == (None, LARGE)
        door.stop()
        assert node.leftovers() == proxy.leftovers() == []
