"""Exchanges in two hops: one between nodes and one inside a node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from libmoe.core.errors import unknown
from libmoe.distributed.agreeing import Agreement
from libmoe.distributed.moving import Exchange, counted
from libmoe.distributed.topology import Topology

Order = Literal["inter_first", "intra_first", "leader"]


def two_hop_exchange(
    count_W: Tensor | Sequence[int], topology: Topology, order: Order = "inter_first"
) -> Exchange:
    """Agree on an exchange over n nodes of m ranks that crosses between nodes in few, large messages.

    ``inter_first``: rank (a, l) sends all rows for node i to rank (i, l), which hands them on inside its node
    (arXiv 2212.05191).  ``intra_first``: rank (a, l) sends all rows for places j, on whatever node, to rank (a, j),
    which sends them to (i, j) (two-dimensional hierarchical, arXiv 2206.03382; also arXiv 2201.05596).  Both take
    n + m - 2 messages a rank, n - 1 of them between nodes, where the flat exchange takes nm - 1 and m(n - 1).
    ``leader``: ranks give everything to the first of their node, the leaders exchange, and hand out what came
    (arXiv 2203.14685): n - 1 messages a *node* between nodes, at the price of a leader's memory for all rows of
    its node, and of its links.

    Who receives what, in which order, is as with the flat exchange, to the bit, and so are gradients.  Between nodes
    the bytes are the same, too; inside, rows that also cross are moved once more (``leader``: up to twice).

    Args:
        count_W: rows for each rank of the topology, node by node: ``[W]``, or ``[W, E]`` in E parts that the receiver
            wants to know apart; on a device whose tensors the backend moves.

    Raises:
        ConfigError: an unknown order, or counts that do not fit the topology.
    """
    if order not in _PATHS:
        raise unknown("order", order, _PATHS)
    n, m = topology.nodes, topology.ranks_per_node
    agreement = Agreement(counted(count_W, n * m), n, m)
    _PATHS[order](agreement, topology)
    return agreement.exchange()


def hierarchical_exchange(
    x_RD: Tensor, count_W: Tensor | Sequence[int], topology: Topology, order: Order = "inter_first"
) -> tuple[Tensor, Exchange]:
    """:func:`~libmoe.distributed.flat.exchange` of the same rows in two hops (:func:`two_hop_exchange`).

    Args:
        x_RD: ``[R, ...]`` of any data type, sorted by destination.

    Returns:
        The received rows ``[S, ...]`` by source, and the exchange.

    Raises:
        ConfigError: an unknown order, or counts that do not fit the topology or the rows.
    """
    way = two_hop_exchange(counted(count_W, topology.size, x_RD), topology, order)
    return way(x_RD), way


# Blocks are named by letters: of a row's source, node a and place l; of its destination, node i and place j.


def _inter_first(path: Agreement, topology: Topology) -> None:  # i j
    path.hop(topology.peer_group)  # a j
    path.turn(1, 0)  # j a
    path.hop(topology.node_group)  # l a
    path.turn(1, 0)  # a l


def _intra_first(path: Agreement, topology: Topology) -> None:  # i j
    path.turn(1, 0)  # j i
    path.hop(topology.node_group)  # l i
    path.turn(1, 0)  # i l
    path.hop(topology.peer_group)  # a l


def _leader(path: Agreement, topology: Topology) -> None:  # i j
    n, m = topology.nodes, topology.ranks_per_node
    leads = topology.local == 0
    first, all_if_leader = [1] + [0] * (m - 1), [int(leads)] * m
    path.count = path.count.unsqueeze(0)  # all of it is one block
    path.hop(topology.node_group, first, all_if_leader)  # l i j
    if leads:
        path.turn(1, 2, 0)  # i j l
        path.hop(topology.peer_group)  # a j l
        path.turn(1, 0, 2)  # j a l
    else:
        path.count = path.count.new_empty(0, n, m, path.count.shape[-1])
    path.hop(topology.node_group, all_if_leader, first)  # a l
    path.count = path.count.squeeze(0)


_PATHS: dict[str, Callable[[Agreement, Topology], None]] = {
    "inter_first": _inter_first,
    "intra_first": _intra_first,
    "leader": _leader,
}
