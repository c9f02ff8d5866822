"""Whatever is wrong with a policy, there is none; and whoever wrote it learns what and where."""

from __future__ import annotations

import os
import socket
import textwrap
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.policy import document
from annexshell.policy.document import PolicyError
from annexshell.policy.rules import ACCESS, GIT
from tests.policies import ALICE_KEY, BOB_KEY, USERS, rule, write

ROOT = Path(__file__).parents[2]
PATH = b"/etc/policy.toml"


def error(text: str) -> PolicyError:
    with pytest.raises(PolicyError) as caught:
        document.parse(text.encode("utf-8", "surrogateescape"), PATH)
    return caught.value


def test_everything_that_can_be_said() -> None:
    more = 'log = "/var/log/annexshell"\n' + USERS + rule("alice @staff", "/srv/* ~/x", "append", "push")
    policy = document.parse((more + rule("*", "/srv/**", "read")).encode(), PATH)
    assert policy.path == PATH
    assert policy.accounts == ["annex"]
    assert policy.log == b"/var/log/annexshell"
    assert {user: [key.line for key in keys] for user, keys in policy.keys.items()}["alice"] == [
        f"{ALICE_KEY} laptop"
    ]
    assert policy.groups == {"staff": ["alice", "bob"]}
    first, second = policy.rules
    assert (first.number, first.users, first.access, first.git) == (1, {"alice", "bob"}, "append", "push")
    assert [pattern.text for pattern in first.patterns] == ["/srv/*", "~/x"]
    assert (second.number, second.users, second.access, second.git) == (2, {"*"}, "read", "fetch")


def test_an_empty_policy_is_one() -> None:
    policy = document.parse(b"", PATH)
    assert (policy.accounts, policy.log, policy.keys, policy.rules) == ([], None, {}, [])


# What is wrong, in which line; nothing of the file is in the message, all of it in what its owner is told.
SECRET = "secret"
MISTAKES = [
    ("x = \n", 1, "not TOML"),
    ("\n\nx = 'secret\n", 3, "not TOML"),
    ("[users]\n[users]\n", 2, "not TOML"),
    ("a = [\n1,\n", 2, "not TOML"),
    ("\n# x\nsecret = 1\n", 3, "an unknown key; known here: accounts"),
    ("[secret]\n", 1, "an unknown key"),
    ("accounts = 'secret'\n", 1, "a list of strings"),
    ("accounts = [1]\n", 1, "a string"),
    ("\naccounts = [\n  'x',\n  2,\n]\n", 2, "a string"),
    ("log = 1\n", 1, "a string"),
    ("log = 'secret'\n", 1, "the log is"),
    ("log = 'SYSLOG'\n", 1, "the log is"),
    ("users = 1\n", 1, "users are written"),
    ("[[users]]\n", 1, "users are written"),
    ("[users]\nalice = 1\n", 2, "a table"),
    ("[users.alice]\n[users.bob]\nkey = []\n", 3, "an unknown key; known here: keys"),
    ("[users.'se cret']\n", 1, "not a name"),
    ("[users.'@secret']\n", 1, "not a name"),
    ("[users.'-secret']\n", 1, "not a name"),
    ("[users.'*']\n", 1, "not a name"),
    ('[users."a\\nsecret"]\n', 1, "not a name"),
    ("[users.alice]\nkeys = 'secret'\n", 2, "a list of strings"),
    ("[users.alice]\nkeys = ['secret']\n", 2, "not an ssh key: it does not begin"),
    (f"[users.alice]\nkeys = ['restrict {ALICE_KEY}']\n", 2, "not an ssh key: .* options"),
    (f'[users.alice]\nkeys = ["{ALICE_KEY}\\n{BOB_KEY}"]\n', 2, "not an ssh key: .* line ends"),
    (f"[users.alice]\nkeys = ['{ALICE_KEY}']\n[users.bob]\n\nkeys = ['{ALICE_KEY} x']\n", 5, "there already"),
    (f"[users.alice]\nkeys = [\n '{ALICE_KEY}',\n '{ALICE_KEY} x']\n", 2, "there already"),
    ("groups = []\n", 1, "groups are written"),
    ("[groups]\nx = 'secret'\n", 2, "a list of strings"),
    ("[groups]\nx = ['secret']\n", 2, "an unknown user in a group"),
    ("[groups]\n'x y' = []\n", 2, "not a name"),
    ("[groups]\nx = []\ny = ['@x']\n", 3, "an unknown user in a group"),
    ("rules = 1\n", 1, "rules are written"),
    ("rules = ['secret']\n", 1, "a table"),
    ("[rules]\n", 1, "rules are written"),
    ("[[rules]]\nusers = ['*']\n\n[[rules]]\n", 1, "directories is missing"),
    (USERS + rule("alice", "/x", "read") + "# x\n\n[[rules]]\nusers=['*']\naccess='read'\n", 20, "directories is"),
    (rule("*", "/x", "read") + "acess = 'none'\n", 5, "an unknown key"),
    (rule("*", "/x", "all"), 4, "one of none, read, append, write"),
    (rule("*", "/x", "read").replace('"read"', "['read']"), 4, "one of none, read, append, write"),
    (rule("*", "/x", "read", "pull"), 5, "one of none, fetch, push"),
    (rule("*", "/x", "read") + "git = true\n", 5, "one of none, fetch, push"),
    (rule("secret", "/x", "read"), 2, "an unknown user in a rule"),
    (rule("@secret", "/x", "read"), 2, "an unknown group in a rule"),
    (rule("", "/x", "read"), 2, "a list that is empty"),
    (rule("*", "", "read"), 3, "a list that is empty"),
    (rule("*", "secret", "read"), 3, "a bad directory: it has to begin"),
    (rule("*", "/ok /x/../secret", "read"), 3, "a bad directory: it has . or .. in it"),
    (rule("*", "/[secret", "read"), 3, "a bad directory: .* not closed"),
    ("x = 1\udcff\n", 1, "not UTF-8"),
    ("\n\n# \udce9\n", 3, "not UTF-8"),
    ("x = " + "[" * 50_000, None, "nested too deeply|not TOML"),
]


