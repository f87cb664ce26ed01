"""The group-wise exchange, with four and six processes: LocMoE (arXiv 2401.13920), DeepSpeed-MoE (arXiv 2201.05596)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exchanged import (
    CASES,
    WIDTH,
    assert_exchanged,
    counts,
    inputs,
    leave,
    received,
    returned,
    rows,
    weights,
    with_sizes,
)
from libmoe.core.errors import ConfigError
from libmoe.distributed import Topology, Traffic, exchange, group_exchange

SIZES = {4: (2,), 6: (2, 3)}  # ranks: ranks of a tensor-parallel group, each of which is a node
GRIDS = [(size, tensor) for size, tensors in SIZES.items() for tensor in tensors]
ROW = WIDTH * 8  # bytes
ALL = (*CASES, "single")


def table(case: str, groups: int) -> Tensor:
    """Rows from each tensor-parallel group to each; a multiple of all their sizes where they are even."""
    if case == "single":
        return torch.ones(groups, groups, dtype=torch.int64)
    return counts(case, groups) * (3 if case == "even" else 1)


def addend(count: int, group: int, place: int) -> Tensor:
    """What rank ``place`` of a tensor-parallel group holds of a sum over the group."""
    return rows(count, 1000 + 10 * group + place)


def work(rank: int, folder: Path, size: int) -> None:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for tensor in SIZES[size]:
        topology = Topology.of_world(tensor)
        groups = topology.peer_group, topology.node_group
        group, place = divmod(rank, tensor)
        for case in ALL:
            name, count_WW = f"{tensor}/{case}", table(case, size // tensor)
            x_RD = inputs(count_WW)[group].requires_grad_()
            with Traffic(tensor) as flat:
                whole_SD, _ = exchange(x_RD, count_WW[group], groups[0])
            with Traffic(tensor) as there:
                y_SD, way = group_exchange(x_RD, count_WW[group], *groups)
            tensors |= {f"{name}/flat": whole_SD, f"{name}/y": y_SD, f"{name}/received": way.received_W}
            for key, out_SD in [("flat grad", whole_SD), ("grad", y_SD)]:
                with Traffic(tensor) as gradient:
                    loss = (out_SD * weights(count_WW)[group]).sum()
                    (tensors[f"{name}/{key}"],) = torch.autograd.grad(loss, x_RD)
            tensors[f"{name}/back"] = way.back(y_SD)
            tallies = [flat.rows, there.rows, gradient.rows]
            facts[name] = [[t.messages_between, t.messages_inside, t.bytes_between] for t in tallies]

            y_SD, way = group_exchange(x_RD, count_WW[group], *groups, partial=True)
            part_SD = addend(way.rows_received, group, place).requires_grad_()
            (tensors[f"{name}/partial grad"],) = torch.autograd.grad((y_SD * part_SD.detach()).sum(), x_RD)
            back_RD = way.back(part_SD)
            tensors[f"{name}/partial back"] = back_RD
            (tensors[f"{name}/partial back grad"],) = torch.autograd.grad(
                (back_RD * x_RD.detach()).sum(), part_SD
            )
    ones = torch.ones(2 * size // tensor, 1, dtype=torch.bfloat16)
    _, way = group_exchange(ones, [2] * (size // tensor), *groups, partial=True)
    tensors["low"] = way.back(ones if place else 256 * ones)
    leave(folder, "group", rank, tensors, facts)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return with_sizes(SIZES, work, "group", tmp_path_factory)


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "tensor"), GRIDS)
@pytest.mark.parametrize("case", ALL)
def test_every_rank_receives_what_the_flat_exchange_brings_and_returns_its_gradient(
    ranks: Any, size: int, tensor: int, case: str
) -> None:
    count_WW, name = table(case, size // tensor), f"{tensor}/{case}"
    for rank, (found, _) in enumerate(ranks[size]):
        assert_exchanged(found, name, (f"{name}/flat", f"{name}/flat grad"), count_WW, rank // tensor)


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "tensor"), GRIDS)
def test_bytes_between_nodes_are_those_of_the_flat_exchange_by_the_size_of_the_group(
    ranks: Any, size: int, tensor: int
) -> None:
    groups = size // tensor
    for case in ALL:
        facts = torch.tensor([facts[f"{tensor}/{case}"] for _, facts in ranks[size]])  # rank, call, number
        flat, there, gradient = facts[:, :, 2].sum(0).tolist()
        assert there == gradient == flat / tensor
        count_WW = table(case, groups)
        assert there == ROW * int(count_WW.sum() - count_WW.trace())
    for _, facts in ranks[size]:
        flat, there, gradient = facts[f"{tensor}/even"]
        assert flat == [groups - 1, 0, (groups - 1) * 12 * ROW]
        assert there == gradient == [groups - 1, tensor - 1, (groups - 1) * 12 * ROW / tensor]


@pytest.mark.distributed
def test_rows_that_cannot_be_divided_are_taken_in_turns(ranks: Any) -> None:
    sent = [facts["2/single"][1] for _, facts in ranks[6]]
    assert [between for *_, between in sent] == [ROW] * 6, (
        "two single rows leave a node, one from each of its ranks"
    )


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "tensor"), GRIDS)
def test_addends_are_summed_on_the_way_back_as_by_an_all_reduce(ranks: Any, size: int, tensor: int) -> None:
    groups = size // tensor
    for case in ALL:
        count_WW, name = table(case, groups), f"{tensor}/{case}"
        total = [
            torch.stack([addend(int(n), group, place) for place in range(tensor)]).sum(0)
            for group, n in enumerate(count_WW.sum(0))
        ]
        for rank, (found, _) in enumerate(ranks[size]):
            group = rank // tensor
            expected_RD = returned(total, count_WW, group)
            for key in ("partial grad", "partial back"):
                torch.testing.assert_close(found[f"{name}/{key}"], expected_RD)
                assert torch.equal(found[f"{name}/{key}"], ranks[size][group * tensor][0][f"{name}/{key}"])
            # An addend has the gradient of the sum, whole.
            gradient_SD = received(inputs(count_WW), count_WW, group)
            assert torch.equal(found[f"{name}/partial back grad"], gradient_SD)


@pytest.mark.distributed
def test_sums_of_low_precision_are_taken_in_float32(ranks: Any) -> None:
    for found, _ in ranks[6]:  # 256 + 1 + 1 is 256 in bfloat16 if rounded twice
        assert found["low"].dtype == torch.bfloat16 and (found["low"] == 258).all()


def test_without_process_groups_rows_stay_where_they_are() -> None:
    x_RD = rows(5, 0)
    y_SD, way = group_exchange(x_RD, [5], None, None, partial=True)
    assert torch.equal(y_SD, x_RD) and torch.equal(way.back(y_SD), x_RD)
    with pytest.raises(ConfigError, match="x has 5 rows, but the counts are of 4"):
        group_exchange(x_RD, [4], None, None)
