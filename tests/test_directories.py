from __future__ import annotations

import os
import pwd
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell import directories
from annexshell.errors import Refused
from tests import vectors
from tests.shell import Shell, git, make_annex, make_repository

ROOT = pwd.getpwuid(0)


def restricted(restriction: str, directory: str, home: Path) -> bytes:
    environ = {b"HOME": os.fsencode(home), directories.RESTRICTION: restriction.encode()}
    return directories.opened_path(directory.encode(), environ)


ENV = vectors.load("shell-directory-env")


@pytest.mark.parametrize("case", ENV["cases"], ids=lambda case: case["GIT_ANNEX_SHELL_DIRECTORY"])
def test_restriction_allows_what_git_annex_shell_does(case: dict[str, Any], tmp_path: Path) -> None:
    home = tmp_path / "home"
    make_home = str(home)
    home.mkdir()
    (home / "repo" / ".git").mkdir(parents=True)
    restriction = case["GIT_ANNEX_SHELL_DIRECTORY"].replace("$HOME", make_home)
    allowed = {directory.replace("$HOME", make_home) for directory in case["allowed"]}
    for directory in (name.replace("$HOME", make_home) for name in ENV["dirs"]):
        try:
            path = restricted(restriction, directory, home)
        except Refused as refusal:
            message = case["some_messages"].get(directory)
            assert message is None or str(refusal) == message
            # The spellings that compare equal, but whose own meaning is a directory elsewhere: /repo.
            elsewhere = directory == "~//repo"
            assert directory not in allowed or elsewhere
        else:
            assert directory in allowed
            # Whatever the spelling, it is the home directory's repository, or the home directory itself.
            expected = {f"{home}/repo", f"{home}/repo/.git", make_home, f"{ROOT.pw_dir}/repo", "/repo"}
            assert os.fsdecode(path).rstrip("/") in expected


@pytest.mark.parametrize(
    ("restriction", "directory"),
    [("allowed", "link/../other"), ("other", "~//other"), ("allowed", "~/link/../allowed"), ("", "~"), ("x", "X")],
)
def test_restriction_refuses_other_places(restriction: str, directory: str, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="Only allowed to access"):
        restricted(restriction, directory, tmp_path)


def test_dots_behind_a_symlink_open_what_was_compared(tmp_path: Path) -> None:
    (tmp_path / "elsewhere" / "sub").mkdir(parents=True)
    (tmp_path / "elsewhere" / "allowed").mkdir()
    (tmp_path / "link").symlink_to("elsewhere/sub")
    assert restricted("allowed", "link/../allowed", tmp_path) == os.fsencode(tmp_path / "allowed")


_spellings = st.lists(st.sampled_from(["a", "b", "..", ".", "", "~", "link", "~root", "/"]), max_size=6).map("/".join)


@given(_spellings, _spellings)
def test_only_the_allowed_place_is_ever_opened(restriction: str, directory: str) -> None:
    home = Path("/home/me")
    try:
        path = restricted(restriction, directory, home)
    except Refused:
        return
    as_path = directories.normalise(directories.expand(restriction.encode(), b"/home/me"))
    as_compared = directories.comparable(restriction.encode(), b"/home/me")
    if as_compared.startswith(b"~/"):
        as_compared = b"/home/me/" + as_compared[2:].lstrip(b"/")
    assert path.rstrip(b"/") in {as_path.rstrip(b"/"), directories.normalise(as_compared).rstrip(b"/")}
    assert b".." not in path.split(b"/")


def test_without_restriction_the_kernel_resolves_dots() -> None:
    assert directories.opened_path(b"link/../x/", {b"HOME": b"/h"}) == b"/h/link/../x/"


