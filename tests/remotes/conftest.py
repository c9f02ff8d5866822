"""Fixtures for the tests of remotes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.annex.conftest import clean_environment
from tests.remotes.repositories import Proxy

__all__ = ["clean_environment"]


@pytest.fixture
def proxy(tmp_path: Path, clean_environment: Path) -> Proxy:
    return Proxy(tmp_path / "u")
