"""``remoe``: fully differentiable routing with ReLU gates and a controlled sparsity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.controllers.base import Controller
from libmoe.controllers.l1 import L1Controller
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss
from libmoe.losses.l1 import L1Loss
from libmoe.methods.base import Method, register_method
from libmoe.routers.relu import ReLURouter


@register_method(
    "remoe",
    summary="ReLU gates: zero to N experts per token, k on average by an adaptive L1 penalty",
    paper=42,
    aliases=("relu",),
    exact_upcycling=False,
)
@dataclass(kw_only=True)
class ReMoE(Method):
    """ReMoE (arXiv 2412.14711): ``y = sum_e ReLU(W x)_e E_e(x)``, sparse because of an adaptive L1 penalty.

    The penalty is weighted by load, which balances the experts too; a controller multiplies or divides its
    coefficient by ``l1_factor`` after every step so that tokens use ``top_k`` experts *on average*.  Training
    starts near dense: about half of the experts run until the coefficient has grown.

    Attributes:
        top_k: k, the average number of experts per token aimed at.
        balance: coefficient of an additional balance loss; 0 in the paper, whose penalty balances.
        balance_scope: tokens over which the penalty counts loads (the paper: the micro-batch).
        l1_start: first coefficient; take 1e-5 to 1e-4 for runs of hundreds of steps.
        l1_factor: alpha.
        load_weighted: ``False`` penalises the plain L1 norm and leaves balance alone.
        eval_threshold: gates must exceed this outside training.

    The penalty is added in every layer, as in the released code; the paper's mean over layers only shifts the
    coefficient, which is adapted anyway.  A gate without bias is positive for half of all inputs that are
    symmetric about zero, whatever its weights: sparsity needs hidden states with a common direction, which
    language models have and pure noise has not.
    """

    balance: float = 0.0
    l1_start: float = 1e-8
    l1_factor: float = 1.2
    load_weighted: bool = True
    eval_threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.build_controllers()  # checks l1_start and l1_factor

    def build_router(self, site: Site) -> Router:
        return ReLURouter(site.dim, self.num_experts, self.top_k, eval_threshold=self.eval_threshold)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        l1 = L1Loss(self.l1_start, self.balance_scope, target_k=self.top_k, load_weighted=self.load_weighted)
        return [l1, *super().build_losses(site)]

    def build_controllers(self) -> Sequence[Controller]:
        return [L1Controller(1 - self.top_k / self.num_experts, self.l1_start, self.l1_factor)]
