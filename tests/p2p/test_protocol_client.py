"""What git-annex clients of two versions said in everyday commands, said again to our server.

The contents of the recording are not kept, only their lengths: each key is replaced by one of the same shape, of
content made up here.
"""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests import vectors
from tests.p2p.driver import Repository, sha256e
from tests.p2p.steps import Player

CLIENTS = vectors.load("protocol-clients")
SESSIONS = [s for s in CLIENTS["sessions"] if s["server"] == "10.20261026" and s["connections"]]

# What comes from ours in place of the end of the session: R10 and R3 (spec: protocol §11). By client and title.
GOES_ON: list[list[Any]] = [["s", "FAILURE"], ["c", None], ["s", None]]
BETTER = {
    ("10.20261026", "copy two files to a read-only server"): GOES_ON,
    ("10.20230126", "copy two files to a read-only server"): GOES_ON,
    ("10.20261026", "drop --from while another process holds the content lock"): GOES_ON,
    ("10.20230126", "drop --from while another process holds the content lock"): GOES_ON,
    ("10.20230126", "drop --from a read-only server"): [["c", None], ["s", None]],
    ("10.20230126", "drop --from an append-only server, two files"): [
        ["c", "REMOVE {K2}"],
        ["s", "ERROR this repository is append-only; removal denied"],
        ["c", None],
        ["s", None],
    ],
}
LOCKED = "drop --from while another process holds the content lock"


class Replay(Player):
    """A player that knows the contents of the keys in use."""

    def __init__(self, server, placeholders, by_key, clock):
        super().__init__(server, placeholders, {})
        self.by_key = by_key
        self.content = b""
        self.clock = clock

    def step(self, kind, what=None, payload=None):
        if kind == "c" and what and what.split(" ")[0] in ("GET", "PUT"):
            self.content = self.by_key[self.fill(what).rsplit(b" ", 1)[1]]
        super().step(kind, what, payload)

    def expect(self, line):
        if line != "TIMESTAMP {T}":
            return super().expect(line)
        got = self.server.read_line()
        assert got is not None and got.startswith(b"TIMESTAMP ")
        self.placeholders["T+599"] = b"%d" % (int(got[10:]) + 599)
        return None

    def payload(self, payload):
        return self.content[len(self.content) - payload["len"] :]

    def expect_data(self, payload):
        assert self.server.read(payload["len"]) == self.payload(payload)


def made_up(keys):
    """By placeholder: a key of the same size and extension, and its content."""
    found = {}
    for placeholder, recorded in keys.items():
        fields, name = recorded.split("--", 1)
        extension = name[64:]
        content = random.Random(recorded).randbytes(int(fields.split("-s")[1]))
        found[placeholder.strip("{}")] = (sha256e(content, extension.encode()), content)
    return found


def prepare(repository, steps, keys):
    """Bring the server to the state that its recorded replies tell of."""
    seen = set()
    for number, step in enumerate(steps):
        if step[0] != "c" or not step[1]:
            continue
        word, key = step[1].split(" ")[0], step[1].split(" ")[-1]
        reply = str(steps[number + 1][1]) if number + 1 < len(steps) else ""
        name = key.strip("{}")
        if name not in keys or name in seen:
            continue
        if word != "CHECKPRESENT" or reply == "SUCCESS":
            seen.add(name)
        real_key, content = keys[name]
        if reply.startswith("PUT-FROM ") and reply != "PUT-FROM 0":
            repository.put_tmp(real_key, content[: int(reply[9:])])
        present = (
            (word in ("CHECKPRESENT", "LOCKCONTENT", "REMOVE", "REMOVE-BEFORE") and reply == "SUCCESS")
            or (word == "REMOVE" and (reply == "None" or reply.startswith("ERROR")))
            or (word == "GET" and reply != "DATA 0")
        )
        if present and not repository.object(real_key):
            source = repository.path.parent / "content"
            source.write_bytes(content)
            repository.git_annex("setkey", real_key, str(source))


@pytest.mark.parametrize("session", SESSIONS, ids=lambda session: f"{session['client'][3:7]} {session['title']}")
def test_session(session, repository, serve, server_kind):
    keys = made_up(session["keys"])
    by_key = dict(keys.values())
    other = repository.copy_to(repository.path.parent / "other")
    other.set_config("annex.uuid", "22222222-3333-4444-5555-666666666666")
    other = Repository(other.path, other.programs)
    places = {"{DIR}": repository, "{DIR2}": other}
    clock: dict[str, bytes] = {}
    placeholders = {
        **{name: key for name, (key, _) in keys.items()},
        "SERVERUUID": repository.uuid.encode(),
        "SERVERUUID2": other.uuid.encode(),
    }

    connections = [list(connection["steps"]) for connection in session["connections"]]
    for steps, connection in zip(connections, session["connections"], strict=True):
        prepare(places[connection["argv"][2]], steps, keys)
    exits = [connection["server_exit"] for connection in session["connections"]]
    better = BETTER.get((session["client"], session["title"]))
    if server_kind == "ours" and better:
        steps = connections[0]
        steps[steps.index(["s", None]) :] = better
        exits[0] = 0
    order = session.get("order") or [[0, number] for number in range(len(connections[0]))]

    players: dict[int, Replay] = {}
    holder = serve() if session["title"] == LOCKED else None
    try:
        if holder:
            holder.open(repository)
            assert holder.ask(b"LOCKCONTENT " + placeholders["K1"]) == b"SUCCESS"
        for connection, number in order:
            if connection not in players:
                where = places[session["connections"][connection]["argv"][2]]
                words = ("--uuid", where.uuid)
                server = serve(where, env=session.get("server_env"), words=words)
                players[connection] = Replay(server, placeholders, by_key, clock)
            step = connections[connection][number]
            if step == ["c", None]:
                players[connection].server.close()
            else:
                players[connection].step(*step)
        for connection, player in players.items():
            player.server.close()
            assert player.server.read_all() == b""
            assert player.server.exit_code() == exits[connection]
    finally:
        for player in players.values():
            player.server.__exit__()
        if holder:
            holder.__exit__()
    for place in places.values():
        assert place.journal() == {}
        assert holder or place.leftovers() == []