@pytest.mark.parametrize(("text", "line", "problem"), MISTAKES)
def test_mistakes(text: str, line: int | None, problem: str) -> None:
    reason = error(text)
    with pytest.raises(PolicyError, match=f"cannot be used: /etc/policy.toml(, line {line})?: .*({problem})"):
        raise reason
    if line is not None:
        assert reason.line == line
        assert f", line {line}: " in reason.detail
    assert SECRET not in str(reason)
    assert len(str(reason).splitlines()) == 1
    assert ALICE_KEY.split()[1] not in str(reason) + reason.detail


def test_the_owner_is_told_more() -> None:
    assert "(users.bob.keys[1]: as one of alice's)" in error(MISTAKES[25][0]).detail
    assert "(rules[1].directories[1]: secret)" in error(rule("*", "secret", "read")).detail


def test_windows_line_ends_are_line_ends() -> None:
    assert error(rule("*", "/x", "all").replace("\n", "\r\n")).line == 4


@given(st.integers(1, 12), st.integers(0, 11), st.integers(0, 3))
def test_lines_are_found_among_many(count: int, wrong: int, blanks: int) -> None:
    wrong %= count
    pieces = [("# x\n" * blanks) + rule("*", "/x", "all" if n == wrong else "read") for n in range(count)]
    assert error("".join(pieces)).line == "".join(pieces).split("\n").index('access = "all"') + 1


def test_a_line_is_found_in_a_large_policy() -> None:
    text = "".join(rule("*", f"/srv/{number}", "read") for number in range(2000))
    assert error(text.replace("/srv/1777", "srv")).line == 1777 * 4 + 3


@given(st.text() | st.text("[]=\"'.{}\n,x1#-*@ ", max_size=40))
def test_anything_at_all_is_a_policy_or_an_error(text: str) -> None:
    try:
        document.parse(text.encode("utf-8", "surrogateescape"), PATH)
    except PolicyError as reason:
        assert len(reason.detail) > 10


# The file.


