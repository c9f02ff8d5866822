"""Who may do what over HTTP: as git-annex has it, but for what is listed in DEVIATIONS."""

from __future__ import annotations

import base64
from typing import Any

import bcrypt
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from annexshell.access import APPEND_ONLY, READ_ONLY, READ_WRITE, Access
from annexshell.errors import UsageError
from annexshell.http.api import Kind, Refusal
from annexshell.http.auth import Gate, Options, open_gate, parse_authorization
from annexshell.http.users import new_token
from annexshell.uuid import UUID
from tests import vectors

HERE = UUID(b"5f2e1a3c-0000-4000-8000-000000000001")
THERE = UUID(b"5f2e1a3c-0000-4000-8000-000000000002")

RECORDED = vectors.load("http-auth")
KINDS = [Kind(name) for name in RECORDED["columns"]]

USERS = {b"full": b"", b"ro": b"readonly", b"ao": b"appendonly"}


def basic(user: str, password: str = "password") -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


HEADERS = {
    "none": None,
    "unknown": basic("unknown"),
    "badpw": basic("full", "wrong"),
    **{name: basic(name) for name in ("full", "ro", "ao", "odd")},
}


def environment() -> dict[bytes, bytes]:
    environ = {b"PATH": b"/bin"}
    for name, permissions in USERS.items():
        environ[b"GIT_ANNEX_P2PHTTP_PASSWORD_" + name] = b"password"
        if permissions:
            environ[b"GIT_ANNEX_P2PHTTP_PERMISSIONS_" + name] = permissions
    return environ


ODD = {b"GIT_ANNEX_P2PHTTP_PASSWORD_odd": b"password", b"GIT_ANNEX_P2PHTTP_PERMISSIONS_odd": b"ReadOnly"}


def options_from(arguments: list[str] | frozenset[str]) -> Options:
    return Options(**{argument.removeprefix("--").replace("-", "_"): True for argument in arguments})


def status(gate: Gate, kind: Kind, header: str | None, tls: bool, uuid: UUID = HERE) -> int:
    try:
        gate.access(kind, header, tls, uuid)
    except Refusal as refusal:
        return refusal.status
    return 200


# The table of git-annex


class Case:
    """One server, one client, one kind of request."""

    def __init__(self, tls: bool, options: frozenset[str], client: str, kind: Kind) -> None:
        self.tls = tls
        self.options = options
        self.client = client
        self.kind = kind

    @property
    def login_is_considered(self) -> bool:
        return self.client != "none" and (
            "--authenv-http" in self.options or (self.tls and "--authenv" in self.options)
        )

    @property
    def is_user(self) -> bool:
        return self.login_is_considered and self.client in ("full", "ro", "ao", "odd")

    @property
    def is_wrong(self) -> bool:
        return self.login_is_considered and self.client in ("unknown", "badpw")


def recorded() -> dict[tuple[bool, frozenset[str]], dict[str, list[int]]]:
    return {
        (mode["tls"], frozenset(mode["options"])): group["statuses"]
        for group in RECORDED["classes"]
        for mode in group["modes"]
    }


def wrong_credentials_get_401(case: Case, status: int) -> int:
    return 401 if case.is_wrong and status == 403 else status


def nobody_locks_who_is_not_logged_in(case: Case, status: int) -> int:
    """--unauth-nolocking, with --unauth-appendonly too."""
    nolocking = {"--unauth-nolocking", "--unauth-appendonly"} <= case.options and "--wideopen" not in case.options
    if case.kind is not Kind.LOCK or not nolocking or case.is_user:
        return status
    # As with everything else that visitors may not do: recorded for removing.
    return recorded()[case.tls, case.options][case.client][KINDS.index(Kind.REMOVE)]


def readers_lock_when_visitors_do(case: Case, status: int) -> int:
    visitors_lock = "--wideopen" in case.options or (
        case.options & {"--unauth-readonly", "--unauth-appendonly"} and "--unauth-nolocking" not in case.options
    )
    return 200 if case.kind is Kind.LOCK and case.is_user and case.client == "ro" and visitors_lock else status


DEVIATIONS = [nobody_locks_who_is_not_logged_in, wrong_credentials_get_401, readers_lock_when_visitors_do]


def expected(case: Case) -> int:
    options = case.options
    if case.tls and "--authenv-http" in options:
        # Which git-annex takes to be about plain HTTP only, as if it were not there.
        options = options - {"--authenv-http"} | {"--authenv"}
    status = recorded()[case.tls, options][case.client][KINDS.index(case.kind)]
    for deviation in DEVIATIONS:
        status = deviation(Case(case.tls, options, case.client, case.kind), status)
    return status


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "tls, arguments", recorded(), ids=lambda value: " ".join(sorted(value)) if isinstance(value, frozenset) else value
)
def test_everybody_gets_what_is_recorded(tls: bool, arguments: frozenset[str], kind: Kind) -> None:
    gate = open_gate(options_from(arguments), environment())
    for client in [client for client in RECORDED["credentials"] if client != "odd"]:
        assert status(gate, kind, HEADERS[client], tls) == expected(Case(tls, arguments, client, kind)), client


