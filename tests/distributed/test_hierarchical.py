"""Exchanges in two hops, with four and six processes that stand for nodes of every size.

SMILE (arXiv 2212.05191), HetuMoE (arXiv 2203.14685), Tutel (arXiv 2206.03382) and DeepSpeed-MoE (arXiv 2201.05596).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from exchanged import (
    CASES,
    assert_exchanged,
    counts,
    inputs,
    leave,
    received,
    rows,
    weights,
    with_sizes,
)
from libmoe.core.errors import ConfigError
from libmoe.distributed import Topology, Traffic, exchange, hierarchical_exchange, two_hop_exchange

ORDERS = ("inter_first", "intra_first", "leader")
SIZES = {4: (1, 4, 2), 6: (2, 3)}  # ranks: ranks per node
GRIDS = [(size, per_node) for size, nodes in SIZES.items() for per_node in nodes]
ROW = 3 * 8  # bytes


def work(rank: int, folder: Path, size: int) -> None:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for case in CASES:
        count_W = counts(case, size)[rank]
        x_RD = inputs(counts(case, size))[rank].requires_grad_()
        y_SD, _ = exchange(x_RD, count_W)
        (grad,) = torch.autograd.grad((y_SD * weights(counts(case, size))[rank]).sum(), x_RD)
        tensors |= {f"flat/{case}/y": y_SD, f"flat/{case}/grad": grad}
    for per_node in SIZES[size]:
        topology = Topology.of_world(per_node)
        facts[f"{per_node}"] = [
            topology.nodes,
            topology.ranks_per_node,
            topology.node,
            topology.local,
            topology.rank,
        ]
        for order in ORDERS:
            for case in CASES:
                name = f"{per_node}/{order}/{case}"
                found, traffic = both_ways(rank, counts(case, size), topology, order)
                tensors |= {f"{name}/{key}": value for key, value in found.items()}
                facts[name] = traffic
    facts["flat/even"] = both_ways(rank, counts("even", size), topology, None)[1]
    tensors["half"], _ = hierarchical_exchange(
        narrow(rank, size), counts("uneven", size)[rank], topology, "leader"
    )
    tensors["parts"] = two_hop_exchange(parts(size)[rank], topology, "inter_first").received_W
    leave(folder, "hops", rank, tensors, facts)


def both_ways(rank: int, count_WW: Tensor, topology: Topology, order: Any) -> tuple[dict[str, Tensor], Any]:
    """Rows there, their gradient, and rows back; traffic in that order, and that of counts."""
    x_RD = inputs(count_WW)[rank].requires_grad_()
    per_node = topology.ranks_per_node
    with Traffic(per_node) as there:
        if order is None:
            y_SD, way = exchange(x_RD, count_WW[rank])
        else:
            y_SD, way = hierarchical_exchange(x_RD, count_WW[rank], topology, order)
    with Traffic(per_node) as gradient:
        (grad,) = torch.autograd.grad((y_SD * weights(count_WW)[rank]).sum(), x_RD)
    z_SD = y_SD.detach().requires_grad_()
    back_RD = way.back(z_SD)
    (back_grad,) = torch.autograd.grad((back_RD * inputs(count_WW)[rank]).sum(), z_SD)
    found = {"y": y_SD, "grad": grad, "back": back_RD, "back grad": back_grad, "received": way.received_W}
    tallies = {"there": there.rows, "gradient": gradient.rows, "counts": there.counts}
    traffic = {
        key: [t.messages_between, t.messages_inside, t.bytes_between, t.bytes_inside]
        for key, t in tallies.items()
    }
    if order == "leader":
        traffic["pairs"] = there.summed().rows.messages_MM.tolist()
    return found, traffic


def narrow(rank: int, size: int) -> Tensor:
    return inputs(counts("uneven", size))[rank].to(torch.bfloat16)


def parts(size: int) -> Tensor:
    return torch.randint(0, 3, (size, size, 3), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    return with_sizes(SIZES, work, "hops", tmp_path_factory)


def per_rank(ranks: Any, size: int, name: str, what: str) -> Tensor:
    """``[W, 4]``: messages between nodes and inside, bytes between nodes and inside, that each rank sends."""
    return torch.tensor([facts[name][what] for _, facts in ranks[size]])


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_it_equals_the_flat_exchange_exactly_forward_and_backward(
    ranks: Any, size: int, per_node: int, order: str
) -> None:
    for case in CASES:
        count_WW, name = counts(case, size), f"{per_node}/{order}/{case}"
        for rank, (found, _) in enumerate(ranks[size]):
            assert_exchanged(found, name, (f"flat/{case}/y", f"flat/{case}/grad"), count_WW, rank)


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_way_back_undoes_it(ranks: Any, size: int, per_node: int, order: str) -> None:
    for case in CASES:
        count_WW, name = counts(case, size), f"{per_node}/{order}/{case}"
        for rank, (found, _) in enumerate(ranks[size]):
            assert torch.equal(found[f"{name}/back"], inputs(count_WW)[rank])
            assert torch.equal(found[f"{name}/back grad"], received(inputs(count_WW), count_WW, rank))


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
@pytest.mark.parametrize("order", ["inter_first", "intra_first"])
def test_a_rank_sends_n_plus_m_minus_2_messages_of_which_n_minus_1_leave_the_node(
    ranks: Any, size: int, per_node: int, order: str
) -> None:
    nodes = size // per_node
    for what in ("there", "gradient", "counts"):
        messages = per_rank(ranks, size, f"{per_node}/{order}/even", what)[:, :2]
        assert messages.tolist() == [[nodes - 1, per_node - 1]] * size
    if per_node == SIZES[size][-1]:
        messages = per_rank(ranks, size, "flat/even", "there")[:, :2]
        assert messages.tolist() == [[(nodes - 1) * per_node, per_node - 1]] * size


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
def test_leaders_alone_send_n_minus_1_messages_between_nodes_one_for_each_pair(
    ranks: Any, size: int, per_node: int
) -> None:
    nodes = size // per_node
    for what in ("there", "gradient", "counts"):
        messages = per_rank(ranks, size, f"{per_node}/leader/even", what)[:, :2].tolist()
        for rank in range(size):
            leads = rank % per_node == 0
            assert messages[rank] == ([nodes - 1, per_node - 1] if leads else [0, 1])
    pairs = torch.tensor(ranks[size][0][1][f"{per_node}/leader/even"]["pairs"])
    assert (pairs - pairs.diag().diag() == 1 - torch.eye(nodes)).all()


@pytest.mark.distributed
@pytest.mark.parametrize("size", SIZES)
def test_between_nodes_messages_are_larger_and_bytes_the_same(ranks: Any, size: int) -> None:
    per_node = SIZES[size][-1]
    nodes, rows_each = size // per_node, 4 * ROW
    sizes = {}
    for order in ORDERS:
        sent = per_rank(ranks, size, f"{per_node}/{order}/even", "there")
        sizes[order] = int(sent[0, 2] / sent[0, 0])
        assert int(sent[:, 2].sum()) == size * (nodes - 1) * per_node * rows_each
    # S/W for a flat message, for S bytes on W ranks: m times that, and for leaders of m ranks m m times.
    assert sizes == {
        "inter_first": per_node * rows_each,
        "intra_first": per_node * rows_each,
        "leader": per_node**2 * rows_each,
    }
    flat = per_rank(ranks, size, "flat/even", "there")
    assert flat[:, 2].tolist() == [(nodes - 1) * per_node * rows_each] * size
    assert int(flat[0, 2] / flat[0, 0]) == rows_each


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
def test_no_row_goes_more_than_twice(ranks: Any, size: int, per_node: int) -> None:
    """Volume up to twice the flat one's (arXiv 2201.05596): each hop leaves 1 / its ranks where it is."""
    for case in CASES[:3]:
        count_WW = counts(case, size)
        total = int(count_WW.sum())
        node_W, place_W = torch.arange(size) // per_node, torch.arange(size) % per_node
        crossing = int(count_WW[node_W[:, None] != node_W].sum())
        moving = int(count_WW[place_W[:, None] != place_W].sum())
        for order in ("inter_first", "intra_first"):
            sent = per_rank(ranks, size, f"{per_node}/{order}/{case}", "there")[:, 2:].sum(0)
            assert sent.tolist() == [crossing * ROW, moving * ROW]
            assert int(sent.sum()) <= 2 * total * ROW
    even = per_rank(ranks, size, f"{per_node}/inter_first/even", "there")[0, 2:].tolist()
    mine, nodes = size * 4 * ROW, size // per_node
    assert even == [mine * (nodes - 1) / nodes, mine * (per_node - 1) / per_node]


