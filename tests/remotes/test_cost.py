"""What remotes cost."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.config import Config
from annexshell.remotes.cost import Costs, parse, surcharge
from annexshell.remotes.remote import Remote, Ssh
from annexshell.uuid import NO_UUID


def remote(**settings: str) -> Remote:
    """Remote r; annex_cost="5" is remote.r.annex-cost, and global_cost="5" is annex.cost."""
    values: dict[bytes, list[bytes | None]] = {}
    for name, value in settings.items():
        key = name.replace("global_", "annex.").replace("annex_", "remote.r.annex-").replace("_", "-")
        values[key.encode()] = [os.fsencode(value)]
    return Remote(Config(values), b"r", Ssh(b"host", None, b"/"), 0.0, read_uuid=lambda: NO_UUID)


def cost(recorded: bytes | None = None, **settings: str) -> float:
    return Costs().of(remote(**settings), 200.0, recorded)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("7", 7), ("7x", 7), ("  7", 7), ("\t7", 7), ("7.", 7), ("7.x", 7), ("7e", 7), ("7e+", 7), ("07", 7)),
        *(("-7", -7), ("- 7", -7), (" -  7", -7), ("7-2", 7), ("5 6", 5), ("5\n6", 5), ("1,5", 1), ("1_0", 1)),
        *(
            ("8.5", 8.5),
            ("7.5.6", 7.5),
            ("7e+2", 700),
            ("7e-1", 0.7),
            ("7E2", 700),
            ("7.5e1x", 75),
            ("1e400", math.inf),
        ),
        *((text, None) for text in ("", "-", ".5", "abc", "--7", "+7", "inf", "nan", "NaN", '"7"', "٣", "e5", "-.5")),
    ],
)
def test_numbers(text, expected):
    assert parse(text.encode()) == expected


@given(st.binary())
def test_anything_is_a_number_or_none(data):
    number = parse(data)
    assert number is None or not math.isnan(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_come_back(number):
    assert parse(repr(number).encode()) == number


def test_long_numbers():
    assert parse(b"9" * 5000) == math.inf
    assert parse(b"1." + b"0" * 5000) == 1


def test_what_comes_first():
    assert cost() == 200
    assert cost(recorded=b"5") == 5
    assert cost(recorded=b"x") == 200
    assert cost(recorded=b"5", annex_cost="6") == 6
    assert cost(recorded=b"5", annex_cost="x") == 5
    assert cost(annex_cost="6", annex_cost_command="echo 7") == 7
    assert cost(annex_cost="6", annex_cost_command="") == 6
    assert cost(annex_cost="6", annex_cost_command="echo junk") == 200
    assert cost(recorded=b"5", annex_cost_command="echo junk") == 5


def test_settings_for_all_remotes():
    assert cost(global_cost="4") == 4
    assert cost(global_cost="4", annex_cost="6") == 6
    assert cost(global_cost="4", annex_cost="junk") == 200
    assert cost(global_cost_command="echo 3", annex_cost="6") == 3
    assert cost(global_cost_command="echo 3", annex_cost_command="") == 200


def test_a_setting_that_counts_instead():
    costs = Costs()
    assert costs.of(remote(annex_cost="6"), 200.0, b"7", setting=b"200.1") == 200.1
    assert costs.of(remote(annex_cost_command="echo 6"), 200.0, setting=b"200.1") == 6
    assert costs.of(remote(annex_cost_command="echo x"), 200.0, b"7", setting=b"200.1") == 7


@pytest.mark.parametrize("command", ["exit 3", "echo 7; exit 3", "no-such-command-at-all", "echo 7; kill -9 $$"])
def test_a_command_that_fails(command, capfd):
    assert cost(annex_cost="6", annex_cost_command=command) == 200
    output = capfd.readouterr()
    assert output.out == ""
    assert "the annex-cost-command of r failed" in output.err


def test_no_shell_to_run_the_command(monkeypatch, capfd):
    monkeypatch.setenv("PATH", "/nonexistent")
    assert cost(annex_cost_command="echo 7") == 200
    assert "failed (No such file or directory)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "expected"), [("echo; echo 9", 9), ("printf 6", 6), ("echo ' 8x'", 8), ("true", 200)]
)
def test_what_a_command_says(command, expected):
    assert cost(annex_cost_command=command) == expected


def test_a_command_gets_nothing_of_ours():
    """Neither the client's requests, nor the stream of answers."""
    script = """
import sys
from tests.remotes.test_cost import cost
number = cost(annex_cost_command="cat; echo 7; echo told >&2; test ! -t 0 && read x && exit 1; exit 0")
print(number, sys.stdin.read().strip())
"""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", script]
    run = subprocess.run(command, cwd=root, input=b"request\n", capture_output=True, check=True)
    assert run.stdout.split() == [b"7.0", b"request"]
    assert run.stderr == b"told\n"


def test_a_command_runs_once(tmp_path):
    costs = Costs()
    log = tmp_path / "log"
    for setting in ("annex_cost_command", "global_cost_command"):
        assert costs.of(remote(**{setting: f"echo x >>{log}; echo 5"}), 200.0) == 5
    assert log.read_text() == "x\n"


def test_encryption_costs_more():
    for scheme in (b"shared", b"hybrid", b"pubkey", b"sharedpubkey"):
        assert surcharge({b"encryption": scheme, b"cipher": b"x"}) == 50
        assert surcharge({b"encryption": scheme}) == 0
    assert surcharge({b"encryption": b"none", b"cipher": b"x"}) == 0
    assert surcharge({b"encryption": b"other", b"cipher": b"x"}) == 0
    assert surcharge({}) == 0