def test_files_that_others_could_have_written(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.toml")
    assert document.load(os.fsencode(path)).accounts == ["annex"]
    for mode in (0o664, 0o646, 0o666):
        path.chmod(mode)
        with pytest.raises(PolicyError, match=r"others than its owner can write to it"):
            document.load(os.fsencode(path))


def test_the_owner_is_root_or_who_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "policy.toml")
    real = os.fstat

    def fstat(fd: int) -> os.stat_result:
        values = list(real(fd))
        values[4] = 12345  # st_uid
        return os.stat_result(values)

    monkeypatch.setattr(os, "fstat", fstat)
    with pytest.raises(PolicyError, match="belongs neither to root"):
        document.load(os.fsencode(path))
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    assert document.load(os.fsencode(path)).accounts


def test_what_is_no_file(tmp_path: Path) -> None:
    fifo, listening = tmp_path / "fifo", tmp_path / "socket"
    os.mkfifo(fifo, 0o600)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listening))
        cases = [
            (tmp_path, "not a regular file"),
            (fifo, "not a regular file"),
            (Path(os.devnull), "not a regular file"),
            (listening, "cannot be read: No such device"),
            (tmp_path / "missing", "cannot be read: No such file"),
            (tmp_path / "missing/file", "cannot be read: No such file"),
        ]
        for path, problem in cases:
            with pytest.raises(PolicyError, match=problem):
                document.load(os.fsencode(path))


def test_a_symlink_leads_to_a_file_that_is_looked_at(tmp_path: Path) -> None:
    path = write(tmp_path / "policy.toml")
    (tmp_path / "link").symlink_to(path)
    assert document.load(os.fsencode(tmp_path / "link")).accounts
    path.chmod(0o666)
    with pytest.raises(PolicyError):
        document.load(os.fsencode(tmp_path / "link"))


def test_a_relative_path_is_told_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "policy.toml")
    assert document.load(b"policy.toml").path == os.fsencode(tmp_path / "policy.toml")


def test_too_many_open_files_will_pass(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> int:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(os, "open", fail)
    with pytest.raises(OSError, match="Too many"):
        document.load(b"/x")


def test_the_example_of_the_manual(tmp_path: Path) -> None:
    manual = (ROOT / "man" / "annexshell-policy.rst").read_text()
    example = manual.partition("Example\n=======")[2].partition("The file\n")[0].partition("::\n")[2]
    path = tmp_path / "policy.toml"
    path.write_text(textwrap.dedent(example))
    path.chmod(0o644)
    policy = document.load(os.fsencode(path))
    assert (policy.accounts, policy.log) == (["annex"], b"syslog")
    for user, directory, expected in [
        ("alice", b"/srv/annex/old", ("none", "none")),
        ("alice", b"/srv/annex/music", ("write", "push")),
        ("alice", b"/home/annex/private.git", ("write", "push")),
        ("alice", b"/srv/annex/a/b", ("read", "fetch")),
        ("bob", b"/srv/annex/music", ("read", "fetch")),
        ("bob", b"/home/annex/private.git", None),
        ("camera", b"/srv/annex/pictures", ("append", "fetch")),
        ("camera", b"/srv/annex/music", None),
    ]:
        found = policy.decide(user, directory, b"/home/annex")
        assert (found and (found[0].access, found[0].git)) == expected


def test_the_example_of_the_readme() -> None:
    readme = (ROOT / "README.rst").read_text()
    example = readme.partition("/etc/annexshell.toml``::\n")[2].partition("\nThe first rule")[0]
    text = textwrap.dedent(example).replace("ssh-ed25519 AAAA... laptop", ALICE_KEY)
    policy = document.parse(text.replace("ssh-ed25519 AAAA...", BOB_KEY).encode(), PATH)
    assert [(rule.access, rule.git) for rule in policy.rules] == [("write", "push"), ("read", "fetch")]


def test_the_manual_has_every_key() -> None:
    manual = (ROOT / "man" / "annexshell-policy.rst").read_text()
    with pytest.raises(PolicyError) as top:
        document.parse(b"x = 1", PATH)
    with pytest.raises(PolicyError) as in_rule:
        document.parse(b"[[rules]]\nx = 1", PATH)
    for reason in (top.value, in_rule.value):
        for key in str(reason).partition("known here: ")[2].split(", "):
            assert f"**{key}**" in manual or f"**[{key}.**" in manual or f"[{key}]" in manual, key
    for word in (*ACCESS, *GIT):
        assert f"*{word}*" in manual
