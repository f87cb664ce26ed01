"""Grouped attention of transformers models: read head by head, and with experts in the place of its heads."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.experts.heads import HeadExperts
from libmoe.layers import MoALayer
from libmoe.methods import Method
from libmoe.models.detect import init_std, vocab_size
from libmoe.models.forms import sizes
from libmoe.models.record import Init, match_tensors

PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


class HeadAttention(nn.Module):
    """Attention of a transformers model whose queries and outputs are those of a MoA layer.

    The model's own attention runs with the queries of a token's experts in the place of its own: positions, norms of
    queries and keys, cache, masks, windows and the implementation that the configuration names are as they were.

    Attributes:
        attention: the model's own, without its query and output projections.
        heads: the MoA layer.
    """

    def __init__(self, attention: Any, heads: MoALayer) -> None:
        super().__init__()
        attention.q_proj, attention.o_proj = _Given(), nn.Identity()
        self.attention, self.heads = attention, heads

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        own: Any = self.attention
        besides: list[Any] = []

        def attend(q_TJd: Tensor) -> Tensor:
            # A token may have more or fewer query heads than the dense model had.
            own.num_key_value_groups = q_TJd.shape[1] // self.heads.experts.groups
            own.q_proj.queries = q_TJd.reshape(*hidden_states.shape[:-1], q_TJd.shape[1] * q_TJd.shape[2])
            try:
                found, *besides[:] = own(hidden_states, *args, **kwargs)
            finally:
                own.q_proj.queries = None
            return found.reshape(q_TJd.shape)

        return self.heads(hidden_states, attend), *besides


class _Given(nn.Module):
    """Stands for the query projection and returns what was computed elsewhere."""

    queries: Tensor | None = None

    def forward(self, hidden_states: Tensor) -> Tensor | None:
        return self.queries


class GroupedHeads:
    """Attention as a model has it: its shape, read from its projections.

    Raises:
        ConfigError: it is not what their names stand for, or has parts that look at all heads at once.
    """

    def __init__(self, path: str, attention: Any) -> None:
        found: list[Any] = [getattr(attention, name, None) for name in PROJECTIONS]
        dim, repeats = getattr(attention, "head_dim", None), getattr(attention, "num_key_value_groups", None)
        if not all(isinstance(linear, nn.Linear) for linear in found) or dim is None or repeats is None:
            raise ConfigError(
                f"{path} ({type(attention).__name__}) is not attention by {'/'.join(PROJECTIONS)} with grouped keys "
                "and values; leave it out with where="
            )
        self.path, self.head_dim = path, int(dim)
        self.q, self.k, self.v, self.o = found
        (self.dim, queries), (_, keys), (_, values), (outputs, _) = map(sizes, found)
        self.heads, self.groups = queries // self.head_dim, keys // self.head_dim
        odd = _parts_of_all_heads(attention, self.head_dim)
        fits = keys == values == self.groups * self.head_dim and self.heads == self.groups * repeats
        if not fits or outputs != queries or odd:
            what = (
                f"{odd[0]}, which is not of single heads"
                if odd
                else "projections of other sizes than its heads"
            )
            raise ConfigError(f"{path} ({type(attention).__name__}) has {what}; leave it out with where=")

    def site(self, model: nn.Module, index: int, count: int, seed: int | None) -> Site:
        """The facts that the method builds from; ``hidden`` is the width of all queries."""
        return Site(
            dim=self.dim,
            hidden=self.heads * self.head_dim,
            bias=self.q.bias is not None,
            index=index,
            count=count,
            path=self.path,
            init_std=init_std(model),
            seed=seed,
            vocab_size=vocab_size(model),
        )

    def layer(self, method: Method, site: Site, heads: int | None, init: Init, index: int) -> MoALayer:
        """The layer that computes queries and outputs.

        Raises:
            ConfigError: heads that cannot be divided like this, or experts that are no heads.
        """
        router = method.seeded_router(site)
        if router.num_experts != method.num_experts or method.shared_width(site):
            what = "a shared part" if method.shared_width(site) else "experts of other kinds"
            raise ConfigError(
                f"{self.path}: heads of attention are all alike, and this method wants {what} besides"
            )
        number = method.num_experts
        heads = self.heads // number if heads is None else heads
        if heads < 1 or heads % self.groups or (init == "copy" and heads * number != self.heads):
            most = self.heads // self.groups
            known = [n for n in range(1, most + 1) if most % n == 0]
            raise ConfigError(
                f"num_experts={number}: {self.path} has {self.heads} heads and {self.groups} of keys and values, and "
                f"every expert needs as many of each of these; choose num_experts from {known}, or init='scratch' and "
                f"heads={self.groups} or a multiple"
            )
        with seeded(site.seed, site.index, "experts"):
            experts = HeadExperts(
                number,
                self.dim,
                heads,
                self.head_dim,
                groups=self.groups,
                query_bias=self.q.bias is not None,
                output_bias=self.o.bias is not None,
                init_std=site.init_std,
            )
        layer = MoALayer(
            router,
            experts,
            losses=method.build_losses(site),
            estimator=method.build_estimator(site),
            index=index,
        )
        match_tensors(layer, self.q.weight.device, self.q.weight.dtype)
        if init == "copy":
            experts.load_dense(self.q.weight, self.o.weight, self.q.bias, self.o.bias)
        return layer


def _parts_of_all_heads(attention: nn.Module, head_dim: int) -> list[str]:
    """Names of what has weights besides the projections, norms of single heads left out."""
    parts = {name.partition(".")[0]: weight for name, weight in attention.named_parameters()}
    return [
        name
        for name, weight in parts.items()
        if name not in PROJECTIONS and not ("norm" in name and weight.shape == (head_dim,))
    ]
