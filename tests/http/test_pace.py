"""Which disks the event loop looks at itself."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from annexshell.annex.repository import LocalRepository
from annexshell.http import pace
from annexshell.http.pace import FIRST_PAUSE, LONGEST_PAUSE, SLOW, Pace, is_local
from annexshell.http.server import Limits
from annexshell.key import Key
from annexshell.uuid import UUID
from tests.http.doors import ABSENT, CLIENT, HELLO, Answer, Door, Place, key_of, quoted, target, wait_until
from tests.shell import git

MOUNTS = """\
22 27 0:21 / /proc rw,relatime - proc proc rw
27 1 254:0 / / rw,relatime - ext4 /dev/vda rw
28 27 0:40 / /srv rw shared:1 master:2 - nfs4 host:/srv rw
29 28 0:41 / /srv/local rw - btrfs /dev/vdb rw,subvol=/x
30 27 0:42 / /mnt/with\\040space\\134 rw - xfs /dev/vdc rw
31 27 0:43 / /mnt rw - fuse.sshfs host: rw
32 27 0:44 / /over rw - fuseblk /dev/vdd rw
33 27 0:45 / /over rw - tmpfs tmpfs rw
"""


@pytest.fixture
def mounts(tmp_path: Path) -> str:
    path = tmp_path / "mountinfo"
    path.write_text(MOUNTS)
    return str(path)


@pytest.mark.parametrize(
    ("path", "local"),
    [
        (b"/", True),
        (b"/home/me/annex", True),
        (b"/srv", False),
        (b"/srv/annex", False),
        (b"/srv/local", True),
        (b"/srv/local/annex", True),
        (b"/srv/locally", False),
        (b"/srvs", True),
        (b"/mnt/annex", False),
        (b"/mnt/with space\\/annex", True),
        (b"/over/annex", True),
    ],
)
def test_only_disks_of_this_machine_are_local(mounts: str, path: bytes, local: bool):
    assert is_local(path, mounts) is local


def test_links_are_followed(mounts: str, tmp_path: Path):
    (tmp_path / "link").symlink_to("/srv")
    assert not is_local(os.fsencode(tmp_path / "link/annex"), mounts)


def test_where_nothing_is_known_nothing_is_local(tmp_path: Path):
    assert not is_local(b"/", str(tmp_path / "missing"))
    assert not Pace([b"/"], mounts=str(tmp_path / "missing")).is_quick


def test_all_directories_count(mounts: str):
    assert Pace([b"/a", b"/srv/local"], mounts=mounts).is_quick
    assert not Pace([b"/a", b"/srv"], mounts=mounts).is_quick


class Disk:
    """One whose lookups take as long as we say."""

    def __init__(self, mounts: str) -> None:
        self.now = 1000.0
        self.pace = Pace([b"/"], lambda: self.now, mounts)

    def look(self, seconds: float) -> None:
        with self.pace:
            self.now += seconds

    def pause(self) -> float:
        """Seconds until it may be asked directly."""
        began = self.now
        while not self.pace.is_quick:
            self.now += 0.01
        return self.now - began


def test_a_disk_that_was_slow_is_left_to_threads_for_a_while(mounts: str):
    disk = Disk(mounts)
    disk.look(SLOW / 2)
    assert disk.pause() == 0
    with pytest.raises(OSError), disk.pace:
        disk.now += SLOW * 2
        raise OSError
    assert disk.pause() == pytest.approx(FIRST_PAUSE, abs=0.011)
    pauses = []
    for _ in range(9):
        disk.look(SLOW * 2)
        pauses.append(disk.pause())
    assert pauses == sorted(pauses)
    assert pauses[0] == pytest.approx(FIRST_PAUSE * 2, abs=0.011)
    assert pauses[-1] == pytest.approx(LONGEST_PAUSE, abs=0.011)
    disk.look(SLOW / 2)
    assert disk.pause() == 0
    disk.look(SLOW * 2)
    assert disk.pause() == pytest.approx(FIRST_PAUSE, abs=0.011)


def test_this_machine_can_be_asked():
    assert is_local(b"/proc") is False
    assert isinstance(is_local(b"/"), bool)


# What the server makes of it


@pytest.fixture
def where(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the threads in which content is looked for."""
    names: list[str] = []
    find = LocalRepository.find

    def noting(repository: LocalRepository, key: Any) -> bytes | None:
        names.append(threading.current_thread().name)
        return find(repository, key)

    monkeypatch.setattr(LocalRepository, "find", noting)
    return names


