"""What exchanges cost on a cluster, by start-up time and bandwidth alone.

Units: seconds, bytes, bytes per second.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from libmoe.core.errors import ConfigError, unknown

Kind = Literal["flat", "inter_first", "intra_first", "leader"]


@dataclass(frozen=True)
class Link:
    """A message of b bytes takes ``latency + b / bandwidth``.

    A bandwidth that grows with the size of messages, ``bandwidth * b / (b + half)``, is the same with ``half /
    bandwidth`` more latency.

    Args:
        latency: seconds a message.
        bandwidth: bytes per second.

    Raises:
        ConfigError: a negative latency, or a bandwidth that is not positive.
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        if self.latency < 0:
            raise ConfigError(f"latency={self.latency} must be at least 0 seconds")
        if self.bandwidth <= 0:
            raise ConfigError(f"bandwidth={self.bandwidth} must be greater than 0 bytes per second")


@dataclass(frozen=True)
class Cluster:
    """n nodes of m ranks.

    Args:
        between: from a node to others; its bandwidth is that of the node, shared by its ranks.
        inside: from a rank to others of its node.
        one_card: messages of a node's ranks start one after the other on its only network card (arXiv 2203.14685), and
            not side by side (arXiv 2212.05191).

    Raises:
        ConfigError: no nodes or no ranks.
    """

    nodes: int
    ranks_per_node: int
    between: Link
    inside: Link
    one_card: bool = False

    def __post_init__(self) -> None:
        for field in ("nodes", "ranks_per_node"):
            if getattr(self, field) < 1:
                raise ConfigError(f"{field}={getattr(self, field)} must be at least 1")


def exchange_seconds(cluster: Cluster, size: float, kind: Kind = "flat") -> float:
    """Time of one exchange of rows, for which each of the nm ranks sends ``size / nm`` bytes to every rank.

    Flat, both links work side by side: ``max(m(n-1) a + m b (n-1)/n / B,  (m-1) a' + b (m-1)/(nm) / B')``, for latency
    a and bandwidth B between nodes, a' and B' inside, and b = ``size``.  In two hops, one after the other:
    ``(n-1) a + m b (n-1)/n / B + (m-1) a' + b (m-1)/m / B'`` (arXiv 2212.05191).  With leaders, the second part is
    ``2 (m-1) (a' + b / B')`` (arXiv 2203.14685).  On one card, a counts m times over but for leaders.

    Args:
        size: bytes that each rank sends, those to itself included.

    Returns:
        Seconds.

    Raises:
        ConfigError: an unknown kind, or a negative size.
    """
    if size < 0:
        raise ConfigError(f"size={size} must be at least 0 bytes")
    n, m, between, inside = cluster.nodes, cluster.ranks_per_node, cluster.between, cluster.inside
    queue = m if cluster.one_card and kind != "leader" else 1
    start = queue * (n - 1) * between.latency
    crossing = m * size * (n - 1) / n / between.bandwidth
    if kind == "flat":
        local = (m - 1) * (inside.latency + size / (n * m) / inside.bandwidth)
        return max(m * start + crossing, local)
    if kind in ("inter_first", "intra_first"):
        return start + crossing + (m - 1) * (inside.latency + size / m / inside.bandwidth)
    if kind == "leader":
        return start + crossing + 2 * (m - 1) * (inside.latency + size / inside.bandwidth)
    raise unknown("kind", kind, ["flat", "inter_first", "intra_first", "leader"])
