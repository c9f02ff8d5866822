"""What is asked, from the request line and headers; and all that is refused for its form."""

from __future__ import annotations

import time
from typing import Any
from urllib.parse import parse_qsl, unquote_to_bytes, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.http import api, urls
from annexshell.http.api import ACTIONS, ApiRequest, Refusal
from annexshell.http.routes import parse
from annexshell.key import Key
from annexshell.uuid import NO_UUID, UUID
from tests import vectors

U = "44444444-4444-4444-8444-444444444444"
C = "79a5a1f4-07e8-11ef-873d-97f93ca91925"
K = "SHA256E-s6--5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
LENGTH = {"X-git-annex-data-length": "23"}


def fields(request: ApiRequest) -> dict[str, Any]:
    return {name: getattr(request, name) for name in ApiRequest.__slots__ if name != "asker"}


def asked(method: str, path: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """All that differs from a request for nothing in particular."""
    nothing: dict[str, Any] = {
        "client": NO_UUID,
        "bypass": (),
        "offset": 0,
        "key": None,
        "file": None,
        "timestamp": None,
        "lockid": None,
        "data_length": None,
        "data_present": False,
    }
    found = fields(parse(method, f"/git-annex/{U}/{path}", headers or {}))
    assert found.pop("uuid") == U.encode()
    return {name: value for name, value in found.items() if name not in nothing or nothing[name] != value}


def refused(method: str, target: str | bytes, headers: dict[str, str] | None = None) -> tuple[int, str]:
    with pytest.raises(Refusal) as refusal:
        parse(method, target, headers or {})
    return refusal.value.status, refusal.value.text


# Replaying what was asked of git-annex's server.

WHOM_AND_WHERE = ("get absent", "head absent", "get unknown uuid", "get generic unknown uuid", "auth header")
# Where parsing differs from the recording, which says nothing of a better way.
NOT_DIGITS = (400, "Error parsing query parameter offset failed: offset parse error")
DIFFERENT: dict[str, tuple[int, str] | None] = {
    "get offset -1": NOT_DIGITS,
    "get offset 0x3": NOT_DIGITS,
    "get offset %203": NOT_DIGITS,
    "get offset (3)": NOT_DIGITS,
    "checkpresent clientuuid unpadded base64": None,
    "route GET /git-annex/$U/v4/checkpresent": None,
}
NEGATIVE_LENGTH = (400, "Error parsing header X-git-annex-data-length failed: X-git-annex-data-length parse error")


def expected(case: dict[str, Any]) -> tuple[int, str] | None:
    """Status and body of the refusal."""
    name = case["name"]
    if name in DIFFERENT:
        return DIFFERENT[name]
    if case["request"].get("headers", {}).get("X-git-annex-data-length", "").startswith("-"):
        return NEGATIVE_LENGTH
    better = case.get("recommended", {})
    status = better.get("status", case["response"]["status"])
    if status not in (400, 404, 405) or name.startswith(WHOM_AND_WHERE):
        return None
    return status, better.get("body", "" if "status" in better else case["response"]["body"])


def requests() -> list[Any]:
    cases = vectors.load("http-requests")["cases"]
    return [pytest.param(case, id=f"{number} {case['name']}") for number, case in enumerate(cases)]


@pytest.mark.parametrize("case", requests())
def test_replay_of_requests(case: dict[str, Any]) -> None:
    target = case["request"]["path"].replace("$U", U).replace("$C", C).replace("$LOCKID", "some-lock")
    target = target.replace("$NOW-100", "900").replace("$NOW+100", "1100")
    assert "$" not in target
    method, headers = case["request"]["method"], case["request"].get("headers") or {}
    refusal = expected(case)
    if refusal is not None:
        assert refused(method, target, headers) == refusal
    else:
        check(parse(method, target, headers), target, headers)


def check(request: ApiRequest, target: str, headers: dict[str, str]) -> None:
    """Compare with what another library finds in TARGET."""
    parts = urlsplit(target)
    words = [unquote_to_bytes(word) for word in parts.path.removesuffix("/").split("/")]
    query = {name: value.encode() for name, value in reversed(parse_qsl(parts.query)) if name}
    found = fields(request)
    assert found.pop("uuid") == words[2]
    in_path = words[-2] == b"key"
    assert found.pop("action") is ACTIONS["key" if in_path else words[-1].decode()]
    version = found.pop("version")
    assert version == (None if words[3] == b"key" else int(words[3][1:]))
    assert found.pop("key") == maybe(as_key, words[-1] if in_path else query.get("key"))
    if "lockid" in query:
        assert found.pop("lockid") == query["lockid"]
    client = b"\xff" if "clientuuid=%ff" in target else urls.decode_value(query.get("clientuuid", b"").decode())
    assert found.pop("client") == client
    assert found.pop("file") == (urls.decode_value(query.get("associatedfile", b"").decode()) or None)
    assert found.pop("offset") == int(query.get("offset", 0))
    assert found.pop("timestamp") == maybe(int, query.get("timestamp"))
    assert found.pop("data_length") == maybe(int, headers.get("X-git-annex-data-length"))
    assert found.pop("data_present") == (version == 4 and query.get("data-present", b"").lower() == b"true")
    if found.pop("bypass"):
        assert parts.query.count("bypass=") == len(request.bypass) or "bypass[]" in parts.query


def maybe(function: Any, value: Any) -> Any:
    return None if value is None else function(value)


def as_key(text: bytes) -> Key:
    return Key(urls.decode_value(text.decode()))


def conversations() -> list[Any]:
    found = []
    for scenario in vectors.load("http-client")["scenarios"]:
        for number, exchange in enumerate(scenario["exchanges"]):
            target = exchange["path"] + "?" + "&".join(exchange["query"])
            # Some are recorded without.
            headers = exchange.get("headers") or (LENGTH if exchange["path"].endswith("/put") else {})
            found.append(pytest.param(exchange["method"], target, headers, id=f"{scenario['name']} {number}"))
    recording = vectors.load("http-testremote")
    for number, (request, query, *_rest) in enumerate(recording["exchanges"]):
        method, path = request.split()
        for name, key in recording["keys"].items():
            path, query = path.replace(name, key), query.replace(name, key)
        headers = LENGTH if path.endswith("/put") else {}
        found.append(pytest.param(method, f"{path}?{query}", headers, id=f"testremote {number}"))
    return found


@pytest.mark.parametrize("method, target, headers", conversations())
def test_whatever_the_real_client_asks_is_understood(method: str, target: str, headers: dict[str, str]) -> None:
    check(parse(method, target, headers), target, headers)


# What a request becomes.


def test_download() -> None:
    key = Key(K.encode())
    assert asked("GET", f"key/{K}") == {"action": api.GET, "version": None, "key": key}
    assert asked("HEAD", f"key/{K}/?offset=x&associatedfile=[!]&clientuuid=c&bypass=a") == {
        "action": api.GET,
        "version": None,
        "key": key,
        "client": b"c",
        "bypass": (b"a",),
    }
    assert asked("GET", f"v3/key/{K}?clientuuid=c&offset=5&associatedfile=a%2Fb&bypass=x;bypass=y") == {
        "action": api.GET,
        "version": 3,
        "key": key,
        "client": b"c",
        "offset": 5,
        "file": b"a/b",
        "bypass": (b"x", b"y"),
    }
    assert asked("GET", f"v1/key/{K}?clientuuid=c&bypass=x")["version"] == 1
    assert "bypass" not in asked("GET", f"v1/key/{K}?clientuuid=c&bypass=x")


def test_upload() -> None:
    key = Key(K.encode())
    wanted = {"action": api.PUT, "version": 4, "key": key, "client": b"c", "data_length": 23}
    assert asked("POST", f"v4/put?key={K}&clientuuid=c", LENGTH) == wanted
    for name in ("x-git-annex-data-length", "X-GIT-ANNEX-DATA-LENGTH"):
        assert asked("POST", f"v4/put?key={K}&clientuuid=c", {"Other": "1", name: " 0023\t"}) == wanted
    assert asked("POST", f"v4/put?key={K}&clientuuid=c&data-present=True&offset=3", LENGTH) == wanted | {
        "data_present": True,
        "offset": 3,
    }
    assert asked("POST", f"v3/put?key={K}&clientuuid=c&data-present=foo", LENGTH) == wanted | {"version": 3}
    assert asked("POST", f"v1/putoffset?key={K}&clientuuid=c&offset=x") == {
        "action": api.PUTOFFSET,
        "version": 1,
        "key": key,
        "client": b"c",
    }


def test_locks() -> None:
    assert asked("POST", "v0/keeplocked?lockid=%5Bx") == {"action": api.KEEPLOCKED, "version": 0, "lockid": b"[x"}
    assert asked("POST", "v4/keeplocked?lockid=x&clientuuid=c&bypass=a&key=nokey") == {
        "action": api.KEEPLOCKED,
        "version": 4,
        "lockid": b"x",
        "client": b"c",
        "bypass": (b"a",),
    }


def test_time() -> None:
    for method in ("GET", "POST"):
        assert asked(method, "v3/gettimestamp?clientuuid=c") == {
            "action": api.GETTIMESTAMP,
            "version": 3,
            "client": b"c",
        }
    assert asked("POST", f"v4/remove-before?key={K}&clientuuid=c&timestamp=1394")["timestamp"] == 1394


def test_escapes_are_decoded_after_splitting() -> None:
    request = parse(
        "POST", f"/git%2dannex/{U}/%764/checkpresen%74?%6bey=WORM--a%2Fb+c%2B%26&clientuuid=%5Bw6k=%5D", {}
    )
    assert (request.version, request.action, request.client) == (4, api.CHECKPRESENT, "\u00e9".encode())
    assert request.key == Key(b"WORM--a/b c+&")
    request = parse("GET", f"/git-annex/{U}/key/WORM--a%2Fb+c&d=e%25;f", {})
    assert request.key == Key(b"WORM--a/b+c&d=e%;f")
    assert parse("GET", f"http://host:9417/git-annex/{U}/key/{K}", {}).key == Key(K.encode())
    assert parse("GET", f"/git-annex/[{'Zm9v'}]/key/{K}".encode(), {}).uuid == b"foo"


# What is refused.


@pytest.mark.parametrize(
    "target",
    [
        "",
        "*",
        "/",
        "/git-annex",
        "/git-annex/",
        f"git-annex/{U}/key/{K}",
        f"//git-annex/{U}/key/{K}",
        f"/Git-Annex/{U}/key/{K}",
        f"/git-annex/{U}",
        f"/git-annex/{U}/v4",
        f"/git-annex/{U}/v4/key",
        f"/git-annex/{U}/v4/key/",
        f"/git-annex/{U}/key/{K}//",
        f"/git-annex/{U}/v4/key/a/b",
        f"/git-annex/{U}//key/{K}",
        f"/git-annex/{U}/V4/key/{K}",
        f"/git-annex/{U}/v04/key/{K}",
        f"/git-annex/{U}/v5/key/{K}",
        f"/git-annex/{U}/v-1/key/{K}",
        f"/git-annex/{U}/v4/nosuch",
        f"/git-annex/{U}/v4/%ff",
        f"/git-annex/{U}/v4/checkpresent//",
        f"/git-annex/{U}/v4/checkpresent/{K}",
        f"/git-annex/{U}/v0/putoffset",
        f"/git-annex/{U}/v2/gettimestamp",
        f"/git-annex/{U}/v2/remove-before",
        f"/git-annex//v5/key/{K}",
        "/\ud800",
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST", "PATCH"])
def test_no_such_thing(method: str, target: str) -> None:
    assert refused(method, target) == (404, "")


@pytest.mark.parametrize(
    "method, path, allowed",
    [
        ("POST", f"key/{K}", "GET, HEAD"),
        ("get", f"key/{K}", "GET, HEAD"),
        ("POST", f"v0/key/{K}", "GET, HEAD"),
        ("HEAD", "v4/checkpresent", "POST, GET"),
        ("PUT", "v4/put", "POST"),
        ("GET", "v4/remove", "POST"),
        ("OPTIONS", "v3/gettimestamp", "POST, GET"),
    ],
)
def test_wrong_method(method: str, path: str, allowed: str) -> None:
    with pytest.raises(Refusal) as refusal:
        parse(method, f"/git-annex/{U}/{path}", {})
    assert (refusal.value.status, refusal.value.text) == (405, "")
    assert refusal.value.headers == {"Allow": allowed}


def test_order_of_checks() -> None:
    """Each request has one thing less that is wrong."""
    everything = "bypass=&timestamp=x&associatedfile=[!]&offset=x"
    put = f"/git-annex/{U}/v4/put?{everything}"
    for method, target, status, text in (
        ("PUT", "/git-annex//v5/key/x", 404, ""),
        ("PUT", "/git-annex//v4/key/x", 400, "empty UUID"),
        ("PUT", "/git-annex/[!]/key/x", 400, "unable to base64 decode [] wrapped value"),
        ("PUT", f"/git-annex/{U}/v4/key/x", 400, "key parse error"),
        ("PUT", f"/git-annex/{U}/v4/key/{K}", 405, ""),
        ("POST", f"{put}&data-present=foo", 400, parameter("data-present", "could not parse: `foo'")),
        ("POST", put, 400, "Query parameter key is required"),
        ("POST", f"{put}&key=x", 400, parameter("key", "key parse error")),
        ("POST", f"{put}&key={K}", 400, "Query parameter clientuuid is required"),
        ("POST", f"{put}&key={K}&clientuuid=", 400, parameter("clientuuid", "empty UUID")),
        (
            "POST",
            f"{put}&key={K}&clientuuid=c",
            400,
            "Error parsing query parameter(s) bypass failed: empty UUID",
        ),
    ):
        assert refused(method, target) == (status, text)
    put = f"/git-annex/{U}/v4/put?key={K}&clientuuid=c"
    not_base64 = parameter("associatedfile", "unable to base64 decode [] wrapped value")
    assert refused("POST", f"{put}&offset=x&associatedfile=[!]") == (400, not_base64)
    assert refused("POST", f"{put}&offset=x") == (400, parameter("offset", "offset parse error"))
    assert refused("POST", put) == (400, "Header X-git-annex-data-length is required")
    for length in ("", "x", "-1", "0x1", "1 2", "\u0663", "\udcff"):
        assert refused("POST", put, {"X-git-annex-data-length": length}) == NEGATIVE_LENGTH


def parameter(name: str, reason: str) -> str:
    return f"Error parsing query parameter {name} failed: {reason}"


@pytest.mark.parametrize("version", range(5))
@pytest.mark.parametrize("rest", ["", "&data-present=true"])
def test_an_upload_needs_its_length(version: int, rest: str) -> None:
    target = f"/git-annex/{U}/v{version}/put?key={K}&clientuuid=c{rest}"
    assert refused("POST", target) == (400, "Header X-git-annex-data-length is required")


@pytest.mark.parametrize("action", [action for action in ACTIONS.values() if action is not api.GET])
def test_each_requirement(action: api.Action) -> None:
    parameters = {"key": K, "clientuuid": "c", "timestamp": "1", "lockid": "l"}
    for version in range(action.first_version, api.HIGHEST + 1):
        path = f"/git-annex/{U}/v{version}/{action.name}"
        given = [(name, parameters[name]) for name in action.required]
        assert parse("POST", f"{path}?{'&'.join(map('='.join, given))}", LENGTH).version == version
        for missing in given:
            query = "&".join(f"{name}={value}" for name, value in given if name != missing[0])
            assert refused("POST", f"{path}?{query}", LENGTH) == (400, f"Query parameter {missing[0]} is required")


def test_clients_stay_in_their_directory() -> None:
    for client in ("..%2F..%2Fx", "..", ".", "a%2fb", "%2F", "x" * 300, "[Li4=]", "lck"):
        assert refused("POST", f"/git-annex/{U}/v4/gettimestamp?clientuuid={client}") == (
            400,
            parameter("clientuuid", "not usable as the name of a directory"),
        )
    for client in ("a%00b", "a%0aREMOVE", "a+b"):
        for name in ("", "(s)"):
            query = f"clientuuid={client}" if not name else f"clientuuid=c&bypass={client}"
            which = "clientuuid" if not name else "bypass"
            assert refused("POST", f"/git-annex/{U}/v4/gettimestamp?{query}") == (
                400,
                f"Error parsing query parameter{name} {which} failed: white space or NUL in UUID",
            )


# Anything.


keys = st.binary(max_size=40).filter(lambda name: b"\0" not in name and b"\n" not in name and name[-1:] != b"\r")
words = st.binary(min_size=1, max_size=40).filter(
    lambda word: word.split() == [word] and not set(word) & set(b"\0/") and word not in (b".", b"..", b"lck")
)


@given(
    name=keys, client=words, bypass=st.lists(words, max_size=3), file=st.binary(max_size=40), offset=st.integers(0)
)
def test_what_our_own_client_writes(
    name: bytes, client: bytes, bypass: list[bytes], file: bytes, offset: int
) -> None:
    key = Key(b"WORM--" + name)
    query = [
        ("clientuuid", client),
        *(("bypass", word) for word in bypass),
        ("associatedfile", file),
        ("offset", offset),
    ]
    wanted = {
        "uuid": UUID(client),
        "version": 4,
        "key": key,
        "client": client,
        "bypass": tuple(bypass),
        "file": None if file.startswith(b"/") else file or None,
        "offset": min(offset, (1 << 63) - 1),
    }
    start = f"/git-annex/{urls.encode_value(client)}/v4"
    found = fields(parse("GET", f"{start}/key/{urls.encode_value(key.serialized)}?{urls.query(query)}", {}))
    assert {name: found[name] for name in wanted} == wanted
    query.append(("key", key.serialized))
    found = fields(parse("POST", f"{start}/put?{urls.query(query)}", LENGTH))
    assert {name: found[name] for name in wanted} == wanted


names = "git-annex v4 v0 key clientuuid bypass offset timestamp lockid data-present associatedfile http:// x 1"
signs = "/ ? & ; = % %2F %00 %ff [ ] + # \udcff"
pieces = st.sampled_from([*names.split(), *signs.split(), *ACTIONS, U, K])
targets = st.one_of(
    st.text(st.characters()),
    st.binary(),
    st.lists(pieces).map("".join),
    st.tuples(st.sampled_from(list(ACTIONS)), st.lists(pieces)).map(
        lambda parts: f"/git-annex/{U}/v4/{parts[0]}?" + "".join(parts[1])
    ),
    st.tuples(pieces, st.lists(pieces)).map(lambda parts: f"/git-annex/{parts[0]}/v4/key/" + "".join(parts[1])),
)


@given(
    method=st.sampled_from(["GET", "HEAD", "POST"]) | st.text(),
    target=targets,
    headers=st.dictionaries(st.text(), st.text())
    | st.text(st.characters()).map(lambda text: dict.fromkeys(LENGTH, text)),
)
def test_nothing_but_refusals(method: str, target: str | bytes, headers: dict[str, str]) -> None:
    try:
        request = parse(method, target, headers)
    except Refusal as refusal:
        assert refusal.status in (400, 404, 405)
        return
    found = fields(request)  # all are set
    for name in request.action.required:
        assert found[{"clientuuid": "client"}.get(name, name)] or name == "timestamp" or request.version is None
    assert b"/" not in bytes(request.client)
    assert 0 <= request.offset < 1 << 63


@pytest.mark.parametrize(
    "make",
    [
        lambda n: f"/git-annex/{U}/v4/gettimestamp?clientuuid=" + "%41" * n,
        lambda n: f"/git-annex/{U}/v4/gettimestamp?" + "a&" * n + "clientuuid=c",
        lambda n: f"/git-annex/{U}/v4/gettimestamp?clientuuid=c" + "&bypass=a" * n,
        lambda n: f"/git-annex/{U}/v4/remove-before?key={K}&clientuuid=c&timestamp=" + "9" * n,
        lambda n: f"/git-annex/{U}/key/WORM-s" + "9" * n + "--x",
        lambda n: f"/git-annex/{U}/key/[" + "A" * n + "]",
        lambda n: "/" * n,
        lambda n: "%" * n,
    ],
)
def test_time_is_linear(make: Any) -> None:
    """Far more than a server would let through takes no longer than it should."""
    target = make(100_000)
    start = time.process_time()
    for method in ("GET", "POST"):
        try:
            parse(method, target, {})
        except Refusal:
            pass
    assert time.process_time() - start < 3