@pytest.mark.distributed
@pytest.mark.parametrize("size", SIZES)
def test_low_precision_and_parts_go_the_same_way(ranks: Any, size: int) -> None:
    count_WW, x = counts("uneven", size), [narrow(rank, size) for rank in range(size)]
    for rank, (found, _) in enumerate(ranks[size]):
        assert torch.equal(found["half"], received(x, count_WW, rank))
        assert torch.equal(found["parts"], parts(size)[:, rank])


@pytest.mark.distributed
@pytest.mark.parametrize(("size", "per_node"), GRIDS)
def test_ranks_know_their_place(ranks: Any, size: int, per_node: int) -> None:
    for rank, (_, facts) in enumerate(ranks[size]):
        assert facts[f"{per_node}"] == [size // per_node, per_node, rank // per_node, rank % per_node, rank]


def test_an_unknown_order_is_told_the_nearest() -> None:
    alone = Topology.of_world(1)
    with pytest.raises(ConfigError, match="unknown order 'inter'; did you mean 'inter_first'"):
        two_hop_exchange([3], alone, "inter")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="x has 2 rows, but the counts are of 3"):
        hierarchical_exchange(rows(2, 0), [3], alone)


@pytest.mark.parametrize("order", ORDERS)
def test_without_process_groups_rows_stay_where_they_are(order: Any) -> None:
    x_RD = rows(5, 0)
    y_SD, way = hierarchical_exchange(x_RD, torch.tensor([[2, 3]]), Topology.of_world(1), order)
    assert torch.equal(y_SD, x_RD) and way.received_W.tolist() == [[2, 3]] and not way.steps
