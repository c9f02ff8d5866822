"""``proxy --dry-run``: which remote a session would use and how, and why none of the others."""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from annexshell import log
from annexshell.commands.proxy import open_target
from annexshell.errors import Refused, RemoteUnavailable
from annexshell.proxy import logged_names, why_not
from annexshell.remotes.child import environment_for_children
from annexshell.remotes.opening import obstacle
from annexshell.remotes.path import repository_at
from annexshell.remotes.remote import AnnexHttp, LocalPath, Ssh
from annexshell.remotes.sshcaching import socket_for
from annexshell.remotes.sshcommand import git_ssh, place_of, ssh_command

if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.branch import Branch
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.remotes.remote import Remote
    from annexshell.uuid import UUID


@dataclass
class Candidate:
    """A remote, and what becomes of it."""

    name: str
    cost: float
    used: bool = False
    reached: dict[str, str] | None = None  # {"ssh": command line}, {"path": ...} or {"url": ...}
    reason: str | None = None  # why it is not used


@dataclass
class Report:
    uuid: str
    usable: bool
    reason: str | None  # why it cannot be used
    remotes: list[Candidate]  # those that are tried first in front


def run(repo: GitRepository, branch: Branch, remotes: Sequence[Remote], uuid: UUID, *, as_json: bool) -> int:
    """Report what would be done for UUID, on stdout; the exit status is 0 if it could be done."""
    report = examine(repo, branch, remotes, uuid)
    if as_json:
        print(json.dumps(asdict(report)))
    else:
        _show(report)
    return 0 if report.usable else 1


def examine(repo: GitRepository, branch: Branch, remotes: Sequence[Remote], uuid: UUID) -> Report:
    """Nothing is contacted for this."""
    refusal = None
    try:
        open_target(repo, branch, remotes, uuid).local.branch.close()
    except Refused as reason:
        refusal = str(reason)
    names = logged_names(repo, branch, uuid) or frozenset()
    chosen: Candidate | None = None
    candidates = []
    for remote in remotes:
        candidate = Candidate(str(remote), remote.cost)
        candidates.append(candidate)
        candidate.reason = why_not(repo, remote, uuid, names, remotes)
        if candidate.reason is not None:
            if remote.uuid != uuid:  # which tells a person more than what else is missing
                candidate.reason = f"its uuid is {remote.uuid}" if remote.uuid else "its uuid is not known"
        elif chosen is not None:
            candidate.reason = f"remote {chosen.name} comes first"
        else:
            chosen = candidate
            candidate.reason = refusal
            if refusal is None:
                try:
                    candidate.reached = how_to_reach(repo, remote, uuid)
                    candidate.used = True
                except RemoteUnavailable as reason:
                    candidate.reason = str(reason)
                    refusal = f"cannot connect to remote {remote}: {reason}"
    return Report(_text(uuid), refusal is None, refusal, candidates)


def how_to_reach(repo: GitRepository, remote: Remote, target: UUID) -> dict[str, str]:
    """What opening REMOTE begins with, as a kind and its value. Raises RemoteUnavailable if that is nothing."""
    location = remote.location
    if isinstance(location, LocalPath):
        return {"path": os.fsdecode(repository_at(remote, target).path)}
    if isinstance(location, AnnexHttp):
        from annexshell.http import urls

        return {"url": str(urls.parse(location.url))}  # without user and password
    if isinstance(location, Ssh):
        environment = environment_for_children()
        place = place_of(remote)
        socket = None if git_ssh(environment) is not None else socket_for(repo, place, environment)
        argv = ssh_command(remote, repo.uuid, target, environment, socket)
        return {"ssh": shlex.join(map(os.fsdecode, argv))}
    raise RemoteUnavailable(obstacle(remote) or "it is of a kind that is not known")


def _show(report: Report) -> None:
    console = Console()
    table = Table("remote", "cost", "", show_edge=False)
    for remote in report.remotes:
        verdict = (
            Text("used", "green") if remote.used else Text(f"not used: {log.printable(remote.reason or '')}", "dim")
        )
        table.add_row(Text(log.printable(remote.name)), f"{remote.cost:g}", verdict)
    console.print(table)
    # What may be long, and copied, is not broken into lines.
    for remote in report.remotes:
        for kind, value in (remote.reached or {}).items():
            console.print(
                Text(f"{remote.name} is reached by {kind}: {log.printable(value)}", "green"), soft_wrap=True
            )
    if report.reason is not None:
        console.print(Text(log.printable(report.reason), "red"), soft_wrap=True)


def _text(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")