@pytest.mark.parametrize(
    "tls, arguments", recorded(), ids=lambda value: " ".join(sorted(value)) if isinstance(value, frozenset) else value
)
def test_a_permission_that_does_not_exist_ends_the_start_instead_of_giving_full_access(
    tls: bool, arguments: frozenset[str]
) -> None:
    if arguments & {"--authenv", "--authenv-http"}:
        with pytest.raises(UsageError, match=r"GIT_ANNEX_P2PHTTP_PERMISSIONS_odd is 'ReadOnly', which is none of"):
            open_gate(options_from(arguments), environment() | ODD)
    else:
        gate = open_gate(options_from(arguments), environment() | ODD)
        for kind in KINDS:
            assert status(gate, kind, HEADERS["odd"], tls) == expected(Case(tls, arguments, "odd", kind))


def test_the_deviations_are_few_and_all_of_them_needed() -> None:
    changed: dict[Any, int] = {}
    for (tls, options), statuses in recorded().items():
        for client in statuses:
            for kind, status in zip(KINDS, statuses[client], strict=True):
                for deviation in DEVIATIONS:
                    differs = deviation(Case(tls, options, client, kind), status) != status
                    changed[deviation] = changed.get(deviation, 0) + differs
    assert all(changed[deviation] for deviation in DEVIATIONS)
    assert sum(changed.values()) < 434 * len(KINDS) / 10


# Modes


@pytest.mark.parametrize(
    "arguments, client, mode",
    [
        (["--wideopen"], "none", READ_WRITE),
        (["--unauth-appendonly"], "none", APPEND_ONLY),
        (["--unauth-readonly"], "none", READ_ONLY),
        (["--unauth-readonly", "--unauth-appendonly"], "none", APPEND_ONLY),
        (["--authenv-http"], "full", READ_WRITE),
        (["--authenv-http", "--wideopen"], "ao", APPEND_ONLY),
        (["--authenv-http", "--wideopen"], "ro", READ_ONLY),
        (["--authenv", "--wideopen"], "ro", READ_WRITE),
    ],
)
def test_the_mode_is_that_of_the_user_or_of_visitors(arguments: list[str], client: str, mode: Access) -> None:
    gate = open_gate(options_from(arguments), environment())
    assert gate.access(Kind.READ, HEADERS[client], False, HERE) is mode


def test_without_any_option_nobody_may_do_anything() -> None:
    gate = open_gate(Options(), environment())
    assert {status(gate, kind, header, True) for kind in Kind for header in HEADERS.values()} == {401}


def test_401_comes_with_the_challenge_of_git_annex_and_403_without() -> None:
    gate = open_gate(options_from(["--unauth-readonly", "--authenv-http"]), environment())
    with pytest.raises(Refusal) as refused:
        gate.access(Kind.WRITE, None, False, HERE)
    assert (refused.value.status, refused.value.text) == (401, "")
    assert refused.value.headers == {"WWW-Authenticate": 'Basic realm="git-annex", charset="UTF-8"'}
    with pytest.raises(Refusal) as refused:
        gate.access(Kind.WRITE, HEADERS["ro"], False, HERE)
    assert (refused.value.status, refused.value.text, refused.value.headers) == (403, "", {})


# Files


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    """Users alice and eve with the password "secret", a token for carol."""
    hash = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
    token, line = new_token("carol")
    (tmp_path / "htpasswd").write_text(f"alice:{hash}\neve:{hash}\n")
    (tmp_path / "tokens").write_text(f"{line}\n")
    (tmp_path / "token").write_text(token)
    (tmp_path / "permissions").write_text(f"alice:appendonly:{HERE.decode()}\ncarol:readonly\n")
    return {name: bytes(tmp_path / name) for name in ("htpasswd", "tokens", "permissions")}


def test_a_user_limited_to_a_repository_may_not_do_anything_on_another(files) -> None:
    gate = open_gate(Options(unauth_readonly=True, **files), {})
    alice = basic("alice", "secret")
    assert gate.access(Kind.WRITE, alice, True, HERE) is APPEND_ONLY
    assert gate.access(Kind.LOCK, alice, True, HERE) is APPEND_ONLY
    assert status(gate, Kind.REMOVE, alice, True, HERE) == 403
    assert {status(gate, kind, alice, True, THERE) for kind in Kind} == {403}
    assert status(gate, Kind.READ, None, True, THERE) == 200


def test_a_user_without_a_line_in_the_permissions_may_do_nothing(files) -> None:
    gate = open_gate(Options(**files), {})
    assert {status(gate, kind, basic("eve", "secret"), True) for kind in Kind} == {403}
    assert {status(gate, kind, basic("eve", "wrong"), True) for kind in Kind} == {401}


def test_without_a_file_of_permissions_who_logs_in_may_do_everything(files) -> None:
    gate = open_gate(Options(htpasswd=files["htpasswd"]), {})
    assert gate.access(Kind.REMOVE, basic("eve", "secret"), True, THERE) is READ_WRITE


