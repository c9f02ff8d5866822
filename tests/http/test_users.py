"""Users, tokens and permissions: what their files may say, and when it counts."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import bcrypt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE
from annexshell.errors import UsageError
from annexshell.http import users as module
from annexshell.http.users import (
    EVERYTHING,
    NOTHING,
    Credentials,
    Permission,
    Users,
    forget_passwords,
    new_token,
)
from annexshell.uuid import UUID

# Lines that Apache's htpasswd 2.4 wrote.
HTPASSWD_BCRYPT = [
    ("alice", "pässwörd", "alice:$2y$04$iyx5WZPhXIGfthMq6ZoGJ.BwmQYYVEFE1XMjEToBxnKcSONLFkbce"),
    ("u", "secret", "u:$2y$05$M5tJ5FfNFjVbep8gjDeOOuANQZ0uTUKN6g.n9SGhmJUDUrGGs1qFq"),
    ("a b", "pass:word", "a b:$2y$04$GTJ/RHxPi42uuLYv41UxFuoN3zs6LSe/1.P7D.qH1sdF1oZqhyvou"),
    ("long", "a" * 80, "long:$2y$04$1ABEe.7hPzGXnql8Lbm04OzJRqCH4C8AX73ldVKINJ1qBFewlhDqm"),
]
HTPASSWD_OTHER = [
    ("u:$apr1$Qtr6qKS1$2i48mRTKp9Q.kVKZxqMge.", "MD5"),
    ("u:{SHA}5en6G6MezRroT3XKqkdPOmY/BfQ=", "SHA1"),
    ("u:8FqECpp4qDROA", "plain text, crypt or unknown"),
    ("u:secret", "plain text, crypt or unknown"),
    ("u:", "plain text, crypt or unknown"),
    ("u:$5$sH6JmgEZaNKFQt.w$Z7V2dtb51uZz2B/2qyT4ciVS8DnzXV9bxirnoVU9SQD", "SHA256"),
    (
        "u:$6$P.KlbQBILJESJt8J$TJytf.HuQ3vSU5lsW6FyNB3i.ep.kDTtYXJcaA56g2TpjhpSVMTOnXnIlaa3b34h2Ik8ojReQZskt5XoX5GET/",
        "SHA512",
    ),
]


def line(name: str, password: bytes = b"secret", cost: int = 4) -> str:
    return f"{name}:{bcrypt.hashpw(password, bcrypt.gensalt(cost)).decode()}\n"


@pytest.fixture
def file(tmp_path):
    """Writes a file in one step, and returns its path."""

    def write(name: str, content: str) -> bytes:
        new = tmp_path / "new"
        new.write_text(content)
        new.rename(tmp_path / name)
        return bytes(tmp_path / name)

    return write


def who(users: Users, user: str | None, secret: str) -> bytes | None:
    return users.who(Credentials(None if user is None else user.encode(), secret.encode()))


# The environment


def test_the_environment_names_users_and_what_they_may_do() -> None:
    users = Users(
        {
            b"GIT_ANNEX_P2PHTTP_PASSWORD_full": b"one",
            b"GIT_ANNEX_P2PHTTP_PASSWORD_ro": b"two",
            b"GIT_ANNEX_P2PHTTP_PERMISSIONS_ro": b"readonly",
            b"GIT_ANNEX_P2PHTTP_PASSWORD_\xc3\xa4": b"p\xff:",
            b"GIT_ANNEX_P2PHTTP_PERMISSIONS_\xc3\xa4": b"appendonly",
            b"GIT_ANNEX_P2PHTTP_PASSWORD_empty": b"",
            b"GIT_ANNEX_P2PHTTP_PERMISSIONS_empty": b"full",
            b"GIT_ANNEX_P2PHTTP_PERMISSIONS_nobody": b"full",
            b"USER": b"one",
        }
    )
    assert users.who(Credentials(b"full", b"one")) == b"full"
    assert users.who(Credentials("ä".encode(), b"p\xff:")) == "ä".encode()
    assert users.who(Credentials(b"empty", b"")) == b"empty"
    for user, password in ((b"full", b"two"), (b"full", b""), (b"nobody", b""), (b"", b""), (b"USER", b"one")):
        assert users.who(Credentials(user, password)) is None
    assert users.permission(b"full") == EVERYTHING == Permission(READ_WRITE, None)
    assert users.permission(b"ro").access is READ_ONLY
    assert users.permission("ä".encode()).access is APPEND_ONLY
    assert users.permission(b"empty").access is READ_WRITE


@pytest.mark.parametrize("word", [b"ReadOnly", b"", b"readonly ", b"read-only", b"none", b"\xff"])
def test_permissions_that_do_not_exist_are_refused(word: bytes) -> None:
    with pytest.raises(
        UsageError, match=r"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob is .*none of readonly, appendonly and full"
    ):
        Users({b"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob": word})


def test_permissions_of_the_environment_are_also_for_users_of_files(file) -> None:
    environ = {b"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob": b"readonly"}
    users = Users(environ, passwords=file("htpasswd", line("bob")))
    assert who(users, "bob", "secret") == b"bob"
    assert users.permission(b"bob").access is READ_ONLY


def test_other_programs_do_not_inherit_passwords() -> None:
    environ = {b"GIT_ANNEX_P2PHTTP_PASSWORD_bob": b"pw", b"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob": b"full", b"A": b"b"}
    forget_passwords(environ)
    assert environ == {b"GIT_ANNEX_P2PHTTP_PERMISSIONS_bob": b"full", b"A": b"b"}


# Passwords


@pytest.mark.parametrize("user, password, written", HTPASSWD_BCRYPT)
def test_what_htpasswd_writes_is_understood(file, user: str, password: str, written: str) -> None:
    users = Users({}, passwords=file("htpasswd", f"# people\r\n\r\n{written}\r\n"))
    assert who(users, user, password) == user.encode()
    assert who(users, user, "x" + password) is None
    assert who(users, "x" + user, password) is None


@pytest.mark.parametrize("written, kind", HTPASSWD_OTHER)
def test_weak_hashes_are_refused_with_the_line_but_not_what_is_in_it(file, written: str, kind: str) -> None:
    path = file("htpasswd", line("bob") + f"\n{written}\n")
    with pytest.raises(UsageError, match=f"htpasswd, line 3: only bcrypt.*{kind}; .*htpasswd -B") as refused:
        Users({}, passwords=path)
    secret = written.partition(":")[2]
    assert not secret or secret not in str(refused.value)


# With a salt that is the same in all processes that the tests are distributed among, as it is in their names.
GOOD = f"bob:{bcrypt.hashpw(b'secret', b'$2b$04$......................').decode()}"


@pytest.mark.parametrize(
    "written, problem",
    [
        ("secret", "not NAME:HASH"),
        (":secret", "not NAME:HASH"),
        (f"{GOOD}:readonly", "permissions have a file of their own"),
        (f"{GOOD}\n{GOOD}", "line 2: 'bob' is there already"),
        (GOOD.replace("$04$", "$03$"), "cost of 3 is not in 4 to 16"),
        (GOOD.replace("$04$", "$31$"), "cost of 31 is not in 4 to 16"),
        (GOOD[:-1], "only bcrypt"),
        (GOOD + "x", "only bcrypt"),
        (GOOD.replace("$2b$", "$2x$"), "only bcrypt"),
        ("env" + GOOD[3:], "'env' is there already, above or in the environment"),
    ],
)
def test_lines_that_make_no_sense_are_refused(file, written: str, problem: str) -> None:
    with pytest.raises(UsageError, match=re.escape(problem)) as refused:
        Users({b"GIT_ANNEX_P2PHTTP_PASSWORD_env": b"x"}, passwords=file("htpasswd", written))
    assert "secret" not in str(refused.value) and "$" not in str(refused.value)


def test_a_password_may_be_any_bytes(file) -> None:
    users = Users({}, passwords=file("htpasswd", line("bob", b"\xff" * 72)))
    for password in (b"", b"\0", b"sec\0ret", b"\xff" * 71, b"\xff" * 71 + b"\0", b"x" * 10000):
        assert users.who(Credentials(b"bob", password)) is None
    assert users.who(Credentials(b"bob", b"\xff" * 72)) == b"bob"


class Work:
    """What bcrypt had to do, as the number of rounds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rounds = 0
        self._hash, self._check = bcrypt.hashpw, bcrypt.checkpw
        monkeypatch.setattr(module.bcrypt, "hashpw", self._hashpw)
        monkeypatch.setattr(module.bcrypt, "checkpw", self._checkpw)

    def _hashpw(self, password: bytes, salt: bytes) -> bytes:
        self.rounds += 2 ** int(salt[4:6])
        return self._hash(password, salt)

    def _checkpw(self, password: bytes, hash: bytes) -> bool:
        self.rounds += 2 ** int(hash[4:6])
        return self._check(password, hash)

    def take(self) -> int:
        rounds, self.rounds = self.rounds, 0
        return rounds


