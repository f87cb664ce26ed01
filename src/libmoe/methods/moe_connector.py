"""``moe-connector``: a mixture of experts between an image encoder and a language model (MoCHA)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import FirstChoiceBalanceLoss, Loss, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.topk import TopKRouter


@register_method(
    "moe-connector",
    summary="sparse connectors from image encoders to a language model",
    paper=5,
    aliases=("moec",),
    causal=True,
    batch_independent=True,
    part="connector",
)
@dataclass(kw_only=True)
class MoEConnector(Method):
    """The MoE connectors of MoCHA (Pang et al., arXiv 2507.22805), one for each encoder; for ``where: connector``.

    ``y = sum_k g_k E_k(x)`` with ``g`` the k largest of ``softmax(W x)``, divided by their sum, and ``E`` two linears
    with an activation between them, from the encoder's width to the language model's.  Each image is balanced by
    itself, over its patches' first choices, and the losses of all connectors add up.

    The experts' weights are drawn as the connector's own linears would be (``init: scratch``); ``init: copy`` makes
    them copies of a trained connector instead, which is CuMo's way (arXiv 2405.05949).

    Attributes:
        expert_hidden: hidden width of an expert; ``None`` takes the whole width of the dense connector, whatever k.
        balance: ten times what is usual, and counted once for each connector: it rules the first steps.
    """

    num_experts: int = 4
    top_k: int = 2
    balance: float = 0.1
    z_loss: float = 0.01

    def hidden(self, site: Site) -> int:
        return self.expert_hidden if self.expert_hidden is not None else site.hidden

    def build_router(self, site: Site) -> Router:
        return TopKRouter(site.dim, self.num_experts, self.top_k)

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [FirstChoiceBalanceLoss(self.balance, self.balance_scope), ZLoss(self.z_loss)]