@pytest.fixture(params=[True, False], ids=["local", "elsewhere"])
def local(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(pace, "is_local", lambda *_: request.param)
    return bool(request.param)


def served(directory: Path, content: bytes, *, bare: bool = True, **settings: str) -> tuple[Place, Key]:
    place = Place(directory, bare=bare)
    for name, value in settings.items():
        git(place.directory, "config", f"annex.{name}", value)
    return place, place.store(key_of(content), content)


def test_only_what_is_local_is_looked_up_by_the_event_loop(tmp_path: Path, where: list[str], local: bool):
    place, key = served(tmp_path / "annex", b"content")
    where.clear()
    with Door(place) as door:
        assert door.post("checkpresent", key=key).json == {"present": True}
        assert door.get(key).body == b"content"
    assert [name.partition("_")[0] for name in where] == (["door", "door"] if local else ["remote", "remote"])


@pytest.mark.parametrize(
    ("shape", "ask"),
    [
        ({"bare": False, "thin": "true"}, lambda door, key: door.post("checkpresent", key=key)),
        ({"bare": False}, lambda door, key: door.get(key)),  # there is a database to be asked
    ],
    ids=["checkpresent of what may be modified", "get of what may be modified"],
)
def test_what_may_have_to_wait_is_for_threads(
    tmp_path: Path, where: list[str], shape: dict[str, Any], ask: Callable[[Door, Key], Answer], monkeypatch: Any
):
    monkeypatch.setattr(pace, "is_local", lambda *_: True)
    place, key = served(tmp_path / "annex", b"content", **shape)
    where.clear()
    with Door(place) as door:
        assert ask(door, key).status == 200
    assert {name.partition("_")[0] for name in where} == {"job"}


def test_large_content_is_for_threads(tmp_path: Path, where: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(pace, "is_local", lambda *_: True)
    place, key = served(tmp_path / "annex", bytes(1 << 17))
    where.clear()
    with Door(place) as door:
        assert len(door.get(key).body) == 1 << 17
    assert [name.partition("_")[0] for name in where] == ["job"]


def test_a_disk_that_does_not_answer_is_in_nobodys_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Where it is in the way of its own requests, they do not use up the threads of all others."""
    dead = tmp_path / "dead"
    monkeypatch.setattr(pace, "is_local", lambda directory, *_: not directory.startswith(os.fsencode(dead)))
    there, key = served(dead / "annex", b"content")
    Place(tmp_path / "alive", UUID(CLIENT.encode())).store(HELLO, b"hello\n")
    mended = threading.Event()
    waiting: list[str] = []
    find = LocalRepository.find

    def hang(repository: LocalRepository, key: Any) -> bytes | None:
        if repository.uuid == there.uuid:
            waiting.append(threading.current_thread().name)
            assert mended.wait(10)
        return find(repository, key)

    monkeypatch.setattr(LocalRepository, "find", hang)
    with Door(below=[tmp_path], limits=Limits(jobs=2, lockedfiles=2, grace=1.0)) as door:
        connections = [door.connect() for _ in range(8)]
        for number, connection in enumerate(connections):
            action = ("checkpresent", "lockcontent", "key", "remove")[number % 4]
            path = f"/git-annex/{there.uuid}/v4/key/{quoted(key)}?clientuuid={CLIENT}"
            is_get = action == "key"
            connection.send_head("GET" if is_get else "POST", path if is_get else target(action, key=key), {})
        wait_until(lambda: len(waiting) == len(connections))
        for _ in range(3):
            uuid = UUID(CLIENT.encode())
            assert door.post("checkpresent", uuid=uuid, key=HELLO).json == {"present": True}
            assert door.get(HELLO, uuid=uuid).body == b"hello\n"
            assert door.post("lockcontent", uuid=uuid, key=HELLO).status == 200
            assert door.post("remove", uuid=uuid, key=ABSENT).json["removed"] is True
        mended.set()
        statuses = {connection.answer("POST").status for connection in connections}
        assert statuses <= {200, 404}
        for connection in connections:
            connection.close()