def test_finding_out_that_a_password_is_wrong_takes_the_same_work_for_every_user(file, monkeypatch) -> None:
    path = file("htpasswd", line("cheap", cost=4) + line("medium", cost=5) + line("dear", cost=7))
    users = Users({b"GIT_ANNEX_P2PHTTP_PASSWORD_env": b"pw"}, passwords=path)
    work = Work(monkeypatch)
    for user in ("cheap", "medium", "dear", "env", "nobody", ""):
        assert who(users, user, "wrong") is None
        assert work.take() == 2**7, user
    # Also when its password has been seen.
    assert who(users, "cheap", "secret") == b"cheap"
    assert work.take() == 2**4
    assert who(users, "cheap", "wrong") is None
    assert work.take() == 2**7


def test_a_password_that_was_right_is_not_computed_again(file, monkeypatch) -> None:
    users = Users({}, passwords=file("htpasswd", line("bob") + line("eve", b"other")))
    work = Work(monkeypatch)
    credentials = Credentials(b"bob", b"secret")
    assert users.is_slow(credentials)
    assert users.who(credentials) == b"bob" and work.take()
    assert not users.is_slow(credentials)
    assert users.who(credentials) == b"bob" and not work.take()
    assert users.is_slow(Credentials(b"eve", b"secret"))
    assert who(users, "eve", "secret") is None and work.take()


