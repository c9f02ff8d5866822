"""A repository with remotes, as git config and the git-annex branch tell of them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path

from annexshell.annex.branch import Branch
from annexshell.annex.gitrepo import GitRepository
from annexshell.annex.permissions import Permissions
from annexshell.remotes.listing import list_remotes
from annexshell.remotes.remote import Remote

OWN = "2461a455-442d-4a9a-83f5-a972cb3d8640"
TARGET = "10000000-aaaa-4000-8000-000000000000"


def init(path: Path, *options: str, uuid: str | None = None) -> Path:
    subprocess.run(["git", "init", "-q", *options, path], check=True)
    if uuid is not None:
        subprocess.run(["git", "-C", path, "config", "annex.uuid", uuid], check=True)
    return path


class Proxy:
    """A repository whose config is written anew for each question asked of it."""

    def __init__(self, path: Path) -> None:
        self.path = init(path, uuid=OWN)
        self._config = path / ".git" / "config"
        self._initial = self._config.read_text()

    def configure(self, settings: Iterable[tuple[str, str]]) -> None:
        self._config.write_text(self._initial + "".join(_setting(*setting) for setting in settings))

    def record(self, logs: Mapping[str, str]) -> None:
        """Have these files, and no others, in the git-annex branch."""
        journal = self.path / ".git" / "annex" / "journal"
        journal.mkdir(parents=True, exist_ok=True)
        for file in journal.iterdir():
            file.unlink()
        for name, content in logs.items():
            (journal / name).write_text(content)

    def open(self) -> GitRepository:
        return GitRepository(os.fsencode(self.path))

    def remotes(self, settings: Iterable[tuple[str, str]], **logs: str) -> list[Remote]:
        """The remotes with these settings; proxy="..." is the content of proxy.log."""
        self.configure(settings)
        self.record({f"{name}.log": content for name, content in logs.items()})
        repo = self.open()
        with Branch(repo, Permissions(repo)) as branch:
            return list_remotes(repo, branch)


def _setting(full_name: str, value: str) -> str:
    """As it is written in a config file."""
    place, _, name = full_name.rpartition(".")
    section, dot, subsection = place.partition(".")
    heading = f'{section} "{_escape(subsection)}"' if dot else section
    return f'[{heading}]\n\t{name} = "{_escape(value)}"\n'


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')


def names(remotes: Iterable[Remote]) -> list[str]:
    return [str(remote) for remote in remotes]


def costs(remotes: Iterable[Remote]) -> dict[str, float]:
    return {str(remote): remote.cost for remote in remotes}


def of(name: str, **settings: str) -> list[tuple[str, str]]:
    """Settings of one remote; annex_cost="5" is remote.NAME.annex-cost."""
    return [(f"remote.{name}.{setting.replace('_', '-')}", value) for setting, value in settings.items()]
