"""The repositories and servers of the protocol tests.

`pytest tests/p2p --server real` runs them against the real git-annex-shell, from which the vectors come; that is how
the tests themselves are tested. `--fuzz N` sets the number of random conversations.
"""

from __future__ import annotations

import os

import pytest

from tests import vectors
from tests.p2p.driver import Programs, Repository, make_content

VECTORS = vectors.load("protocol-server")
CONTENTS = {name: make_content(spec) for name, spec in VECTORS["contents"].items()}
KEYS = {name: text.encode() for name, text in VECTORS["keys"].items()}


@pytest.fixture(scope="session")
def server_kind(request) -> str:
    return request.config.getoption("server")


@pytest.fixture(scope="session")
def programs(tmp_path_factory, git_annex_path, server_kind) -> Programs:
    return Programs(git_annex_path, tmp_path_factory.mktemp("home"), server_kind)


@pytest.fixture(scope="session")
def template(tmp_path_factory, programs) -> Repository:
    """A repository made by git-annex that has the contents KS and KB of the vectors. Copy it, leave it alone."""
    path = tmp_path_factory.mktemp("template") / "repository"
    path.mkdir()
    programs.run("git", "init", "-q", "--template=", ".", cwd=path)
    programs.run("git-annex", "init", "-q", "server", cwd=path)
    for key, content in VECTORS["present"].items():
        (path / content).write_bytes(CONTENTS[content])
        programs.run("git-annex", "add", "-q", content, cwd=path)
        assert os.path.basename(os.readlink(path / content)) == VECTORS["keys"][key]
    programs.run("git", "commit", "-qm", "add", cwd=path)
    return Repository(path, programs)


@pytest.fixture
def repository(template, tmp_path) -> Repository:
    """A repository of the test's own, in a directory of its own."""
    (tmp_path / "around").mkdir()
    return template.copy_to(tmp_path / "around" / "repository")


@pytest.fixture
def serve(programs, repository):
    """Start a server on the repository: ``with serve(...) as server``; the options are those of Programs.server."""

    def start(where: Repository | None = None, **options):
        return programs.server(where or repository, **options)

    return start


@pytest.fixture
def session(serve, repository):
    """A server that has said hello and speaks version 4."""
    with serve() as server:
        yield server.open(repository)


@pytest.fixture(scope="session")
def fuzz_examples(request) -> int:
    return request.config.getoption("fuzz")