def test_without_a_file_of_passwords_there_is_no_work(monkeypatch) -> None:
    users = Users({b"GIT_ANNEX_P2PHTTP_PASSWORD_env": b"pw"})
    work = Work(monkeypatch)
    for user, password in (("env", "pw"), ("env", "x"), ("nobody", "pw")):
        assert not users.is_slow(Credentials(user.encode(), password.encode()))
        who(users, user, password)
    assert not work.take()


def test_several_threads_may_ask_at_once(file) -> None:
    path = file("htpasswd", "".join(line(f"u{n}") for n in range(4)))
    users = Users({}, passwords=path, interval=0)
    wrong: list[tuple[str, str]] = []

    def ask() -> None:
        for n in range(8):
            if who(users, f"u{n % 4}", "secret") is None or who(users, f"u{n % 4}", "x") is not None:
                wrong.append((f"u{n % 4}", threading.current_thread().name))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# Tokens


def test_a_name_may_have_several_tokens(file) -> None:
    (one, line_one), (two, line_two), (other, line_other) = (new_token(name) for name in ("bob", "bob", "eve"))
    users = Users({}, tokens=file("tokens", f"{line_one}\n{line_two.upper().replace('BOB', 'bob')}\n{line_other}\n"))
    assert [who(users, None, token) for token in (one, two, other)] == [b"bob", b"bob", b"eve"]
    assert who(users, "bob", two) == b"bob"
    assert who(users, "eve", two) is None
    assert who(users, None, line_one.partition(":")[2]) is None  # the hash is no token
    assert who(users, None, "") is None


