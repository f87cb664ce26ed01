"""The flat exchange of rows between four processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from exchanged import CASES, WIDTH, counts, find, inputs, leave, received, returned, rows, weights
from libmoe.core.errors import ConfigError
from libmoe.distributed import block_order, exchange, flat_exchange
from two_ranks import in_ranks

SIZE = 4
DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.int64,
    torch.int16,
    torch.uint8,
    torch.uint16,
    torch.bool,
    torch.complex64,
)
SHAPES = ((), (0,), (2, 3), (2, 0, 3))
COUNT = counts("uneven", SIZE)


def work(rank: int, folder: Path) -> None:
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {}
    for case in CASES:
        count_WW = counts(case, SIZE)
        x_RD = inputs(count_WW)[rank].requires_grad_()
        y_SD, way = exchange(x_RD, count_WW[rank])
        (x_grad,) = torch.autograd.grad((y_SD * weights(count_WW)[rank]).sum(), x_RD)
        z_SD = y_SD.detach().requires_grad_()
        back_RD = way.back(z_SD)
        (y_grad,) = torch.autograd.grad((back_RD * inputs(count_WW)[rank]).sum(), z_SD)
        found = {"y": y_SD, "grad": x_grad, "back": back_RD, "back grad": y_grad, "received": way.received_W}
        tensors |= {f"{case}/{key}": value for key, value in found.items()}
    for dtype in DTYPES:
        tensors[str(dtype)] = exchange(typed(rank, dtype), COUNT[rank].tolist())[0].view(torch.uint8)
    for shape in SHAPES:
        tensors[str(shape)] = exchange(shaped(rank, shape), COUNT[rank].int())[0]
    wide_DR = inputs(COUNT)[rank].t().contiguous()
    tensors["transposed"] = exchange(wide_DR.t(), COUNT[rank])[0]

    x_RD = inputs(COUNT)[rank].requires_grad_()
    y_SD, way = exchange(x_RD, COUNT[rank])
    (first,) = torch.autograd.grad((y_SD**3).sum(), x_RD, create_graph=True)
    (tensors["second derivative"],) = torch.autograd.grad((first * first).sum(), x_RD)
    tensors["more"] = torch.cat([way(x_RD).detach(), way(2 * x_RD).detach()])

    count_WE = parts()[rank]
    x_RD = rows(count_WE.sum(), rank)
    y_SD, way = exchange(x_RD, count_WE)
    tensors["parts"], tensors["by part"] = way.received_W, y_SD[block_order(way.received_W, (1, 0))]

    pairs = [dist.new_group([0, 3]), dist.new_group([1, 2])]
    count_WW = counts("uneven", 2)
    place = int(rank > 1)
    tensors["pair"] = exchange(inputs(count_WW)[place], count_WW[place], pairs[rank in (1, 2)])[0]
    try:
        flat_exchange([1, 1], pairs[rank not in (1, 2)])
    except ConfigError as error:
        facts["foreign"] = str(error)
    leave(folder, "flat", rank, tensors, facts)


def typed(rank: int, dtype: torch.dtype) -> Tensor:
    """Rows of bits at random, not all of which are numbers."""
    shape = int(COUNT[rank].sum()), WIDTH * dtype.itemsize
    high = 2 if dtype == torch.bool else 256
    bits = torch.randint(high, shape, generator=torch.Generator().manual_seed(rank), dtype=torch.uint8)
    return bits.view(dtype)


def shaped(rank: int, shape: tuple[int, ...]) -> Tensor:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(int(COUNT[rank].sum()), *shape, generator=generator)


def parts() -> Tensor:
    """Rows from each rank to each of three experts of each rank."""
    return torch.randint(0, 3, (SIZE, SIZE, 3), generator=torch.Generator().manual_seed(7))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("flat")
    in_ranks(SIZE, work, folder)
    return find(folder, "flat", SIZE)


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_every_rank_receives_its_rows_by_source_in_their_order(ranks: Any, case: str) -> None:
    count_WW = counts(case, SIZE)
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found[f"{case}/y"], received(inputs(count_WW), count_WW, rank))
        assert torch.equal(found[f"{case}/received"], count_WW[:, rank])


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_the_gradient_is_the_exchange_the_other_way(ranks: Any, case: str) -> None:
    count_WW = counts(case, SIZE)
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found[f"{case}/grad"], returned(weights(count_WW), count_WW, rank))


@pytest.mark.distributed
@pytest.mark.parametrize("case", CASES)
def test_back_brings_every_row_to_its_place_and_its_gradient_there_again(ranks: Any, case: str) -> None:
    count_WW = counts(case, SIZE)
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found[f"{case}/back"], inputs(count_WW)[rank])
        assert torch.equal(found[f"{case}/back grad"], received(inputs(count_WW), count_WW, rank))


@pytest.mark.distributed
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_any_data_type_arrives_bit_for_bit(ranks: Any, dtype: torch.dtype) -> None:
    sent = [typed(rank, dtype).view(torch.uint8) for rank in range(SIZE)]
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found[str(dtype)], received(sent, COUNT, rank))


@pytest.mark.distributed
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_may_have_any_shape_also_an_empty_one(ranks: Any, shape: tuple[int, ...]) -> None:
    sent = [shaped(rank, shape) for rank in range(SIZE)]
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found[str(shape)], received(sent, COUNT, rank))


@pytest.mark.distributed
def test_rows_need_not_be_contiguous(ranks: Any) -> None:
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found["transposed"], received(inputs(COUNT), COUNT, rank))


@pytest.mark.distributed
def test_gradients_have_gradients(ranks: Any) -> None:
    for rank, (found, _) in enumerate(ranks):
        x_RD = inputs(COUNT)[rank]  # (x^3)' = 3 x^2, and (9 x^4)' = 36 x^3, wherever the cube was taken
        torch.testing.assert_close(found["second derivative"], 36 * x_RD**3)


@pytest.mark.distributed
def test_an_exchange_carries_more_than_one_tensor(ranks: Any) -> None:
    for rank, (found, _) in enumerate(ranks):
        once = received(inputs(COUNT), COUNT, rank)
        assert torch.equal(found["more"], torch.cat([once, 2 * once]))


@pytest.mark.distributed
def test_the_receiver_learns_the_parts_and_can_sort_by_them(ranks: Any) -> None:
    count_WWE = parts()
    x = [rows(count_WE.sum(), rank) for rank, count_WE in enumerate(count_WWE)]
    for rank, (found, _) in enumerate(ranks):
        assert torch.equal(found["parts"], count_WWE[:, rank])
        expected = []
        for part in range(3):
            for source in range(SIZE):
                blocks = x[source].split(count_WWE[source].flatten().tolist())
                expected.append(blocks[rank * 3 + part])
        assert torch.equal(found["by part"], torch.cat(expected))


@pytest.mark.distributed
def test_a_group_exchanges_apart_from_the_others_in_its_own_order(ranks: Any) -> None:
    count_WW = counts("uneven", 2)
    for rank, (found, facts) in enumerate(ranks):
        assert torch.equal(found["pair"], received(inputs(count_WW), count_WW, int(rank > 1)))
        others = "1, 2" if rank in (0, 3) else "0, 3"
        assert facts["foreign"] == f"rank {rank} is not in the group of ranks {others}; use a group it is in"


def test_without_process_groups_rows_stay_where_they_are() -> None:
    x_RD = rows(5, 0).requires_grad_()
    y_SD, way = exchange(x_RD, [5])
    assert torch.equal(y_SD, x_RD) and torch.equal(way.back(y_SD), x_RD) and way.received_W.tolist() == [5]
    (grad,) = torch.autograd.grad((2 * y_SD).sum(), x_RD)
    assert torch.equal(grad, torch.full_like(x_RD, 2))


def test_counts_that_do_not_fit_are_named_before_anything_is_sent() -> None:
    x_RD = rows(5, 0)
    for count, message in [
        ([4], "x has 5 rows, but the counts are of 4; give 4"),
        ([5, 0], r"count has shape \(2,\); give one number or row for each of the 1 ranks"),
        ([-1], "count=-1 must be at least 0"),
        ([5.0], r"count has dtype torch.float32; give integers, for example torch.int64"),
    ]:
        with pytest.raises(ConfigError, match=message):
            exchange(x_RD, count)
    with pytest.raises(ConfigError, match="y has 2 rows, but the counts are of 5; give 5"):
        flat_exchange([5]).back(x_RD[:2])
    with pytest.raises(ConfigError, match="x has no rows"):
        flat_exchange([5])(torch.tensor(1.0))


def test_blocks_are_reordered_like_the_table_of_their_sizes() -> None:
    count = torch.randint(0, 4, (2, 3, 4), generator=torch.Generator().manual_seed(1))
    labels = torch.arange(count.numel()).repeat_interleave(count.flatten())
    for permutation in [(0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0)]:
        block = torch.arange(count.numel()).view(count.shape).permute(permutation).flatten()
        expected = block.repeat_interleave(count.permute(permutation).flatten())
        order = block_order(count, permutation)
        assert torch.equal(labels[order], expected)
        assert torch.equal(order.sort().values, torch.arange(len(labels)))
        for b in range(count.numel()):  # rows of a block stay in their order
            inside = order[expected == b]
            assert torch.equal(inside, inside.sort().values)
