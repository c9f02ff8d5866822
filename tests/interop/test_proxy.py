"""What people do with a repository that is behind another one, with the real client."""

from __future__ import annotations

import pytest

from tests.interop.harness import DEBUG, P2P_LINE, pseudorandom
from tests.interop.proxies import WAYS

CONTENT = pseudorandom(100_000)
EVERY_WAY = pytest.mark.parametrize("way", WAYS)


@EVERY_WAY
def test_there_and_back(make_proxied, way):
    proxied = make_proxied(way)
    client, remote = proxied.client, proxied.remote
    key = client.add("a file", CONTENT)
    client.commit()

    client.annex("copy", f"--to={remote}", "a file")
    proxied.check(key, CONTENT, at_client=True)
    client.annex("fsck", f"--from={remote}", "a file")
    dropped = client.annex("drop", "a file", *DEBUG)
    assert f"LOCKCONTENT {key}" in dropped.err
    assert "UNLOCKCONTENT" in dropped.err
    proxied.check(key, CONTENT, at_client=False)
    client.annex("get", f"--from={remote}", "a file")
    assert client.content(key) == CONTENT
    proxied.check(key, CONTENT, at_client=True)

    client.annex("drop", f"--from={remote}", "a file")
    proxied.check(key, None, at_client=True)
    client.annex("move", f"--to={remote}", "a file")
    proxied.check(key, CONTENT, at_client=False)
    client.annex("move", f"--from={remote}", "a file")
    assert client.content(key) == CONTENT
    proxied.check(key, None, at_client=True)
