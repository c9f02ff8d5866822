"""Fixtures for everybody: where the real git-annex is, and how long to run what may run longer."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import settings

from tests.shell import shell

__all__ = ["shell"]

_EXAMPLES = 40


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--soak",
        type=float,
        default=20,
        metavar="SECONDS",
        help="how long real git-annex and annexshell work on one repository at once (default: 20)",
    )
    parser.addoption(
        "--fuzz",
        type=int,
        default=_EXAMPLES,
        metavar="N",
        help="how many random conversations to hold (default: %(default)s)",
    )
    parser.addoption(
        "--large", type=int, default=64, metavar="MIB", help="the size of files that are large (default: 64)"
    )
    parser.addoption(
        "--server",
        choices=("ours", "real"),
        default=os.environ.get("ANNEXSHELL_TEST_SERVER", "ours"),
        help="the server under test; git-annex-shell is what the tests themselves are tested with",
    )


def pytest_configure(config: pytest.Config) -> None:
    # The same examples each time, so that what fails is what was changed; whoever gives --fuzz looks for others.
    derandomize = config.getoption("fuzz") == _EXAMPLES
    settings.register_profile("annexshell", derandomize=derandomize, database=None, deadline=None)
    settings.load_profile("annexshell")


def find_git_annex() -> Path:
    """The git-annex program: ANNEXSHELL_TEST_GIT_ANNEX, else that of the PyPI package, else the one in PATH."""
    chosen = os.environ.get("ANNEXSHELL_TEST_GIT_ANNEX")
    if not chosen:
        spec = importlib.util.find_spec("git_annex")
        if spec is not None and spec.origin is not None:
            chosen = str(Path(spec.origin).with_name("git-annex"))
        else:
            chosen = shutil.which("git-annex")
    if not chosen or not os.access(chosen, os.X_OK):
        pytest.fail(f"no usable git-annex ({chosen}); install it with: pip install 'annexshell[test]'", pytrace=False)
    return Path(chosen).resolve()


@pytest.fixture(scope="session")
def git_annex_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory to be put first in PATH, that has git-annex and git-annex-shell (one program, told by its name)."""
    program = find_git_annex()
    directory = tmp_path_factory.mktemp("git-annex")
    for name in ("git-annex", "git-annex-shell"):
        (directory / name).symlink_to(program)
    return directory
