"""``stable-moe``: routing is learned first, distilled into the token id, and then left alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from libmoe.controllers import Controller
from libmoe.controllers.settle import SettleRouting
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.experts import Experts
from libmoe.experts.sublayers import SublayerExperts
from libmoe.layers.finding import in_routers
from libmoe.losses import Loss, Scope, ZLoss
from libmoe.losses.distillation import RouterDistillationLoss
from libmoe.losses.overload import OverloadLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.distilled import DistilledRouter, Evaluation
from libmoe.routers.gates import LinearGate


@register_method(
    "stable-moe",
    summary="learned top-1 routing, distilled into the token id and then fixed",
    paper=94,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
    needs_token_ids=True,
)
@dataclass(kw_only=True)
class StableMoE(Method):
    """StableMoE (Dai et al., arXiv 2204.08396): ``y = sigmoid(s_a) E_a(x)`` with ``s = W x``, two stages of training.

    Stage 1 chooses ``a = argmax s``, balanced by :class:`~libmoe.losses.overload.OverloadLoss`, and trains a gate on
    token ids to make the same choice.  Stage 2 lets that gate choose and freezes it, so that a token id keeps its
    experts; both losses fall silent.  A token without a place, and one of a new model, whose experts' output is 0, is
    passed on by the residual alone.  The controller that changes stages belongs to LibMoE's own training loop; in
    another one call :func:`settle`.

    The token gate is that of a single id, without the n-gram, convolution and transformer variants of the paper's
    table 5, which cannot see the ids before a token while text is generated with a cache.

    Attributes:
        settle_after: fraction of training that stage 1 takes.
        balance: coefficient of the overload loss; ``distillation``: of the token gate's cross-entropy.
        token_dim: width of the token gate's table; ``None`` takes a quarter of the model's, 50 at most (as published).
        vocab_size: its rows; ``None`` takes the model's.
        evaluate_with: who chooses outside training in stage 1, ``distilled`` as released, or ``current``.
        sublayers: feed-forward sublayers of an expert, each with its own residual and norm; 3 in the paper's base
            model and 6 in its large one, where the layer is inserted between two blocks.  1 is the FFN of the place
            (eq. 1), in whose width the others share.
        zero_init: the last linear of each sublayer begins as 0.
        capacity_factor: while training; ``None`` never drops.  ``eval_capacity_factor``: the same otherwise.
    """

    top_k: int = 1
    balance: float = 0.3
    balance_scope: Scope = "micro_batch"
    distillation: float = 0.3
    settle_after: float = 0.1
    token_dim: int | None = None
    vocab_size: int | None = None
    evaluate_with: Evaluation = "distilled"
    sublayers: int = 1
    zero_init: bool = True
    capacity_factor: float | None = 2.0
    eval_capacity_factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.sublayers < 1:
            raise ConfigError(f"sublayers={self.sublayers} must be at least 1")
        self.build_controllers()  # checks settle_after

    def hidden(self, site: Site) -> int:
        if self.expert_hidden is not None:
            return self.expert_hidden
        return max(1, site.hidden // (self.top_k * self.sublayers))

    def build_router(self, site: Site) -> Router:
        size = site.vocab_size if self.vocab_size is None else self.vocab_size
        if size is None:
            raise ConfigError(f"{site.path or 'this layer'}: the model names no vocabulary; set vocab_size")
        gate = LinearGate(site.dim, self.num_experts)
        nn.init.orthogonal_(gate.weight, gain=0.1)
        return DistilledRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            vocab_size=size,
            width=max(1, min(50, site.dim // 4)) if self.token_dim is None else self.token_dim,
            evaluate_with=self.evaluate_with,
            capacity_factor=self.capacity_factor,
            eval_capacity_factor=self.eval_capacity_factor,
            gate=gate,
        )

    def build_experts(self, site: Site) -> Experts:
        parts = [self.ffn_experts(site, self.num_experts) for _ in range(self.sublayers)]
        if self.zero_init:
            for part in parts:
                nn.init.zeros_(part.w_out)
        return parts[0] if self.sublayers == 1 else SublayerExperts(parts)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            OverloadLoss(self.balance, self.balance_scope),
            RouterDistillationLoss(self.distillation),
            ZLoss(self.z_loss),
        ]

    def build_controllers(self) -> Sequence[Controller]:
        return [SettleRouting(self.settle_after)]


def settle(model: nn.Module) -> int:
    """Begin stage 2 in all layers of ``model``; returns how many there are.

    Raises:
        ConfigError: there is none.
    """
    routers = in_routers(model, DistilledRouter, "stable-moe")
    for router in routers:
        router.settled.fill_(True)
    return len(routers)
