"""``.log.ek``: the keys whose content a VURL key may have (spec: objects §12.3)."""

from __future__ import annotations

from annexshell.annex.logs import location
from annexshell.key import BadKey, Key

TYPE_CHECKING = False
if TYPE_CHECKING:
    from annexshell.annex.branch import Branch

SUFFIX = b".log.ek"
_VURL = b"VURL"


def parse(content: bytes) -> list[Key]:
    """The keys recorded as equivalent, except for those that say nothing about content."""
    keys = []
    for text in location.present(content):
        try:
            key = Key(text)
        except BadKey:
            continue
        if key.variety != _VURL:
            keys.append(key)
    return keys


def equivalent_keys(branch: Branch, key: Key) -> list[Key]:
    """The equivalent keys of KEY, which is a VURL key."""
    return parse(branch.read(branch.key_log(key, SUFFIX)))
