"""Hash routing: a token's experts are a fixed function of its id."""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.core.context import LayerContext
from libmoe.core.seeding import derive_seed
from libmoe.routers.ungated import UngatedRouter

_GOLDEN = -0x61C8864680B583EB  # 2^64 / golden ratio, as a signed number


def _shift(x: Tensor, bits: int) -> Tensor:
    return (x >> bits) & ((1 << (64 - bits)) - 1)  # int64 shifts copy the sign; this one does not


def _mix(x: Tensor) -> Tensor:
    """The finaliser of splitmix64: each input bit flips each output bit about half of the time."""
    x = (x ^ _shift(x, 30)) * -0x40A7B892E31B1A47
    x = (x ^ _shift(x, 27)) * -0x6B2FB644ECCEEE15
    return x ^ _shift(x, 31)


def hash_priority(key_T: Tensor, num_experts: int, seed: int) -> Tensor:
    """float32 ``[T, N]`` in [0, 1): pseudo-random in (key, expert, seed), the same on every machine."""
    row_T = _mix(key_T.long() * _GOLDEN + seed)
    column_N = torch.arange(1, num_experts + 1, device=key_T.device) * _GOLDEN
    return _shift(_mix(row_T.unsqueeze(1) + column_N), 40).float() * 2.0**-24


class HashRouter(UngatedRouter):
    """A random hash of the token id, different in each layer (Hash Layers, arXiv 2106.04426).

    The paper draws a table over the vocabulary once; a hash function gives the same kind of assignment
    without knowing the vocabulary.  For k > 1 a token has k distinct experts.

    Args:
        seed: which hash function.
    """

    def __init__(self, num_experts: int, top_k: int = 1, seed: int = 0) -> None:
        super().__init__(num_experts, top_k)
        self.seed = seed

    def priority(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        token_T = ctx.token_ids_T.to(x_TD.device)
        return hash_priority(token_T, self.num_experts, derive_seed(self.seed, "hash", ctx.index))
