"""``speech-moe``: top-1 experts whose routers read an embedding that all layers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import nn

from libmoe.controllers.anneal import AnnealToMinimum
from libmoe.controllers.base import Controller
from libmoe.core.errors import unknown
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.losses import Loss, MeanImportanceLoss, Scope, SparsityLoss, ZLoss
from libmoe.methods.base import Method, register_method
from libmoe.routers.gates import LinearGate
from libmoe.routers.shared_embedding import EmbeddingNetwork, SharedEmbeddingRouter
from libmoe.routers.topk import TopKRouter


@register_method(
    "speech-moe",
    summary="top-1; routers read a shared embedding; losses for sure tokens and an even batch",
    paper=100,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class SpeechMoE(Method):
    """SpeechMoE (You et al., arXiv 2105.03036): ``y = p_j E_j(x)``, ``j = argmax p``, ``p = softmax(W [e; x])``.

    ``L = L_main + alpha sum_l L_s + beta sum_l L_m`` over layers, with
    :class:`~libmoe.losses.sparsity.SparsityLoss` and :class:`~libmoe.losses.sparsity.MeanImportanceLoss`; no noise,
    and nothing is dropped.  In the paper e is the last hidden layer of a small acoustic network, which is trained
    before and along with the rest by a loss of its own: such a model hands it over with
    :func:`~libmoe.routers.shared_embedding.share_embedding`.

    A gate that is undecided scales outputs by 1/N: a converted dense model begins far from what it was.

    Attributes:
        sparsity: alpha; 0.1, and 0.15 in the successor 3M.
        balance: beta, of the mean importance loss; as alpha.
        anneal: let both coefficients fall to 0 as their loss comes to its ideal value (3M).
        embedding: ``own``, made from the input of the first MoE layer by a small network where the model gives none;
            ``given``, by the model; ``none``, routers that see their layer alone (the ablation).
        embedding_dim, embedding_hidden: width of e, and of that network's hidden layer; ``None`` takes D / 4 and D.
        detach_embedding: routers do not train what makes e; a network of their own then stays as it was drawn.
        gate_init: ``normal``, the library's, or ``xavier``, of gain 0.5 as released with 3M.  Zeros would send all
            tokens to the first expert.
    """

    top_k: int = 1
    balance: float = 0.1
    balance_scope: Scope = "global_batch"
    sparsity: float = 0.1
    anneal: bool = False
    embedding: Literal["own", "given", "none"] = "own"
    embedding_dim: int | None = None
    embedding_hidden: int | None = None
    detach_embedding: bool = False
    gate_init: Literal["normal", "xavier"] = "normal"

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, choices in (("embedding", ("own", "given", "none")), ("gate_init", ("normal", "xavier"))):
            if getattr(self, name) not in choices:
                raise unknown(f"value of {name}", getattr(self, name), choices)

    def build_router(self, site: Site) -> Router:
        width = 0 if self.embedding == "none" else self.embedding_dim or max(1, site.dim // 4)
        gate = LinearGate(width + site.dim, self.num_experts)
        if self.gate_init == "xavier":
            nn.init.xavier_uniform_(gate.weight, gain=0.5)
        if self.embedding == "none":
            return TopKRouter(site.dim, self.num_experts, self.top_k, renormalise=False, gate=gate)
        makes = self.embedding == "own" and site.index == 0
        network = EmbeddingNetwork(site.dim, self.embedding_hidden or site.dim, width) if makes else None
        if network is not None and self.detach_embedding:
            network.requires_grad_(False)
        return SharedEmbeddingRouter(
            site.dim,
            self.num_experts,
            self.top_k,
            embedding_dim=width,
            network=network,
            detach=self.detach_embedding,
            renormalise=False,
            gate=gate,
        )

    def build_losses(self, site: Site) -> Sequence[Loss]:
        return [
            SparsityLoss(self.sparsity),
            MeanImportanceLoss(self.balance, self.balance_scope),
            ZLoss(self.z_loss),
        ]

    def build_controllers(self) -> Sequence[Controller]:
        largest = {SparsityLoss.name: self.sparsity, MeanImportanceLoss.name: self.balance}
        return [AnnealToMinimum(largest)] if self.anneal else []
