"""``mobile-vmoe``: one decision for a whole image, taught by super-classes of easily confused classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.layers.finding import in_routers
from libmoe.losses import BalanceLoss, Loss, Scope, ZLoss
from libmoe.losses.target import RouterTargetLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.grouped_decision import Pool, PooledGate, refuse_scope_of_sequences
from libmoe.routers.superclass import SuperclassRouter


@register_method(
    "mobile-vmoe",
    summary="one decision for an image; the router is trained to tell super-classes apart",
    paper=90,
    aliases=("per-image-routing",),
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
    side_inputs=("label",),
)
@dataclass(kw_only=True)
class MobileVMoE(Method):
    """Mobile V-MoE (Daxberger et al., arXiv 2309.04354 §3): ``y_t = sum_e g_e(r) E_e(x_t)``, r the same for an image.

    ``g`` are the k largest of ``softmax(W r)``, not renormalised: an image touches k experts per layer, however many
    tokens it has.  W learns super-classes by cross-entropy, through :class:`~libmoe.losses.target.RouterTargetLoss`,
    without balance loss, noise or capacity; it predicts on its own, in training too.  Super-classes come from a dense
    model's confusions on held-out data (:func:`libmoe.stats.bounded.superclasses`).  The paper has the layers in the
    last two blocks (``where: last:2``).

    The published text leaves open what r is, and whether layers share a router: here each has its own.

    Attributes:
        pool: r: the ``first`` token, the [CLS] of models that have one, or the ``mean`` of all tokens for others.
        superclass: coefficient of the router's loss; 0 trains it by the task alone.
        classes: classes of the labels, mapped to experts by :func:`set_superclasses` before training; 0: labels are
            numbers of experts already.
        key: side input with the label of each image while training.
        balance: of a balance loss over images, the paper's end-to-end ablation.
    """

    num_experts: int = 10
    top_k: int = 1
    balance: float = 0.0
    balance_scope: Scope = "micro_batch"
    pool: Pool = "first"
    superclass: float = 0.3
    classes: int = 0
    key: str = "label"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.superclass < 0:
            raise ConfigError(f"superclass={self.superclass} must not be negative; 0 is off")
        refuse_scope_of_sequences(self.balance, self.balance_scope)

    def build_router(self, site: Site) -> Router:
        return SuperclassRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            key=self.key if self.superclass else None,
            classes=self.classes,
            renormalise=False,
            gate=PooledGate(LinearGate(site.dim, self.num_experts), self.pool),
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            RouterTargetLoss(self.superclass),
            BalanceLoss(self.balance, self.balance_scope),
            ZLoss(self.z_loss),
        ]


def set_superclasses(model: nn.Module, superclass_Y: Tensor) -> int:
    """Tell every router of ``model`` the expert of each class; returns how many there are.

    Raises:
        ConfigError: there is none, or one for another number of classes or experts.
    """
    routers = in_routers(model, SuperclassRouter, "mobile-vmoe")
    for router in routers:
        router.set(superclass_Y)
    return len(routers)