@pytest.mark.parametrize(
    ("directory", "expanded"),
    [
        ("", "/h/"),
        ("~", "/h"),
        ("~/", "/h/"),
        ("/~/r", "//h/r"),
        ("~//r", "/r"),
        ("x/~/y", "/h/x//h/y"),
        ("~root/r", ROOT.pw_dir + "/r"),
        ("/~root", "/" + ROOT.pw_dir),
        ("~no-such-user/~/x", "/h/~no-such-user/~/x"),
        ("a~/b", "/h/a~/b"),
    ],
)
def test_expands_the_first_tilde(directory: str, expanded: str) -> None:
    assert directories.expand(directory.encode(), b"/h") == expanded.encode()


def test_home_comes_from_the_environment_or_passwd() -> None:
    own = directories.normalise(os.fsencode(pwd.getpwuid(os.geteuid()).pw_dir))
    assert directories.home_directory({b"HOME": b"/h//x/"}) == b"/h/x"
    assert directories.home_directory({}) == own
    assert directories.home_directory({b"HOME": b""}) == own
    assert directories.home_directory({b"HOME": b"h"}) == os.path.join(os.getcwdb(), b"h")


@pytest.fixture
def layout(shell: Shell) -> dict[str, str]:
    """The repositories that the recorded directories name, each with its own uuid."""
    home = shell.home
    uuids = {}
    places = ["repo", "dirs/a.git", "dirs/b.git", "dirs/b", "dirs/c", "dirs/sep", "dirs/sp ace"]
    for number, place in enumerate([*places, "dirs/~", "dirs/~zzz", "dirs/nb", "dirs/dotgitdir/.git"]):
        uuids[place] = f"00000000-0000-4000-8000-{number:012}"
        if place == "dirs/sep":
            (home / "dirs").mkdir(exist_ok=True)
            git(home, "init", "-q", "--separate-git-dir=dirs/sep.gitdir", "dirs/sep")
        make_annex(home / place, uuids[place], bare=place.endswith(".git") and "dot" not in place)
    git(home / "dirs/nb", "config", "core.bare", "true")
    (home / "dirs/c/sub/deeper").mkdir(parents=True)
    git(home / "dirs/c", "commit", "-q", "--allow-empty", "-m", "test")
    git(home / "dirs/c", "worktree", "add", "-q", "../c-wt")
    (home / "dirs/clink").symlink_to("c")
    (home / "empty").mkdir()
    (home / "repo/f").symlink_to(".git/annex/objects/x")
    return uuids


# A subdirectory of a work tree is none of its own, and must not answer with the uuid of a repository whose content
# would not be found there (spec: shell §3.2).
SUBDIRECTORIES = {"dirs/c/sub", "dirs/c/sub/deeper"}


def test_finds_the_repository_that_git_annex_shell_finds(shell: Shell, layout: dict[str, str]) -> None:
    cases = vectors.load("shell-directories")["cases"]
    assert len(cases) == 54
    for case in cases:
        directory = case["dir"]
        result = shell("configlist", directory.replace("$HOME", str(shell.home)))
        repository = None if directory in SUBDIRECTORIES else case["repository"]
        assert result.status == case["exit"], (directory, result.stderr)
        uuid = layout[repository] if repository else ""
        expected = f"annex.uuid={uuid}\ncore.gcrypt-id=\n".encode() if case["exit"] == 0 else b""
        assert result.stdout == expected, directory
        assert ("failed to read git config" in result.stderr) == case["config_read_failed"], directory


def test_the_current_directory_does_not_matter(shell: Shell, layout: dict[str, str]) -> None:
    shell.monkeypatch.chdir("/")
    assert layout["repo"].encode() in shell("configlist", "repo").stdout


def test_bytes_that_are_not_utf8(shell: Shell) -> None:
    os.mkdir(os.fsencode(shell.home) + b"/\xff\xfe")
    make_repository(Path(os.fsdecode(os.fsencode(shell.home) + b"/\xff\xfe")), annex_uuid="U")
    assert shell("-c", b"git-annex-shell 'configlist' '\xff\xfe'").stdout.startswith(b"annex.uuid=U\n")
