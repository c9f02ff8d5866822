"""The ref of the git-annex branch, and commits for it (spec: branch §6.2, §6.3, §10.1).

Pushes change the ref without asking anybody, so it is only ever changed from a value that was seen to a value that
builds on it.
"""

from __future__ import annotations

import os

from annexshell.annex import git, hooks
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from annexshell.annex.catfile import CatFile
    from annexshell.annex.gitrepo import GitRepository

BRANCH = b"refs/heads/git-annex"
ORIGIN = b"refs/remotes/origin/git-annex"
_CREATED = b"branch created"
_UPDATED = b"update"


def tip(cat_file: CatFile, ref: bytes = BRANCH) -> bytes | None:
    """The commit that the branch points to, None if there is no branch."""
    found = cat_file.get(ref)
    if found is None:
        return None
    if found.kind != b"commit":
        raise RepositoryError(f"{os.fsdecode(ref)} does not point to a commit")
    return found.id


def loose_tip(repo: GitRepository) -> bytes | None:
    """The commit that the branch points to, as far as its file tells; None when git has to be asked."""
    try:
        fd = os.open(repo.commondir + b"/" + BRANCH, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None  # packed, in a reftable, or not there
    try:
        content = os.read(fd, 256)
    finally:
        os.close(fd)
    id = content.rstrip(b"\n")
    return id if git.is_object_id(id) else None


def ensure_exists(repo: GitRepository, cat_file: CatFile) -> bytes:
    """The commit that the branch points to, the branch being created if needed; from origin's if that exists."""
    found = tip(cat_file)
    if found is not None:
        return found
    first = tip(cat_file, ORIGIN)
    if first is None:
        first = commit_tree(repo, empty_tree(repo), (), repo.config.get(b"annex.commitmessage") or _CREATED)
    if move(repo, first, None):
        return first
    found = tip(cat_file)  # somebody has pushed it meanwhile
    if found is None:
        raise RepositoryError("cannot create the git-annex branch")
    return found


def move(repo: GitRepository, new: bytes, old: bytes | None, *, quiet: bool = True) -> bool:
    """Point the branch to NEW if it still points to OLD (None: if it does not exist); whether that was done.

    Losing to a push is nothing to complain of, so git's complaint is only shown if not QUIET.
    """
    try:
        git.output(repo, b"update-ref", BRANCH, new, old if old is not None else b"0" * len(new), quiet=quiet)
    except git.GitFailed:
        return False
    return True


def empty_tree(repo: GitRepository) -> bytes:
    """The id of the tree without files."""
    return git.object_id(git.output(repo, b"mktree"), "mktree")


def commit_message(repo: GitRepository) -> bytes:
    """What a commit of the journal says; raises RepositoryError if the hook that is to tell fails."""
    argv = hooks.command(repo, b"commitmessage-annex", b"annex.commitmessage-command")
    if argv is None:
        return repo.config.get(b"annex.commitmessage") or _UPDATED
    message = hooks.output(argv)
    if message is None:
        raise RepositoryError("the commit message hook failed, so nothing was committed to the git-annex branch")
    return message.replace(b"\0", b"")  # which no argument can have


def commit_tree(repo: GitRepository, tree: bytes, parents: Iterable[bytes], message: bytes) -> bytes:
    """The id of a new commit of TREE."""
    argv = [b"commit-tree", tree, *_signing(repo), b"-m", message]
    for parent in parents:
        argv += (b"-p", parent)
    if _has_identity(repo):
        return git.object_id(git.output(repo, *argv), "commit-tree")
    try:
        # Git may know the user by other means. Its advice, if not, is for people who commit themselves.
        return git.object_id(git.output(repo, *argv, quiet=True), "commit-tree")
    except git.GitFailed:
        return git.object_id(git.output(repo, *argv, env=_login_identity(repo)), "commit-tree")


def login_name() -> bytes:
    """The user's name as the system knows it."""
    for variable in (b"USER", b"LOGNAME"):
        if name := os.environb.get(variable):
            return name
    import pwd

    try:
        return os.fsencode(pwd.getpwuid(os.getuid()).pw_name)
    except KeyError:
        return b"uid%d" % os.getuid()


def _signing(repo: GitRepository) -> tuple[bytes, ...]:
    # Nobody sits here to enter a passphrase, so signing needs to be asked for twice.
    if not repo.config.get_bool(b"annex.allowsign"):
        return (b"--no-gpg-sign",)
    return (b"-S",) if repo.config.get_bool(b"commit.gpgsign") else ()


def _has_identity(repo: GitRepository) -> bool:
    return all(repo.config.get(b"user." + field) for field in (b"name", b"email"))


def _login_identity(repo: GitRepository) -> Mapping[bytes, bytes]:
    """The environment, with the login name wherever git has no name or no email to commit with."""
    env = dict(os.environb)
    for role in (b"author", b"committer"):
        for field in (b"name", b"email"):
            if not repo.config.get(role + b"." + field) and not repo.config.get(b"user." + field):
                variable = b"GIT_%s_%s" % (role.upper(), field.upper())
                env[variable] = env.get(variable) or login_name()
    return env
