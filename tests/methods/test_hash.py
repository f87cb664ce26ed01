"""Hash Layers (arXiv 2106.04426): experts are a fixed function of the token id."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.core.context import ForwardContext, use
from libmoe.core.errors import ConfigError
from libmoe.core.seeding import derive_seed
from libmoe.core.site import Site
from libmoe.layers import MoELayer
from libmoe.routers.hash import hash_priority

N, D = 8, 16


def build(**options: object) -> MoELayer:
    return libmoe.create("hash", num_experts=N, **options).build_layer(Site(D, 24))


def choose(layer: MoELayer, ids: torch.Tensor, index: int = 0) -> torch.Tensor:
    ctx = ForwardContext({"input_ids": ids}).layer(index, tuple(ids.shape), layer.training)
    plan = layer.router.route(torch.randn(ids.numel(), D), ctx).plan
    assert torch.all(plan.weight_A == 1 / plan.k)
    return plan.expert_A.view(*ids.shape, -1)


def test_a_token_id_has_the_same_experts_wherever_it_stands() -> None:
    layer, ids = build(), torch.randint(0, 50, (3, 40))
    chosen = choose(layer.train(), ids)
    for token in ids.unique():
        assert len(chosen[ids == token].unique(dim=0)) == 1
    assert torch.equal(chosen.flip(1), choose(layer.eval(), ids.flip(1)))


def test_ids_spread_evenly_over_distinct_experts() -> None:
    chosen = choose(build(top_k=3), torch.arange(30_000).view(1, -1))[0]
    assert all(len(row.unique()) == 3 for row in chosen[:200])
    shares = torch.bincount(chosen.flatten(), minlength=N) / chosen.numel()
    assert (shares - 1 / N).abs().max() < 0.005


def test_layers_and_seeds_hash_differently() -> None:
    ids = torch.arange(100).view(1, -1)
    chosen = choose(build(), ids)
    assert torch.equal(chosen, choose(build(), ids))
    assert not torch.equal(chosen, choose(build(), ids, index=1))
    assert not torch.equal(chosen, choose(build(hash_seed=1), ids))


def exact_hash(key: int, expert: int, seed: int) -> float:
    """splitmix64 in whole numbers, which know no overflow."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    golden = 0x9E3779B97F4A7C15
    return (mix((mix((key * golden + seed) % 2**64) + (expert + 1) * golden) % 2**64) >> 40) / 2**24


def test_hashes_follow_from_whole_number_arithmetic_so_machines_agree() -> None:
    seed, keys = derive_seed(7, "x"), [0, 1, 2, 31_999, 2**40]
    expected = [[exact_hash(key, expert, seed) for expert in range(N)] for key in keys]
    assert hash_priority(torch.tensor(keys), N, seed).tolist() == expected


def test_without_token_ids_the_error_says_what_to_do() -> None:
    with use(ForwardContext()), pytest.raises(ConfigError, match="input_ids"):
        build()(torch.randn(1, 4, D))
