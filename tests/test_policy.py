"""Whole commands with a policy: what each user may do, and every way around it that we could think of."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from tests import policies
from tests.policies import COMMANDS, Server, rule
from tests.shell import OTHER_UUID, UUID, Shell, git, make_annex, make_ref, make_repository
from tests.test_main import DUMP, PACKAGE, RUN, start

REFUSED = "may not use {} on this server, or it does not exist"


@pytest.fixture
def server(shell: Shell) -> Server:
    return Server(shell)


def said_by(server: Server, user: str, command: str, input: bytes = b"", **environment: str) -> bytes:
    """What a real process says on stdout."""
    with running(server, user, command, **environment) as process:
        return process.communicate(input)[0]


def running(server: Server, user: str, command: str, code: str = RUN, **environment: str) -> subprocess.Popen[bytes]:
    """With site-packages, where the parser of TOML is for older versions of Python."""
    program = f"import sys; sys.path.insert(0, {str(PACKAGE)!r}); sys.argv[0] = 'git-annex-shell'\n{code}"
    words = [sys.executable, "-I", "-c", program, "--policy", str(server.policy), "--user", user, "-c", command]
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, env={**os.environ, **environment})


# What is given.

LEVELS = {
    ("none", None): set(),
    ("read", None): {"read", "fetch"},
    ("append", None): {"read", "add", "fetch"},
    ("write", None): {"read", "add", "remove", "fetch", "push"},
    ("none", "fetch"): {"fetch"},
    ("none", "push"): {"fetch", "push"},
    ("read", "none"): {"read"},
    ("read", "push"): {"read", "fetch", "push"},
    ("append", "push"): {"read", "add", "fetch", "push"},
    ("write", "none"): {"read", "add", "remove"},
    ("write", "fetch"): {"read", "add", "remove", "fetch"},
}


@pytest.mark.parametrize("level", LEVELS, ids=str)
def test_what_each_level_of_access_allows(level: tuple[str, str | None], server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("alice", f"{server.srv}/*", *level))
    for command, needed in COMMANDS.items():
        result = server("alice", command.format(server.srv / "x"))
        assert (result.status == 0) is (needed in LEVELS[level]), (command, result.stderr)
        assert len(result.stderr.splitlines()) == result.status
        if result.status:
            assert result.git_shell is None
            assert result.stdout == b""
        elif needed in ("fetch", "push"):
            name = "git-" + command.split(" '")[0].removeprefix("git")[1:]
            assert result.git_shell == [f"{name} '{server.srv}/x/.'".encode()]
        # Other users have other rules: none.
        other = server("bob", command.format(server.srv / "x"))
        assert (other.status, other.complaint) == (1, "bob " + REFUSED.format(server.srv / "x"))


@pytest.mark.parametrize(
    ("access", "git", "command", "complaint"),
    [
        ("read", None, "git-annex-shell 'dropkey' 'x' '--force'", "alice may read, but not change anything in x"),
        ("append", None, "git-annex-shell 'dropkey' 'x' '--force'", "alice may add, but not remove anything in x"),
        ("none", "fetch", "git-annex-shell 'configlist' 'x'", "alice may use git in x, but not git-annex"),
        ("read", None, "git-receive-pack 'x'", "alice may fetch from x, but not use git-receive-pack there"),
        ("read", "none", "git-upload-pack 'x'", "alice may use git-annex in x, but not use git-upload-pack there"),
        ("none", None, "git-upload-pack 'x'", "alice may not use x on this server, or it does not exist"),
    ],
)
def test_refusals_say_what_is_allowed(
    access: str, git: str | None, command: str, complaint: str, server: Server
) -> None:
    make_annex(server.shell.home / "x")
    server.write(rule("alice", "~/x", access, git))
    assert server("alice", command).complaint == complaint


def test_the_environment_can_only_narrow(server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("alice", f"{server.srv}/x", "append", "push"), rule("bob", f"{server.srv}/x", "read"))
    for name, user, needs, complaint in [
        ("READONLY", "alice", "recvkey", "Action blocked by GIT_ANNEX_SHELL_READONLY"),
        ("APPENDONLY", "bob", "recvkey", "bob may read, but"),
        ("APPENDONLY", "alice", "dropkey", "Action blocked by GIT_ANNEX_SHELL_APPENDONLY"),
    ]:
        result = server.annex(user, needs, server.srv / "x", "--help", **{f"GIT_ANNEX_SHELL_{name}": "1"})
        assert result.status == 1
        assert result.complaint.startswith(complaint)
    assert server.annex("alice", "recvkey", server.srv / "x", "--help", GIT_ANNEX_SHELL_APPENDONLY="1").status == 0
    limited = server("alice", f"git-upload-pack '{server.srv}/x'", GIT_ANNEX_SHELL_LIMITED="1")
    assert limited.complaint == "Action blocked by GIT_ANNEX_SHELL_LIMITED"


def test_both_directories_count(server: Server) -> None:
    for name in ("x", "y", "z"):
        make_annex(server.srv / name)
    server.write(rule("alice", f"{server.srv}/x {server.srv}/y", "write"))
    for name, restriction, expected in [("x", "x", 0), ("y", "x", 1), ("z", "z", 1)]:
        directory = {"GIT_ANNEX_SHELL_DIRECTORY": str(server.srv / restriction)}
        assert server.annex("alice", "configlist", server.srv / name, **directory).status == expected
        assert server("alice", f"git-upload-pack '{server.srv}/{name}'", **directory).status == expected


def test_initialising_is_adding(server: Server) -> None:
    for name in ("read", "append", "write"):
        make_repository(server.srv / name)
    server.write(*(rule("alice", f"{server.srv}/{name}", name) for name in ("read", "append", "write")))
    result = server.annex("alice", "configlist", server.srv / "read", "'--' 'autoinit=1'")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint == f"alice may read, but not change anything in {server.srv}/read"
    for name in ("append", "write"):
        result = server.annex("alice", "configlist", server.srv / name, "'--' 'autoinit=1'")
        assert result.stdout.startswith(f"annex.uuid={git(server.srv / name, 'config', 'annex.uuid')}\n".encode())


def test_p2pstdio_is_in_the_mode_of_the_rule(server: Server) -> None:
    make_annex(server.srv / "x")
    key = "WORM-s3--foo"
    requests = f"VERSION 1\nREMOVE {key}\nPUT  {key}\n".encode()
    for access, expected in (("read", [b"ERROR", b"ERROR"]), ("append", [b"ERROR", b"PUT-FROM"])):
        server.write(rule("alice", f"{server.srv}/x", access))
        said = said_by(server, "alice", f"git-annex-shell 'p2pstdio' '{server.srv}/x' '{OTHER_UUID}'", input=requests)
        greeting, version, *answers = said.splitlines()[:4]
        assert (greeting, version) == (b"AUTH-SUCCESS " + UUID.encode(), b"VERSION 1")
        assert [answer.split()[0] for answer in answers] == expected


@pytest.mark.parametrize(
    ("access", "git_right", "service", "allowed"),
    [
        ("read", None, "upload", True),
        ("read", "none", "upload", False),
        ("write", "none", "upload", False),
        ("write", "none", "receive", False),
        ("write", "fetch", "receive", False),
        ("write", None, "receive", True),
        ("append", "push", "receive", False),  # as without a policy: it needs all rights
    ],
)
def test_connect_inside_the_protocol(
    access: str, git_right: str | None, service: str, allowed: bool, server: Server
) -> None:
    make_ref(make_annex(server.srv / "x"), "refs/heads/main")
    server.write(rule("alice", f"{server.srv}/x", access, git_right))
    command = f"git-annex-shell 'p2pstdio' '{server.srv}/x' '{OTHER_UUID}'"
    with running(server, "alice", command) as process:
        assert process.stdin and process.stdout
        process.stdin.write(f"VERSION 1\nCONNECT git-{service}-pack\n".encode())
        process.stdin.flush()
        # Not before git has answered, as it is not waited for when the client is gone.
        said = b"".join(process.stdout.readline() for _ in range(4))
        process.stdin.close()
    assert (b"refs/heads/main" in said) is allowed
    assert (b"\nERROR " in said) is not allowed


# Who the client is.


def test_users_that_are_not_in_the_policy_have_nothing(server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("*", f"{server.srv}/*", "write"))
    assert server.annex("alice", "configlist", server.srv / "x").status == 0
    result = server.annex("mallory", "configlist", server.srv / "x")
    assert (result.status, result.stdout) == (1, b"")
    assert result.complaint == "mallory is not a user in the policy of this server"


@pytest.mark.parametrize(
    "command",
    [
        "git-annex-shell --user alice 'configlist' '{}'",
        "git-annex-shell --user=alice -c 'configlist {}'",
        "git-annex-shell --policy /dev/null --user alice -c 'configlist {}'",
        "git-annex-shell -c '--user' 'alice' 'configlist' '{}'",
        "annexshell --user alice -c \"git-annex-shell 'configlist' '{}'\"",
        "--user alice -c \"git-annex-shell 'configlist' '{}'\"",
        "--policy /dev/null --user alice -c \"git-annex-shell 'configlist' '{}'\"",
        "git-annex-shell 'configlist' '{}' --user alice",
        "git-annex-shell 'configlist' '{}' --policy /dev/null",
        "git-annex-shell 'configlist' '{}' --log /tmp/x",
        "authorized-keys --policy /dev/null",
        "explain -c x",
        "git-annex-shell explain -c x",
        "-c -c configlist {}",
    ],
)
def test_clients_do_not_say_who_they_are(command: str, server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("alice", f"{server.srv}/*", "write"))
    result = server("bob", command.format(server.srv / "x"))
    assert (result.status, result.stdout, result.git_shell) == (1, b"", None)
    unquoted = ["--policy", str(server.policy), "--user", "bob", *command.format(server.srv / "x").split()]
    for words in (unquoted, [*unquoted[:4], "-c", *unquoted[4:]], [*unquoted[:2], *unquoted[4:]]):
        for original in ({"SSH_ORIGINAL_COMMAND": command.format(server.srv / "x")}, {}):
            result = server.shell(*words, program="annexshell", **original)
            if words[-4:-2] == ["-c", '"git-annex-shell'] or original:
                assert (result.status, result.stdout, result.git_shell) == (1, b"", None)


# Which directory it is.


def outcomes(server: Server, directory: str) -> set[tuple[int, bytes, str]]:
    """What alice gets for DIRECTORY, with what she called it taken out."""
    results = [server("alice", command.format(directory)) for command in COMMANDS]
    return {(r.status, r.stdout, r.complaint.replace(f" {directory} on", " DIRECTORY on")) for r in results}


def test_nobody_learns_what_is_there(server: Server) -> None:
    allowed, secret = server.srv / "allowed", server.srv / "secret"
    for directory in (allowed / "x", secret / "x", secret / "y.git"):
        make_annex(directory)
    (secret / "plain").mkdir()
    (secret / "file").write_text("")
    (secret / "closed").mkdir(mode=0)
    (secret / "broken").symlink_to("nowhere")
    (secret / "loop").symlink_to("loop")
    (allowed / "out").symlink_to(secret)
    (allowed / "nowhere").symlink_to(secret / "nothing")
    (allowed / "file").write_text("")
    (allowed / "self").symlink_to("self")
    server.write(rule("alice", f"{allowed}/*", "write"))
    refused = {(1, b"", "alice " + REFUSED.format("DIRECTORY"))}
    names = ("", "x", "x/", "x/.git", "y", "y.git", "plain", "file", "closed", "broken", "loop", "nothing", "x" * 300)
    for name in names:
        for base in (secret, allowed / "out", f"{allowed}/x/../../secret", f"{allowed}/out/../secret"):
            assert outcomes(server, f"{base}/{name}") == refused, name
    for path in (
        "missing",
        "out",
        "nowhere",
        "file",
        "self",
        "",
        ".",
        "..",
        "missing/../x",
        "x/objects",
        "x/x",
    ):
        assert outcomes(server, f"{allowed}/{path}") == refused, path
    for path in ("~nobody/x", "~root", "~no-such-user/x", "/", "", "~", "relative", "~//etc", "/~", "/~//etc"):
        assert outcomes(server, path) == refused, path


def test_spellings_of_what_is_allowed(server: Server) -> None:
    x = make_annex(server.srv / "x")
    make_annex(server.shell.home / "sub/h")
    make_annex(server.srv / "bare.git", OTHER_UUID, bare=True)
    (server.srv / "link").symlink_to("x")
    (server.shell.home / "away").symlink_to(server.srv)
    server.write(rule("alice", f"{server.srv}/* ~/sub/*", "write"))
    home = server.shell.home.resolve()
    for spelling, real in [
        (x, x),
        (f"{x}/", x),
        (f"{x}/.git", x),
        (f"{x}/.git/", x),
        (f"{x}/./", x),
        (f"{server.srv}/link", x),
        (f"{server.srv}/link/.git", x),
        (f"{x}/../link", x),
        ("~/away/x", x),
        ("away/link", x),
        (f"~/{x}", x),
        (f"{server.srv}/bare", server.srv / "bare.git"),
        ("~/sub/h", home / "sub/h"),
        ("/~/sub/h", home / "sub/h"),
        ("sub/h", home / "sub/h"),
    ]:
        assert server.annex("alice", "configlist", spelling).stdout.startswith(b"annex.uuid="), spelling
        assert server("alice", f"git-upload-pack '{spelling}'").git_shell == [f"git-upload-pack '{real}/.'".encode()]


def test_names_with_anything_in_them(server: Server) -> None:
    for name in ("a b", "a'b", "a!b", "a\\b", 'a"b', "a\nb", "-x", "é", os.fsdecode(b"\xe9")):
        x = make_annex(server.srv / name)
        make_ref(x, "refs/heads/main")
        server.write(rule("alice", f"{server.srv}/*", "write"))
        quoted = str(x).replace("'", "'\\''").replace("!", "'\\!'")
        assert b"refs/heads/main" in said_by(server, "alice", f"git-upload-pack '{quoted}'", input=b"0000"), name
        if "'" not in name:
            assert server.annex("alice", "configlist", x).status == 0


def test_git_does_not_look_further_than_the_policy(server: Server) -> None:
    """Given a directory, git also tries the one with .git behind its name."""
    for secret in (server.srv / "x.git", server.srv / "y.git"):
        make_ref(make_annex(secret, bare=True), "refs/heads/secret")
    (server.srv / "x").mkdir()
    (server.srv / "y/.git").mkdir(parents=True)
    server.write(rule("alice", f"{server.srv}/x {server.srv}/y", "write"))
    for name in ("x", "y"):
        for service in ("upload", "receive"):
            command = f"git-{service}-pack '{server.srv}/{name}'"
            assert said_by(server, "alice", command, input=b"0000") == b""
        command = f"git-annex-shell 'p2pstdio' '{server.srv}/{name}' 'x'"
        assert said_by(server, "alice", command, input=b"VERSION 1\nCONNECT git-upload-pack\n") == b""
    server.write(rule("alice", f"{server.srv}/x.git", "write"))
    assert b"refs/heads/secret" in said_by(server, "alice", f"git-upload-pack '{server.srv}/x.git'", input=b"0000")


def test_variables_do_not_lead_git_elsewhere(server: Server) -> None:
    x = make_repository(server.srv / "x")
    make_ref(x, "refs/heads/main")
    make_ref(x, "refs/namespaces/other/refs/heads/hidden")
    server.write(rule("alice", f"{server.srv}/x", "read"))
    for name, value in (("GIT_NAMESPACE", "other"), ("GIT_OBJECT_DIRECTORY", "/"), ("GIT_COMMON_DIR", "/")):
        said = said_by(server, "alice", f"git-upload-pack '{x}'", input=b"0000", **{name: value})
        assert b" refs/heads/main" in said, name


def test_what_is_pushed_into_a_repository_is_no_repository(server: Server) -> None:
    tree, bare = make_annex(server.srv / "tree"), make_annex(server.srv / "bare.git", bare=True)
    make_annex(tree / "evil", bare=True)
    make_annex(tree / "sub/deep")
    inside_refs = bare / "refs/heads/x"
    for ref in ("HEAD", "objects/x", "refs/heads/x"):
        make_ref(bare, f"refs/heads/x/{ref}")
    server.write(rule("bob", f"{server.srv}/tree {bare}", "write"), rule("alice", f"{server.srv}/**", "write"))
    assert server.annex("alice", "configlist", tree).status == 0
    for inside in (tree / "evil", tree / "sub/deep", inside_refs):
        assert outcomes(server, str(inside)) == {(1, b"", "alice " + REFUSED.format("DIRECTORY"))}
    # One that nobody can push to is whatever its owner put there.
    server.write(rule("alice", f"{server.srv}/**", "append"))
    assert server.annex("alice", "configlist", tree / "evil").status == 0


@pytest.mark.parametrize(
    "command",
    [
        "true",
        "",
        "cvs server",
        "sh -c 'cd ~ && git config --null --list'",
        "help",
        "git-upload-pack {}",
        'git-upload-pack "{}"',
        "git-upload-pack '{}' ",
        "git-upload-pack  '{}'",
        "git-upload-pack '{}' '{}'",
        "git-upload-pack --strict '{}'",
        "git-upload-pack '{}' -- '{}'",
        "git-upload-pack '{}';id",
        "git-upload-pack '{}\nid'x",
        "git-http-backend '{}'",
        "git shell '{}'",
        "git-annex-shell git-upload-pack '{}'",
        "git-annex-shell git-upload-pack '{}' -- x",
        "git-annex-shell 'notacommand' '{}'",
    ],
)
def test_only_git_services_are_passed_on(command: str, server: Server) -> None:
    x = make_annex(server.srv / "x")
    commands = server.shell.home / "git-shell-commands"
    commands.mkdir()
    (commands / "help").symlink_to("/bin/true")
    server.write(rule("alice", f"{server.srv}/*", "write"))
    words = ["--policy", str(server.policy), "--user", "alice", "-c", command.replace("{}", str(x))]
    result = server.shell(*words, program="annexshell")
    assert (result.status, result.stdout, result.git_shell) == (1, b"", None)
    assert result.complaint.startswith(("Only git-upload-pack", "alice may not use"))


# When the policy is no good.


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (lambda path: path.unlink(), "{}: it cannot be read: No such file or directory"),
        (lambda path: path.chmod(0o666), "{}: others than its owner can write to it (chmod go-w)"),
        (lambda path: path.write_text("secret = 1"), "{}, line 1: an unknown key; known here: accounts, log,"),
        (lambda path: path.write_text("# x\nsecret"), "{}, line 2: it is not TOML"),
    ],
)
def test_with_a_bad_policy_nothing_is_served(spoil: object, complaint: str, server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("*", "/**", "write"))
    assert server.annex("alice", "configlist", server.srv / "x").status == 0
    assert callable(spoil)
    spoil(server.policy)
    for command in (*COMMANDS, "true", "", "git-annex-shell configlist '{}' --help", "-x"):
        result = server("alice", command.format(server.srv / "x"))
        assert (result.status, result.stdout, result.git_shell) == (1, b"", None)
        assert len(result.stderr.splitlines()) >= 1
        assert "secret" not in result.stderr
        if command not in ("", "-x"):
            expected = f"the policy of this server cannot be used: {complaint.format(server.policy)}"
            assert result.complaint.startswith(expected)
            assert len(result.stderr.splitlines()) == 1


# What it costs, and what it records.


def test_nothing_of_this_is_imported_without_a_policy(server: Server) -> None:
    make_annex(server.srv / "x")
    server.write(rule("alice", f"{server.srv}/*", "read"))
    command = f"git-annex-shell 'p2pstdio' '{server.srv}/x' 'u'"
    with running(server, "alice", command, DUMP) as process:
        with_policy = modules(process.communicate()[1])
    without = modules(start(server.shell, DUMP, "-c", command).stderr)
    ours = {name for name in with_policy if name.startswith(("annexshell.policy", "annexshell.serverwords"))}
    assert len(ours) >= 5
    assert not without & {*ours, "tomllib", "tomli", "fnmatch"}
    assert not with_policy & {"click", "rich", "asyncio", "sh"}


def modules(stderr: bytes) -> set[str]:
    return set(json.loads(stderr[stderr.index(b"[") :]))


def test_the_policy_says_where_the_log_is(server: Server) -> None:
    make_annex(server.srv / "x")
    records, other = server.shell.home / "records", server.shell.home / "other"
    server.write(rule("alice", f"{server.srv}/x", "read"), users=f'log = "{records}"\n{policies.USERS}')
    server.annex("alice", "configlist", server.srv / "x")
    server.annex("bob", "configlist", server.srv / "x")
    server.annex("mallory", "configlist", server.srv / "x")
    text = records.read_text()
    assert all(f'"{user}"' in text for user in ("alice", "bob", "mallory"))
    words = ["--log", str(other), "--policy", str(server.policy), "--user", "bob", "-c", "true"]
    assert server.shell(*words, program="annexshell").status == 1
    assert '"bob"' in other.read_text()
    assert records.read_text() == text
