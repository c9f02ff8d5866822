"""Limits in git config."""

from __future__ import annotations

import pytest

from annexshell.annex.config import Config
from annexshell.remotes.patience import CONNECT_TIMEOUT, from_config


@pytest.mark.parametrize(
    ("value", "connect", "reply"),
    [
        (None, CONNECT_TIMEOUT, None),
        (b"7", 7.0, 7.0),
        (b"0.5", 0.5, 0.5),
        (b"0", None, None),  # no limit
        (b"", CONNECT_TIMEOUT, None),
        (b"-1", CONNECT_TIMEOUT, None),
        (b"soon", CONNECT_TIMEOUT, None),
        (b"inf", CONNECT_TIMEOUT, None),
        (b"nan", CONNECT_TIMEOUT, None),
    ],
)
def test_limits(value, connect, reply):
    names = (b"annexshell.connecttimeout", b"annexshell.replytimeout")
    config = Config({} if value is None else {name: [value] for name in names})
    patience = from_config(config, for_whom=1)
    assert (patience.connect, patience.reply, patience.for_whom) == (connect, reply, 1)
