"""Which ranks share a node."""

from __future__ import annotations

from dataclasses import dataclass

import torch.distributed as dist

from libmoe.core.errors import ConfigError
from libmoe.distributed.groups import Group, divides, rank_in, ranks_of, size_of


@dataclass(frozen=True)
class Topology:
    """Ranks as a grid of nodes and of places inside a node, and the two process groups of this rank.

    Rank ``node * ranks_per_node + local`` of the grid stands on node ``node``: ranks of a node are contiguous.  The two
    groups are those of arXiv 2212.05191: of its own node, and of the same place on every node.  They are made once;
    make one topology and hand it around.  From a :class:`~torch.distributed.device_mesh.DeviceMesh` with dimensions
    ``node`` and ``local`` it is ``Topology(mesh.get_group("local"), mesh.get_group("node"))``, which may span a part of
    the world.

    Args:
        node_group: ranks of this node, by place.
        peer_group: ranks at the same place of all nodes, by node.

    Raises:
        ConfigError: the groups have more or less in common than this rank.
    """

    node_group: Group
    peer_group: Group

    def __post_init__(self) -> None:
        common = set(ranks_of(self.node_group)) & set(ranks_of(self.peer_group))
        if len(common) != 1:
            raise ConfigError(
                f"node_group and peer_group share ranks {sorted(common)}; give the row and the column of this rank"
                " in a grid, which share it alone"
            )
        rank_in(self.node_group), rank_in(self.peer_group)

    @classmethod
    def of_world(cls, ranks_per_node: int) -> Topology:
        """All ranks, of which nodes have ``ranks_per_node`` each.

        Every rank has to call it, and every rank makes all groups, in the same order: first those of nodes, then those
        of places.  A process without process groups is a node of one rank.

        Raises:
            ConfigError: ``ranks_per_node`` does not divide the number of ranks.
        """
        ranks = size_of(None)
        nodes = divides("ranks_per_node", ranks_per_node, ranks)
        if not (dist.is_available() and dist.is_initialized()):
            return cls(None, None)
        grid = [list(range(node * ranks_per_node, (node + 1) * ranks_per_node)) for node in range(nodes)]
        of_nodes = [dist.new_group(row, group_desc=f"libmoe:node {i}") for i, row in enumerate(grid)]
        of_places = [
            dist.new_group(list(column), group_desc=f"libmoe:place {i}")
            for i, column in enumerate(zip(*grid))
        ]
        node, local = divmod(dist.get_rank(), ranks_per_node)
        return cls(of_nodes[node], of_places[local])

    @property
    def nodes(self) -> int:
        return size_of(self.peer_group)

    @property
    def ranks_per_node(self) -> int:
        return size_of(self.node_group)

    @property
    def size(self) -> int:
        """Ranks of the grid."""
        return self.nodes * self.ranks_per_node

    @property
    def node(self) -> int:
        """The node of this rank."""
        return rank_in(self.peer_group)

    @property
    def local(self) -> int:
        """The place of this rank in its node."""
        return rank_in(self.node_group)

    @property
    def rank(self) -> int:
        """This rank in the grid."""
        return self.node * self.ranks_per_node + self.local

    def node_of(self, rank: int) -> int:
        """The node of a rank of the grid."""
        return rank // self.ranks_per_node
