"""inannex: whether content is present, and going to stay for now (spec: shell §7.4)."""

from __future__ import annotations

from annexshell import log
from annexshell.annex.repository import LocalRepository
from annexshell.commands import keys
from annexshell.errors import RepositoryError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key

PRESENT, ABSENT, UNKNOWN = 0, 1, 100


def run(repo: GitRepository, words: Sequence[bytes]) -> int:
    """Look for the keys one after the other; the first that is not certainly present decides. Raises Refused."""
    repository = LocalRepository(repo)
    try:
        for word in words:
            status = look_for(repository, keys.parse(word))
            if status != PRESENT:
                if status == ABSENT and log.audit is not None:
                    log.audit.end()  # that is an answer, and not a failure
                return status
        return PRESENT
    finally:
        repository.abandon()


def look_for(repository: LocalRepository, key: Key) -> int:
    """The exit status that tells what is known of a key."""
    try:
        if not repository.checkpresent(key):
            return ABSENT
        if repository.locks.is_locked_for_removal(key):
            return UNKNOWN
        # Once more: it may have been removed, and its lock dropped, before we came to look at that.
        return PRESENT if repository.checkpresent(key) else ABSENT
    except (RepositoryError, OSError) as reason:
        # Clients take 1 for certain, and everything but 0 and 1 for what it is.
        log.error(str(reason))
        return UNKNOWN
