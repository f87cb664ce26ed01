"""Hierarchical group attention (MoCHA, arXiv 2507.22805) against a loop over tokens, and what defines it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from libmoe.core.errors import ConfigError
from libmoe.models.group_attention import GroupAttention

MIXED = [0, 2, 1, 0, 0, 0, 1, 2, 0, 0, 0, 3, 0, 0, 0, 1, 0, 1, 1, 0]
"""Groups of 12, 5, 2 and 1 tokens, not in order."""


def tokens(images: int, number: int, width: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images, number, width, generator=generator, dtype=torch.double).requires_grad_()


def reference(x_MD: Tensor, groups: list[int], k: int = 10, ratio: float = 0.7) -> Tensor:
    """One image, token by token, temperature and all."""
    number = len(groups)
    unit = x_MD / x_MD.norm(dim=1, keepdim=True)
    similar = (unit @ unit.T) * torch.exp(1 / x_MD.norm(dim=1).mean())
    edges = []
    for i in range(number):
        ranked = sorted((j for j in range(number) if j != i), key=lambda j: -similar[i, j].item())
        intra = [j for j in ranked if groups[j] == groups[i]][: round(k * ratio)]
        inter = [j for j in ranked if groups[j] != groups[i]][: k - round(k * ratio)]
        edges += [(i, j, similar[i, j]) for j in intra + inter]
    values = torch.stack([value for _, _, value in edges])
    weights = (values - values.min()) / (values.max() - values.min())
    both = [(i, j, w) for (i, j, _), w in zip(edges, weights, strict=True)]
    both += [(j, i, w) for i, j, w in both]
    rows = []
    for i in range(number):
        own = [(j, w) for start, j, w in both if start == i]
        aggregate = sum(w * x_MD[j] for j, w in own) / (sum(w for _, w in own) + 1e-8)
        gate = torch.sigmoid(10 * ((x_MD[i] - aggregate).abs().mean() - 0.2))
        rows.append((1 - gate) * x_MD[i] + gate * aggregate)
    mixed = torch.stack(rows)
    deviation = (mixed.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    return (mixed - mixed.mean(1, keepdim=True)) / deviation


def out_edges(layer: GroupAttention, x: Tensor, groups: list[int]) -> tuple[Tensor, Tensor, Tensor]:
    """As they were chosen, before they were turned round."""
    row, column, weight = layer.edges(x, groups)
    half = len(row) // 2
    return row[:half], column[:half], weight[:half]


@pytest.mark.parametrize("groups", [MIXED, [0] * 6 + [1] * 6 + [2] * 6, [0, 1, 2, 3], [0] * 12], ids=str)
@pytest.mark.parametrize("chunk", [1, 5, 512])
def test_outputs_and_gradients_are_those_of_a_loop(groups: list[int], chunk: int) -> None:
    x = tokens(2, len(groups))
    upstream = torch.randn_like(x)
    y = GroupAttention(chunk=chunk)(x, groups)
    expected = torch.stack([reference(image, groups) for image in x])
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-10)
    (found,) = torch.autograd.grad((y * upstream).sum(), x)
    (wanted,) = torch.autograd.grad((expected * upstream).sum(), x)
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-10)


def test_tokens_of_a_group_may_come_in_any_order() -> None:
    x, groups = tokens(1, len(MIXED)), torch.tensor(MIXED)
    order = torch.arange(len(MIXED))
    for group in range(4):
        places = (groups == group).nonzero().flatten()
        order[places] = places[torch.randperm(len(places))]
    assert not torch.equal(order, torch.arange(len(MIXED)))
    layer = GroupAttention()
    torch.testing.assert_close(layer(x[:, order], groups), layer(x, groups)[:, order], rtol=1e-10, atol=1e-12)


def test_each_token_has_7_neighbours_in_its_group_and_3_outside_or_as_many_as_there_are() -> None:
    row, column, _ = out_edges(GroupAttention(), tokens(1, len(MIXED)), MIXED)
    group = torch.tensor(MIXED)
    assert not (row == column).any() and len(set(zip(row.tolist(), column.tolist(), strict=True))) == len(row)
    for i in range(len(MIXED)):
        inside = group[column[row == i]] == group[i]
        size = int((group == group[i]).sum())
        assert int(inside.sum()) == min(7, size - 1) and int((~inside).sum()) == min(3, len(MIXED) - size)


def test_a_single_group_has_7_neighbours_for_each_token_and_no_others() -> None:
    row, _, _ = out_edges(GroupAttention(), tokens(1, 15), [4] * 15)
    assert torch.equal(torch.bincount(row), torch.full((15,), 7))
    alone = GroupAttention(7, 1.0)(tokens(1, 15), [4] * 15)
    torch.testing.assert_close(GroupAttention()(tokens(1, 15), [4] * 15), alone, rtol=0, atol=0)


def test_edges_lead_both_ways_with_one_weight() -> None:
    row, column, weight = GroupAttention().edges(tokens(2, len(MIXED)), MIXED)
    there = sorted(zip(row.tolist(), column.tolist(), weight.tolist(), strict=True))
    assert there == sorted(zip(column.tolist(), row.tolist(), weight.tolist(), strict=True))
    assert not ((row < len(MIXED)) ^ (column < len(MIXED))).any(), "an edge leads to another image"


def test_weights_of_a_node_sum_to_1_and_lie_between_the_weakest_and_strongest_edge() -> None:
    row, _, weight = GroupAttention().edges(tokens(2, len(MIXED)), MIXED)
    total = torch.zeros(2 * len(MIXED), dtype=torch.double).index_add(0, row, weight)
    shares = torch.zeros_like(total).index_add(0, row, weight / (total[row] + 1e-8))
    assert total.min() > 0 and (shares - 1).abs().max() < 1e-7
    for image in (row < len(MIXED), row >= len(MIXED)):
        assert weight[image].min() == 0 and weight[image].max() == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
def test_neighbours_equal_to_the_token_leave_its_layer_norm(dtype: torch.dtype) -> None:
    """Nine copies of each of three orthogonal directions, seven neighbours: all weigh the same, rounding apart."""
    directions = torch.linalg.qr(torch.randn(8, 3, dtype=torch.double)).Q.T * torch.tensor([[1.0], [3.0], [0.2]])
    x = directions.repeat(9, 1).unsqueeze(0).to(dtype)
    layer = GroupAttention(7, 1.0)
    row, column, weight = layer.edges(x, [0] * 27)
    assert torch.equal(x[0, row], x[0, column]) and torch.equal(weight, torch.ones_like(weight))
    aggregate = torch.zeros_like(x[0]).index_add(0, row, weight.unsqueeze(1) * x[0, column])
    torch.testing.assert_close(aggregate / torch.bincount(row).unsqueeze(1), x[0])
    torch.testing.assert_close(layer(x, [0] * 27), F.layer_norm(x, (8,)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("number", [1, 2, 12])
def test_tokens_that_are_all_the_same_have_finite_outputs_and_gradients(number: int) -> None:
    """They stay what they are; one alone, with nothing to aggregate, is pulled towards 0."""
    x = tokens(1, 1).detach().repeat(2, number, 1).requires_grad_()
    y = GroupAttention()(x, [0] * number)
    (gradient,) = torch.autograd.grad((y**3).sum(), x)
    assert gradient.isfinite().all() and gradient.abs().max() > 0
    kept = 1 - torch.sigmoid(10 * (x.abs().mean(-1, keepdim=True) - 0.2)) if number == 1 else 1
    torch.testing.assert_close(y, F.layer_norm(kept * x, (6,)))


def test_small_tokens_have_the_edges_of_large_ones() -> None:
    """The temperature cancels; computed, exp(1 / mean norm) of such tokens would be infinite."""
    x = tokens(1, len(MIXED)).float()
    large, small = (GroupAttention().edges(scale * x, MIXED) for scale in (1.0, 1e-4))
    for one, other in zip(large, small, strict=True):
        torch.testing.assert_close(one, other)


def test_outputs_have_mean_0_and_variance_1_for_each_token() -> None:
    y = GroupAttention()(100 * tokens(2, len(MIXED), 64), MIXED)
    assert y.mean(-1).abs().max() < 1e-12
    torch.testing.assert_close(y.var(-1, unbiased=False), torch.ones(2, len(MIXED)).double(), rtol=1e-5, atol=0)


def test_there_are_no_parameters() -> None:
    assert not list(GroupAttention().parameters()) and not GroupAttention().state_dict()


def test_images_do_not_see_each_other() -> None:
    x = tokens(3, len(MIXED))
    alone = torch.cat([GroupAttention()(image.unsqueeze(0), MIXED) for image in x])
    torch.testing.assert_close(GroupAttention()(x, MIXED), alone, rtol=1e-12, atol=1e-12)


def test_half_precision_is_computed_in_float32() -> None:
    x = tokens(1, len(MIXED)).detach().bfloat16()
    expected = GroupAttention()(x.float(), MIXED)
    y = GroupAttention()(x, MIXED)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected.bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(GroupAttention()(x.float(), MIXED), expected)


class _Largest(TorchDispatchMode):
    elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


def test_no_tensor_has_an_entry_for_each_pair_of_tokens_nor_for_each_edge_and_channel() -> None:
    number, width, chunk = 400, 24, 16
    x = tokens(1, number, width)
    with _Largest() as mode:
        GroupAttention(chunk=chunk)(x, [0] * 100 + [1] * 300).square().sum().backward()
    edges = 2 * number * 10
    assert x.grad is not None and x.grad.abs().max() > 0
    assert mode.elements <= max(number * width, number * chunk, edges)
    assert mode.elements < number * number / 10 and mode.elements < edges * width / 10


def test_what_cannot_be_is_one_line() -> None:
    with pytest.raises(ConfigError, match="groups of 3 tokens, and there are 4"):
        GroupAttention()(tokens(1, 4), [0, 0, 1])
    with pytest.raises(ConfigError, match=r"intra=1\.5 between 0 and 1"):
        GroupAttention(intra=1.5)
