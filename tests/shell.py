"""Running annexshell's command line inside the test's process, which takes a tenth of the time of a new one."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from annexshell import __main__, log

UUID = "11111111-1111-4111-8111-111111111111"
OTHER_UUID = "22222222-2222-4222-8222-222222222222"
_EMPTY_TREE = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"


class BecameGitShell(BaseException):
    """Instead of exec."""

    def __init__(self, argv: list[bytes]) -> None:
        self.argv = argv


class Result:
    """What one command said and did."""

    def __init__(self, status: int, stdout: bytes, stderr: bytes, git_shell: list[bytes] | None) -> None:
        self.status = status
        self.stdout = stdout
        self.stderr = stderr.decode("utf-8", "surrogateescape")
        self.git_shell = git_shell  # the arguments after -c that git-shell got, if it was called

    @property
    def complaint(self) -> str:
        """The first line of stderr, without the program's name."""
        return self.stderr.partition("\n")[0].removeprefix("annexshell: ")


class Shell:
    """A home directory, where commands run."""

    def __init__(self, home: Path, monkeypatch: pytest.MonkeyPatch, capture: pytest.CaptureFixture[bytes]) -> None:
        self.home = home
        self.monkeypatch = monkeypatch
        self._capture = capture

    def __call__(self, *words: str | bytes, program: str = "git-annex-shell", **environment: str) -> Result:
        """Run ``git-annex-shell WORDS...`` with these environment variables more."""
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", [program, *(os.fsdecode(word) for word in words)])
            patch.setattr(os, "execvp", _become)
            patch.setattr(log, "_debugging", False)
            patch.setattr(log, "audit", None)
            before = dict(os.environ)
            self._capture.readouterr()
            git_shell = None
            try:
                status = __main__.main()
            except BecameGitShell as became:
                status, git_shell = 0, became.argv
            except SystemExit as end:
                status = end.code if isinstance(end.code, int) else int(end.code is not None)
            finally:
                os.environ.clear()
                os.environ.update(before)
        output = self._capture.readouterr()
        return Result(status, output.out, output.err, git_shell)


def _become(program: bytes, argv: Sequence[bytes]) -> None:
    assert program == b"git-shell"
    assert list(argv[:2]) == [b"git-shell", b"-c"]
    raise BecameGitShell(list(argv[2:]))


@pytest.fixture
def shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfdbinary: pytest.CaptureFixture[bytes]
) -> Iterator[Shell]:
    """A clean environment, in which $HOME is the current directory."""
    home = tmp_path / "home"
    home.mkdir()
    for name in list(os.environ):
        if name.startswith(("GIT_", "SSH_", "XDG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    monkeypatch.chdir(home)
    yield Shell(home, monkeypatch, capfdbinary)


def git(directory: Path, *arguments: str) -> str:
    """The output of a git command."""
    identity = ["-c", "user.name=test", "-c", "user.email=test@example.com", "-c", "init.defaultBranch=main"]
    command = ["git", *identity, "-C", str(directory), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def make_repository(directory: Path, *, bare: bool = False, **settings: str) -> Path:
    """A git repository with SETTINGS, such as annex_uuid, in its config."""
    directory.mkdir(parents=True, exist_ok=True)
    git(directory, "init", "-q", *(["--bare"] if bare else []))
    for name, value in settings.items():
        git(directory, "config", name.replace("_", ".", 1).replace("_", "-"), value)
    return directory


def make_annex(directory: Path, uuid: str = UUID, *, bare: bool = False, version: str = "10") -> Path:
    """A repository that looks initialised to a server."""
    return make_repository(directory, bare=bare, annex_uuid=uuid, annex_version=version)


def make_ref(directory: Path, ref: str) -> None:
    """Create REF, pointing to some commit."""
    git(directory, "update-ref", ref, git(directory, "commit-tree", _EMPTY_TREE, "-m", "test"))
