"""``mh-moe``: tokens are cut into parts that are routed by themselves, around any other method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

from torch import nn

from libmoe.controllers.base import Controller
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.layers import MultiHead, moe_layers
from libmoe.losses import FirstChoiceBalanceLoss, Loss, Scope, ZLoss
from libmoe.methods.base import Method, create, register_method
from libmoe.routers.topk import TopKRouter


class Parity(NamedTuple):
    """Width and number of experts, as real numbers."""

    hidden: float
    num_experts: float


def mh_moe_parity(
    dim: int, hidden: int, num_experts: int, top_k: int, *, heads: int, part_top_k: int, gated: bool = False
) -> Parity:
    """Experts of a multi-head layer with the FLOPs and parameters of a layer without heads (arXiv 2411.16205 §3).

    Multiply-adds of a token with m matrices in an expert (3 when gated): ``m D H k`` without heads and ``2 D^2 + m D H'
    k'`` with them; parameters ``m D H N`` and ``2 D^2 + m (D / heads) H' N'``.  The gates are left out.

    Args:
        dim, hidden, num_experts, top_k: D, H, N and k of the layer to equal.
        heads: parts of a token.
        part_top_k: k', experts of each part.
    """
    matrices = 3 if gated else 2
    width = (matrices * hidden * top_k - 2 * dim) / (matrices * part_top_k)
    if width <= 0:
        raise ConfigError(
            f"experts of width {hidden} are too thin for heads on a width of {dim}: their two linears alone cost more"
        )
    return Parity(width, (matrices * hidden * num_experts - 2 * dim) * heads / (matrices * width))


class PartMoE(Method):
    """What routes the parts unless another method does: softmax top-k, balanced by first choices."""

    def build_router(self, site: Site) -> Router:
        return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=self.top_k > 1)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]


@register_method(
    "mh-moe",
    summary="multi-head: parts of a token are routed by themselves and merged again",
    paper=53,
    aliases=("multi-head-moe",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MHMoE(Method):
    """MH-MoE in the sizes of equal FLOPs and parameters (Huang et al., arXiv 2411.16205; Wu et al., arXiv 2404.15045).

    :class:`~libmoe.layers.multi_head.MultiHead` around an MoE layer of width D / heads.  The defaults are those of two
    heads in the paper (D = 768, experts of width 768); three heads have ``top_k=3``, 96 experts of width 512.
    :func:`mh_moe_parity` computes them.  The first version kept N and took experts of width ``15.75 D`` for four
    heads: equal parameters at four times the FLOPs.

    Attributes:
        num_experts, top_k: experts, and experts of each *part*, so that a token uses up to ``heads * top_k``.
        heads: parts of a token; gates see D / heads features, and get weak below about 32.
        expert_hidden: ``None`` makes a token's FLOPs in the layer equal to the dense FFN's, the linears included.
        shared_hidden: a shared expert on whole tokens (2048 in the paper).
        head, merge: the linears before and after.
        head_bias: their biases; the paper counts none, the released code has them.
        inner: name of a method that routes the parts instead of softmax top-k; options that every method has are
            handed on where they are not at this method's defaults, ``num_experts`` and ``top_k`` always.
        inner_options: further options of that method.
    """

    num_experts: int = 40
    balance_scope: Scope = "micro_batch"
    heads: int = 2
    head: bool = True
    merge: bool = True
    head_bias: bool = False
    inner: str = ""
    inner_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads < 1:
            raise ConfigError(f"heads={self.heads} must be at least 1")
        if self.inner_options and not self.inner:
            raise ConfigError("inner_options are those of another method: name it with inner")
        self.part(None)  # checks the options

    def part(self, site: Site | None) -> Method:
        """The method that routes the parts."""
        common = {f.name for f in fields(Method)} - {"shared_hidden", "shared_gate"}
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.name in common}
        if site is not None:
            given["expert_hidden"] = self.hidden(site)
        if not self.inner:
            return PartMoE(**given)
        usual = {f.name: f.default for f in fields(self)}
        kept = {n: v for n, v in given.items() if v != usual[n] or n in ("num_experts", "top_k")}
        return create(self.inner, {**kept, **self.inner_options})

    def build_controllers(self) -> Sequence[Controller]:
        return self.part(None).build_controllers()

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        matrices, linears = (3 if site.gated else 2), self.head + self.merge
        width = (matrices * site.hidden - linears * site.dim) // (matrices * self.top_k)
        if width < 1:
            raise ConfigError(
                f"{site.path}: a dense width of {site.hidden} leaves nothing for experts beside {linears} linears of "
                f"{site.dim} x {site.dim}; set expert_hidden"
            )
        return width

    def build_layer(self, site: Site) -> nn.Module:
        if site.dim % self.heads:
            raise ConfigError(f"{site.path}: heads={self.heads} must divide the width of the model, {site.dim}")
        part = replace(site, dim=site.dim // self.heads, out_dim=None)
        built = self.part(site).build_layer(part)
        layers = [layer for _, layer in moe_layers(built)] if built is not None else []
        if layers != [built]:
            raise ConfigError(f"inner={self.inner!r} makes no plain MoE layer that parts of tokens could pass")
        with seeded(site.seed, site.index, "shared"):
            shared = self.build_shared(site)
        with seeded(site.seed, site.index, "heads"):
            return MultiHead(
                layers[0], site.dim, self.heads, out_dim=site.out_dim, head=self.head, merge=self.merge,
                bias=self.head_bias, shared=shared,
            )  # fmt: skip
