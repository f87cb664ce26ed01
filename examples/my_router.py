"""A router of your own in one file.  Check it, then compare it with the baselines:

libmoe check logit-norm --plugin examples/my_router.py
libmoe bench quickstart --plugin examples/my_router.py --add logit-norm --out runs/mine
"""

from dataclasses import dataclass

import torch.nn.functional as F

import libmoe
from libmoe.routers import TopKRouter


class LogitNormRouter(TopKRouter):
    """Top-k over logits that are standardised for each token, so that no token is routed with more confidence."""

    def score(self, logits_TN):
        return F.layer_norm(logits_TN, (self.num_experts,)).softmax(dim=-1)


@libmoe.register_method("logit-norm", summary="top-k over standardised logits (example)")
@dataclass(kw_only=True)
class LogitNorm(libmoe.Method):
    """Softmax top-k routing on logits with zero mean and unit variance per token."""

    def build_router(self, site):
        return LogitNormRouter(site.dim, self.num_experts, self.top_k)
