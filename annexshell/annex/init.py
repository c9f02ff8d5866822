"""Making a git repository a git-annex repository, as ``git annex init`` does (spec: branch §10, shell §7.1)."""

from __future__ import annotations

import os

from annexshell import log
from annexshell.annex import branchref, git, hooks, nonbare
from annexshell.annex.branch import Branch
from annexshell.annex.gitconfig import ConfigLock
from annexshell.annex.inodecache import InodeCache
from annexshell.annex.journal import read_file, refuse_pidlock, write_file
from annexshell.annex.logs import clock, compatible, newmap, uuidmap
from annexshell.annex.permissions import Permissions
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.gitrepo import GitRepository
    from annexshell.uuid import UUID

VERSION = b"10"
_NOT_INITIALISED = "Not initialized."
_SECURE_HASHES = b"annex.securehashesonly"
# Settings that say how a new repository is to describe itself, and the logs that they go to.
_FIRST_VALUES = {
    b"annex.initwanted": uuidmap.PREFERRED_CONTENT,
    b"annex.initrequired": uuidmap.REQUIRED_CONTENT,
    b"annex.initgroups": uuidmap.GROUP,
}


def initialise(repo: GitRepository) -> None:
    """Give the repository a uuid and all that git-annex expects; nothing is done if it has them already.

    Processes that do this at the same time end up with the same uuid. What is recorded in the git-annex branch
    stays in the journal, for whoever commits next. Raises RepositoryError when it must not be initialised or
    cannot be, OSError.
    """
    refuse_pidlock(repo)
    check_ownership(repo.path, repo.gitdir)
    _check_noannex(repo)
    _run_pre_init_hook(repo)
    with Branch(repo, Permissions(repo)) as branch, branch.lock():
        # Again, now that nobody else can be at it.
        repo.reload_config()
        if repo.uuid and repo.version is not None:
            return
        is_first = not repo.uuid
        is_shared = is_shared_clone(repo)
        branch.ensure_exists()
        tunings = _Tunings(repo, branch)
        _make_sentinal(repo)
        _configure(repo, branch, tunings, is_shared)
        uuid = repo.uuid
        tunings.record(branch, uuid)
        if is_first:
            _record_first_values(repo, branch, uuid)
        if is_shared:
            # Its content goes when that of the repository whose objects it shares goes.
            _set(branch, uuidmap.TRUST, uuid, uuidmap.UNTRUSTED)
        branch.change_locked(uuidmap.UUIDS, lambda old: _with_description(repo, old, uuid), uuid)
        if not repo.bare:
            nonbare.install(repo)


def check_ownership(path: bytes, gitdir: bytes) -> None:
    """Raise RepositoryError if git would not work in PATH without being told which directory to trust."""
    try:
        # Whoever is root through sudo is let in by git as well, and other such rules: so ask git.
        found = git.run_in(path, b"-c", b"safe.bareRepository=all", b"rev-parse", b"--absolute-git-dir")
        if os.path.realpath(found.removesuffix(b"\n")) == os.path.realpath(gitdir):
            return
    except git.GitFailed:
        pass
    raise RepositoryError(
        "Git refuses to operate in this repository, probably because it is owned by someone else. "
        f"To add an exception for this directory, call: git config --global --add safe.directory {os.fsdecode(path)}"
    )


