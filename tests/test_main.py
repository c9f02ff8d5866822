"""Whole commands, against what git-annex-shell did with the same."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from annexshell import __main__, checks, forced, log
from annexshell.errors import TemporaryFailure
from tests import vectors
from tests.shell import (
    ABSENT,
    OTHER_UUID,
    PRESENT,
    UUID,
    Shell,
    filled,
    git,
    make_annex,
    make_ref,
    make_repository,
    place,
    status_of,
)

PACKAGE = Path(__main__.__file__).parents[1]

# How a command line reaches git-shell.

# Where the vectors are not followed (spec: shell §10.1, §13.1): a path to git-annex-shell is taken for it, and with
# GIT_ANNEX_SHELL_DIRECTORY git-shell gets a git service with one quoted directory or nothing.
PATH_TO_US = ["-c", "/usr/bin/git-annex-shell configlist repo"]
NOT_STRICT = [
    ["git-upload-pack", "'re po'"],
    ["-c", "git-upload-pack 're po' "],
    ["-c", "git-upload-pack 're po"],
    ["-c", "git-upload-pack 'evil' 're po'"],
]


def test_command_lines(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    cases = vectors.load("shell-invocation")
    assert len(cases) > 90
    for case in cases:
        result = shell(*case["argv"], **case.get("env", {}))
        if case["argv"] == PATH_TO_US:
            assert result.stdout.startswith(b"annex.uuid=" + UUID.encode())
            continue
        if "GIT_ANNEX_SHELL_DIRECTORY" in case.get("env", {}) and case["argv"] in NOT_STRICT:
            assert (result.status, result.git_shell) == (1, None)
            assert result.complaint.startswith("Only allowed to access ~/re po, by git-upload-pack")
            continue
        assert result.status == case["exit"], case
        assert result.stdout == filled(case["stdout"], shell).encode(), case
        expected = [word.encode() for word in case["git_shell_argv"]][1:] if "git_shell_argv" in case else None
        assert result.git_shell == expected, case
        complaint = filled(case["stderr_first_line"], shell).removeprefix("git-annex-shell: ")
        assert result.complaint.startswith(complaint), case


def test_options(shell: Shell) -> None:
    """Each on its own: what one of them did does not count for the next."""
    checked = 0
    for case in vectors.load("shell-options"):
        repo = make_annex(shell.home / "repo")
        place(repo, PRESENT, b"abc")
        words = [filled(word, shell) for word in case["argv"]]
        result = shell(*words, stdin=filled(case.get("stdin", ""), shell).encode())
        complaint = filled(case["stderr_first_line"], shell).partition(": ")
        expected = complaint[2] if complaint[0] in ("git-annex-shell", "git-annex") else "".join(complaint)
        assert result.status == status_of(case, expected), case
        if case["stdout"].endswith("..."):
            assert result.stdout.startswith(b"Usage: git-annex-shell configlist DIRECTORY")
        else:
            assert result.stdout == filled(case["stdout"], shell).encode(), case
        if expected.startswith(("gcryptsetup", "bad key")):
            assert result.complaint.startswith(expected), case  # and it says more
        else:
            assert result.complaint == expected, case
        shutil.rmtree(repo)
        checked += 1
    assert checked > 60


# The order of the checks: each failure hides those behind it.


def test_order_of_checks(shell: Shell) -> None:
    make_repository(shell.home / "repo")
    failures: list[tuple[str, list[str], dict[str, str]]] = [
        ("Action blocked by GIT_ANNEX_SHELL_READONLY", [], {"GIT_ANNEX_SHELL_READONLY": "1"}),
        ("Only allowed to access", [], {"GIT_ANNEX_SHELL_DIRECTORY": "other"}),
        ("Invalid option", ["--bogus"], {}),
        ("failed to read git config", [], {}),
        ("expected repository UUID", ["--uuid", UUID], {}),
        ("Not a git-annex", [], {}),
        ("dropkey can cause data loss", [], {}),
    ]
    for position, (complaint, _, _) in enumerate(failures):
        words = [word for _, words, _ in failures[position:] for word in words]
        environment = {name: value for _, _, more in failures[position:] for name, value in more.items()}
        if complaint.startswith("dropkey"):
            git(shell.home / "repo", "config", "annex.version", "10")
        directory = "missing" if position <= 3 else "repo"
        assert shell("dropkey", directory, *words, **environment).complaint.startswith(complaint)


def test_help_is_behind_the_restrictions_only(shell: Shell) -> None:
    assert shell("dropkey", "missing", "--help").stdout.startswith(b"Usage: git-annex-shell dropkey DIRECTORY")
    assert shell("dropkey", "missing", "--help", GIT_ANNEX_SHELL_READONLY="0").status == 1
    assert shell("dropkey", "missing", "--help", GIT_ANNEX_SHELL_DIRECTORY="x").status == 1


@pytest.mark.parametrize("name", [name.decode() for name in forced.BUILTINS])
def test_every_command_has_help_on_stdout(name: str, shell: Shell) -> None:
    for result in (shell(name, "d", "-h"), shell(name, "--help", program="annexshell")):
        assert result.status == 0
        assert b"Usage: " in result.stdout
        assert result.stderr == ""


# Anything at all.

_words = st.one_of(
    st.sampled_from([name.decode() for name in forced.BUILTINS]),
    st.sampled_from(["repo", "bare", "none", "~", "", "/", "-c", "--", "--uuid", UUID, OTHER_UUID, PRESENT, ABSENT]),
    st.sampled_from(["--force", "--json", "--batch", "-z", "-qv", "--help", "--uuid=", "-J2", "--debug=1", "-d"]),
    st.sampled_from(["remoteuuid=../..", "autoinit=1", "autoinit=2", "=", "--bwlimit=1", "--bwlimit", "--server"]),
    st.sampled_from(["SHA256E-s--x", "A-s" + "9" * 5000 + "--", "A--" + "x" * 300, "WORM--\n", "git-annex-shell x"]),
    st.binary(max_size=20).map(lambda data: os.fsdecode(data.replace(b"\0", b""))),
    st.text(max_size=20).map(lambda text: os.fsdecode(text.replace("\0", "").encode("utf-8", "ignore"))),
)
_command_lines = st.one_of(
    st.lists(_words, max_size=6),
    st.builds(lambda name, words: [name, "repo", *words], _words, st.lists(_words, max_size=5)),
    st.builds(
        lambda name, words: [name.decode(), "repo", *words],
        st.sampled_from(list(forced.BUILTINS)),
        st.lists(_words, max_size=5),
    ),
    st.lists(_words, max_size=6).map(lambda words: ["-c", "git-annex-shell " + " ".join(words)]),
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
@given(words=_command_lines, restriction=st.sampled_from([None, "repo", "none", "~"]))
def test_bad_words_get_one_line_and_an_exit_status(words: list[str], restriction: str | None, shell: Shell) -> None:
    if not (shell.home / "repo").exists():
        place(make_annex(shell.home / "repo"), PRESENT, b"abc")
        make_repository(shell.home / "bare", bare=True)
    environment = {} if restriction is None else {"GIT_ANNEX_SHELL_DIRECTORY": restriction}
    result = shell(*words, stdin=b"", **environment)
    assert result.status in (0, 1, 100)
    complaints = result.stderr.splitlines()
    assert bool(complaints) >= (result.status == 100)
    for complaint in complaints:
        # Of what other programs say we are not the judge, and whoever wants to debug wants to be told everything.
        if not complaint.startswith(("rsync", "fatal: ", "error: ", "warning: ", "[20")):
            assert complaint.startswith(("annexshell: ", "dropkey: ", "  "))
            assert "internal error" not in complaint
            assert "Traceback" not in complaint
    assert log.printable(result.stderr.replace("\n", " ").replace("\t", " ")) == result.stderr.replace("\n", " ")


# Our own name.


@pytest.mark.parametrize(
    ("program", "words", "original", "people"),
    [
        ("annexshell", "", None, True),
        ("annexshell", "--help", None, True),
        ("annexshell", "--help", "git-upload-pack 'x'", True),
        ("/opt/bin/annexshell", "link-shell d", None, True),
        ("annexshell", "configlist", None, True),
        ("annexshell", "configlist --help", None, True),
        ("annexshell", "configlist d", None, False),
        ("annexshell", "configlist d --help", None, False),
        ("annexshell", "-c x", None, False),
        ("annexshell", "git-annex-shell@configlist@d", None, False),
        # A forced command without -c must not let the client choose a subcommand.
        ("annexshell", "link-shell@d", "link-shell d", False),
        ("annexshell", "link-shell d", "link-shell  d", False),
        ("annexshell", "link-shell d1 d2", "link-shell d?", False),
        ("annexshell", "link-shell d", "\tlink-shell\nd", False),
        ("annexshell", "--help", "--help", False),
        ("/repo/annexshell/__main__.py", "--help", None, True),
        ("git-annex-shell", "--help", None, False),
        ("git-annex-shell", "", None, False),
        ("-git-annex-shell", "", None, False),
        ("something", "link-shell d", None, False),
    ],
)
def test_who_gets_the_click_program(program: str, words: str, original: str | None, people: bool) -> None:
    given = [word.replace("@", " ").encode() for word in words.split()]
    environ = {} if original is None else {b"SSH_ORIGINAL_COMMAND": original.encode()}
    assert __main__.is_for_people(program, given, environ) is people


def test_a_forced_command_without_arguments(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    for program in ("git-annex-shell", "annexshell"):
        result = shell(program=program, SSH_ORIGINAL_COMMAND="git-annex-shell 'configlist' 'repo'")
        assert result.stdout.startswith(b"annex.uuid=" + UUID.encode())
        assert shell(program=program, SSH_ORIGINAL_COMMAND="true").git_shell == [b"true"]
    assert shell(program="-git-annex-shell").status == 1
    assert shell(SSH_ORIGINAL_COMMAND="").complaint == "bad parameters"


# Failures.


@pytest.mark.parametrize(
    ("failure", "status"),
    [
        (TemporaryFailure("x"), 255),
        (BlockingIOError(11, "Resource temporarily unavailable"), 255),
        (OSError(24, "Too many open files"), 255),
        (MemoryError(), 255),
        (OSError(28, "No space left on device"), 1),
        (ZeroDivisionError("x"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_status_tells_whether_to_try_again(failure: BaseException, status: int, shell: Shell) -> None:
    def fail(path: bytes, directory: bytes) -> None:
        raise failure

    make_annex(shell.home / "repo")
    shell.monkeypatch.setattr(checks, "open_repository", fail)
    result = shell("configlist", "repo")
    assert (result.status, result.stdout) == (status, b"")
    assert len(result.stderr.splitlines()) == (status != 130)
    assert "Traceback" not in result.stderr
    if status == 1:
        assert "Traceback" in shell("configlist", "repo", "--debug").stderr


def test_no_descriptors_left_is_temporary(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    assert shell("configlist", "repo").status == 0  # everything is imported now
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        result = shell("configlist", "repo")
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert result.status == 255
    assert "Too many open files" in result.stderr


def test_git_may_be_missing(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    result = shell("configlist", "repo", PATH=str(shell.home))
    assert result.status == 1
    assert result.complaint.startswith(
        f"failed to read git config of git repository in {os.uname().nodename} on repo"
    )


def test_messages_cannot_control_the_terminal(shell: Shell) -> None:
    result = shell("configlist", b"\x1b[31m\xff\n")
    assert len(result.stderr.splitlines()) == 1
    assert "\x1b" not in result.stderr


def test_debug_leaves_stdout_alone(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    for words in (["configlist", "repo"], ["p2pstdio", "repo", OTHER_UUID]):
        plain = shell(*words)
        assert shell(*words, "--debug").stdout == plain.stdout
        git(shell.home / "repo", "config", "annex.debug", "true")
        assert shell(*words).stdout == plain.stdout


def test_git_dir_from_the_environment_does_not_count(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    other = make_annex(shell.home / "other", OTHER_UUID)
    assert UUID.encode() in shell("configlist", "repo", GIT_DIR=str(other / ".git")).stdout


def test_p2pstdio_leaves_the_version_alone(shell: Shell) -> None:
    make_annex(shell.home / "repo", version="8")
    assert shell("p2pstdio", "repo", OTHER_UUID).status == 0
    assert git(shell.home / "repo", "config", "annex.version") == "8"


# Real processes, started like the launcher of link-shell starts them.


def start(shell: Shell, code: str, *words: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    program = f"import sys; sys.path.append({str(PACKAGE)!r}); sys.argv[0] = 'git-annex-shell'\n{code}"
    command = [sys.executable, "-IS", "-c", program, *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env={**os.environ, **environment})


RUN = "from annexshell.__main__ import main; sys.exit(main())"
DUMP = (
    """
