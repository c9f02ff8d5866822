"""``explain``: what would become of a command from the wire, and why; nothing is run and nothing written.

The checks are the ones that serving makes, in the same order (see __main__); what the repository's own settings
would have to say is not looked at, as that takes git.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from annexshell import access, checks, directories, forced, gitshell, log
from annexshell.annex.gitrepo import find_commondir, find_gitdir
from annexshell.errors import AnnexshellError, Refused, RepositoryError
from annexshell.policy import document
from annexshell.policy.permission import Permissions

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from annexshell.access import Access

_VARIABLES = ("READONLY", "APPENDONLY", "LIMITED", "DIRECTORY")
_GIT_FAILED = 128


@dataclass
class Tried:
    """A rule, and why it did not decide; an empty reason is that of the one that did."""

    number: int
    line: int | None
    reason: str
    pattern: str | None = None
    access: str | None = None
    git: str | None = None


@dataclass
class Directory:
    asked: str
    expanded: str | None = None  # absolute, with ~ replaced
    repository: str | None = None  # without /.git, or with .git behind it
    real: str | None = None  # what is compared, and opened: without symlinks
    exists: bool = False
    is_repository: bool = False


@dataclass
class Explanation:
    command: str
    user: str | None = None
    groups: list[str] = field(default_factory=list)
    policy: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    runs: str | None = None  # the builtin command's name, or what git-shell is given
    directory: Directory | None = None
    rules: list[Tried] = field(default_factory=list)  # up to the one that decides
    access: str | None = None  # to annexed content
    git: list[str] = field(default_factory=list)  # services that the protocol may start
    allowed: bool = False
    exit_status: int = 1
    reason: str | None = None  # why it is not allowed


def run(command: str, *, policy: str | None, user: str | None, as_json: bool) -> int:
    """Explain on stdout; the exit status is 0 if it would be allowed."""
    found = examine(os.fsencode(command), os.environb, policy=policy, user=user)
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        _show(found)
    return 0 if found.allowed else 1


def examine(
    command: bytes, environ: Mapping[bytes, bytes], *, policy: str | None = None, user: str | None = None
) -> Explanation:
    """POLICY and USER are both given or neither."""
    found = Explanation(_text(command), user)
    for name in _VARIABLES:
        value = environ.get(f"GIT_ANNEX_SHELL_{name}".encode())
        if value is not None:
            found.environment[f"GIT_ANNEX_SHELL_{name}"] = _text(value)
    try:
        permissions = None
        if policy is not None and user is not None:
            found.policy = os.path.abspath(policy)
            loaded = document.load(os.fsencode(policy))
            found.groups = [name for name, members in loaded.groups.items() if user in members]
            permissions = Permissions(loaded, user, environ)
        request = forced.parse([b"-c", command])
        if isinstance(request, forced.PassThrough):
            _explain_git(found, request, environ, permissions)
        else:
            _explain_builtin(found, request, environ, permissions)
        found.allowed = found.exit_status == 0
    except document.PolicyError as reason:
        found.reason = reason.detail
    except (AnnexshellError, OSError) as reason:
        found.reason = str(reason)
    return found


def _explain_git(
    found: Explanation, request: forced.PassThrough, environ: Mapping[bytes, bytes], permissions: Permissions | None
) -> None:
    service = gitshell.parse_service(request.words[0]) if len(request.words) == 1 else None
    if service is not None:
        found.directory = Directory(_text(service[1]))
        if permissions is not None:
            _look(found, found.directory, service[1], environ, permissions)
    arguments = gitshell.admitted(request.words, environ, permissions)
    found.runs = " ".join(["git-shell", "-c", *map(_text, arguments)])
    found.exit_status = 0
    if permissions is not None and found.directory is not None and not found.directory.is_repository:
        found.exit_status, found.reason = _GIT_FAILED, "there is no git repository"


def _explain_builtin(
    found: Explanation, request: forced.Request, environ: Mapping[bytes, bytes], permissions: Permissions | None
) -> None:
    found.runs = _text(request.name)
    found.directory = Directory(_text(request.directory))
    mode = access.from_environment({os.fsdecode(name): os.fsdecode(value) for name, value in environ.items()})
    checks.check_access(request.builtin, mode)
    path = _look(found, found.directory, request.directory, environ, permissions)
    if permissions is not None:
        _, mode = permissions.annex_access(request.directory, path, mode)
    _tell_access(found, mode, environ)
    checks.check_access(request.builtin, mode)
    options = request.options()
    if options.help:
        found.exit_status = 0
        return
    if not found.directory.exists:
        raise RepositoryError("the directory is not there, or may not be entered")
    if not found.directory.is_repository and request.builtin.in_annex:
        raise RepositoryError("there is no git repository")
    checks.check_parameters(request, options)
    if b"autoinit" in request.fields and not mode.may_write and request.name == b"configlist":
        raise Refused(f"{mode.blocked} (if the repository has no uuid yet)")
    found.exit_status = 0


def _look(
    found: Explanation,
    directory: Directory,
    asked: bytes,
    environ: Mapping[bytes, bytes],
    permissions: Permissions | None,
) -> bytes:
    """Follow the way from what was ASKED for to what would be opened, and through the rules."""
    expanded = directories.opened_path(asked, environ)
    directory.expanded = _text(expanded)
    path = directories.repository_path(expanded)
    directory.repository = _text(path)
    real = os.path.realpath(path)
    directory.real = _text(real)
    directory.exists = os.path.isdir(path) and os.access(path, os.X_OK)
    directory.is_repository = directory.exists and _is_repository(path)
    if permissions is not None:
        _explain_rules(found, asked, path, permissions)
    return path


def _explain_rules(found: Explanation, asked: bytes, path: bytes, permissions: Permissions) -> None:
    place = permissions.find(asked, path)
    for rule in permissions.policy.rules:
        tried = Tried(
            rule.number,
            document.line_of(permissions.policy.text, ("rules", rule.number - 1)),
            "",
            None,
            rule.access,
            rule.git,
        )
        found.rules.append(tried)
        if rule is place.rule and place.pattern is not None:
            tried.pattern = place.pattern.text
            if place.enclosing is not None:
                tried.reason = f"it is inside the repository {_text(place.enclosing)}, to which somebody may push"
            return
        tried.reason = "no directory fits" if rule.is_for(permissions.user) else f"is not for {permissions.user}"


def _tell_access(found: Explanation, mode: Access, environ: Mapping[bytes, bytes]) -> None:
    found.access = mode.name
    if not environ.get(b"GIT_ANNEX_SHELL_LIMITED"):
        needs_all = () if mode.may_remove else (b"git-receive-pack",)
        found.git = [_text(name) for name in access.GIT_SERVICES if name in mode.services and name not in needs_all]


def _is_repository(path: bytes) -> bool:
    """By what can be seen without git."""
    try:
        gitdir = find_gitdir(path)
        common = find_commondir(gitdir)
    except (RepositoryError, OSError):
        return False
    return (
        os.path.lexists(gitdir + b"/HEAD")
        and os.path.isdir(common + b"/objects")
        and os.path.isdir(common + b"/refs")
    )


def _show(found: Explanation) -> None:
    table = Table("what", "", show_edge=False, show_header=False)

    def row(name: str, value: str, style: str = "") -> None:
        table.add_row(Text(name, "bold"), Text(log.printable(value), style))

    if found.policy is not None:
        row("policy", found.policy)
    if found.user is not None:
        row("user", found.user + (f", of {', '.join(found.groups)}" if found.groups else ""))
    row("command", found.command)
    for name, value in found.environment.items():
        row("environment", f"{name}={value}")
    if found.runs is not None:
        row("runs", found.runs)
    if found.directory is not None:
        _directory_rows(found.directory, row)
    for tried in found.rules:
        where = f" (line {tried.line})" if tried.line else ""
        says = f"{tried.pattern}: access {tried.access}, git {tried.git}"
        text = ": ".join(filter(None, (tried.pattern and says, tried.reason)))
        row(f"rule {tried.number}{where}", text, "dim" if tried.pattern is None else "")
    if found.policy is not None and found.directory is not None and not any(t.pattern for t in found.rules):
        row("rule", "none decides, so nothing is allowed")
    if found.access is not None:
        services = ", ".join(found.git) or "none"
        row("access", f"{found.access}; git inside the protocol: {services}")
    console = Console()
    console.print(table)
    # What may be long, and copied, is not broken into lines.
    if found.allowed:
        console.print(Text("Allowed, as far as the repository's own settings agree.", "green"))
    else:
        outcome = log.printable(f"Refused, exit status {found.exit_status}: {found.reason}")
        console.print(Text(outcome, "red"), soft_wrap=True)


def _directory_rows(directory: Directory, row: Callable[[str, str], None]) -> None:
    """Only the steps on which something changed."""
    row("directory", directory.asked)
    before = directory.asked
    for name, value in (
        ("  in full", directory.expanded),
        ("  repository", directory.repository),
        ("  without symlinks", directory.real),
    ):
        if value is not None and value != before:
            row(name, value)
            before = value
    if directory.real is not None and not directory.is_repository:
        row("", "there is no git repository" if directory.exists else "it is not there, or may not be entered")


def _text(word: bytes) -> str:
    return word.decode("utf-8", "backslashreplace")
