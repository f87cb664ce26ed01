"""Nodes, places and their process groups."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from exchanged import counts, find, inputs, leave
from libmoe.core.errors import ConfigError
from libmoe.distributed import Topology, hierarchical_exchange
from two_ranks import in_ranks

SIZE = 4


def message(call: Any, *args: Any) -> str:
    try:
        call(*args)
    except ConfigError as error:
        return str(error)
    return "no error"


def work(rank: int, folder: Path) -> None:
    topology = Topology.of_world(2)
    groups = topology.node_group, topology.peer_group
    facts: dict[str, Any] = {
        "names": [group.group_desc for group in groups],
        "ranks": [dist.get_process_group_ranks(group) for group in groups],
        "nodes": [topology.node_of(r) for r in range(SIZE)],
        "errors": [message(Topology.of_world, per_node) for per_node in (3, 0, 8)],
        "whole": message(Topology, None, topology.peer_group),
    }
    made = len(dist.distributed_c10d._world.pg_names)
    count_WW = counts("uneven", SIZE)
    x_RD = inputs(count_WW)[rank]
    y_SD, _ = hierarchical_exchange(x_RD, count_WW[rank], topology)
    facts["made later"] = len(dist.distributed_c10d._world.pg_names) - made

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("node", "local"))
    meshed = Topology(mesh.get_group("local"), mesh.get_group("node"))
    facts["mesh"] = [dist.get_process_group_ranks(g) for g in (meshed.node_group, meshed.peer_group)]
    z_SD, _ = hierarchical_exchange(x_RD, count_WW[rank], meshed)
    leave(folder, "topology", rank, {"y": y_SD, "z": z_SD}, facts)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("topology")
    in_ranks(SIZE, work, folder)
    return find(folder, "topology", SIZE)


@pytest.mark.distributed
def test_each_rank_has_the_group_of_its_node_and_that_of_its_place(ranks: Any) -> None:
    for rank, (_, facts) in enumerate(ranks):
        node, local = divmod(rank, 2)
        assert facts["ranks"] == [[2 * node, 2 * node + 1], [local, 2 + local]]
        assert facts["names"] == [f"libmoe:node {node}", f"libmoe:place {local}"]
        assert facts["nodes"] == [0, 0, 1, 1]


@pytest.mark.distributed
def test_exchanges_make_no_more_groups(ranks: Any) -> None:
    assert [facts["made later"] for _, facts in ranks] == [0] * SIZE


@pytest.mark.distributed
def test_the_dimensions_of_a_device_mesh_are_a_topology(ranks: Any) -> None:
    for found, facts in ranks:
        assert facts["mesh"] == facts["ranks"]
        assert found["y"].equal(found["z"])


@pytest.mark.distributed
def test_a_size_that_does_not_divide_the_ranks_is_told_the_nearest_that_does(ranks: Any) -> None:
    for _, facts in ranks:
        assert facts["errors"] == [
            f"ranks_per_node={wrong} does not divide the number of ranks, 4; {near} does"
            for wrong, near in [(3, 2), (0, 1), (8, 4)]
        ]


@pytest.mark.distributed
def test_groups_that_are_no_row_and_column_are_refused(ranks: Any) -> None:
    for rank, (_, facts) in enumerate(ranks):
        shared = [rank % 2, rank % 2 + 2]
        assert facts["whole"].startswith(
            f"node_group and peer_group share ranks {shared}; give the row and the column"
        )


def test_a_process_alone_is_a_node_of_one_rank() -> None:
    alone = Topology.of_world(1)
    assert (alone.nodes, alone.ranks_per_node, alone.size, alone.rank) == (1, 1, 1, 0)
    with pytest.raises(ConfigError, match="ranks_per_node=2 does not divide the number of ranks, 1; 1 does"):
        Topology.of_world(2)
