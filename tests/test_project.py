"""The project itself: its commands are the ones it says, and its code is clean."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def indented(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.startswith("    ")]


def test_ci_runs_the_test_command_of_the_readme():
    commands = [c for c in indented((ROOT / "README.rst").read_text()) if c.startswith("python3 -m venv")]
    demo, test = commands
    assert demo.endswith("annexshell demo")
    assert (ROOT / ".ci/run").read_text().splitlines()[-1] == test


@pytest.mark.parametrize(
    "command",
    [["mypy"], ["ruff", "check", "."], ["ruff", "format", "--check", "."]],
    ids=" ".join,
)
def test_the_code_is_clean(command):
    run = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
