"""Counting messages and bytes between nodes, with four processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from exchanged import WIDTH, counts, find, inputs, leave
from libmoe.core.errors import ConfigError
from libmoe.distributed import Traffic, exchange, flat_exchange
from two_ranks import in_ranks

SIZE, ROW = 4, WIDTH * 8
COUNT = counts("uneven", SIZE)
NODE = torch.tensor([0, 0, 1, 1])


def work(rank: int, folder: Path) -> None:
    x_RD = inputs(COUNT)[rank].requires_grad_()
    with Traffic(2) as outer:
        with Traffic(1) as inner:
            y_SD, way = exchange(x_RD, COUNT[rank])
        y_SD.sum().backward()
    with Traffic(2) as narrow:
        way(x_RD.detach().to(torch.int16))
    exchange(x_RD, COUNT[rank])  # nobody counts
    pairs = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    with Traffic(2) as pair:
        flat_exchange([0, 0], pairs[rank in (1, 2)])(x_RD[:0])
        way = flat_exchange([1, 1], pairs[rank in (1, 2)])
        way(torch.ones(2, 5, dtype=torch.uint8))
    try:
        Traffic(3).__enter__()
        error = "none"
    except ConfigError as found:
        error = str(found)
    recorders = {"outer": outer, "inner": inner, "narrow": narrow, "pair": pair, "all": outer.summed()}
    tensors = {}
    for name, recorder in recorders.items():
        for kind in ("rows", "counts"):
            tally = getattr(recorder, kind)
            tensors |= {f"{name}/{kind}/messages": tally.messages_MM, f"{name}/{kind}/bytes": tally.bytes_MM}
    leave(folder, "traffic", rank, tensors, {"error": error})


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("traffic")
    in_ranks(SIZE, work, folder)
    return find(folder, "traffic", SIZE)


def by_node(sent_WW: torch.Tensor) -> torch.Tensor:
    """Sum over the ranks of each pair of nodes."""
    member_MW = (torch.arange(2).unsqueeze(1) == NODE).long()
    return member_MW @ sent_WW @ member_MW.t()


OFF = COUNT * (1 - torch.eye(SIZE, dtype=torch.int64))  # rows that leave their rank


@pytest.mark.distributed
def test_forward_and_backward_of_all_ranks_add_up_to_the_table_and_its_transpose(ranks: Any) -> None:
    expected_MM = by_node(OFF + OFF.t())
    for found, _ in ranks:
        assert found["all/rows/bytes"].equal(expected_MM * ROW)
        assert found["all/rows/messages"].equal(by_node((OFF > 0).long() + (OFF.t() > 0).long()))
        others_MM = by_node(1 - torch.eye(SIZE, dtype=torch.int64))
        assert found["all/counts/messages"].equal(others_MM)  # no more of them backward
        assert found["all/counts/bytes"].equal(others_MM * 8)


@pytest.mark.distributed
def test_a_process_counts_what_it_sends_itself_and_not_what_stays(ranks: Any) -> None:
    for rank, (found, _) in enumerate(ranks):
        sent_WW = torch.zeros(SIZE, SIZE, dtype=torch.int64)
        sent_WW[rank] = OFF[rank]
        assert found["inner/rows/bytes"].equal(sent_WW * ROW)
        assert found["inner/rows/messages"].equal((sent_WW > 0).long())
        assert found["narrow/rows/bytes"].equal(by_node(sent_WW) * WIDTH * 2), "int16, by no count"
        assert not found["narrow/counts/bytes"].any()


@pytest.mark.distributed
def test_ranks_of_a_group_are_found_on_their_nodes_and_empty_messages_are_none(ranks: Any) -> None:
    for rank, (found, _) in enumerate(ranks):
        expected_MM = torch.zeros(2, 2, dtype=torch.int64)
        expected_MM[NODE[rank], 1 - NODE[rank]] = 1  # both pairs are of ranks on different nodes
        assert found["pair/rows/messages"].equal(expected_MM)
        assert found["pair/rows/bytes"].equal(5 * expected_MM)
        assert found["pair/counts/messages"].equal(2 * expected_MM)


@pytest.mark.distributed
def test_nodes_of_a_size_that_does_not_divide_the_ranks_are_refused(ranks: Any) -> None:
    for _, facts in ranks:
        assert facts["error"] == "ranks_per_node=3 does not divide the number of ranks, 4; 2 does"


def test_a_process_alone_sends_nothing() -> None:
    with Traffic() as traffic:
        exchange(torch.ones(3, 2), [3])
    assert traffic.rows.messages_MM.tolist() == traffic.counts.messages_MM.tolist() == [[0]]
    assert traffic.summed().rows.bytes_between == 0
