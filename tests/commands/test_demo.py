"""The demo: that it works, and that it says so when something does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from annexshell.commands import demo

ROOT = Path(__file__).parents[2]


def run_demo(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "annexshell", "demo", "--size", "1", *options],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


def only_git(directory: Path) -> str:
    """A PATH with git in it and nothing else."""
    directory.mkdir()
    git = shutil.which("git")
    assert git is not None
    (directory / "git").symlink_to(git)
    return str(directory)


def test_git_is_all_that_it_needs(tmp_path):
    run = run_demo("--json", PATH=only_git(tmp_path / "bin"), HOME=str(tmp_path))
    assert run.returncode == 0, run.stderr
    result = json.loads(run.stdout)
    assert result["ok"] is True
    asked = [step["asked"] for step in result["steps"]]
    assert not any("git-annex:" in step for step in asked)
    assert {"PUT", "PUT, large", "GET, large", "PUT, read-only", "LOCKCONTENT, then REMOVE by another"} <= set(asked)
    assert all(step["ok"] for step in result["steps"])


def test_the_real_client_takes_part_where_it_is_installed(git_annex_path):
    run = run_demo(PATH=f"{git_annex_path}:{os.environ['PATH']}", GIT_ANNEX_SHELL_READONLY="1", COLUMNS="200")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "real git-annex: clone, copy, drop, get" in run.stdout
    assert "Everything is as it should be." in run.stdout


def test_without_git_it_says_what_is_missing(tmp_path):
    run = run_demo(PATH=str(tmp_path))
    assert run.returncode == 1
    assert "needs git" in run.stdout


def test_everything_can_be_kept(tmp_path):
    run = run_demo("--keep", PATH=only_git(tmp_path / "bin"), TMPDIR=str(tmp_path), HOME=str(tmp_path), COLUMNS="500")
    assert run.returncode == 0
    (kept,) = tmp_path.glob("annexshell-demo-*")
    assert str(kept) in run.stdout
    assert (kept / "server.git/annex/objects").is_dir()


@pytest.mark.parametrize(
    ("printed", "status"),
    [("rubbish\n", 0), ("", 0), ("annex.uuid=\n", 0), ("annex.uuid=u\n", 3)],
)
def test_a_server_that_prints_rubbish_or_fails_is_noticed(fp, capsys, printed, status):
    fp.register([sys.executable, "-m", "annexshell", "-c", fp.any()], stdout=printed, returncode=status)
    fp.allow_unregistered(True)
    assert demo.run(1, keep=False, as_json=True) == 1
    result = json.loads(capsys.readouterr().out)
    assert result["ok"] is False
    assert result["steps"][0]["ok"] is False


def test_a_server_that_cannot_be_started_is_noticed(fp, capsys):
    def fail(process):
        raise FileNotFoundError(2, "No such file or directory")

    fp.register([sys.executable, "-m", "annexshell", "-c", fp.any()], callback=fail)
    fp.allow_unregistered(True)
    assert demo.run(1, keep=False, as_json=True) == 1
    assert "No such file" in json.loads(capsys.readouterr().out)["steps"][0]["answered"]


def test_an_answer_that_differs_makes_the_report_wrong():
    report = demo.Report()
    with report.step("asked", "expected") as answer:
        answer("something else")
    assert not report.ok
    assert report.steps[0].answered == "something else"


def test_the_pattern_is_the_same_however_it_is_read():
    whole, pieces = bytearray(), bytearray()
    size = 3 * demo.MIB + 17
    source = demo.Pattern(size)
    buffer = memoryview(bytearray(7_777_777))
    while count := source.readinto(buffer):
        whole += buffer[:count]
    source = demo.Pattern(size)
    small = memoryview(bytearray(1001))
    while count := source.readinto(small):
        pieces += small[:count]
    assert len(whole) == size
    assert whole == pieces