def test_a_token_is_good_alone_and_as_the_password_of_its_name(files, tmp_path) -> None:
    gate = open_gate(Options(**files), {})
    token = (tmp_path / "token").read_text()
    for header in (f"Bearer {token}", f"bEARER  {token} ", basic("carol", token)):
        assert not gate.is_slow(header, True)
        assert gate.access(Kind.READ, header, True, HERE) is READ_ONLY
        assert status(gate, Kind.WRITE, header, True) == 403
    for header in (f"Bearer {token}x", basic("alice", token), basic("", token), f"Bearer carol:{token}"):
        assert status(gate, Kind.READ, header, True) in (400, 401)


def test_passwords_of_files_are_for_tls_unless_plain_http_is_asked_for(files) -> None:
    only_tls = open_gate(Options(htpasswd=files["htpasswd"]), {})
    both = open_gate(Options(htpasswd=files["htpasswd"], authenv_http=True), {})
    alice = basic("alice", "secret")
    assert [status(only_tls, Kind.READ, alice, tls) for tls in (False, True)] == [401, 200]
    assert [status(both, Kind.READ, alice, tls) for tls in (False, True)] == [200, 200]
    assert not only_tls.is_slow(alice, False)


def test_a_file_of_passwords_makes_visitors_be_asked_for_one(files) -> None:
    visitors = Options(unauth_readonly=True)
    assert status(open_gate(visitors, {}), Kind.WRITE, None, True) == 403
    assert status(open_gate(visitors._replace(htpasswd=files["htpasswd"]), {}), Kind.WRITE, None, True) == 401
    assert status(open_gate(visitors._replace(tokens=files["tokens"]), {}), Kind.WRITE, None, True) == 401


def test_only_what_bcrypt_has_to_look_at_is_slow(files) -> None:
    gate = open_gate(Options(htpasswd=files["htpasswd"], tokens=files["tokens"], authenv=True), environment())
    alice = basic("alice", "secret")
    assert gate.is_slow(alice, True)
    assert status(gate, Kind.READ, alice, True) == 200
    assert not gate.is_slow(alice, True)
    assert gate.is_slow(basic("alice", "wrong"), True)
    assert gate.is_slow(basic("nobody", "secret"), True)
    assert gate.is_slow(basic("full", "wrong"), True)  # or its time would tell that this user is in no file
    assert not gate.is_slow(HEADERS["full"], True)
    assert not gate.is_slow(None, True)
    assert not gate.is_slow("Bearer wrong", True)


# The header


def parsed(header: str) -> tuple[bytes | None, bytes]:
    credentials = parse_authorization(header, takes_tokens=True)
    assert credentials is not None
    return credentials.user, credentials.secret


@given(st.binary().filter(lambda user: b":" not in user), st.binary(), st.sampled_from(["Basic ", "bASIC \t "]))
@example(b"", b"", "Basic ")
@example(b"user", b"pass:word", "Basic ")
@example(b"\xfb\xff", b"\xfb\xff?>", "Basic ")
def test_user_and_password_are_read_in_both_alphabets(user: bytes, password: bytes, scheme: str) -> None:
    for encode in (base64.standard_b64encode, base64.urlsafe_b64encode):
        assert parsed(scheme + encode(user + b":" + password).decode()) == (user, password)


def test_no_colon_is_an_empty_password() -> None:
    assert parsed("Basic dXNlcg==") == (b"user", b"")


NONSENSE = [
    "",
    " ",
    "Basic",
    "Basic ",
    "Basic =",
    "Basic !!!",
    "Basicdxnlcg==",
    "Basic dXNlcg",
    "Basic dXNlcg== x",
    "Basic dXNlcg====",
    "Basic dXNl\udcff",
    "Basic dXNé",
    "Digest username=user",
    "Bearer",
    "Bearer a b",
    "Bearer \udcff",
    "Bearer é",
]


@pytest.mark.parametrize("header", NONSENSE)
def test_a_header_that_makes_no_sense_is_400_even_if_everybody_may_do_everything(header: str) -> None:
    gate = open_gate(Options(wideopen=True), {})
    for ask in (lambda: gate.is_slow(header, True), lambda: gate.access(Kind.READ, header, True, HERE)):
        with pytest.raises(Refusal) as refused:
            ask()
        assert refused.value.status == 400
        assert refused.value.text == "Error parsing header Authorization failed: invalid basic auth header"


def test_a_bare_token_makes_no_sense_to_a_server_without_tokens(files) -> None:
    assert status(open_gate(Options(wideopen=True), {}), Kind.READ, "Bearer foo", True) == 400
    assert status(open_gate(Options(wideopen=True, tokens=files["tokens"]), {}), Kind.READ, "Bearer foo", True) == 200


@given(st.text(max_size=30))
def test_whatever_the_header_is_it_is_understood_or_refused(text: str) -> None:
    for header in (text, f"Basic {text}", f"Bearer {text}"):
        try:
            parse_authorization(header, takes_tokens=True)
        except Refusal as refusal:
            assert refusal.status == 400
