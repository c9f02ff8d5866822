"""Whether another version of the branch may be merged with ours (spec: branch §9.8, §9.10, §11)."""

from __future__ import annotations

from annexshell.annex.logs import uuidmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.config import Config

TRANSITIONS = b"transitions.log"
DIFFERENCE = b"difference.log"

# In the order in which difference.log lists them.
TUNINGS = {
    b"ObjectHashLower": b"annex.tune.objecthashlower",
    b"OneLevelObjectHash": b"annex.tune.objecthash1",
    b"OneLevelBranchHash": b"annex.tune.branchhash1",
}
_PREFIX = b"fromList "


def same_transitions(ours: bytes, theirs: bytes) -> bool:
    """Whether two versions of transitions.log say the same."""
    return _lines(ours) == _lines(theirs)


def tunings(content: bytes) -> frozenset[bytes]:
    """What difference.log says of any repository; a tuning that is not in TUNINGS is one that we do not know."""
    found: set[bytes] = set()
    for value in uuidmap.values(content).values():
        listing = value.removeprefix(_PREFIX).strip(b" ").removeprefix(b"[").removesuffix(b"]")
        found.update(name.strip(b" ") for name in listing.split(b",") if name.strip(b" "))
    return frozenset(found)


def configured_tunings(config: Config) -> frozenset[bytes]:
    """How this repository is tuned."""
    return frozenset(name for name, setting in TUNINGS.items() if config.get_bool(setting))


def render_tunings(names: frozenset[bytes]) -> bytes:
    """A value for difference.log."""
    return _PREFIX + b"[" + b",".join(name for name in TUNINGS if name in names) + b"]"


def _lines(content: bytes) -> frozenset[bytes]:
    return frozenset(filter(None, content.splitlines()))
