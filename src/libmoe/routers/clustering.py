"""Clusters of about equal size, from features of images, by which a router may then decide."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.routers.transport import sinkhorn
from libmoe.stats.bounded import assign_bounded

Sizes = Literal["plan", "exact"]


@dataclass(frozen=True)
class Clusters:
    """``centroid_CF``, rows of unit length, and the cluster of each item, int64 ``[I]``."""

    centroid_CF: Tensor
    cluster_I: Tensor


@torch.no_grad()
def balanced_clusters(
    feature_IF: Tensor,
    clusters: int,
    *,
    strength: float = 0.05,
    iterations: int = 20,
    rounds: int = 20,
    sizes: Sizes = "plan",
    seed: int = 0,
) -> Clusters:
    """Balanced k-means on the sphere (Liu et al., arXiv 2402.05382 §3.1).

    ``max_Q Tr(Q^T C F) + strength H(Q)`` over plans that give every cluster the same mass, by Sinkhorn, in turns with
    centroids that are the mean of what Q gives them.

    Args:
        feature_IF: one row for each item, of any length.
        strength: of the entropy; small ones make hard plans.
        iterations: of Sinkhorn in each of so many ``rounds``.
        sizes: the cluster of an item is the largest entry of its ``plan``, sizes being nearly equal where Q is hard; or
            ``exact``, the assignment of most mass whose sizes differ by one at most, for up to a few thousand items.

    Raises:
        ConfigError: fewer items than clusters, or a value out of range.
    """
    if sizes not in ("plan", "exact"):
        raise unknown("value of sizes", sizes, ["plan", "exact"])
    items = len(feature_IF)
    if not 1 <= clusters <= items or strength <= 0:
        raise ConfigError(f"clusters={clusters} must be 1 to {items} items, and strength={strength} greater than 0")
    unit_IF = F.normalize(feature_IF.to(torch.promote_types(feature_IF.dtype, torch.float32)), dim=1)
    generator = torch.Generator(unit_IF.device).manual_seed(seed)
    centroid_CF = unit_IF[torch.randperm(items, generator=generator, device=unit_IF.device)[:clusters]]
    real_GL = torch.ones(1, items, dtype=torch.bool, device=unit_IF.device)
    for _ in range(max(1, rounds)):
        plan_IC = sinkhorn((unit_IF @ centroid_CF.T / strength).unsqueeze(0), real_GL, iterations)[0].exp()
        centroid_CF = F.normalize(plan_IC.T @ unit_IF, dim=1)
    if sizes == "plan":
        return Clusters(centroid_CF, plan_IC.argmax(dim=1))
    exact = assign_bounded(plan_IC.cpu().numpy(), items // clusters, -(-items // clusters))
    return Clusters(centroid_CF, torch.from_numpy(exact).to(unit_IF.device))


def nearest_cluster(feature_IF: Tensor, centroid_CF: Tensor) -> Tensor:
    """int64 ``[I]``: the centroid at the smallest angle."""
    return (F.normalize(feature_IF, dim=1) @ F.normalize(centroid_CF.to(feature_IF.dtype), dim=1).T).argmax(dim=1)


def vote(feature_IF: Tensor, centroid_CF: Tensor) -> int:
    """The cluster of most items, the first of several: by it a downstream task deploys (arXiv 2402.05382 §3.3).

    Raises:
        ConfigError: there are no items.
    """
    if not len(feature_IF):
        raise ConfigError("no features to vote: give those of the downstream task's images")
    return int(torch.bincount(nearest_cluster(feature_IF, centroid_CF), minlength=len(centroid_CF)).argmax())