import atexit
def dump():
    modules = sorted(sys.modules)
    import json, os
    os.write(2, json.dumps(modules).encode())
atexit.register(dump)
"""
    + RUN
)
# Each of these takes longer to import than the rest of the start.
FORBIDDEN = {
    *("click", "rich", "sh", "asyncio", "subprocess", "typing", "dataclasses", "re", "enum", "contextlib", "json"),
    *("logging", "inspect", "functools", "collections", "pathlib", "tempfile", "signal", "shutil", "random"),
}


@pytest.mark.parametrize(
    "words",
    [
        ["configlist", "repo"],
        ["p2pstdio", "repo", OTHER_UUID],
        ["inannex", "repo", PRESENT],
        ["sendkey", "repo", PRESENT],
        ["recvkey", "repo", ABSENT],
        ["dropkey", "repo", "--force", ABSENT],
        ["notifychanges", "repo"],
    ],
)
def test_wire_commands_import_little(words: list[str], shell: Shell) -> None:
    place(make_annex(shell.home / "repo"), PRESENT, b"abc")
    done = start(shell, DUMP, *words)
    modules = json.loads(done.stderr[done.stderr.rindex(b'["') :])
    assert not FORBIDDEN.intersection(modules)
    assert "annexshell.cli" not in modules


def test_little_is_imported_before_git_runs(shell: Shell) -> None:
    make_annex(shell.home / "repo")
    code = f"""
