"""Telling git that replaced work tree files may be unmodified after all (spec: objects §14.5).

git compares sizes before anything else: the size that its index has for a file is that of the pointer or of the
content, and after a change between the two git would call the file modified without looking into it, and refuse a
merge or a push into the branch. So the index entries are made anew without what git knows of the files; next time it
looks into them, through git-annex's filter. It takes no git-annex to do this, which a server may not have.
"""

from __future__ import annotations

from annexshell import log
from annexshell.annex import git
from annexshell.annex.indexcopy import IndexCopy
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.gitrepo import GitRepository

_ATTEMPTS = 5
_AT_ONCE = 500  # paths that certainly fit into a command line


def restage(repo: GitRepository, paths: Sequence[bytes]) -> None:
    """Make git look into the files at PATHS (relative to the top) when it next wants to know whether they changed.

    What is staged stays as it is. Gives up without an error if others keep the index busy: it is a convenience.
    """
    for _ in range(_ATTEMPTS):
        try:
            with IndexCopy(repo) as copy:
                if copy.signature is None:
                    return
                _forget_status(repo, paths, copy.env)
                if copy.put_in_place():
                    return
        except FileExistsError:
            log.debug("the index is locked by another process; files are not restaged")
            return
        except (OSError, RepositoryError) as reason:
            log.debug(f"cannot restage files: {reason}")
            return
    log.debug("the index keeps changing; files are not restaged")


def _forget_status(repo: GitRepository, paths: Sequence[bytes], env: dict[bytes, bytes]) -> None:
    """Make the entries of PATHS in that environment's index anew, with their mode and content."""
    # The files themselves do not matter here. A work tree that is certainly not around our working directory keeps
    # git from taking paths to be relative to that.
    env = {**env, b"GIT_WORK_TREE": repo.annexdir}
    entries = []
    for start in range(0, len(paths), _AT_ONCE):
        some = paths[start : start + _AT_ONCE]
        listing = git.output(repo, b"ls-files", b"--stage", b"-v", b"--full-name", b"-z", b"--", *some, env=env)
        for record in listing.split(b"\0")[:-1]:
            # "H MODE BLOB STAGE\tPATH"; not H: assumed unchanged, not checked out, or unmerged, all for a reason.
            if record.startswith(b"H "):
                entries.append(record[2:] + b"\0")
    if entries:
        git.output(repo, b"update-index", b"-z", b"--index-info", input=b"".join(entries), env=env)
