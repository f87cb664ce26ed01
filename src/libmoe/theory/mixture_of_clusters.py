"""Clusters that are simple one by one and hard together (Chen et al., arXiv 2208.02813).

A sample is a set of patches: one carries the label along the feature of its cluster, one says which cluster it is, one
is another cluster's feature with a random sign, and the rest is noise.  Whether a feature speaks or misleads depends on
the cluster alone.  A single network that sums over patches cannot tell (its error is at least 1/8 where both features
have the same strength); a mixture of small nonlinear ones, of which a linear router sends each sample to one, can.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.analysis.metrics.information import dispatch_entropy
from libmoe.controllers import StepInfo
from libmoe.controllers.normalised_gradient import NormalisedExpertGradient
from libmoe.core.context import options
from libmoe.core.seeding import seeded
from libmoe.core.site import Site
from libmoe.experts import ModuleExperts
from libmoe.layers import MoELayer
from libmoe.methods import create
from libmoe.theory.claim import Claim, claim
from libmoe.theory.clusters import Clusters


class PatchSum(nn.Module):
    """``f(x) = sum_j act(<w_j, x>)`` for two classes with J filters each: ``[R, d] -> [R, 2]``; no patch is special."""

    def __init__(self, dim: int, filters: int, power: int) -> None:
        super().__init__()
        self.conv, self.power = nn.Linear(dim, 2 * filters), power
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.mul_(1e-3)

    def forward(self, x_RD: Tensor) -> Tensor:
        return self.conv(x_RD).pow(self.power).unflatten(-1, (2, -1)).sum(-1)


def mixture(dim: int, experts: int, filters: int, power: int, noise: float = 1.0) -> MoELayer:
    """The paper's layer: one expert for a whole sample; ``power`` 3 for cubic and 1 for linear experts."""
    router = create(
        "noisy-top-1", {"num_experts": experts, "noise": noise, "decision": "sequence"}
    ).build_layer(Site(dim, 1)).router  # fmt: skip
    return MoELayer(router, ModuleExperts(PatchSum(dim, filters, power) for _ in range(experts)))


def fit(
    layer: MoELayer,
    x: Tensor,
    y: Tensor,
    steps: int,
    *,
    lr: float = 1e-3,
    router_lr: float = 0.1,
    batch: int | None = None,
    last: float = 1.0,
) -> None:
    """Normalised steps of experts and plain gradient descent of the router, on the logistic loss.

    Args:
        batch: samples of a step, drawn at random; ``None`` takes all, as published.
        last: rates fall along a line to this share of what they were.
    """
    # The paper's router reads the sum of P patches, ours the mean: the same steps at P^2 times the rate.
    groups = [
        {"params": list(layer.experts.parameters()), "lr": lr},
        {"params": list(layer.router.parameters()), "lr": router_lr * x.shape[1] ** 2},
    ]
    optimizer = torch.optim.SGD(groups)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, last, steps)
    normalise, info = NormalisedExpertGradient(), StepInfo(layer, optimizer)
    layer.train()
    for _ in range(steps):
        rows = slice(None) if batch is None else torch.randint(len(x), (batch,))
        optimizer.zero_grad()
        F.cross_entropy(layer(x[rows]).sum(1), y[rows]).backward()
        normalise.after_backward(info)
        optimizer.step()
        schedule.step()


@torch.no_grad()
def routed(layer: MoELayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """Class scores ``[n, 2]`` and the expert of each sample, without noise."""
    expert: list[Tensor] = []
    layer.eval()
    with options(recorders=[lambda ctx, routing: expert.append(routing.plan.expert_A)]):
        score = layer(x).sum(1)
    return score, expert[0].view(x.shape[:2])[:, 0]


def dispatched(expert: Tensor, cluster: Tensor, clusters: int) -> Tensor:
    """How many samples of each cluster went to each expert: ``[K, N]``."""
    pair_KN = torch.zeros(clusters, int(expert.max()) + 1)
    return pair_KN.index_put((cluster, expert), torch.ones(len(expert)), accumulate=True)


@dataclass(frozen=True)
class Outcome:
    """Of one network: accuracy on the training and on new samples, dispatch entropy, share of the busiest expert."""

    train: float
    test: float
    entropy: float
    busiest: float


def experiment(
    seed: int,
    *,
    samples: int = 4000,
    steps: int = 500,
    experts: int = 8,
    filters: int = 8,
    power: int = 3,
    noise: float = 1.0,
    lr: float = 1e-3,
    data: Clusters = Clusters(),  # noqa: B008 - it is frozen
) -> Outcome:
    """Train one network on samples of seed ``seed`` and look at as many new ones."""
    train, test = (
        data.draw(samples, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(1000 + 2 * seed + part))
        for part in range(2)
    )
    with seeded(seed, 0, "mixture of clusters"):
        layer = mixture(data.dim, experts, filters, power, noise)
        fit(layer, train[0], train[1], steps, lr=lr)
    (train_score, _), (test_score, expert) = routed(layer, train[0]), routed(layer, test[0])
    return Outcome(
        float((train_score.argmax(1) == train[1]).float().mean()),
        float((test_score.argmax(1) == test[1]).float().mean()),
        dispatch_entropy(dispatched(expert, test[2], data.clusters)),
        float(torch.bincount(expert).max() / len(expert)),
    )


def claims(seeds: Sequence[int], quick: bool = False) -> list[Claim]:
    """Table 1 of the paper, setting 1, with 4,000 samples rather than 16,000 (``quick``: 1,500 and fewer steps)."""
    size = {"samples": 1500, "steps": 300} if quick else {}
    forms = {
        "cubic mixture": {"power": 3},
        "linear mixture": {"power": 1},
        "cubic network": {"power": 3, "experts": 1, "filters": 64},
        "linear network": {"power": 1, "experts": 1, "filters": 64},
        "without noise": {"power": 3, "noise": 0.0},
    }
    found = {name: [experiment(seed, **size, **form) for seed in seeds] for name, form in forms.items()}  # type: ignore[arg-type]
    test = {name: [outcome.test for outcome in outcomes] for name, outcomes in found.items()}
    cubic = found["cubic mixture"]
    lead = [a - b for a, b in zip(test["cubic mixture"], test["cubic network"], strict=True)]
    linear = [a.entropy - b.entropy for a, b in zip(found["linear mixture"], cubic, strict=True)]
    noise = [a - b for a, b in zip(test["cubic mixture"], test["without noise"], strict=True)]
    entropies = [outcome.entropy for outcome in cubic]
    return [
        claim("accuracy of the cubic mixture", "above", 0.99, test["cubic mixture"], "Table 1: 0.995"),
        claim("its dispatch entropy (nats; ln 4 = 1.39 is none)", "below", 0.2, entropies, "Table 1: 0.098"),
        claim("its lead over one cubic network as large", "above", 0.1, lead, "Table 1: 0.20"),
        claim("accuracy of one cubic network", "below", 0.875, test["cubic network"], "Theorem 4.1, Table 1: 0.795"),
        claim("accuracy of one linear network", "below", 0.875, test["linear network"], "Theorem 4.1, Table 1: 0.687"),
        claim("dispatch entropy of the linear mixture, less that", "above", 0.5, linear, "Table 1: 1.300"),
        claim("accuracy that the router's noise adds", "above", 0.0, noise, "§4: it makes experts explore"),
    ]
