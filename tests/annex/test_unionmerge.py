"""Union merges of log files."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from annexshell.annex.unionmerge import union
from tests import vectors
from tests.vectors import to_bytes

ROWS = vectors.load("branch-union-merge")
CONTENT = st.lists(st.sampled_from([b"a", b"b", b"c\r", b"", b"\xff", b"d d"])).map(b"\n".join)


def lines(content: bytes) -> set[bytes]:
    return set(content.removesuffix(b"\n").split(b"\n")) if content else set()


@pytest.mark.parametrize("row", [r for r in ROWS if r["local"] is not None and r["remote"] is not None], ids=str)
def test_union(row):
    assert union(to_bytes(row["local"]), to_bytes(row["remote"])) == to_bytes(row["merged"])


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_in_the_branch(annex, row):
    """The journal has our version, and the other one arrives by a push."""
    if row["remote"] is not None:
        annex.push({"other.log": b"x\n", "uuid.log": to_bytes(row["remote"])})
    if row["local"] is not None:
        # Whole lines only: what follows the last line end of a journal file is not ours to commit.
        local = to_bytes(row["local"])
        annex.leave_in_journal("uuid.log", local if local.endswith(b"\n") or not local else local + b"\n")
    else:
        annex.leave_in_journal("trust.log", b"x\n")
    assert annex.commit()
    merged = to_bytes(row["merged"])
    if row["name"].startswith("missing final newline"):
        merged = merged.removesuffix(b"\n") + b"\n"
    assert annex.tree()["uuid.log"] == merged


@given(CONTENT, CONTENT)
def test_nothing_is_lost_and_nothing_added(ours, theirs):
    assert lines(union(ours, theirs)) == lines(ours) | lines(theirs)
    assert union(ours, ours) == ours
    assert lines(union(theirs, ours)) == lines(union(ours, theirs))
