"""Random conversations, sound and broken, held with the real git-annex-shell and with ours on two equal repositories.

A conversation is one string of bytes that is written in pieces, whatever is answered, and then ended. As a server
answers strictly in order, what comes back is determined by it, and so is what is on disk afterwards: both must agree.
Deliberate deviations (spec: protocol §11) are taken out by name below. More conversations: `--fuzz N`. A failure
prints the conversation; put it into FOUND to hold it for ever.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import os
import re
import shutil
import tarfile
import time
from dataclasses import dataclass, field

import pytest
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from hypothesis import strategies as st

from tests.p2p.conftest import CONTENTS, KEYS
from tests.p2p.driver import Repository

NEW, BAD, SMALL = CONTENTS["new"], CONTENTS["bad"], CONTENTS["small"]
ABSENT = {
    "KN": NEW,
    "KX": NEW,
    "KE": b"",
    "KNOSIZE": NEW,
    "KW": NEW,
    "KF": BAD,
    "KU": SMALL,
    "KU2": SMALL,
    "KSP": SMALL,
}


@dataclass(repr=False)
class Conversation:
    stream: bytes
    pieces: tuple[int, ...] = ()  # lengths of the first writes; the rest is one write
    tmp: dict[str, int] = field(default_factory=dict)  # by name of key: how many bytes of the right content are there
    env: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Shorter than the stream, and still to be pasted into FOUND."""
        shown, end = [], 0
        for run in re.finditer(rb"(?s)(.{1,16}?)\1{19,}", self.stream):
            shown += [repr(self.stream[end : run.start()]), f"{run[1]!r} * {len(run[0]) // len(run[1])}"]
            end = run.end()
        shown.append(repr(self.stream[end:]))
        return f"Conversation({' + '.join(shown)}, {self.pieces}, {self.tmp}, {self.env})"


# What conversations are made of ------------------------------------------------

names = st.sampled_from([b"", b"f", b"a%b", b"d/f%%x", b"../up", b"x\xc3%", b"\xe3\x80\x80", b"/abs", b"a\x01b"])
numbers = st.sampled_from([b"0", b"1", b"5", b"12", b"13", b"007", b"100000", b"199999", b"200001", b"9" * 30])
keys = st.sampled_from([KEYS["KS"], KEYS["KB"], *(KEYS[name] for name in ABSENT)]) | st.sampled_from(
    [
        KEYS["KS"] + b" ",
        b" " + KEYS["KS"],
        b"FOO--/../../x",
        b"FOO--\xff\xfe",
        b"FOO--x\ty",
        b"foo",
        b"FOO-sx--y",
        b"",
    ]
)
VALIDITY = [b"VALID", b"INVALID", b"VALID", b"SUCCESS", b"FOO", b"ERROR x", b"VALID x", b""]
ACKNOWLEDGEMENT = [b"SUCCESS", b"FAILURE", b"SUCCESS-PLUS u", b"FAILURE-PLUS", b"ERROR x", b"VALID", b"FOO"]
WORDS = (
    b"AUTH AUTH-SUCCESS AUTH-FAILURE VERSION BYPASS CHECKPRESENT LOCKCONTENT UNLOCKCONTENT REMOVE REMOVE-BEFORE "
    b"GETTIMESTAMP TIMESTAMP GET PUT PUT-FROM ALREADY-HAVE ALREADY-HAVE-PLUS DATA DATA-PRESENT VALID INVALID SUCCESS "
    b"FAILURE SUCCESS-PLUS FAILURE-PLUS CONNECTDONE CHANGED FOO"
).split()


def lines(*parts: bytes) -> bytes:
    return b"".join(part + b"\n" for part in parts)


