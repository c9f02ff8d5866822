"""The real git-annex as a client of the demo's server, through a stand-in for ssh."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import sh

_SSH = """#!/bin/sh
# Stands in for ssh: does here what sshd would do with the forced command on the other side.
for last; do :; done
exec {command}
"""


class GitAnnexClient:
    """A clone of the server's repository, and git-annex working in it."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str], server: Sequence[str], git_annex: str
    ) -> None:
        """SERVER is the forced command, with ``"$last"`` where the client's command goes; it runs in ENVIRONMENT."""
        self.clone = directory / "clone"
        programs = directory / "bin"
        programs.mkdir()
        ssh = programs / "ssh"
        command = " ".join(word if word == '"$last"' else shlex.quote(word) for word in server)
        ssh.write_text(_SSH.format(command=command))
        ssh.chmod(0o755)
        home = directory / "home"
        home.mkdir()
        environment = {
            **environment,
            "HOME": str(home),
            "PATH": os.pathsep.join((str(programs), str(Path(git_annex).parent), os.environ["PATH"])),
            "GIT_AUTHOR_NAME": "demo",
            "GIT_AUTHOR_EMAIL": "demo@localhost",
            "GIT_COMMITTER_NAME": "demo",
            "GIT_COMMITTER_EMAIL": "demo@localhost",
        }
        self._git = sh.git.bake(_env=environment, _cwd=str(directory))

    def round_trip(self, repository: Path) -> str:
        """Copy a file there, drop it here, get it back; gives what became of it."""
        self._git("clone", "--quiet", f"ssh://demo{repository}", str(self.clone))
        git = self._git.bake("-C", str(self.clone))
        git("annex", "init", "--quiet", "demo client")
        content = os.urandom(100_000)
        file = self.clone / "file"
        file.write_bytes(content)
        git("annex", "add", "--quiet", "file")
        git("commit", "--quiet", "--message", "add a file")
        git("annex", "copy", "--quiet", "--to", "origin", "file")
        git("annex", "drop", "--quiet", "file")
        if file.exists():
            return "was not dropped"
        git("annex", "get", "--quiet", "--from", "origin", "file")
        return "content is the same" if file.read_bytes() == content else "content differs"