from annexshell.annex import config
def spawn(*words, **more):
    import os
    os.write(2, repr(sorted(name for name in sys.modules if name.startswith("annexshell."))).encode())
    raise OSError(5, "enough")
config.process.spawn = spawn
{RUN}"""
    done = start(shell, code, "p2pstdio", "repo", OTHER_UUID)
    imported = done.stderr.decode().partition("]")[0]
    for module in ("commands.p2pstdio", "annex.repository", "relay", "key", "gitshell", "cli"):
        assert f"'annexshell.{module}'" not in imported
    assert "annexshell.annex.gitrepo" in imported


def test_locale_does_not_matter(shell: Shell) -> None:
    directory = os.fsencode(shell.home) + b"/\xe9 \xff"
    os.mkdir(directory)
    make_annex(Path(os.fsdecode(directory)))
    for locale in ("C", "POSIX", "C.UTF-8", "en_US.ISO-8859-1"):
        done = start(shell, RUN, "-c", os.fsdecode(b"git-annex-shell configlist '\xe9 \xff'"), LC_ALL=locale)
        assert done.stdout == b"annex.uuid=%s\ncore.gcrypt-id=\n" % UUID.encode(), (locale, done.stderr)


def test_a_real_git_shell(shell: Shell) -> None:
    make_ref(make_repository(shell.home / "repo"), "refs/heads/main")
    done = start(shell, RUN, "-c", "git-upload-pack 'repo'")
    assert b"refs/heads/main" in done.stdout
    done = start(shell, RUN, "-c", "true")
    assert done.returncode not in (0, 255)
    assert done.stdout == b""


def test_git_shell_gets_the_default_sigpipe(shell: Shell) -> None:
    commands = shell.home / "git-shell-commands"
    commands.mkdir()
    (commands / "show").write_text("#!/bin/sh\ngrep SigIgn /proc/self/status\n")
    (commands / "show").chmod(0o755)
    done = start(shell, RUN, "-c", "show")
    ignored = int(done.stdout.split()[1], 16)
    assert not ignored & 1 << 12
