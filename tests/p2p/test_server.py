"""The server's side of every exchange, against a repository in memory."""

from __future__ import annotations

import pytest

from annexshell.access import APPEND_ONLY, READ_ONLY
from annexshell.errors import ContentLocked, Hangup, ProtocolError, RepositoryError, TransferRefused
from annexshell.key import Key
from annexshell.p2p import messages as m
from annexshell.p2p import server
from annexshell.relay import ShortSource
from annexshell.uuid import UUID
from tests.p2p.fakes import MemoryRepository, converse

KEY = Key(b"SHA256-s5--present")
ABSENT = Key(b"SHA256-s5--absent")
K, A = KEY.serialized, ABSENT.serialized
BIG = b"x" * 200_000
PLUS = (UUID(b"u1"), UUID(b"u2"))


def repository(**options):
    return MemoryRepository({KEY: b"hello"}, **options)


# What the client says, and what it hears.
CONVERSATIONS = [
    (b"CHECKPRESENT %s\nCHECKPRESENT %s\n" % (K, A), b"SUCCESS\nFAILURE\n"),
    (b"VERSION 9\nVERSION 2\nVERSION 0\n", b"VERSION 4\nVERSION 2\nVERSION 0\n"),
    (b"VERSION 99999999999999999999999\n", b"VERSION 4\n"),
    (b"BYPASS\nBYPASS a b\nGETTIMESTAMP\n", b"TIMESTAMP 1000\n"),
    (b"nonsense\n\nGETTIMESTAMP x\n", b"ERROR unknown command\n" * 3),
    (b"SUCCESS\nDATA 5\nUNLOCKCONTENT\nAUTH a b\n", b"ERROR unexpected command\n" * 4),
    (b"UNLOCKCONTENT %s\n" % K, b"ERROR unknown command\n"),
    (b"ERROR any\nGETTIMESTAMP\n", b""),
    # A client answers our ERROR with one of its own and goes on; a second one is meant (R10).
    (b"nonsense\nERROR no\nGETTIMESTAMP\nERROR end\nGETTIMESTAMP\n", b"ERROR unknown command\nTIMESTAMP 1000\n"),
    (b"nonsense\nERROR no\nERROR end\nGETTIMESTAMP\n", b"ERROR unknown command\n"),
    # Locks.
    (b"LOCKCONTENT %s\nGETTIMESTAMP\n" % A, b"FAILURE\nTIMESTAMP 1000\n"),
    (b"LOCKCONTENT %s\nUNLOCKCONTENT\nGETTIMESTAMP\n" % K, b"SUCCESS\nTIMESTAMP 1000\n"),
    (b"LOCKCONTENT %s\nGETTIMESTAMP\n" % K, b"SUCCESS\nERROR expected UNLOCKCONTENT\n"),
    (b"LOCKCONTENT %s\nnonsense\nGETTIMESTAMP\n" % K, b"SUCCESS\nERROR expected UNLOCKCONTENT\nTIMESTAMP 1000\n"),
    # Removal.
    (b"REMOVE %s\nCHECKPRESENT %s\nREMOVE %s\n" % (K, K, A), b"SUCCESS\nFAILURE\nSUCCESS\n"),
    (b"REMOVE-BEFORE 1000 %s\nREMOVE-BEFORE 1001 %s\n" % (K, K), b"FAILURE\nSUCCESS\n"),
    (b"REMOVE-BEFORE -5 %s\n" % K, b"FAILURE\n"),
    # Sending, at each version.
    (b"GET 0  %s\nSUCCESS\nGETTIMESTAMP\n" % K, b"DATA 5\nhelloTIMESTAMP 1000\n"),
    (b"VERSION 1\nGET 2 a%%b %s\nFAILURE\nGETTIMESTAMP\n" % K, b"VERSION 1\nDATA 3\nlloVALID\nTIMESTAMP 1000\n"),
    (b"VERSION 1\nGET 5  %s\nSUCCESS\n" % K, b"VERSION 1\nDATA 0\nVALID\n"),
    (b"VERSION 1\nGET 9  %s\nFAILURE\nGETTIMESTAMP\n" % A, b"VERSION 1\nDATA 0\nINVALID\nTIMESTAMP 1000\n"),
    (b"GET 0  %s\nFAILURE\nGETTIMESTAMP\n" % A, b"DATA 0\nTIMESTAMP 1000\n"),
    (b"GET 0  %s\nGETTIMESTAMP\n" % K, b"DATA 5\nhelloERROR expected SUCCESS or FAILURE\n"),
    (b"GET 0  %s\nSUCCESS-PLUS a\n" % K, b"DATA 5\nhelloERROR expected SUCCESS or FAILURE\n"),
    (b"VERSION 2\nGET 0  %s\nSUCCESS-PLUS a\nGETTIMESTAMP\n" % K, b"VERSION 2\nDATA 5\nhelloVALID\nTIMESTAMP 1000\n"),
    (
        b"VERSION 2\nGET 0  %s\nnonsense\n" % K,
        b"VERSION 2\nDATA 5\nhelloVALID\nERROR expected SUCCESS or SUCCESS-PLUS or FAILURE or FAILURE-PLUS\n",
    ),
    (b"GET 0  %s\nERROR no\nGETTIMESTAMP\n" % K, b"DATA 5\nhelloTIMESTAMP 1000\n"),
    # Receiving.
    (b"PUT  %s\nGETTIMESTAMP\n" % K, b"ALREADY-HAVE\nTIMESTAMP 1000\n"),
    (b"PUT  %s\nDATA 3\nabcGETTIMESTAMP\n" % A, b"PUT-FROM 0\nSUCCESS\nTIMESTAMP 1000\n"),
    (
        b"VERSION 1\nPUT f %s\nDATA 3\nabcVALID\nGET 0  %s\n" % (A, A),
        b"VERSION 1\nPUT-FROM 0\nSUCCESS\nDATA 3\nabcVALID\n",
    ),
    (b"VERSION 1\nPUT  %s\nDATA 3\nabcINVALID\n" % A, b"VERSION 1\nPUT-FROM 0\nFAILURE\n"),
    (
        b"VERSION 1\nPUT  %s\nDATA 3\nabcGETTIMESTAMP\nGETTIMESTAMP\n" % A,
        b"VERSION 1\nPUT-FROM 0\nERROR expected VALID or INVALID\nSUCCESS\nTIMESTAMP 1000\n",
    ),
    (b"VERSION 1\nPUT  %s\nDATA 3\nabc" % A, b"VERSION 1\nPUT-FROM 0\nSUCCESS\n"),
    (b"PUT  %s\nGETTIMESTAMP\nGETTIMESTAMP\n" % A, b"PUT-FROM 0\nERROR expected DATA\nTIMESTAMP 1000\n"),
    (b"PUT  %s\nERROR no\nGETTIMESTAMP\n" % A, b"PUT-FROM 0\nTIMESTAMP 1000\n"),
    (b"VERSION 3\nPUT  %s\nDATA-PRESENT\n" % A, b"VERSION 3\nPUT-FROM 0\nERROR expected DATA\n"),
    (b"VERSION 4\nPUT  %s\nDATA-PRESENT\n" % A, b"VERSION 4\nPUT-FROM 0\nFAILURE\n"),
]


