from __future__ import annotations

import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import annexshell
from annexshell import forced
from annexshell.cli import program
from tests.shell import Shell


def test_help_teaches(shell: Shell) -> None:
    result = shell("--help", program="annexshell")
    assert result.status == 0
    text = result.stdout.decode()
    for wanted in (
        'command="annexshell -c \\"$SSH_ORIGINAL_COMMAND\\"",restrict ssh-ed25519',
        "annexshell link-shell ~/bin",
        "GIT_ANNEX_SHELL_READONLY=1",
        "git remote add server ssh://HOST/",
        *program.commands,
    ):
        assert wanted in text
    assert max(map(len, text.splitlines())) <= 100


def test_no_arguments_show_the_help(shell: Shell) -> None:
    result = shell(program="annexshell")
    assert "Usage: annexshell" in result.stderr + result.stdout.decode()


def test_version(shell: Shell) -> None:
    assert shell("--version", program="annexshell").stdout.decode().split()[-1] == annexshell.__version__


def test_every_wire_command_is_declared() -> None:
    assert {name.decode() for name in forced.BUILTINS} <= set(program.commands)


@pytest.mark.parametrize("name", [name.decode() for name in forced.BUILTINS])
def test_help_knows_the_options_that_the_wire_does(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        command = program.commands[name]
        declared = {opt for parameter in command.params for opt in (*parameter.opts, *parameter.secondary_opts)}
        command.get_help(program.make_context("annexshell", [name]))
    declared = {name for name in declared if name.startswith("-")}
    builtin = forced.BUILTINS[name.encode()]
    for option in declared:
        word = f"{option}=x" if option in ("--uuid", "--debugfilter") else option
        assert forced.Options(builtin, [word.encode()])
    assert {flag.decode() for flag in builtin.flags} <= declared


def test_a_mistyped_command_is_explained(shell: Shell) -> None:
    result = shell("confglist", "x", program="annexshell")
    assert result.status == 2
    assert "No such command" in result.stderr


def test_without_a_directory(shell: Shell) -> None:
    result = shell("configlist", program="annexshell")
    assert result.status == 2
    assert "DIRECTORY" in result.stderr


def test_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "annexshell", "--version"],
        capture_output=True,
        text=True,
        cwd=Path(annexshell.__file__).parents[1],
    )
    assert done.stdout == f"annexshell, version {annexshell.__version__}\n"


@pytest.mark.parametrize("name", ["authorized-keys", "explain"])
def test_manuals_have_the_options(name: str) -> None:
    text = (Path(annexshell.__file__).parents[1] / "man" / f"annexshell-{name}.rst").read_text()
    described = set(re.findall(r"^\*\*(--?[a-z-]+)\*\*|, \*\*(-[a-z])\*\*", text, re.MULTILINE))
    declared = {option for parameter in program.commands[name].params for option in parameter.opts}
    assert {option for pair in described for option in pair if option} == declared
