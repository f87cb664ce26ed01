"""Theory of Mixture of Experts as experiments that run: data, training and what a paper claims of them, measured.

Each module holds one paper: a seeded generator of its data, the experiment, and the claims with the paper's direction.
``libmoe theory`` runs them.
"""

from __future__ import annotations

from libmoe.theory import mixture_of_clusters, patch_pattern, single_index
from libmoe.theory.claim import Claim, Theory, Verdict, claim

THEORIES: dict[str, Theory] = {
    "mixture-of-clusters": Theory(
        112, "a mixture of nonlinear experts learns clusters that no single network does", mixture_of_clusters.claims,
        (160.0, 30.0),
    ),
    "patch-pattern": Theory(
        30, "the samples that patch-level routing needs grow with the patches kept", patch_pattern.claims, (20.0, 5.0)
    ),
    "single-index": Theory(
        96, "experts find the clusters' tasks, teach the router, and then find what the pooled data hide",
        single_index.claims, (25.0, 8.0),
    ),
}  # fmt: skip

__all__ = ["THEORIES", "Claim", "Theory", "Verdict", "claim"]