@st.composite
def put(draw: st.DrawFn) -> bytes:
    name = draw(st.sampled_from(sorted(ABSENT)))
    content = ABSENT[name]
    first = b"PUT " + draw(names) + b" " + draw(st.just(KEYS[name]) | keys)
    what = draw(
        st.sampled_from(["whole", "whole", "whole", "bad", "probe", "short", "long", "cut", "other", "present"])
    )
    if what == "other":
        return lines(
            first, draw(st.sampled_from([b"CHECKPRESENT " + KEYS["KS"], b"FOO", b"ERROR x", b"DATA", b"VALID"]))
        )
    if what == "present":
        return lines(first, b"DATA-PRESENT")
    offset = draw(st.sampled_from([0, 0, 4000]))
    payload = {
        "whole": content[offset:],
        "bad": BAD[offset:],
        "probe": b"",
        "short": content[:7],
        "long": content + b"xx",
        "cut": content[: len(content) // 2],
    }[what]
    announced = len(content) if what == "cut" else len(payload)
    validity = draw(st.sampled_from(VALIDITY))
    return lines(first, b"DATA %d" % announced) + payload + (lines(validity) if validity else b"")


get = st.builds(
    lambda offset, name, key, answer: lines(b"GET " + offset + b" " + name + b" " + key, *answer),
    *(numbers, names, keys, st.lists(st.sampled_from(ACKNOWLEDGEMENT), max_size=2)),
)
lock = st.builds(
    lambda key, answer: lines(b"LOCKCONTENT " + key, *answer),
    keys,
    st.lists(
        st.sampled_from([b"UNLOCKCONTENT", b"UNLOCKCONTENT", b"UNLOCKCONTENT x", b"FOO", b"ERROR x"]), max_size=1
    ),
)
small = st.one_of(
    st.builds(lambda n: lines(b"VERSION %d" % n), st.integers(0, 6)),
    st.builds(lambda word, key: lines(word + key), st.sampled_from([b"CHECKPRESENT ", b"REMOVE "]), keys),
    st.builds(lambda n, key: lines(b"REMOVE-BEFORE " + n + b" " + key), numbers, keys),
    st.just(b"GETTIMESTAMP\n"),
    st.just(b"BYPASS a b\n"),
)
broken = st.one_of(
    st.binary(max_size=40).map(lambda line: line + b"\n"),
    st.builds(
        lambda word, rest, end: word + b" " + b" ".join(rest) + end,
        st.sampled_from(WORDS),
        st.lists(numbers | names | keys | st.binary(max_size=8), max_size=4),
        st.sampled_from([b"\n", b"\r\n", b"\r\r\n", b" \n"]),
    ),
)
goodbye = st.sampled_from([b"", b"", b"VERSION 4\nVERSION 4\nERROR bye\nCHECKPRESENT " + KEYS["KS"] + b"\n"])


@st.composite
def conversations(draw: st.DrawFn) -> Conversation:
    parts = draw(st.lists(st.one_of(put(), put(), get, lock, small, small, broken), min_size=1, max_size=9))
    stream = draw(st.sampled_from([b"VERSION 4\n", b"VERSION 1\n", b""])) + b"".join(parts)
    if draw(st.integers(0, 3)) == 0 and stream:
        stream = mutate(draw, stream)
    stream += draw(goodbye)
    if draw(st.integers(0, 2)) == 0:
        stream = stream[: draw(st.integers(0, len(stream)))]
    pieces = tuple(draw(st.lists(st.integers(1, 400), max_size=12)))
    tmp = {"KN": draw(st.sampled_from([0, 1, 4000, 10000]))} if draw(st.booleans()) else {}
    mode = draw(st.sampled_from([None] * 6 + ["READONLY", "APPENDONLY"]))
    return Conversation(stream, pieces, tmp, {f"GIT_ANNEX_SHELL_{mode}": "1"} if mode else {})


def mutate(draw: st.DrawFn, stream: bytes) -> bytes:
    place = draw(st.integers(0, len(stream) - 1))
    kind = draw(st.sampled_from(["change", "drop", "insert", "repeat"]))
    byte = bytes([draw(st.sampled_from([0, 9, 10, 13, 32, 37, 45, 47, 48, 57, 65, 127, 160, 255]))])
    if kind == "change":
        return stream[:place] + byte + stream[place + 1 :]
    if kind == "drop":
        return stream[:place] + stream[place + draw(st.integers(1, 30)) :]
    if kind == "insert":
        return stream[:place] + byte + stream[place:]
    return stream[:place] + stream[max(0, place - 50) :]


# What is left out ------------------------------------------------

NUMBER_LINE = re.compile(rb"(?m)^(VERSION|GET|DATA|PUT-FROM|TIMESTAMP|REMOVE-BEFORE|CONNECTDONE)[ \t\v\f\r]([^\n]*)")
PLAIN_NUMBER = re.compile(rb"[0-9]+(?:[ \t\v\f\r]|\Z)")
# What the real one reads as a number, and more: R5.
LAX_NUMBER = re.compile(rb"[ \t\v\f\r(]*-?[ \t\v\f\r(]*[0-9]")


def has_lax_number(stream: bytes) -> bool:
    """R5. What only looks so, inside a payload, is left out as well."""
    for word, rest in NUMBER_LINE.findall(stream):
        rest = rest.removesuffix(b"\r")
        # A single parameter is the whole rest of the line, a space behind the number is part of it.
        plain = PLAIN_NUMBER.match(rest) if word in (b"GET", b"REMOVE-BEFORE") else rest.isdigit()
        if LAX_NUMBER.match(rest) and not plain:
            return True
    return False


def has_nul(stream: bytes) -> bool:
    """Keys with a NUL byte are unparsable to ours; the real server ends when it comes to storing their content."""
    return re.search(rb"(?m)^[A-Z-]+[ \t\v\f\r][^\n]*\0", stream) is not None


def is_relayed(stream: bytes) -> bool:
    return re.search(rb"(?m)^(CONNECT|NOTIFYCHANGE)\b(?!DONE)", stream) is not None


def went_on_after_error(real: Result, ours: Result, stream: bytes) -> bool:
    """R10: the real server ended because a client's ERROR followed its own, and ours went on."""
    last = real.transcript.splitlines()[-1:]
    return (
        re.search(rb"(?m)^ERROR\b", stream) is not None
        and real.exit_code == 0
        and bool(last)
        and last[0].startswith(b"ERROR ")
        and ours.transcript.startswith(real.transcript)
    )


RETENTION = (".lck", ".rtm", ".rtl")


def ended_locked(stream: bytes) -> bool:
    """R4: the last whole line of the conversation locked content."""
    return re.search(rb"(?:\A|\n)LOCKCONTENT[ \t\v\f\r][^\n]*\n[^\n]*\Z", stream) is not None


# The comparison ------------------------------------------------


@dataclass
class Result:
    transcript: bytes
    exit_code: int
    disk: dict[str, object]
    kept: list[str]  # lock and retention files
    errors: bytes


def hold(programs, template: Repository, path, kind: str, conversation: Conversation) -> Result:
    """Hold the conversation on a copy of the repository, which is then deleted."""
    path.mkdir()
    repository = template.copy_to(path / "repository")
    for name, length in conversation.tmp.items():
        repository.put_tmp(KEYS[name], ABSENT[name][:length])
    # R1: in the C locale the real server splits at ASCII spaces only.
    env = {**conversation.env, **({"LC_ALL": "C"} if kind == "real" else {})}
    with programs.server(repository, kind=kind, env=env) as server:
        rest = memoryview(conversation.stream)
        for length in conversation.pieces:
            server.send(bytes(rest[:length]))
            rest = rest[length:]
            time.sleep(0.0005)
        server.send(bytes(rest))
        server.close()
        transcript = re.sub(rb"(?m)^TIMESTAMP [0-9]+$", b"TIMESTAMP n", server.read_all())
        code = server.exit_code()
        result = Result(transcript, code, snapshot(repository), kept(repository), server.errors)
    shutil.rmtree(path)
    return result


def kept(repository: Repository) -> list[str]:
    return sorted(name for name in repository.files("objects") if name.endswith(RETENTION))


def snapshot(repository: Repository) -> dict[str, object]:
    found: dict[str, object] = {"journal": sorted(repository.journal()), "held": repository.held_locks()}
    for name, content in repository.files("objects", "tmp", "othertmp").items():
        if not name.endswith(RETENTION):
            found[name] = (*content, oct((repository.annex / name).stat().st_mode))
    for name in repository.files("transfer"):
        text = (repository.annex / name).read_bytes()
        found[name] = text.split(b"\n")[1:] if not os.path.basename(name).startswith("lck.") else text
    with tarfile.open(fileobj=io.BytesIO(repository.git("archive", "--format=tar", "git-annex"))) as branch:
        for member in branch:
            if member.isfile():
                text = branch.extractfile(member).read()
                found["branch:" + member.name] = sorted(
                    re.sub(rb"[0-9.]+s\b", b"TIME", line) for line in text.splitlines()
                )
    return found


def compare(programs, template, base, counter, conversation: Conversation) -> bool:
    """Asserts that both agree; False where ours went on and that cannot be said."""
    real = hold(programs, template, base / f"real{next(counter)}", "real", conversation)
    ours = hold(programs, template, base / f"ours{next(counter)}", programs.kind, conversation)
    if real.transcript != ours.transcript and went_on_after_error(real, ours, conversation.stream):
        return False
    outputs = f"\nreal: {real.transcript!r} {real.errors[-500:]!r}\nours: {ours.transcript!r} {ours.errors[-500:]!r}"
    assert ours.transcript == real.transcript, outputs
    assert ours.exit_code == real.exit_code, outputs
    assert difference(real.disk, ours.disk) == {}, outputs
    assert real.kept == []
    if ours.kept:
        assert ended_locked(conversation.stream)
        assert {os.path.splitext(name)[1] for name in ours.kept} <= set(RETENTION)
        assert len({os.path.splitext(name)[0] for name in ours.kept}) == 1
    return True


def difference(real: dict[str, object], ours: dict[str, object]) -> dict[str, tuple[object, object]]:
    """By name: what the real one left and what ours left."""
    return {
        name: (real.get(name), ours.get(name))
        for name in real.keys() | ours.keys()
        if real.get(name) != ours.get(name)
    }


def fuzz(examples: int, request: pytest.FixtureRequest):
    """The settings: failures are only made smaller, which takes minutes, when --fuzz asked for it."""
    phases = (Phase.explicit, Phase.generate, *((Phase.shrink,) if request.config.getoption("fuzz") > 40 else ()))
    return settings(
        max_examples=examples,
        phases=phases,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        print_blob=True,
        database=None,
    )


@pytest.mark.timeout(3600)
def test_both_servers_agree(programs, template, tmp_path, fuzz_examples, request):
    counter = itertools.count()

    @fuzz(fuzz_examples, request)
    @given(conversations())
    def check(conversation: Conversation) -> None:
        assume(not has_lax_number(conversation.stream))
        assume(not has_nul(conversation.stream))
        assume(not is_relayed(conversation.stream))
        assume(compare(programs, template, tmp_path, counter, conversation))

    check()


@pytest.mark.timeout(3600)
def test_both_servers_know_the_same_lines(programs, template, tmp_path, fuzz_examples, request):
    """Many lines in one conversation, most of them at the top level and wrong."""
    counter = itertools.count()
    line = broken.filter(
        lambda line: not (has_lax_number(line) or has_nul(line) or is_relayed(line) or line.startswith(b"ERROR"))
    )

    @fuzz(fuzz_examples // 4, request)
    @given(st.lists(line, min_size=50, max_size=300))
    def check(sent: list[bytes]) -> None:
        stream = b"VERSION 4\n" + b"".join(sent)
        assume(compare(programs, template, tmp_path, counter, Conversation(stream)))

    check()


@pytest.mark.timeout(3600)
def test_broken_conversations_do_no_harm(programs, template, tmp_path, fuzz_examples, request):
    """With everything that is left out above: ours ends in time, holds no lock, loses and invents no content."""
    counter = itertools.count()
    good = {hashlib.sha256(content).hexdigest() for content in CONTENTS.values()}

    @fuzz(fuzz_examples // 2, request)
    @given(conversations(), st.lists(st.integers(0, 10000), max_size=4), st.binary(max_size=60))
    def check(conversation: Conversation, places: list[int], junk: bytes) -> None:
        for place in places:
            at = place % (len(conversation.stream) + 1)
            conversation.stream = conversation.stream[:at] + junk + conversation.stream[at:]
        path = tmp_path / f"{next(counter)}"
        result = hold(programs, template, path, programs.kind, conversation)
        note(f"{result.transcript!r}, exit {result.exit_code}, {result.errors[-500:]!r}")
        assert result.exit_code in (0, 1)
        assert b"Traceback" not in result.errors and b"internal error" not in result.errors
        assert result.disk["held"] == [] and result.disk["journal"] == []
        for name, what in result.disk.items():
            # What junk made a key of another backend cannot be verified.
            if name.startswith("objects/") and name.rpartition("/")[2].startswith("SHA256E-"):
                assert what[1] in good and what[1] in name

    check()


# Conversations that once were answered differently.
FOUND = [
    Conversation(b"AUTH\nAUTH x\n"),
    Conversation(b"VERSION 4\nPUT  URL-s50--x\nDATA 3\nabcFOO\nERROR x\nCHECKPRESENT " + KEYS["KS"] + b"\n"),
]


@pytest.mark.parametrize("conversation", FOUND, ids=lambda conversation: repr(conversation.stream[:60]))
def test_found(conversation, programs, template, tmp_path):
    assert compare(programs, template, tmp_path, itertools.count(), conversation)
