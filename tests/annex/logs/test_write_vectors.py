"""What the real program was seen to write, one change after the other in one repository."""

from __future__ import annotations

import pytest

from annexshell.annex import journal
from annexshell.annex.logs import clock, cluster, location, newmap, proxy, remote, single, uuidmap
from annexshell.key import Key
from annexshell.uuid import UUID
from tests import vectors
from tests.vectors import to_bytes

STEPS = vectors.load("branch-log-write")
HERE = UUID(b"eeeeeeee-5555-4555-8555-eeeeeeeeeeee")
B = UUID(b"bbbbbbbb-2222-4222-8222-bbbbbbbbbbbb")
TRUST = {b"trust": b"1", b"untrust": b"0", b"semitrust": b"?", b"dead": b"X"}
SINGLE = {b"numcopies": single.NUMCOPIES, b"mincopies": single.MINCOPIES}
MAXSIZES = {b"1gb": b"1000000000", b"0": b"0"}


def with_members(change):
    """group.log after CHANGE was made to the groups that the repository was in."""
    return lambda old, now: uuidmap.with_groups(old, HERE, change(uuidmap.groups(old).get(HERE, frozenset())), now)


def changes(command, written):
    """Branch file -> function from (content, clock) to the new content, of what a command does.

    Of a command that looks at other repositories, what it found there is taken from what it wrote.
    """
    verb, *words = map(to_bytes, command[1:])
    if verb == b"setpresentkey":
        key, uuid, status = words
        path = b"%s/%s.log" % (Key(key).hashdirs_lower(), Key(key).filename)
        return {path: lambda old, now: location.with_status(old, uuid, status, now)}
    if verb == b"describe":
        return {uuidmap.UUIDS: lambda old, now: uuidmap.with_description(old, HERE, words[1], now)}
    if verb in TRUST:
        found = {uuidmap.TRUST: lambda old, now: uuidmap.with_trust(old, HERE, TRUST[verb], now)}
        if verb == b"dead":
            found[uuidmap.GROUP] = with_members(lambda _: ())
        return found
    if verb == b"group":
        return {uuidmap.GROUP: with_members(lambda groups: groups | {words[1]})}
    if verb == b"ungroup":
        return {uuidmap.GROUP: with_members(lambda groups: groups - {words[1]})}
    if verb == b"wanted":
        return {uuidmap.PREFERRED_CONTENT: lambda old, now: uuidmap.with_value(old, HERE, words[1], now)}
    if verb == b"required":
        return {uuidmap.REQUIRED_CONTENT: lambda old, now: uuidmap.with_value(old, HERE, words[1], now)}
    if verb == b"groupwanted":
        return {newmap.GROUP_PREFERRED_CONTENT: lambda old, now: newmap.with_value(old, words[0], words[1], now)}
    if verb == b"config":
        value = words[2] if words[0] == b"--set" else b""
        return {newmap.CONFIG: lambda old, now: newmap.with_config(old, words[1], value, now)}
    if verb in SINGLE:
        return {SINGLE[verb]: lambda old, now: single.with_value(old, int(words[0]), now)}
    if verb == b"maxsize":
        return {newmap.MAXSIZE: lambda old, now: newmap.with_value(old, HERE, MAXSIZES[words[1]], now)}
    if verb == b"initremote":
        new = remote.parse(to_bytes(written["remote.log"]))
        ((uuid, settings),) = new.items()
        return {
            remote.FILE: lambda old, now: remote.with_settings(old, uuid, settings, now),
            uuidmap.UUIDS: lambda old, now: uuidmap.with_description(old, uuid, b"rs", now),
        }
    if verb in (b"updateproxy", b"updatecluster"):
        remotes = proxy.parse(to_bytes(written["proxy.log"]))[HERE]
        found = {proxy.FILE: lambda old, now: proxy.with_proxied(old, HERE, reversed(remotes), now)}
        if verb == b"updatecluster":
            ((name, _),) = cluster.parse(to_bytes(written["cluster.log"])).items()
            found[cluster.FILE] = lambda old, now: cluster.with_nodes(old, name, [B], now)
        return found
    assert verb == b"initcluster"
    (new_uuid,) = (u for u in uuidmap.values(to_bytes(written["uuid.log"])) if cluster.is_cluster(u))
    return {uuidmap.UUIDS: lambda old, now: uuidmap.with_description(old, new_uuid, b"cluster mycl", now)}


@pytest.fixture(scope="module")
def replayed():
    """For every step, what it wrote."""
    files: dict[bytes, bytes] = {}
    seen = []
    for step in STEPS:
        now = clock.parse(to_bytes(step["clock"]))
        written = {}
        for path, function in changes(step["command"], step["changed_journal_files"]).items():
            new = function(files.get(path, b""), now)
            if new is not None:
                files[path] = written[journal.file_name(path)] = new
        seen.append(written)
    return seen


@pytest.mark.parametrize("number", range(len(STEPS)), ids=lambda n: f"{n}-{STEPS[n]['command'][1]}")
def test_the_same_journal_files_are_written(replayed, number):
    wanted = STEPS[number]["changed_journal_files"]
    assert replayed[number] == {to_bytes(name): to_bytes(content) for name, content in wanted.items()}
