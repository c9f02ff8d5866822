"""Fixtures for the tests of repositories on disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.annex.branches import Annex
from tests.annex.local import OPENED


@pytest.fixture
def clean_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory with an identity for git in it, and no settings from outside; gives the home directory."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("GIT_", "XDG_")) or name == "EMAIL":
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    (home / ".gitconfig").write_text(
        "[user]\n\tname = Tester\n\temail = tester@example.com\n[init]\n\tdefaultBranch = main\n"
    )
    return home


@pytest.fixture
def annex(tmp_path: Path, clean_environment: Path) -> Annex:
    """A repository that is set up for git-annex but has no git-annex branch yet."""
    return Annex(tmp_path / "repo")


@pytest.fixture(autouse=True)
def nothing_stays_open():
    """Ends the processes of repositories that a test opened and, as a killed server would, did not close."""
    yield
    while OPENED:
        repository = OPENED.pop()
        for part in (repository._branch, repository._worktree, repository._verifier):
            if part is not None:
                part.close()
