"""Which directories a pattern means, and which rule decides."""

from __future__ import annotations

import glob
import itertools
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.policy.rules import BadPattern, Pattern, Policy, Rule

NAMES = ["a", "b", "ab", ".h"]
PATHS = ["/".join(names) for length in (1, 2, 3) for names in itertools.product(NAMES, repeat=length)]
PARTS = [*NAMES, "*", "?", "a*", "*b", "[ab]", "[!a]", "[a-b]b", "**", ".*", "?b", "[.]h", "[[]", "[]]", "[!]]"]


def fits(pattern: str, path: str) -> bool:
    own = Pattern(pattern)
    return own.fits(own.base("/home/me"), path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tree")
    for path in PATHS:
        (root / path).mkdir(parents=True, exist_ok=True)
    return root


@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=5))
def test_patterns_find_what_python_finds(tree: Path, parts: list[str]) -> None:
    pattern = "/".join(parts)
    # At the end, Python's ** also stands for nothing.
    reference = pattern + "/*" if parts[-1] == "**" else pattern
    found = {os.path.normpath(path) for path in glob.glob(reference, root_dir=tree, recursive=True)}
    assert {path for path in PATHS if fits(f"/{pattern}", f"/{path}")} == found


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("/srv/annex", "/srv/annex", True),
        ("/srv/annex/", "/srv/annex", True),
        ("//srv//annex", "/srv/annex", True),
        ("/srv/annex", "/srv/annex/x", False),
        ("/srv/annex", "/srv/annexes", False),
        ("/srv/annex", "/srv", False),
        ("/srv/annex", "/Srv/annex", False),
        ("/", "/", True),
        ("/", "/srv", False),
        ("/*", "/srv", True),
        ("/*", "/", False),
        ("/**", "/srv/annex", True),
        ("/**", "/", False),
        ("/srv/*", "/srv/a", True),
        ("/srv/*", "/srv", False),
        ("/srv/*", "/srv/a/b", False),
        ("/srv/*", "/srv/.a", False),
        ("/srv/*", "/srvx/a", False),
        ("/srv/**", "/srv/a/b/c", True),
        ("/srv/**", "/srv", False),
        ("/srv/**", "/srv/a/.git/modules", False),
        ("/srv/**/x.git", "/srv/x.git", True),
        ("/srv/**/x.git", "/srv/a/b/x.git", True),
        ("/srv/**/x.git", "/srv/a/b/xxgit", False),
        ("/srv/a[*]b", "/srv/a*b", True),
        ("/srv/a[*]b", "/srv/axb", False),
        ("/srv/*\\*", "/srv/a\\b", True),
        ("/srv/é?", "/srv/éü", True),
        ("/srv/*", "/srv/\udce9\n", True),
        ("~", "/home/me", True),
        ("~/", "/home/me", True),
        ("~/x", "/home/me/x", True),
        ("~/*", "/home/me/x", True),
        ("~/*", "/home/you/x", False),
        ("~/~", "/home/me/~", True),
        ("/x/~", "/x/~", True),
        ("/home/me/~", "/home/me/~", True),
    ],
)
def test_patterns(pattern: str, path: str, expected: bool) -> None:
    assert fits(pattern, path) is expected


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("", "begin"),
        ("srv/annex", "begin"),
        ("*", "begin"),
        ("**", "begin"),
        ("~alice/x", "begin"),
        ("~*/x", "begin"),
        ("/srv/../etc", r"\.\."),
        ("/srv/./x", r"\.\."),
        ("~/..", r"\.\."),
        ("/srv/**x", r"\*\*"),
        ("/srv/x**/y", r"\*\*"),
        ("/srv/***", r"\*\*"),
        ("/srv/[ab", "not closed"),
        ("/srv/[]", "not closed"),
        ("/srv/[!]", "not closed"),
        ("/srv/[a/b]", "not closed"),
        ("/srv/x/.git", "/.git"),
        ("/srv/x/.git/", "/.git"),
        ("/srv/x\n/srv/y", "control"),
        ("/srv/x\0", "control"),
    ],
)
def test_patterns_that_are_mistakes(pattern: str, problem: str) -> None:
    with pytest.raises(BadPattern, match=problem):
        Pattern(pattern)


def test_no_client_can_make_a_comparison_take_long() -> None:
    pattern = "/" + "**/a*a*a*a/" * 8 + "b"
    start = time.monotonic()
    assert not fits(pattern, "/aaaaaaaaaaaaaaaa" * 240)
    assert time.monotonic() - start < 5


# Rules.


def policy(*rules: tuple[str, str, str, str | None]) -> Policy:
    made = [
        Rule(number, frozenset(users.split()), [Pattern(text) for text in directories.split()], access, git)
        for number, (users, directories, access, git) in enumerate(rules, 1)
    ]
    return Policy(b"/policy", accounts=[], log=None, keys={"alice": [], "bob": []}, groups={}, rules=made)


def decision(known: Policy, user: str, path: Path | str) -> int | None:
    found = known.decide(user, os.fsencode(path), b"/home/me")
    return None if found is None else found[0].number


def test_the_first_rule_that_fits_decides() -> None:
    known = policy(
        ("bob", "/srv/x", "write", None),
        ("alice bob", "/srv/a /srv/x", "none", None),
        ("*", "/srv/*", "read", None),
    )
    assert decision(known, "bob", "/srv/x") == 1
    assert decision(known, "alice", "/srv/x") == 2
    assert decision(known, "alice", "/srv/y") == 3
    assert decision(known, "alice", "/srv/y/z") is None
    assert decision(known, "mallory", "/srv/y") is None  # everybody is every user that there is


def test_git_follows_access() -> None:
    known = policy(*((("*", "/x", access, None)) for access in ("none", "read", "append", "write")))
    assert [rule.git for rule in known.rules] == ["none", "fetch", "fetch", "push"]
    assert policy(("*", "/x", "none", "push")).rules[0].git == "push"


def test_symlinks_in_front_of_wildcards_are_followed(tmp_path: Path) -> None:
    real = tmp_path.resolve() / "data"
    (real / "annex").mkdir(parents=True)
    link = tmp_path / "link"
    link.symlink_to(real)
    for pattern in (f"{link}/annex", f"{link}/*", f"{link}/**"):
        assert decision(policy(("*", pattern, "read", None)), "alice", real / "annex") == 1
        # What is compared never has symlinks in it.
        assert decision(policy(("*", pattern, "read", None)), "alice", link / "annex") is None


def test_the_home_may_be_a_symlink(tmp_path: Path) -> None:
    real = tmp_path.resolve() / "real"
    real.mkdir()
    home = tmp_path / "home"
    home.symlink_to(real)
    known = policy(("*", "~/x", "read", None))
    assert known.decide("alice", os.fsencode(real / "x"), os.fsencode(home)) is not None


def test_names_that_are_not_utf8() -> None:
    known = policy(("*", "/srv/*", "read", None))
    assert known.decide("alice", b"/srv/\xe9\xff", b"/\xff") is not None
    assert policy(("*", "~/x", "read", None)).decide("alice", b"/\xff/x", b"/\xff") is not None


def test_which_directories_can_be_pushed_to() -> None:
    known = policy(("bob", "/srv/x", "none", "push"), ("*", "/srv/*", "read", None), ("bob", "/tmp/*", "write", None))
    for path, expected in ((b"/srv/x", True), (b"/srv/y", False), (b"/tmp/y", True), (b"/", False)):
        assert known.may_be_pushed_to(path, b"/home/me") is expected
