"""Running annexshell's command line inside the test's process, which takes a tenth of the time of a new one."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from annexshell import __main__, log
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.objects import Objects
from annexshell.key import Key

UUID = "11111111-1111-4111-8111-111111111111"
OTHER_UUID = "22222222-2222-4222-8222-222222222222"
# Keys of the vectors, the first of content that is there: b"abc".
PRESENT = "SHA256E-s3--ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
ABSENT = "SHA256E-s4--88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589"
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

    def __call__(
        self, *words: str | bytes, program: str = "git-annex-shell", stdin: bytes | None = None, **environment: str
    ) -> Result:
        """Run ``git-annex-shell WORDS...`` with these environment variables more."""
        if stdin is not None:
            with Input(stdin):
                return self(*words, program=program, **environment)
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


class Input:
    """DATA as what stdin has, in a ``with``."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __enter__(self) -> None:
        self._before = os.dup(0)
        with tempfile.TemporaryFile() as file:
            file.write(self._data)
            file.seek(0)
            os.dup2(file.fileno(), 0)

    def __exit__(self, *_: object) -> None:
        os.dup2(self._before, 0)
        os.close(self._before)


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


def place(repo: Path, key: str, content: bytes) -> Path:
    """Put content in place by hand, in a repository that may be bare."""
    objects = Objects(GitRepository(os.fsencode(repo)))
    path = Path(os.fsdecode(objects.locate(Key(key.encode()))))
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    path.chmod(0o444)
    return path


def status_of(case: Mapping[str, Any], complaint: str) -> int:
    """The exit status that we have where git-annex-shell has that of the vector's CASE, with a COMPLAINT on stderr.

    Of inannex clients take 1 for the answer that content is absent, whatever went wrong (spec: shell §7.4).
    """
    name = case["argv"][0] if "argv" in case else case["command"].split()[0]
    return 100 if name == "inannex" and complaint and case["exit"] == 1 else int(case["exit"])


def make_ref(directory: Path, ref: str) -> None:
    """Create REF, pointing to some commit."""
    git(directory, "update-ref", ref, git(directory, "commit-tree", _EMPTY_TREE, "-m", "test"))


def filled(text: str, shell: Shell) -> str:
    """TEXT with the placeholders of the vectors replaced."""
    for name, value in {
        "OTHERCASE-REPOUUID": UUID.upper() + "-",
        "REPOUUID": UUID,
        "WRONGUUID": OTHER_UUID,
        "PRESENTKEY": PRESENT,
        "ABSENTKEY": ABSENT,
        "HOSTNAME": os.uname().nodename,
        "GCRYPTUUID": "39d0c840-d914-55c6-9969-739920770697",
        "$HOME": str(shell.home),
    }.items():
        text = text.replace(name, value)
    return text
