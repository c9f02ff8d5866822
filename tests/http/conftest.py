"""A repository that has HTTP servers as remotes; and one that is served over HTTP."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.http.certificates import contexts, make_certificate
from tests.http.doors import EMPTY, HELLO, Door, Place
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


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """What is served."""
    place = Place(tmp_path / "served")
    place.store(HELLO, b"hello\n")
    place.store(EMPTY, b"")
    return place


@pytest.fixture(scope="session")
def tls_contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    return contexts(make_certificate(tmp_path_factory.mktemp("tls") / "certificate.pem"))


@pytest.fixture
def open_door(place: Place, tls_contexts: tuple[ssl.SSLContext, ssl.SSLContext]) -> Iterator[Callable[..., Door]]:
    """Starts servers, by default for the PLACE and open to everybody; in a shape: plain or tls."""
    with ExitStack() as parts:

        def start(shape: str = "plain", **options: Any) -> Door:
            if shape == "tls":
                options["tls"], options["trust"] = tls_contexts
            return parts.enter_context(Door(place, **options))

        yield start


@pytest.fixture
def door(open_door: Callable[..., Door]) -> Door:
    return open_door()


@pytest.fixture(params=["plain", "tls"])
def either_door(request: pytest.FixtureRequest, open_door: Callable[..., Door]) -> Door:
    return open_door(request.param)
