"""Remotes behind a pretended ssh, and the repository that has them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from annexshell.annex.config import Config
from annexshell.annex.gitrepo import GitRepository
from annexshell.remotes.remote import Remote, Ssh
from annexshell.uuid import UUID

OWN = UUID(b"2461a455-442d-4a9a-83f5-a972cb3d8640")
TARGET = UUID(b"10000000-aaaa-4000-8000-000000000000")


def remote_at(place: Ssh, config: Config | None = None, **settings: str) -> Remote:
    """Remote r; a setting like annex_shell is remote.r.annex-shell."""
    if config is None:
        named = {f"remote.r.{name.replace('_', '-')}": value for name, value in settings.items()}
        config = Config({name.encode(): [os.fsencode(value)] for name, value in named.items()})
    return Remote(config, b"r", place, 200.0, read_uuid=lambda: TARGET)


def make_repository(path: Path, **settings: str) -> GitRepository:
    """An initialised repository that has been told to be OWN."""
    subprocess.run(["git", "init", "-q", path], check=True)
    for name, value in {"annex.uuid": OWN.decode(), **settings}.items():
        subprocess.run(["git", "-C", path, "config", name.replace("_", "."), value], check=True)
    (path / ".git" / "annex").mkdir()
    repo = GitRepository(os.fsencode(path))
    assert repo.uuid == OWN  # so that nothing is read any more when a test looks for leftovers
    return repo


# What the pretended ssh does is chosen by the host. It writes down its arguments, one run a line.
_FAKE_SSH = r"""#!/bin/sh
printf '%s|' "$@" >> "$FAKE_SSH_LOG"; echo >> "$FAKE_SSH_LOG"
for far; do :; done
case $1 in
    -O) echo noise; echo noise >&2; exit 0;;
    refused) echo 'ssh: connect to host refused port 22: Connection refused' >&2; exit 255;;
    silent) exec sleep 60;;
    stubborn) trap '' TERM; while :; do sleep 0.1; done;;
    noisy) echo 'Welcome to the machine';;
    closed) echo 'This account is currently not available.'; exit 1;;
    gone) exit 3;;
    restricted) exit 126;;
    garbled) head -c 40000 /dev/zero; exit;;
    slow) sleep 0.5;;
esac
exec sh -c "$far"
"""

# Greets, agrees on a version, and says what it was started with in an ERROR to anything else.
_FAKE_SHELL = r"""#!/bin/sh
for uuid; do :; done
echo "AUTH-SUCCESS ${FAKE_UUID:-$uuid}"
while read -r word rest; do
    case $word in
        VERSION) [ "$FAKE_VERSION" = none ] && echo 'ERROR what?' || echo "VERSION ${FAKE_VERSION:-$rest}";;
        CHECKPRESENT) echo SUCCESS;;
        GETTIMESTAMP) sleep 30;;
        REMOVE) kill -9 $$;;
        *) echo "ERROR $* dir=$GIT_ANNEX_SHELL_DIRECTORY orig=$SSH_ORIGINAL_COMMAND mode=$GIT_ANNEX_SHELL_READONLY";;
    esac
done
"""


class FakeSsh:
    """A directory for PATH with ``ssh`` and ``git-annex-shell`` in it."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.log = directory / "log"
        self.write("ssh", _FAKE_SSH)
        self.write("git-annex-shell", _FAKE_SHELL)

    def write(self, name: str, script: str) -> None:
        (self.directory / name).write_text(script)
        (self.directory / name).chmod(0o755)

    def runs(self) -> list[list[str]]:
        """The arguments of each run."""
        return [line.split("|")[:-1] for line in self.log.read_text().splitlines()] if self.log.exists() else []
