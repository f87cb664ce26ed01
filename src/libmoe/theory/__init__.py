"""Theory of Mixture of Experts as experiments that run: data, training and what a paper claims of them, measured.

Each module holds one paper: a seeded generator of its data, the experiment, and the claims with the paper's direction.
``libmoe theory`` runs them.
"""

from __future__ import annotations

from libmoe.theory import (
    digit_grid,
    mixture_of_clusters,
    patch_pattern,
    rotated_digits,
    single_index,
    single_index_dimension,
    single_index_joint,
)
from libmoe.theory.claim import Claim, Theory, Verdict, claim

THEORIES: dict[str, Theory] = {
    "digit-grid": Theory(
        30, "one digit of a grid of real ones tells the label: routing of digits against a CNN", digit_grid.claims,
        (15.0, 3.0),
    ),
    "mixture-of-clusters": Theory(
        112, "a mixture of nonlinear experts learns clusters that no single network does", mixture_of_clusters.claims,
        (160.0, 30.0),
    ),
    "patch-pattern": Theory(
        30, "the samples that patch-level routing needs grow with the patches kept", patch_pattern.claims, (20.0, 5.0)
    ),
    "rotated-digits": Theory(
        112, "whether real digits were turned: small experts against one network, and what they split by",
        rotated_digits.claims, (6.0, 3.0),
    ),
    "single-index": Theory(
        96, "experts find the clusters' tasks, teach the router, and then find what the pooled data hide",
        single_index.claims, (25.0, 8.0), {
            "dimension": Theory(
                96, "how many steps it takes in 8, 16 and 32 dimensions", single_index_dimension.claims, (10.0, 2.0)
            ),
            "joint": Theory(
                96, "whether experts specialise without stages", single_index_joint.claims, (12.0, 5.0)
            ),
        },
    ),
}  # fmt: skip

__all__ = ["THEORIES", "Claim", "Theory", "Verdict", "claim"]
