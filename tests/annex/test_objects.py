from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from annexshell.key import Key
from tests import vectors
from tests.annex.disk import KEY, Disk

TUNED = vectors.load("objects-keys")["tuned"]
SETTINGS: dict[str, dict[str, str]] = {
    "default": {},
    "bare": {},
    "objecthash1": {"annex.tune.objecthash1": "true"},
    "objecthashlower": {"annex.tune.objecthashlower": "true"},
    "objecthash1+objecthashlower": {"annex.tune.objecthash1": "true", "annex.tune.objecthashlower": "true"},
}


@pytest.mark.parametrize("tuning", SETTINGS)
@pytest.mark.parametrize("row", TUNED, ids=lambda row: str(row["key"])[:30])
def test_where_objects_are_stored(tmp_path: Path, row: dict[str, Any], tuning: str) -> None:
    objects = Disk(tmp_path, bare=tuning == "bare", **SETTINGS[tuning]).open().objects
    assert objects.locate(Key(vectors.to_bytes(row["key"]))) == objects.directory + vectors.to_bytes(row[tuning])


MIXED_LOWER, LOWER_MIXED, LOWER = ("mixed", "lower"), ("lower", "mixed"), ("lower",)


@pytest.mark.parametrize(
    ("bare", "settings", "order"),
    [
        (False, {}, MIXED_LOWER),
        (True, {}, LOWER_MIXED),
        (True, {"annex.tune.objecthashlower": "true"}, LOWER_MIXED),
        (False, {"annex.tune.objecthashlower": "true"}, LOWER),
        (False, {"annex.crippledfilesystem": "true", "core.symlinks": "false"}, LOWER_MIXED),
        (False, {"annex.crippledfilesystem": "true"}, MIXED_LOWER),
        (False, {"core.symlinks": "false"}, MIXED_LOWER),
    ],
)
def test_where_objects_are_looked_for(
    tmp_path: Path, bare: bool, settings: dict[str, str], order: tuple[str, ...]
) -> None:
    objects = Disk(tmp_path, bare=bare, **settings).open().objects
    directories = {"mixed": KEY.hashdirs_mixed(), "lower": KEY.hashdirs_lower()}
    wanted = [b"/".join((objects.directory + directories[kind], KEY.filename, KEY.filename)) for kind in order]
    assert list(objects.candidates(KEY)) == wanted
    # The first that exists, else the first.
    assert objects.locate(KEY) == wanted[0]
    for path in reversed(wanted):
        os.makedirs(os.path.dirname(path))
        Path(os.fsdecode(path)).touch()
        assert objects.locate(KEY) == path


def test_chunks_are_beside_each_other(tmp_path: Path) -> None:
    objects = Disk(tmp_path).open().objects
    first, second = (objects.locate(Key(b"SHA256-s10-S4-C%d--x" % n)) for n in (1, 2))
    hashdirs = Key(b"SHA256-s10--x").hashdirs_mixed()
    for path in (first, second):
        assert path.startswith(objects.directory + hashdirs + b"/")
    assert first != second


@pytest.mark.parametrize("settings", [{}, {"annex.tune.objecthash1": "true"}])
def test_pruning_ends_at_what_is_in_use(tmp_path: Path, settings: dict[str, str]) -> None:
    disk = Disk(tmp_path, **settings)
    path = disk.store()
    objects = disk.open().objects
    objects.prune(os.fsencode(path.parent))
    assert path.exists()
    path.parent.chmod(0o755)
    path.unlink()
    top = disk.annexdir / "objects"
    neighbour = next(top.iterdir()) / "neighbour"
    neighbour.mkdir()
    objects.prune(os.fsencode(path.parent))
    assert not path.parent.exists()
    assert neighbour.exists()
    neighbour.rmdir()
    objects.prune(os.fsencode(neighbour))
    path.parent.mkdir(parents=True)
    objects.prune(os.fsencode(path.parent))
    assert list(top.iterdir()) == []
    assert top.exists()