@pytest.mark.parametrize(("said", "heard"), CONVERSATIONS, ids=lambda value: repr(value)[2:60])
def test_conversations(said, heard):
    assert converse(repository(), said) == (heard, None)


def test_every_request_has_a_handler_and_nothing_else():
    requests = {
        *(m.Version, m.Bypass, m.CheckPresent, m.LockContent, m.Remove, m.RemoveBefore),
        *(m.GetTimestamp, m.Get, m.Put, m.Connect, m.NotifyChange),
    }
    assert set(server.Server.handlers) == requests


E1 = b"ERROR this repository is read-only; write access denied\n"
E2 = b"ERROR this repository is append-only; removal denied\n"


@pytest.mark.parametrize(
    ("access", "put", "remove"), [(READ_ONLY, E1, E1), (APPEND_ONLY, b"PUT-FROM 0\nSUCCESS\n", E2)]
)
def test_modes(access, put, remove):
    for key in (K, A):
        before = b"REMOVE-BEFORE 9999 %s\nREMOVE %s\n" % (key, key)
        assert converse(repository(), before, access=access) == (remove * 2, None)
    said = b"PUT  %s\n" % A + (b"DATA 2\nab" if access is APPEND_ONLY else b"")
    assert converse(repository(), said, access=access) == (put, None)
    allowed = b"CHECKPRESENT %s\nLOCKCONTENT %s\nUNLOCKCONTENT\nGET 0  %s\nSUCCESS\n" % (K, K, K)
    assert converse(repository(), allowed, access=access) == (b"SUCCESS\nSUCCESS\nDATA 5\nhello", None)
    assert converse(repository(), b"CONNECT git-receive-pack\nGETTIMESTAMP\n", access=access) == (E1, None)


def test_unlocking_and_hanging_up_are_different():
    for said, how in ((b"UNLOCKCONTENT\n", "unlock"), (b"x\n", "unlock"), (b"", "keep"), (b"y" * 40000, "keep")):
        served = repository()
        converse(served, b"LOCKCONTENT %s\n" % K + said)
        assert served.events == ["lock", how]


def test_plus_replies_need_version_2():
    said = b"REMOVE %s\nPUT  %s\nREMOVE-BEFORE 1 %s\n" % (A, K, K)
    assert converse(repository(uuids=PLUS), b"VERSION 2\n" + said)[0] == (
        b"VERSION 2\nSUCCESS-PLUS u1 u2\nALREADY-HAVE-PLUS u1 u2\nFAILURE-PLUS u1 u2\n"
    )
    assert converse(repository(uuids=PLUS), said)[0] == b"SUCCESS\nALREADY-HAVE\nFAILURE\n"


def test_content_that_changed_is_declared_invalid():
    served = repository()
    served.valid = False
    assert converse(served, b"VERSION 1\nGET 0  %s\nFAILURE\n" % K)[0] == b"VERSION 1\nDATA 5\nhelloINVALID\n"
    assert ("acknowledged", False) in served.events


