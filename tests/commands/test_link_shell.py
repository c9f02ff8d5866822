from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.commands import link_shell
from annexshell.errors import AnnexshellError
from tests.shell import UUID, Shell, make_annex

NAME = "git-annex-shell"


def configlist(program: Path, **environment: str) -> bytes:
    done = subprocess.run(
        [program, "-c", "git-annex-shell 'configlist' 'repo'"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        env={**os.environ, **environment},
    )
    return done.stdout


@pytest.fixture
def directory(shell: Shell) -> Path:
    """A directory for programs, first in PATH; there is an annex to serve at ~/repo."""
    make_annex(shell.home / "repo")
    directory = shell.home / "bin"
    directory.mkdir()
    shell.monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return directory


@pytest.fixture
def program(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The annexshell program as an installation has it."""
    program = shell.home / "venv/bin/annexshell"
    program.parent.mkdir(parents=True)
    source = Path(link_shell.annexshell.__file__).parents[1] / "scripts/annexshell"
    text = source.read_text().replace("#!python", f"#!{sys.executable}")
    program.write_text(text.replace("import sys\n", f"import sys\nsys.path += {link_shell.import_path()}\n", 1))
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program)])
    return program


def test_writes_a_program_that_works(directory: Path) -> None:
    report = link_shell.run(str(directory))
    assert f"{directory}/{NAME}" in report.done
    assert report.warnings == []
    first, mark = (directory / NAME).read_text().splitlines()[:2]
    assert first == f"#!{sys.executable} -IS"
    assert mark.startswith("#")
    assert UUID.encode() in configlist(directory / NAME)
    assert [entry.name for entry in directory.iterdir()] == [NAME]


def test_the_clients_variables_do_not_count(directory: Path, tmp_path: Path) -> None:
    link_shell.run(str(directory))
    (tmp_path / "os.py").write_text("raise SystemExit('taken over')\n")
    (tmp_path / "annexshell.py").write_text("raise SystemExit('taken over')\n")
    output = configlist(directory / NAME, PYTHONPATH=str(tmp_path), PYTHONSTARTUP="x", PYTHONHOME="/nowhere")
    assert UUID.encode() in output


@pytest.mark.parametrize("place", ["with a blank", "x" * 150, 'with "quotes"'])
def test_a_python_that_the_kernel_would_not_find(
    place: str, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = directory.parent / place / "python"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    if '"' in place:
        with pytest.raises(AnnexshellError, match="--symlink"):
            link_shell.run(str(directory))
        return
    link_shell.run(str(directory))
    assert (directory / NAME).read_text().startswith("#!/bin/sh\n")
    assert UUID.encode() in configlist(directory / NAME)


def test_symlink(directory: Path, program: Path) -> None:
    link_shell.run(str(directory), symlink=True)
    assert os.readlink(directory / NAME) == str(program)
    assert UUID.encode() in configlist(directory / NAME)


def test_symlink_needs_a_program(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/nowhere/annexshell"])
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(AnnexshellError, match="no installed annexshell"):
        link_shell.run(str(directory), symlink=True)


def test_replaces_its_own_in_either_form(directory: Path, program: Path) -> None:
    for symlink in (False, True, False, False):
        link_shell.run(str(directory), symlink=symlink)
        assert (directory / NAME).is_symlink() is symlink


def test_keeps_what_is_not_ours(directory: Path) -> None:
    target = directory / NAME
    target.write_text("#!/bin/sh\necho the real one\n")
    with pytest.raises(AnnexshellError, match="--force"):
        link_shell.run(str(directory))
    target.unlink()
    target.symlink_to("/usr/bin/git-annex")
    with pytest.raises(AnnexshellError, match="--force"):
        link_shell.run(str(directory))
    link_shell.run(str(directory), force=True)
    assert UUID.encode() in configlist(target)


def test_keeps_directories_even_with_force(directory: Path) -> None:
    (directory / NAME).mkdir()
    with pytest.raises(AnnexshellError, match="is a directory"):
        link_shell.run(str(directory), force=True)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/x"])
def test_a_name_is_one_file_name(name: str, directory: Path) -> None:
    with pytest.raises(AnnexshellError, match="cannot be the name"):
        link_shell.run(str(directory), name)


def test_another_name_is_git_annex_shell_all_the_same(directory: Path) -> None:
    link_shell.run(str(directory), "my-shell")
    assert UUID.encode() in configlist(directory / "my-shell")
    done = subprocess.run([directory / "my-shell", "--version"], capture_output=True, stdin=subprocess.DEVNULL)
    assert b"annexshell" not in done.stdout


def test_a_failure_leaves_the_old_one(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    link_shell.run(str(directory))
    before = (directory / NAME).read_bytes()

    def fail(old: str, new: str) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="No space"):
        link_shell.run(str(directory))
    assert (directory / NAME).read_bytes() == before
    assert [entry.name for entry in directory.iterdir()] == [NAME]


def test_the_umask_decides_who_may_run_it(directory: Path) -> None:
    before = os.umask(0o027)
    try:
        link_shell.run(str(directory))
    finally:
        os.umask(before)
    assert stat.S_IMODE((directory / NAME).stat().st_mode) == 0o750


def test_warns_when_clients_may_find_another(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = directory.parent / "elsewhere"
    elsewhere.mkdir()
    assert "not in PATH" in link_shell.run(str(elsewhere)).warnings[0]
    monkeypatch.setenv("PATH", f"{elsewhere}:{directory}")
    assert f"{elsewhere}/{NAME} comes first" in link_shell.run(str(directory)).warnings[0]


def test_from_the_command_line(shell: Shell, directory: Path) -> None:
    result = shell("link-shell", str(directory), program="annexshell")
    assert result.status == 0
    assert result.stdout.decode().startswith(f"{directory}/{NAME} runs annexshell")
    (directory / NAME).write_text("another")
    result = shell("link-shell", str(directory), program="annexshell")
    assert result.status == 1
    assert "use --force" in result.stderr