def test_the_documented_way_makes_a_token() -> None:
    command = re.search(r"python3 -c '(.*)'", module.new_token.__doc__ or "")
    assert command
    run = subprocess.run([sys.executable, "-c", command[1]], capture_output=True, text=True, check=True)
    token, written = run.stdout.splitlines()
    assert written == f"NAME:{hashlib.sha256(token.encode()).hexdigest()}"
    assert len(token) >= 43


@pytest.mark.parametrize(
    "written",
    [
        "plain-token-secret",
        "bob:plain-token-secret",
        "bob:" + "a" * 63,
        "bob:" + "a" * 65,
        "bob:" + "a" * 64 + ":readonly",
        ":" + "a" * 64,
        "bob:" + "a" * 64 + "\nbob:" + "A" * 64,
    ],
)
def test_anything_but_hashes_of_tokens_is_refused_and_not_shown(file, written: str) -> None:
    with pytest.raises(UsageError, match=r"tokens, line \d: ") as refused:
        Users({}, tokens=file("tokens", written))
    assert "secret" not in str(refused.value) and "aaa" not in str(refused.value)


# Permissions


def test_permissions_are_roles_and_repositories(file) -> None:
    content = "# who\nro:readonly\nao: appendonly \nfull:full\nsome:full:A b:c  [x]\none:readonly:A\n"
    users = Users({}, permissions=file("permissions", content))
    assert users.permission(b"ro") == Permission(READ_ONLY, None)
    assert users.permission(b"ao") == Permission(APPEND_ONLY, None)
    assert users.permission(b"full") == EVERYTHING
    assert users.permission(b"some") == Permission(READ_WRITE, frozenset(map(UUID, (b"A", b"b:c", b"[x]"))))
    assert users.permission(b"one") == Permission(READ_ONLY, frozenset([UUID(b"A")]))
    assert users.permission(b"else") == NOTHING
    assert Users({}).permission(b"else") == EVERYTHING


@pytest.mark.parametrize(
    "written, problem",
    [
        ("bob", "line 1: not NAME:ROLE"),
        (":full", "line 1: not NAME:ROLE"),
        ("bob:", "line 1: the role is none of"),
        ("bob:Full", "line 1: the role is none of"),
        ("bob:full:", "line 1: no uuid after the second colon"),
        ("bob:full: ", "line 1: no uuid after the second colon"),
        ("\nbob:full\nbob:readonly", "line 3: 'bob' is there already"),
        ("env:full", "line 1: 'env' is there already, above or in the environment"),
    ],
)
def test_permissions_that_make_no_sense_are_refused(file, written: str, problem: str) -> None:
    environ = {b"GIT_ANNEX_P2PHTTP_PASSWORD_env": b"pw", b"GIT_ANNEX_P2PHTTP_PERMISSIONS_env": b"readonly"}
    with pytest.raises(UsageError, match=re.escape(problem)):
        Users(environ, permissions=file("permissions", written))


# Files that change


def test_a_file_that_is_not_there_ends_the_start(tmp_path: Path) -> None:
    for what in ("passwords", "tokens", "permissions"):
        with pytest.raises(UsageError, match=r"cannot read .*/none: No such file or directory"):
            Users({}, **{what: bytes(tmp_path / "none")})


def test_files_that_change_are_read_again(file) -> None:
    token, token_line = new_token("carol")
    users = Users(
        {},
        passwords=file("htpasswd", line("bob")),
        tokens=file("tokens", ""),
        permissions=file("permissions", "bob:full\n"),
        interval=0,
    )
    assert who(users, "bob", "secret") == b"bob"
    file("htpasswd", line("bob", b"changed") + line("eve"))
    file("tokens", token_line)
    file("permissions", "bob:readonly\ncarol:appendonly\n")
    assert who(users, "bob", "secret") is None
    assert who(users, "bob", "changed") == b"bob"
    assert who(users, "eve", "secret") == b"eve"
    assert who(users, None, token) == b"carol"
    assert users.permission(b"bob").access is READ_ONLY
    assert users.permission(b"carol").access is APPEND_ONLY
    file("tokens", "")
    assert who(users, None, token) is None