@pytest.mark.parametrize("content", [b"hello", BIG])
def test_content_that_becomes_shorter_ends_the_connection(content):
    served = MemoryRepository({KEY: content})
    served.fail["short"] = len(content) - 1
    heard, error = converse(served, b"VERSION 1\nGET 0  %s\n" % K)
    assert isinstance(error, ShortSource)
    assert b"VALID" not in heard
    assert served.events[-1] == "sent"


def test_hanging_up_in_the_payload():
    served = repository()
    heard, error = converse(served, b"VERSION 1\nPUT  %s\nDATA 10\nabc" % A)
    assert heard == b"VERSION 1\nPUT-FROM 0\nFAILURE\n"
    assert isinstance(error, Hangup)
    assert served.partial[ABSENT] == b"abc"
    assert served.events == ["uploaded"]


@pytest.mark.parametrize("step", ["receive", "store"])
@pytest.mark.parametrize(
    "error", [TransferRefused("full"), OSError(28, "No space left on device"), RepositoryError("x")]
)
def test_a_failing_store_leaves_the_connection_in_step(step, error):
    served = repository()
    served.fail[step] = error
    said = b"VERSION 1\nPUT  %s\nDATA 200000\n%sVALID\nGETTIMESTAMP\n" % (A, BIG)
    heard, ended = converse_large(served, said)
    assert (heard, ended) == (b"VERSION 1\nPUT-FROM 0\nFAILURE\nTIMESTAMP 1000\n", None)


def converse_large(served, said):
    import threading

    from tests.p2p.fakes import Talk

    with Talk(served, greet=False) as talk:
        writer = threading.Thread(target=lambda: (talk.say_all(said), talk.hang_up()))
        writer.start()
        writer.join(10)
        return talk.finish(), talk.error


def test_an_overlong_line_in_place_of_the_validity_ends_the_session():
    heard, error = converse(repository(), b"VERSION 1\nPUT  %s\nDATA 3\nabc" % A + b"x" * 40000 + b"\nGETTIMESTAMP\n")
    assert heard == b"VERSION 1\nPUT-FROM 0\n"
    assert isinstance(error, ProtocolError)


@pytest.mark.parametrize("error", [RepositoryError("database is locked"), OSError(13, "Permission denied")])
def test_content_that_cannot_be_sent_is_not_available(error):
    served = repository()
    served.fail["get"] = error
    said = b"VERSION 1\nGET 0  %s\nFAILURE\nGETTIMESTAMP\n" % K
    assert converse(served, said) == (b"VERSION 1\nDATA 0\nINVALID\nTIMESTAMP 1000\n", None)


def test_what_refuses_a_put_is_told_before_anything_is_sent():
    served = repository()
    served.fail["put"] = TransferRefused("transfer already in progress")
    assert converse(served, b"PUT  %s\nGETTIMESTAMP\n" % A) == (
        b"ERROR transfer already in progress\nTIMESTAMP 1000\n",
        None,
    )


def test_locked_content_is_not_removed():
    served = repository()
    served.fail["remove"] = ContentLocked("content is locked")
    assert converse(served, b"REMOVE %s\nGETTIMESTAMP\n" % K) == (b"FAILURE\nTIMESTAMP 1000\n", None)


def test_a_failing_removal_says_why_without_paths():
    served = repository()
    served.fail["remove"] = OSError(30, "Read-only file system", b"/secret/path")
    assert converse(served, b"REMOVE %s\n" % K)[0] == b"ERROR removal failed: Read-only file system\n"


def test_presence_that_cannot_be_told_is_never_called_absence():
    served = repository()
    served.fail["checkpresent"] = RepositoryError("input/output error")
    heard, error = converse(served, b"VERSION 1\nCHECKPRESENT %s\n" % K)
    assert (heard, type(error)) == (b"VERSION 1\n", ProtocolError)
    heard, error = converse(served, b"VERSION 2\nCHECKPRESENT %s\nGETTIMESTAMP\n" % K)
    assert (heard, error) == (b"VERSION 2\nERROR input/output error\nTIMESTAMP 1000\n", None)


@pytest.mark.parametrize("said", [b"NOTIFYCHANGE\n", b"CONNECT git-upload-pack\n", b"x" * 40000])
def test_what_ends_the_session(said):
    heard, error = converse(repository(), said + b"GETTIMESTAMP\n")
    assert heard == b""
    assert isinstance(error, ProtocolError)


def test_acknowledgements_reach_the_repository():
    for said, expected in ((b"SUCCESS\n", True), (b"FAILURE\n", False)):
        served = repository()
        converse(served, b"GET 0 dir/file %s\n" % K + said)
        assert served.events == [("get", 0, b"dir/file"), ("acknowledged", expected), "sent"]
    for said in (b"", b"ERROR x\n", b"nonsense\n"):
        served = repository()
        converse(served, b"GET 0  %s\n" % K + said)
        assert served.events == [("get", 0, None), "sent"]
