"""A repository that has HTTP servers as remotes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.http.scripted import OWN, Gateway


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home directory, with nothing of the user's in it."""
    path = tmp_path / "home"
    path.mkdir()
    for name in ("GIT_ASKPASS", "SSH_ASKPASS", "GIT_SSL_CAINFO", "GIT_SSL_NO_VERIFY", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(path))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    return path


@pytest.fixture
def gateway(tmp_path: Path, home: Path) -> Gateway:
    path = tmp_path / "gateway"
    subprocess.run(["git", "init", "-q", path], check=True)
    subprocess.run(["git", "-C", path, "config", "annex.uuid", OWN.decode()], check=True)
    return Gateway(path)
