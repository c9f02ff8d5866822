"""The git process that gives objects: what it says, and what is made of a git that is not well."""

from __future__ import annotations

import os
import signal
import stat
import time

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell.annex.catfile import CatFile
from annexshell.annex.gitrepo import GitRepository
from annexshell.errors import RepositoryError
from tests.annex.branches import REF
from tests.leftovers import descriptors, descriptors_before


@pytest.fixture
def cat_file(annex):
    annex.push({"uuid.log": b"a\n"})
    repo = GitRepository(os.fsencode(annex.path))
    assert repo.config
    cat_file = CatFile(repo)
    yield cat_file
    cat_file.close()


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts a `git` first in PATH that does what a shell script says."""

    def install(script):
        directory = tmp_path / "stub"
        directory.mkdir(exist_ok=True)
        program = directory / "git"
        program.write_text("#!/bin/sh\n" + script)
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(directory), prepend=os.pathsep)

    return install


def name(path: str) -> bytes:
    return f"{REF}:{path}".encode()


def test_contents_of_every_kind(annex, cat_file):
    contents = [b"", b"\n", b"no line end", b"x missing\n", bytes(range(256)) * 5000]
    annex.push({f"f{number}": content for number, content in enumerate(contents)})
    for number, content in enumerate(contents):
        found = cat_file.get(name(f"f{number}"))
        assert (found.kind, found.content) == (b"blob", content)
    assert cat_file.get(REF.encode()).id == annex.tip().encode()


def test_nothing_is_older_than_the_request(annex, cat_file):
    assert cat_file.get(name("uuid.log")).content == b"a\n"
    annex.push({"uuid.log": b"b\n"})
    assert cat_file.get(name("uuid.log")).content == b"b\n"
    annex.git("pack-refs", "--all")
    annex.git("gc", "-q")
    annex.push({"uuid.log": b"c\n"})
    assert cat_file.get(name("uuid.log")).content == b"c\n"


def test_what_is_missing(cat_file):
    for missing in (
        name("other.log"),
        b"refs/heads/other",
        b"refs/heads/other:uuid.log",
        b"0" * 40,
        name("uuid.log/x"),
    ):
        assert cat_file.get(missing) is None
    assert cat_file.get(name("uuid.log")) is not None


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary(min_size=1, max_size=30).filter(lambda b: b"\0" not in b))
def test_any_name_gets_an_answer_of_its_own(cat_file, path):
    assert cat_file.get(REF.encode() + b":no/" + path) is None
    assert cat_file.get(name("uuid.log")).content == b"a\n"


def test_a_name_with_line_ends(annex, cat_file):
    annex.push({"a\nb": b"odd\n"})
    assert cat_file.get(name("a\nb")).content == b"odd\n"
    assert cat_file.get(name("a\nc")) is None


def test_nothing_is_left_running_or_open(annex):
    before = descriptors_before()
    repo = GitRepository(os.fsencode(annex.path))
    cat_file = CatFile(repo)
    cat_file.close()
    for _ in range(2):
        assert cat_file.get(b"HEAD") is None
        pid = cat_file._child._pid
        cat_file.close()
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert repo.config
    assert descriptors() == before


def test_a_killed_process_is_replaced(cat_file):
    assert cat_file.get(name("uuid.log")) is not None
    pid = cat_file._child._pid
    os.kill(pid, signal.SIGKILL)
    assert cat_file.get(name("uuid.log")).content == b"a\n"
    assert cat_file._child._pid != pid


@pytest.mark.parametrize(
    "script",
    [
        "exit 1",
        "cat",
        "read line; echo rubbish",
        "read line; echo deadbeef blob 5; echo hello",
        "read line; printf '%040d blob 500\\nshort' 0",
        "read line; printf '%040d blob 5\\nhellooooo' 0; read line",
        "read line; printf '%040d blob -5\\n' 0; read line",
        "read line; printf '%040d elephant 0\\n\\n' 0",
        "read line; printf '%0999999d' 0",
        "kill -9 $$",
    ],
)
def test_a_git_that_talks_nonsense(cat_file, stub, script):
    stub(script)
    before = descriptors_before()
    with pytest.raises(RepositoryError, match="git"):
        cat_file.get(name("uuid.log"))
    assert descriptors() == before


def test_no_git_at_all(cat_file, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RepositoryError, match="git"):
        cat_file.get(name("uuid.log"))


def test_a_git_that_hangs_does_not_hang_us_when_closing(cat_file, stub):
    stub('read line; echo "$line missing"; exec sleep 100')
    assert cat_file.get(name("uuid.log")) is None
    start = time.monotonic()
    cat_file.close()
    assert time.monotonic() - start < 50


def test_it_recovers_once_git_does(cat_file, stub, monkeypatch):
    path = os.environ["PATH"]
    stub("exit 1")
    with pytest.raises(RepositoryError):
        cat_file.get(name("uuid.log"))
    monkeypatch.setenv("PATH", path)
    assert cat_file.get(name("uuid.log")).content == b"a\n"


def in_tree(annex, path: str) -> bytes:
    return f"{annex.git('rev-parse', REF + '^{tree}')}:{path}".encode()


def test_what_was_expected_is_there_and_anything_else_too(annex, cat_file):
    annex.push({"one": b"1\n", "two": b"2\n" * 100_000})
    one, two = in_tree(annex, "one"), in_tree(annex, "two")
    for expected in (one, two, in_tree(annex, "missing"), b"odd\nname"):
        for asked, content in ((one, b"1\n"), (two, b"2\n" * 100_000), (in_tree(annex, "missing"), None)):
            cat_file.expect(expected)
            cat_file.expect(two)  # one at a time is enough
            found = cat_file.get(asked)
            assert (found and found.content) == content


def test_a_child_killed_after_it_was_asked_is_replaced(annex, cat_file):
    name = in_tree(annex, "uuid.log")
    cat_file.expect(name)
    os.kill(cat_file._child._pid, signal.SIGKILL)
    assert cat_file.get(name).content == b"a\n"
    cat_file.expect(name)
    cat_file.close()
    assert cat_file.get(name).content == b"a\n"


def test_expecting_with_a_git_that_is_not_well_leaves_the_complaint_to_get(annex, stub):
    stub("exit 1")
    cat_file = CatFile(GitRepository(os.fsencode(annex.path)))
    cat_file.expect(b"x:y")
    with pytest.raises(RepositoryError):
        cat_file.get(b"x:y")
    cat_file.close()
