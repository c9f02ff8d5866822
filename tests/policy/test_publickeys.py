"""Only whole public keys get through, and nothing with them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.policy.publickeys import Malformed, PublicKey
from tests.policies import ALICE_KEY, BOB_KEY, CAROL_KEY

RSA_KEY = "ssh-rsa " + base64.b64encode(b"\0\0\0\7ssh-rsa\0\0\0\1\3\0\0\0\2\0\xff").decode()


@pytest.mark.parametrize("text", [ALICE_KEY, BOB_KEY, CAROL_KEY, RSA_KEY])
@pytest.mark.parametrize("comment", ["", " laptop", " a b  c", ' "quoted"'])
def test_keys_come_out_as_they_went_in(text: str, comment: str) -> None:
    assert PublicKey.parse(text + comment).line == text + comment


def test_a_key_is_the_same_whatever_the_comment() -> None:
    key = PublicKey.parse(ALICE_KEY)
    assert key == PublicKey.parse(ALICE_KEY + " x")
    assert {key, PublicKey.parse(ALICE_KEY + " y")} == {key}
    assert key != PublicKey.parse(BOB_KEY)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("", "known type"),
        ("ssh-ed25519", "nothing behind"),
        (" " + ALICE_KEY, "known type"),
        ("restrict " + ALICE_KEY, "options"),
        ('command="x" ' + ALICE_KEY, "options"),
        ("cert-authority " + ALICE_KEY, "options"),
        ("ssh-dss AAAAB3NzaC1kc3M=", "known type"),
        (ALICE_KEY + "\n", "control"),
        (ALICE_KEY + " x\n" + BOB_KEY, "control"),
        (ALICE_KEY + "\r", "control"),
        (ALICE_KEY + " \x00", "control"),
        (ALICE_KEY.replace(" ", "\t"), "control"),
        (ALICE_KEY + " \u2028x", "control"),
        (ALICE_KEY.replace(" ", "  "), "not base64"),
        (ALICE_KEY + "=", "not base64"),
        (ALICE_KEY + "!", "not base64"),
        (ALICE_KEY[:-1], "not base64"),
        (ALICE_KEY[:-4], "cut off"),
        (ALICE_KEY + "AAAA", "cut off"),
        (ALICE_KEY + "AAAAAA==", "cut off"),
        ("ssh-rsa" + ALICE_KEY[11:], "not a key of its type"),
        ("ssh-ed25519" + RSA_KEY[7:], "not a key of its type"),
        (f"ssh-ed25519 {base64.b64encode(bytes([0, 0, 0, 11]) + b'ssh-ed25519').decode()}", "not a key of its type"),
        ("ssh-ed25519 AAAA", "cut off"),
    ],
)
def test_anything_else_is_malformed(line: str, problem: str) -> None:
    with pytest.raises(Malformed, match=problem):
        PublicKey.parse(line)


@given(st.text(max_size=20), st.integers(0, len(ALICE_KEY)), st.integers(0, len(ALICE_KEY)))
def test_what_gets_through_is_one_line_that_begins_with_the_key(text: str, start: int, end: int) -> None:
    try:
        key = PublicKey.parse(ALICE_KEY[:start] + text + ALICE_KEY[end:])
    except Malformed:
        return
    kind, encoded, *_ = key.line.split(" ")
    assert kind == "ssh-ed25519"
    assert base64.b64decode(encoded) == key.blob
    assert len(key.line.splitlines()) == 1
