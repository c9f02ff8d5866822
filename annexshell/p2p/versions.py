"""What each version of the protocol changes, as a table (spec: protocol §3.5)."""

from __future__ import annotations


class Rules:
    """One version's rules."""

    __slots__ = ("data_present", "number", "plus", "remove_before", "validity")

    def __init__(self, number: int, validity: bool, plus: bool, remove_before: bool, data_present: bool) -> None:
        self.number = number
        self.validity = validity  # a VALID or INVALID line follows content
        self.plus = plus  # SUCCESS-PLUS and its like may be sent; also: the client may send BYPASS
        self.remove_before = remove_before  # clients use REMOVE-BEFORE and GETTIMESTAMP
        self.data_present = data_present  # DATA-PRESENT may stand for DATA


# fmt: off
VERSIONS = (
    #     number  validity  plus   remove_before  data_present
    Rules(0,      False,    False, False,         False),
    Rules(1,      True,     False, False,         False),
    Rules(2,      True,     True,  False,         False),
    Rules(3,      True,     True,  True,          False),
    Rules(4,      True,     True,  True,          True),
)
# fmt: on
HIGHEST = VERSIONS[-1].number


def negotiated(theirs: int, ours: int = HIGHEST) -> Rules:
    """The rules that both ends know."""
    return VERSIONS[min(theirs, ours)]
