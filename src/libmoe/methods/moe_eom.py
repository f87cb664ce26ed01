"""``moe-eom`` and ``moe-fom``: what experts answer is masked at random, against over-fitting of small domains."""

from __future__ import annotations

from dataclasses import dataclass

from libmoe.core.routing import Router
from libmoe.core.site import Site
from libmoe.methods.base import register_method
from libmoe.methods.fairseq_moe_lm import FairseqMoELM
from libmoe.routers.deepspeed_top2 import Normalise
from libmoe.routers.output_masking import Masked, OutputMaskingRouter


@register_method(
    "moe-eom",
    summary="top-2 whose experts' outputs are masked at random (expert output masking)",
    paper=44,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoEEOM(FairseqMoELM):
    """Expert output masking (Elbayad et al., arXiv 2212.07571; NLLB-200, arXiv 2207.04672).

    :class:`~libmoe.routers.output_masking.OutputMaskingRouter` around the top-2 gate of those models: both gates are
    divided by their sum before any is dropped, ``2 ceil(T / N)`` places, and 0.01 of the first choices' balance loss.
    64 or 128 experts as wide as the dense FFN, in every fourth layer (``where: every:4``).

    Attributes:
        mask_rate: p; 0.2 in the models released.
        masked: ``expert`` or ``token``.
    """

    normalise: Normalise = "chosen"
    mask_rate: float = 0.2
    masked: Masked = "expert"

    def build_router(self, site: Site) -> Router:
        return OutputMaskingRouter(super().build_router(site), self.mask_rate, self.masked)


@register_method(
    "moe-fom",
    summary="top-2 whose output is masked at random, token by token (final output masking)",
    paper=44,
    exact_upcycling=False,
    causal=True,
    batch_independent=True,
)
@dataclass(kw_only=True)
class MoEFOM(MoEEOM):
    """Final output masking (arXiv 2212.07571): :class:`MoEEOM` whose tokens lose both experts or none."""

    masked: Masked = "token"
