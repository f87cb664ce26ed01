"""``pmoe``: each expert takes its best patches of every image and drops the others."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.errors import ConfigError
from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import Method, register_method
from libmoe.routers.expert_choice import ExpertChoiceRouter, PickGates


@register_method(
    "pmoe",
    summary="each expert takes a fixed number of patches of every image, gated among these",
    paper=30,
    aliases=("patch-level-moe", "expert-choice-per-sample"),
    exact_upcycling=False,
    causal=False,
    batch_independent=True,
)
@dataclass(kw_only=True)
class PMoE(Method):
    """Patch-level MoE (Chowdhury et al., arXiv 2306.04073): expert choice within each sample.

    Expert s scores the patches of a sample by ``w_s . x`` and takes the l best, whatever other experts take; a patch
    may have many experts or none.  For causal models this sees later tokens.  The average over an image's patches
    (1 / l or 1 / n in the paper) is left to what follows the layer.

    *Separate training* is ``gates=one`` with the router trained beforehand and frozen; *joint training* has softmax
    gates.

    Attributes:
        tokens_per_expert: l, for images of any size; ``None`` takes ``top_k * n / N`` of n patches.
        top_k: experts per patch on average, when l is not given.
        seq_len: patches of an image, by which the costs of a fixed l are counted.
        gates: the weight of a patch: ``picked``, the softmax over the l patches taken; ``score``, the softmax over all
            n, not renormalised, smaller by far; or ``one``.
        scale_input: gates multiply an expert's inputs, as in the published code, equal for bias-free ReLU networks.
        balance: coefficient of a balance loss; 0: loads are equal by construction.
    """

    tokens_per_expert: int | None = None
    seq_len: int = 64
    gates: PickGates = "picked"
    scale_input: bool = False
    balance: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tokens_per_expert is not None and not 1 <= self.tokens_per_expert <= self.seq_len:
            raise ConfigError(
                f"tokens_per_expert={self.tokens_per_expert} must be between 1 and seq_len={self.seq_len}, the patches "
                "of an image"
            )

    def build_router(self, site: Site) -> Router:
        average: float = self.top_k
        if self.tokens_per_expert is not None:
            average = self.num_experts * self.tokens_per_expert / self.seq_len
        return ExpertChoiceRouter(
            site.dim,
            self.num_experts,
            average,
            score_axis="tokens",
            gates=self.gates,
            tokens_per_expert=self.tokens_per_expert,
            scale_input=self.scale_input,
        )
