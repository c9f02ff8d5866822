"""sendkey: let rsync send an object to the client at stdin and stdout (spec: shell §7.5)."""

from __future__ import annotations

from annexshell import log, rsync
from annexshell.annex.repository import LocalRepository
from annexshell.annex.send import LocalContent
from annexshell.commands import keys
from annexshell.errors import NotPresent
from annexshell.termination import Termination
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from annexshell.annex.gitrepo import GitRepository
    from annexshell.key import Key


def run(repo: GitRepository, words: Sequence[bytes], client: bytes | None, rsync_words: Sequence[bytes]) -> int:
    """Send the first key, after which the conversation is over. Raises AnnexshellError, OSError."""
    if not words:
        return 0
    key = keys.parse(words[0])
    with Termination() as termination, keys.Story("send", key) as story:
        repository = LocalRepository(repo, UUID(client or b""))
        try:
            return _send(repository, key, rsync_words, termination, story)
        finally:
            repository.abandon()


def _send(
    repository: LocalRepository,
    key: Key,
    rsync_words: Sequence[bytes],
    termination: Termination,
    story: keys.Story,
) -> int:
    path = repository.find(key)
    if path is None:
        raise NotPresent("requested key is not present")
    program = rsync.find()
    with LocalContent(repository, key, path, 0, None) as content:
        status = rsync.serve(program, path, rsync_words, termination, is_sender=True)
        if status:
            return story.cut_short(f"rsync ended with status {status}")
        # An unlocked file may be the object itself, and be written to.
        if not content.still_valid():
            log.error(f"the content of {key} changed while it was sent")
            return story.failed("it changed while it was sent")
        content.acknowledge(True)
        return story.done(content.length)
