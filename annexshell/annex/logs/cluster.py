"""cluster.log: which repositories a cluster is made of (spec: branch §9.7)."""

from __future__ import annotations

from annexshell.annex.logs import newmap
from annexshell.uuid import UUID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

FILE = b"cluster.log"


def is_cluster(uuid: bytes) -> bool:
    """Whether UUID is one of those made for clusters, which are told by their shape."""
    return uuid[:2] == b"ac" and uuid[14:15] == b"8"


def parse(content: bytes) -> dict[UUID, tuple[UUID, ...]]:
    """The nodes of every cluster."""
    entries = newmap.parse(content, _parse_nodes)
    return {UUID(name): nodes for name, (_, nodes) in entries.items() if is_cluster(name)}


def with_nodes(content: bytes, cluster: UUID, nodes: Iterable[UUID], candidate: int) -> bytes:
    """The log after giving CLUSTER these nodes."""
    return newmap.with_value(content, cluster, b" ".join(sorted(nodes)), candidate, _parse_nodes)


def add_clusters(
    present: Collection[UUID], clusters: Mapping[UUID, Iterable[UUID]], dead: Collection[UUID]
) -> list[UUID]:
    """PRESENT, and every cluster that has one of it as a node that is not dead; clusters in clusters do not count."""
    having = [name for name, nodes in clusters.items() if any(n in present and n not in dead for n in nodes)]
    return sorted({*present, *having})


def _parse_nodes(value: bytes) -> tuple[UUID, ...] | None:
    # One space at the end is allowed; two spaces in a row make the line invalid.
    words = value.removesuffix(b" ").split(b" ") if value else []
    return tuple(map(UUID, words)) if all(words) else None