def _check_noannex(repo: GitRepository) -> None:
    if repo.worktree is None:
        return
    try:
        fd = os.open(repo.worktree + b"/.noannex", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    try:
        explanation = read_file(fd)
    finally:
        os.close(fd)
    log.warn("Initialization prevented by .noannex file (remove the file to override)")
    for line in explanation.splitlines():
        log.warn(line)
    raise RepositoryError(_NOT_INITIALISED)


def _run_pre_init_hook(repo: GitRepository) -> None:
    setting = b"annex.pre-init-command"
    argv = hooks.command(repo, b"pre-init-annex", setting)
    if argv is not None and hooks.run(argv) != 0:
        culprit = os.fsdecode(argv[0] if len(argv) == 1 else b"git configured command '%s'" % argv[-1])
        log.warn(f"Initialization prevented by {culprit}")
        raise RepositoryError(_NOT_INITIALISED)


def is_shared_clone(repo: GitRepository) -> bool:
    """Whether this is a fresh ``git clone --shared``: it borrows another repository's objects and has none yet."""
    objects = repo.commondir + b"/objects"
    try:
        if os.stat(objects + b"/info/alternates").st_size == 0:
            return False
        names = os.listdir(objects)
    except OSError:
        return False
    fanout = [name for name in names if len(name) == 2]
    packs = os.listdir(objects + b"/pack") if b"pack" in names else []
    return not any(os.listdir(objects + b"/" + name) for name in fanout) and not any(
        name.endswith(b".pack") for name in packs
    )


class _Tunings:
    """How the repository lays things out, which all clones of it have to do in the same way (spec: branch §9.10)."""

    def __init__(self, repo: GitRepository, branch: Branch) -> None:
        """Raises RepositoryError if the clones use a layout that we know nothing of."""
        configured = compatible.configured_tunings(repo.config)
        recorded = compatible.tunings(branch.read(compatible.DIFFERENCE))
        if unknown := recorded.difference(compatible.TUNINGS):
            names = ", ".join(sorted(map(os.fsdecode, unknown)))
            raise RepositoryError(f"the repository is tuned in a way that annexshell does not know: {names}")
        self._is_clone = bool(branch.read(uuidmap.UUIDS))
        self._wanted = recorded if self._is_clone else configured
        self._worth_recording = bool(recorded or configured)
        if configured - self._wanted:
            log.warn("Cannot change tunable parameters in a clone of an existing repository.")
        self.settings = {compatible.TUNINGS[name]: b"true" for name in sorted(self._wanted - configured)}

    def record(self, branch: Branch, uuid: UUID) -> None:
        if self._worth_recording:
            _set(branch, compatible.DIFFERENCE, uuid, compatible.render_tunings(self._wanted))


def _make_sentinal(repo: GitRepository) -> None:
    """Write what tells later that inode numbers are not those that they were (spec: objects §16.3)."""
    sentinal = repo.annexdir + b"/sentinal"
    if os.path.exists(sentinal + b".cache") or os.path.exists(repo.annexdir + b"/objects"):
        return
    if not os.path.exists(sentinal):
        write_file(sentinal, b"")
    write_file(sentinal + b".cache", str(InodeCache.of_file(sentinal)).encode())


def _configure(repo: GitRepository, branch: Branch, tunings: _Tunings, is_shared: bool) -> None:
    settings = dict(tunings.settings)
    secure_hashes = newmap.values(branch.read(newmap.CONFIG)).get(_SECURE_HASHES)
    if secure_hashes:
        settings[_SECURE_HASHES] = secure_hashes
    if is_shared:
        settings[b"annex.hardlink"] = b"true"
    settings.update(_identity(repo))
    with ConfigLock(repo) as lock:
        # git-annex does not take the journal's lock for this, but has to take this one.
        config = repo.reload_config()
        if repo.version is None:
            settings[b"annex.version"] = VERSION
        if not repo.uuid:
            settings[b"annex.uuid"] = new_uuid()
        if not repo.bare:
            settings.update(nonbare.FILTER)
        lock.add({name: settings[name] for name in sorted(settings) if config.get(name) != settings[name]})
    repo.reload_config()


def _identity(repo: GitRepository) -> dict[bytes, bytes]:
    """user.name and user.email if git would refuse to commit without them."""
    try:
        for role in (b"GIT_AUTHOR_IDENT", b"GIT_COMMITTER_IDENT"):
            git.output(repo, b"var", role, quiet=True)
    except git.GitFailed:
        names = (b"user.name", b"user.email")
        return {name: branchref.login_name() for name in names if not repo.config.get(name)}
    return {}


def new_uuid() -> bytes:
    """A random uuid, version 4."""
    import uuid

    return str(uuid.uuid4()).encode()


def _set(branch: Branch, path: bytes, uuid: UUID, value: bytes) -> None:
    branch.change_locked(path, lambda old: uuidmap.with_value(old, uuid, value, clock.now()), uuid)


def _record_first_values(repo: GitRepository, branch: Branch, uuid: UUID) -> None:
    for setting, path in _FIRST_VALUES.items():
        if value := repo.config.get(setting):
            if path == uuidmap.GROUP:
                value = b" ".join(sorted(set(value.split())))
            _set(branch, path, uuid, value)


def _with_description(repo: GitRepository, old: bytes, uuid: UUID) -> bytes | None:
    if uuid in uuidmap.values(old):
        return None
    return uuidmap.with_description(old, uuid, default_description(repo), clock.now())


def default_description(repo: GitRepository) -> bytes:
    """``USER@HOST:PATH``, the path starting with ``~/`` below the home directory."""
    path = repo.worktree if repo.worktree is not None else repo.gitdir
    home = os.path.expanduser(b"~").rstrip(b"/")
    if home and path.startswith(home + b"/"):
        path = b"~" + path[len(home) :]
    return b"%s@%s:%s" % (branchref.login_name(), os.fsencode(os.uname().nodename), path)
