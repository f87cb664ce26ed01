"""A group of tokens decides together: those of a sentence or image by their pooled state, those of a task by its id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.gates import ContextGate
from libmoe.routers.ids import side_below

if TYPE_CHECKING:
    from libmoe.core.context import LayerContext
    from libmoe.routers.noise import Noise

Pool = Literal["first", "mean"]


class GroupGate(ContextGate):
    """Base of gates that give all tokens of a group the same logits: ``logits_t = gate(r_g)`` for each t of group g.

    Noise is drawn once for a group.  Whatever a router makes of its logits, it then does alike for all tokens of a
    group; what it draws or counts token by token (capacity, dropout of experts) may still tell them apart.

    Args:
        gate: module from ``r_GD`` to ``logits_GN``.
        noise: on it, while training.
    """

    def __init__(self, gate: nn.Module, noise: Noise | None = None) -> None:
        super().__init__()
        self.gate, self.noise = gate, noise

    def groups(self, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        """What each group is judged by, ``r_GD``, and the group of each token, int64 ``[T]``."""
        raise NotImplementedError(f"{type(self).__name__} defines no groups()")

    def forward(self, x_TD: Tensor, ctx: LayerContext) -> Tensor:
        r_GD, group_T = self.groups(x_TD, ctx)
        if self.noise is None or not self.training:
            return self.gate(r_GD)[group_T]
        return self.noise.logits(self.gate(self.noise.inputs(r_GD, ctx)), r_GD, ctx)[group_T]


class PooledGate(GroupGate):
    """One decision for each sequence (or packed document), from the states of its tokens; an image is a sequence.

    While text is generated with a cache, ``first`` goes on with the state that the cache began with, and ``mean``
    refuses, because it would be another mean after each token.

    Args:
        pool: ``first``, the first real token, such as [CLS] or the beginning of a text; or ``mean``, that of all real
            tokens, in float32, by which a decoder would see the future: the router is then not causal.
    """

    def __init__(self, gate: nn.Module, pool: Pool = "first", noise: Noise | None = None) -> None:
        super().__init__(gate, noise)
        if pool not in ("first", "mean"):
            raise unknown("value of pool", pool, ["first", "mean"])
        self.pool, self.causal = pool, pool == "first"
        self.kept: WeakKeyDictionary[Any, Tensor] = WeakKeyDictionary()

    def groups(self, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        cache = ctx.tokens.cache
        if cache is not None and cache in self.kept:
            return self._go_on(self.kept[cache], ctx)
        if _has_past(ctx):
            raise ConfigError(
                f"routing by the {self.pool} of a sequence goes on from a cache that does not tell it; generate with "
                + ("use_cache=False" if self.pool == "mean" else "a cache that this model has seen from its beginning")
            )
        group_T = ctx.sequence_T.to(x_TD.device)
        real_T = torch.ones_like(group_T, dtype=torch.bool) if ctx.mask_T is None else ctx.mask_T.to(x_TD.device)
        size = int(group_T[-1]) + 1 if len(group_T) else 0
        r_GD = self._first(x_TD, group_T, real_T, size) if self.pool == "first" else _mean(x_TD, group_T, real_T, size)
        if cache is not None and self.pool == "first" and len(group_T):
            # A row goes on with its last sequence: what is before that is padding or another document.
            self.kept[cache] = r_GD[group_T.view(ctx.batch_shape)[:, -1]].detach()
        return r_GD, group_T

    def _go_on(self, r_BD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        rows, length = ctx.batch_shape
        if len(r_BD) != rows:
            raise ConfigError(f"a cache of {len(r_BD)} rows is gone on from with {rows}; start anew")
        return r_BD, torch.arange(rows, device=r_BD.device).repeat_interleave(length)

    @staticmethod
    def _first(x_TD: Tensor, group_T: Tensor, real_T: Tensor, size: int) -> Tensor:
        place_T = torch.arange(len(x_TD), device=x_TD.device).masked_fill(~real_T, len(x_TD))
        first_G = place_T.new_full((size,), len(x_TD)).scatter_reduce(0, group_T, place_T, "amin")
        # A row of padding alone has no first token; whichever is taken, nobody looks at what comes of it.
        return x_TD[first_G.clamp_max(max(len(x_TD) - 1, 0))]

    def extra_repr(self) -> str:
        return f"pool={self.pool!r}"


class IdGate(GroupGate):
    """One decision for each number of a side input, whatever the tokens say: ``r`` is that number's row of a table.

    Args:
        key: name of the side input (:func:`libmoe.options`), one number for each sequence or token.
        table: has a ``weight [ids, D]``; ``nn.Embedding`` learns it, :class:`FixedTable` does not.
    """

    def __init__(self, gate: nn.Module, key: str, table: nn.Module, noise: Noise | None = None) -> None:
        super().__init__(gate, noise)
        self.key, self.table = key, table
        self.decided_by = key

    def groups(self, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        weight: Tensor = self.table.weight
        return weight, side_below(self.key, len(weight), ctx, x_TD.device)

    def extra_repr(self) -> str:
        return f"key={self.key!r}"


class FixedTable(nn.Module):
    """Rows ``weight [ids, D]`` that are saved with the model and never trained; random unit vectors until set."""

    weight: Tensor

    def __init__(self, ids: int, dim: int) -> None:
        super().__init__()
        if ids < 1 or dim < 1:
            raise ConfigError(f"a table of {ids} rows of width {dim}: both must be at least 1")
        self.register_buffer("weight", nn.functional.normalize(torch.randn(ids, dim)))

    def set(self, weight: Tensor) -> None:
        """Take rows from elsewhere.

        Raises:
            ConfigError: they are of another shape.
        """
        if weight.shape != self.weight.shape:
            raise ConfigError(f"rows of shape {tuple(weight.shape)} do not fit a table of {tuple(self.weight.shape)}")
        self.weight.copy_(weight)


def refuse_scope_of_sequences(coefficient: float, scope: str) -> None:
    """Raises ConfigError where experts are to be balanced within a sequence that decides as one."""
    if coefficient and scope == "sequence":
        raise ConfigError(
            "balance_scope='sequence': all tokens of a sequence have the same experts; use 'micro_batch' or "
            "'global_batch', or balance=0"
        )


def _has_past(ctx: LayerContext) -> bool:
    """Whether there are earlier tokens of these rows that the layer is not shown."""
    length = ctx.batch_shape[1] // ctx.parts
    mask, cache = ctx.tokens.mask, ctx.tokens.cache
    if mask is not None and mask.shape[1] > length:
        return True
    # The attention before this layer has added the tokens that are shown.
    return cache is not None and hasattr(cache, "get_seq_length") and int(cache.get_seq_length()) > length


def _mean(x_TD: Tensor, group_T: Tensor, real_T: Tensor, size: int) -> Tensor:
    dtype = torch.promote_types(x_TD.dtype, torch.float32)
    real_T1 = real_T.unsqueeze(1)
    sum_GD = x_TD.new_zeros(size, x_TD.shape[1], dtype=dtype)
    sum_GD = sum_GD.index_add(0, group_T, x_TD.to(dtype).masked_fill(~real_T1, 0))
    count_G1 = sum_GD.new_zeros(size, 1).index_add(0, group_T, real_T1.to(dtype))
    return sum_GD / count_G1.clamp_min(1)
