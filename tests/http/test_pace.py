"""Which disks the event loop looks at itself."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from annexshell.http.pace import FIRST_PAUSE, LONGEST_PAUSE, SLOW, Pace, is_local

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
