"""Signals end a session between two steps."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def start(body: str) -> subprocess.Popen:
    """A process that runs BODY with ``termination`` active, after saying that it is ready."""
    program = """
import os, sys, time
from annexshell.termination import Terminated, Termination
with Termination() as termination:
    os.write(1, b"ready\\n")
""" + textwrap.indent(textwrap.dedent(body), "    ")
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout.readline() == b"ready\n"
    return process


WAIT = """
try:
    termination.read(0, 10)
except Terminated:
    os.write(1, b"cleaned up\\n")
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_waiting_is_interrupted_and_the_signal_takes_its_effect_afterwards(number):
    with start(WAIT) as process:
        time.sleep(0.2)  # it may still be on its way into read(), where only input would wake it
        process.send_signal(number)
        assert process.stdout.read() == b"cleaned up\n"
    assert process.returncode == -number


def test_work_is_finished_first():
    work = """
    for _ in range(50):
        time.sleep(0.01)
        if termination.received:
            os.write(1, b"noticed\\n")
            break
    os.write(1, b"worked on\\n")
    try:
        termination.readinto(0, memoryview(bytearray(3)))
    except Terminated:
        os.write(1, b"ended\\n")
    """
    with start(work) as process:
        process.send_signal(signal.SIGTERM)
        assert process.stdout.read() == b"noticed\nworked on\nended\n"
    assert process.returncode == -signal.SIGTERM


def test_a_second_signal_does_not_wait():
    with start("os.write(1, b'x')\ntime.sleep(1)\ntime.sleep(60)") as process:
        assert process.stdout.read(1) == b"x"
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == -signal.SIGTERM


def test_what_was_ignored_stays_ignored():
    program = """
import os, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
from annexshell.termination import Termination
with Termination():
    os.kill(os.getpid(), signal.SIGHUP)
    print("still here")
"""
    assert subprocess.check_output([sys.executable, "-c", program], cwd=ROOT) == b"still here\n"


def test_handlers_are_put_back():
    from annexshell.termination import Termination

    before = signal.getsignal(signal.SIGTERM)
    with Termination():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_peer_that_does_not_read_is_not_waited_for():
    program = """
import os
from annexshell.p2p.wire import Connection
from annexshell.relay import BytesSource
from annexshell.termination import Terminated, Termination
with Termination() as termination:
    os.write(2, b"ready\\n")
    try:
        Connection(0, 1, termination).send_content(10_000_000, BytesSource(bytes(10_000_000)))
    except Terminated:
        os.write(2, b"cleaned up\\n")
"""
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
    ) as process:
        assert process.stderr.readline() == b"ready\n"
        time.sleep(0.3)
        process.send_signal(signal.SIGTERM)
        assert process.stderr.readline() == b"cleaned up\n"
        assert process.wait(10) == -signal.SIGTERM
