"""Clients and nodes that know only old versions of the protocol."""

from __future__ import annotations

import pytest

from tests.interop.proxies import WAYS, out_and_home


@pytest.mark.parametrize(("host", "way"), [("v0", "real"), *(("v1", way) for way in WAYS if way in {"path", "http"})])
def test_old_client(make_proxied, host, way):
    out_and_home(make_proxied(way, host=host))


@pytest.mark.parametrize("way", ["v0", "real-v1"])
def test_old_node(make_proxied, way):
    out_and_home(make_proxied(way))