def test_a_file_that_is_written_in_place_twice_within_one_tick_is_read_both_times(tmp_path: Path) -> None:
    path = tmp_path / "permissions"
    path.write_text("bob:full:A\n")
    users = Users({}, permissions=bytes(path), interval=0)
    stamp = path.stat()
    for uuid in (b"B", b"C"):
        path.write_text(f"bob:full:{uuid.decode()}\n")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        assert users.permission(b"bob").repositories == {uuid}


def test_a_file_that_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "htpasswd"
    path.write_text(line("bob"))
    os.utime(path, (1e9, 1e9))
    users = Users({}, passwords=bytes(path), interval=0)
    monkeypatch.setattr(module, "_read", lambda path: pytest.fail("read"))
    assert who(users, "bob", "secret") == b"bob"


def test_a_file_is_looked_at_only_now_and_then(file, monkeypatch) -> None:
    now = 100.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    users = Users({}, permissions=file("permissions", "bob:full\n"))
    file("permissions", "bob:readonly\n")
    now += 0.9
    assert users.permission(b"bob").access is READ_WRITE
    now += 0.2
    assert users.permission(b"bob").access is READ_ONLY


def test_writing_the_same_again_does_not_forget_which_passwords_were_right(file) -> None:
    content = line("bob")
    users = Users({}, passwords=file("htpasswd", content), interval=0)
    assert who(users, "bob", "secret") == b"bob"
    file("htpasswd", content)
    assert not users.is_slow(Credentials(b"bob", b"secret"))


@pytest.mark.parametrize("damage", ["bob:secret\n", None])
def test_an_error_in_a_changed_file_leaves_what_it_said_before(
    file, tmp_path: Path, capfd, damage: str | None
) -> None:
    users = Users({}, passwords=file("htpasswd", line("bob", b"old")), interval=0)
    if damage is None:
        (tmp_path / "htpasswd").unlink()
    else:
        file("htpasswd", damage)
    for _ in range(3):
        assert who(users, "bob", "old") == b"bob"
    said = capfd.readouterr().err
    assert said.count("going on with what that file said before") == 1
    assert "htpasswd" in said and "secret" not in said
    file("htpasswd", line("bob", b"new"))
    assert who(users, "bob", "new") == b"bob"
    assert who(users, "bob", "old") is None
    assert capfd.readouterr().err == ""


def test_a_file_may_be_a_pipe_of_the_shell() -> None:
    read, write = os.pipe()
    os.write(write, b"bob:readonly\n")
    os.close(write)
    try:
        users = Users({}, permissions=b"/dev/fd/%d" % read, interval=0)
        for _ in range(2):
            assert users.permission(b"bob").access is READ_ONLY
    finally:
        os.close(read)


# Secrets


def test_nothing_shows_a_password(file) -> None:
    token, token_line = new_token("bob")
    users = Users(
        {b"GIT_ANNEX_P2PHTTP_PASSWORD_env": b"secret"},
        passwords=file("htpasswd", line("bob")),
        tokens=file("tokens", token_line),
    )
    credentials = Credentials(b"bob", b"secret")
    users.who(credentials)
    users.who(Credentials(None, token.encode()))
    assert "secret" not in repr(credentials)
    # Nor is it kept, in any form that would help somebody who sees the memory later.
    seen: list[object] = [users]
    for thing in seen:
        assert "secret" not in repr(thing) and token not in repr(thing)
        if isinstance(thing, dict):
            seen += [*thing.keys(), *thing.values()]
        elif type(thing).__module__ == module.__name__:
            names = [*getattr(thing, "__slots__", ()), *getattr(thing, "__dict__", ())]
            seen += [getattr(thing, name) for name in names]
    assert len(seen) > 20


@given(st.binary(max_size=200))
def test_any_content_is_understood_or_refused(content: bytes) -> None:
    lines = list(module._lines(b"file", content))
    for parse in (
        lambda: module.parse_passwords(lines, {}),
        lambda: module.parse_tokens(lines),
        lambda: module.parse_permissions(lines, {}),
    ):
        try:
            parse()
        except UsageError as reason:
            assert re.match(r"file, line \d+: ", str(reason))
