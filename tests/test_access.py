"""What the environment leaves of a client's permissions."""

from __future__ import annotations

import pytest

from annexshell import access
from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, READ_WRITE),
        ({"GIT_ANNEX_SHELL_READONLY": ""}, READ_WRITE),
        ({"GIT_ANNEX_SHELL_APPENDONLY": ""}, READ_WRITE),
        ({"GIT_ANNEX_SHELL_READONLY": "1"}, READ_ONLY),
        ({"GIT_ANNEX_SHELL_READONLY": "0"}, READ_ONLY),
        ({"GIT_ANNEX_SHELL_READONLY": "false"}, READ_ONLY),
        ({"GIT_ANNEX_SHELL_READONLY": " "}, READ_ONLY),
        ({"GIT_ANNEX_SHELL_APPENDONLY": "true"}, APPEND_ONLY),
        ({"GIT_ANNEX_SHELL_APPENDONLY": "1", "GIT_ANNEX_SHELL_READONLY": "1"}, READ_ONLY),
        ({"GIT_ANNEX_SHELL_APPENDONLY": "1", "GIT_ANNEX_SHELL_READONLY": ""}, APPEND_ONLY),
        ({"GIT_ANNEX_SHELL_LIMITED": "1"}, READ_WRITE),
    ],
)
def test_the_stricter_variable_wins(environ, expected):
    assert access.from_environment(environ) is expected


def test_the_environment_of_the_process_is_asked_by_default(monkeypatch):
    monkeypatch.setenv("GIT_ANNEX_SHELL_READONLY", "1")
    assert access.from_environment() is READ_ONLY


def test_what_each_allows():
    assert [(a.may_write, a.may_remove) for a in (READ_WRITE, APPEND_ONLY, READ_ONLY)] == [
        (True, True),
        (True, False),
        (False, False),
    ]
    assert [repr(a) for a in (READ_WRITE, APPEND_ONLY, READ_ONLY)] == ["<read-write>", "<append-only>", "<read-only>"]


def test_the_narrowest_of_several_counts():
    assert access.narrower(READ_WRITE, READ_WRITE) is READ_WRITE
    assert access.narrower(READ_WRITE, APPEND_ONLY) is APPEND_ONLY
    assert access.narrower(READ_ONLY, APPEND_ONLY, READ_WRITE) is READ_ONLY
