"""recvkey: let rsync receive an object from the client at stdin and stdout (spec: shell §7.5)."""

from __future__ import annotations

from annexshell import log, rsync
from annexshell.annex.arrival import Arrival
from annexshell.annex.repository import LocalRepository
from annexshell.commands import keys
from annexshell.termination import Termination
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key


def run(repo: GitRepository, words: Sequence[bytes], client: bytes | None, rsync_words: Sequence[bytes]) -> int:
    """Receive the first key, after which the conversation is over. Raises AnnexshellError, OSError.

    What is recorded in the journal stays there for whoever commits next.
    """
    if not words:
        return 0
    key = keys.parse(words[0])
    with Termination() as termination, keys.Story("store", key) as story:
        repository = LocalRepository(repo, UUID(client or b""))
        try:
            return _receive(repository, key, rsync_words, termination, story)
        finally:
            repository.abandon()


def _receive(
    repository: LocalRepository,
    key: Key,
    rsync_words: Sequence[bytes],
    termination: Termination,
    story: keys.Story,
) -> int:
    program = rsync.find()
    with Arrival(repository, key) as arrival:
        status = rsync.serve(
            program,
            arrival.path,
            rsync_words,
            termination,
            is_sender=False,
            largest=arrival.largest,
            watch=arrival.progress,
        )
        if status:
            return story.cut_short(f"rsync ended with status {status}", arrival.size)
        outcome = arrival.finish()
        if not outcome:
            log.error(f"{outcome.why[:1].upper()}{outcome.why[1:]} for {key}")
            return story.failed(outcome.why)
        return story.done(arrival.size)
