"""Location logs: which repositories have a key (spec: branch §9.1).

A line is ``TIME STATUS UUID``; a repository's newest line counts, the first of those with the same time.
"""

from __future__ import annotations

from annexshell.annex.logs import clock
from annexshell.annex.logs.cluster import is_cluster
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from annexshell.annex.branch import Branch
    from annexshell.key import Key

PRESENT = b"1"
MISSING = b"0"
DEAD = b"X"
_STATUSES = frozenset((PRESENT, MISSING, DEAD))


def parse(content: bytes) -> dict[bytes, tuple[int, bytes]]:
    """The time and status of every uuid (or other subject of a presence log)."""
    newest: dict[bytes, tuple[int, bytes]] = {}
    for line in content.splitlines():
        words = line.split(b" ", 2)
        if len(words) != 3 or words[1] not in _STATUSES:
            continue
        time, status, subject = clock.parse(words[0]), words[1], words[2]
        if time is None:
            continue
        known = newest.get(subject)
        if known is None or time > known[0]:
            newest[subject] = time, status
    return newest


def present(content: bytes) -> list[UUID]:
    """The uuids that are recorded as present, sorted."""
    return sorted(UUID(subject) for subject, (_, status) in parse(content).items() if status == PRESENT)


def with_status(content: bytes, uuid: bytes, status: bytes, candidate: int) -> bytes | None:
    """The log after recording STATUS, one line per uuid; None when there is nothing to record.

    A status that is recorded already stays with its old time, and clusters have no content of their own.
    """
    if not uuid or is_cluster(uuid):
        return None
    entries = parse(content)
    known = entries.get(uuid)
    if known is not None and known[1] == status:
        return None
    entries[uuid] = clock.advance(candidate, [known[0]] if known is not None else []), status
    return b"".join(
        b"%s %s %s\n" % (clock.render(time), state, subject) for subject, (time, state) in sorted(entries.items())
    )


def set_presence(branch: Branch, key: Key, uuid: UUID, is_present: bool) -> None:
    """Record in the journal whether the repository UUID has the content of KEY. Raises RepositoryError, OSError."""
    record_presence(branch, key, uuid, lambda: is_present)


def record_presence(branch: Branch, key: Key, uuid: UUID, is_present: Callable[[], bool]) -> None:
    """:func:`set_presence` of what is found while nobody else can change the log.

    Content that comes and goes at the same moment has two recorders. Whichever is last finds what both have done,
    where each telling its own deed would leave the log to chance.
    """

    def change(content: bytes) -> bytes | None:
        return with_status(content, uuid, PRESENT if is_present() else MISSING, clock.now())

    branch.change(branch.key_log(key), change, uuid)


def locations(branch: Branch, key: Key) -> list[UUID]:
    """The repositories that have KEY as far as the branch knows, clusters not added."""
    return present(branch.read(branch.key_log(key)))
