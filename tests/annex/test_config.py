"""Reading git's config, and a git that is missing, fails or talks rubbish."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.config import Config, ConfigReader, file_signature
from annexshell.errors import RepositoryError, TemporaryFailure
from tests.leftovers import left_open


def boolean(value: bytes | None, default: bool = False) -> bool:
    return Config({b"a.b": [value]}).get_bool(b"a.b", default)


def test_the_last_value_counts():
    config = Config.parse(b"a.b\n1\0a.c\nx\0a.b\n2\0")
    assert config.get(b"a.b") == b"2"
    assert config.names() == [b"a.b", b"a.c"]
    assert b"a.b" in config and b"a.x" not in config
    assert config.get(b"a.x") is None


def test_values_are_bytes_as_they_are():
    config = Config.parse(b"a.b\nline\nline =\xff\0remote.A.B.c.url\n\0a.d\0")
    assert config.get(b"a.b") == b"line\nline =\xff"
    assert config.get(b"remote.A.B.c.url") == b""
    assert config.get(b"a.d") == b""
    assert config.get_bool(b"a.d") is True
    assert config.get_bool(b"remote.A.B.c.url", True) is False


@pytest.mark.parametrize("value", [b"true", b"TRUE", b"yes", b"Yes", b"on", b"1", b"2", b"-1", None])
def test_true(value):
    assert boolean(value) is True


@pytest.mark.parametrize("value", [b"false", b"False", b"no", b"off", b"OFF", b"0", b"00", b""])
def test_false(value):
    assert boolean(value, True) is False


@pytest.mark.parametrize("value", [b"junk", b"y", b"\xff", b"true ", b"1.5", b"maybe"])
def test_what_is_no_boolean_is_the_default(value):
    assert boolean(value) is False
    assert boolean(value, True) is True


def test_what_is_not_set_is_the_default():
    assert Config().get_bool(b"a.b") is False
    assert Config().get_bool(b"a.b", True) is True
    assert Config().names() == []


@given(st.binary(max_size=300))
def test_no_listing_makes_parsing_fail(listing):
    config = Config.parse(listing)
    for name in config.names():
        config.get(name)
        config.get_bool(name)


entries = st.tuples(st.binary(max_size=9), st.none() | st.binary(max_size=9)).filter(
    lambda entry: b"\n" not in entry[0] and b"\0" not in entry[0] + (entry[1] or b"")
)


@given(st.lists(entries))
def test_every_entry_is_found(listed):
    listing = b"".join(name + (b"" if value is None else b"\n" + value) + b"\0" for name, value in listed)
    config = Config.parse(listing)
    assert {name: config.get(name) for name in config.names()} == {name: value or b"" for name, value in listed}


@pytest.fixture
def repository(tmp_path):
    subprocess.run(["git", "init", "-q", "--bare", tmp_path / "repo"], check=True)
    return tmp_path / "repo"


@pytest.fixture
def stub_git(tmp_path, monkeypatch):
    """Put another git first in PATH."""

    def install(script: str, mode: int = 0o755) -> None:
        directory = tmp_path / "stub"
        directory.mkdir()
        (directory / "git").write_text("#!/bin/sh\n" + script)
        (directory / "git").chmod(mode)
        monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture(autouse=True)
def nothing_is_left():
    before = left_open()
    yield
    assert left_open() <= before


def read(repository: Path) -> Config:
    return ConfigReader(os.fsencode(repository)).result()


def test_a_real_repository(repository):
    with open(repository / "config", "ab") as file:
        file.write(b'[annex]\n\tuuid = u\n\tthin\n[remote "A.b"]\n\turl = "x\\ny"\n\tannex-Cost = 1\n')
    config = read(repository)
    assert config.get_bool(b"core.bare") is True
    assert config.get(b"annex.uuid") == b"u"
    assert config.get_bool(b"annex.thin") is True
    assert config.get(b"remote.A.b.url") == b"x\ny"
    assert config.get(b"remote.A.b.annex-cost") == b"1"


def test_includes_and_the_environment_count(repository, monkeypatch):
    (repository / "more").write_text("[annex]\n\tuuid = included\n")
    with open(repository / "config", "a") as file:
        file.write("[include]\n\tpath = more\n")
    monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
    monkeypatch.setenv("GIT_CONFIG_KEY_0", "annex.thin")
    monkeypatch.setenv("GIT_CONFIG_VALUE_0", "true")
    config = read(repository)
    assert config.get(b"annex.uuid") == b"included"
    assert config.get_bool(b"annex.thin") is True


def test_a_broken_config_file(repository):
    (repository / "config").write_text("[core\n")
    with pytest.raises(RepositoryError):
        read(repository)


def test_git_is_missing(repository, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(RepositoryError, match=r"^cannot run git: No such file or directory$"):
        read(repository)


def test_git_is_not_executable(repository, stub_git, tmp_path, monkeypatch):
    stub_git("", mode=0o644)
    monkeypatch.setenv("PATH", str(tmp_path / "stub"))
    with pytest.raises(RepositoryError, match=r"^cannot run git: Permission denied$"):
        read(repository)


@pytest.mark.parametrize("script", ["exit 1", "printf 'annex.uuid\\nu\\0'; exit 128", "exit 255"])
def test_git_fails(script, repository, stub_git):
    stub_git(script)
    with pytest.raises(RepositoryError, match="git config failed with status") as caught:
        read(repository)
    assert not isinstance(caught.value, TemporaryFailure)


def test_git_is_killed(repository, stub_git):
    stub_git("printf 'annex.uuid\\nu\\0'; kill -9 $$")
    with pytest.raises(TemporaryFailure, match="signal 9"):
        read(repository)


def test_git_prints_rubbish(repository, stub_git):
    stub_git("printf '\\0\\0\\n\\0\\377\\376\\0half of an ent'")
    config = read(repository)
    assert config.names() == [b"", b"\xff\xfe"]
    assert config.get(b"annex.uuid") is None


def test_git_prints_much(repository, stub_git):
    stub_git("head -c 3000000 /dev/zero; printf 'annex.uuid\\nu\\0'")
    assert read(repository).get(b"annex.uuid") == b"u"


def test_what_git_is_asked(repository, stub_git, tmp_path):
    stub_git(f"printf '%s\\0' \"$@\" > {tmp_path}/asked; readlink /proc/self/fd/0 >> {tmp_path}/asked")
    read(repository)
    expected = ["-c", "safe.directory=*", "-c", "safe.bareRepository=all", f"--git-dir={repository}"]
    asked = (tmp_path / "asked").read_text().split("\0")
    assert asked == [*expected, "config", "--null", "--list", "/dev/null\n"]


def test_git_complains_to_nobody(repository, stub_git, capfd):
    stub_git("echo complaint >&2; exit 1")
    with pytest.raises(RepositoryError):
        read(repository)
    assert capfd.readouterr() == ("", "")


def test_a_signature_changes_with_its_file(tmp_path):
    path = tmp_path / "config"
    assert file_signature(os.fsencode(path)) is None
    path.write_text("a")
    first = file_signature(os.fsencode(path))
    assert first is not None and first == file_signature(os.fsencode(path))
    path.write_text("ab")
    second = file_signature(os.fsencode(path))
    other = tmp_path / "config.lock"
    other.write_text("ab")
    os.utime(other, ns=(0, path.stat().st_mtime_ns))
    os.replace(other, path)
    assert len({first, second, file_signature(os.fsencode(path))}) == 3
