"""Fixtures for the tests of remotes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.annex.conftest import clean_environment
from tests.leftovers import left_open
from tests.remotes.repositories import Proxy
from tests.remotes.sshremotes import TARGET, FakeSsh

__all__ = ["clean_environment"]


@pytest.fixture
def proxy(tmp_path: Path, clean_environment: Path) -> Proxy:
    return Proxy(tmp_path / "u")


@pytest.fixture
def nothing_is_left() -> Iterator[None]:
    """The test leaves no descriptor open, and no child running."""
    before = left_open()
    yield
    assert left_open() <= before


@pytest.fixture
def fake_ssh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeSsh:
    fake = FakeSsh(tmp_path / "bin")
    monkeypatch.setenv("PATH", f"{fake.directory}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SSH_LOG", str(fake.log))
    monkeypatch.setenv("FAKE_UUID", TARGET.decode())
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_ANNEX_USE_GIT_SSH", "SSH_ORIGINAL_COMMAND"):
        monkeypatch.delenv(name, raising=False)
    return fake
