"""Clusters with a task of their own and one whose sign they do not agree on (Kawata et al., arXiv 2506.01656).

``x | c ~ N(rho v_c, I)`` and ``y = f(w_c . x) + s_c g(w_g . x) + noise`` with signs s_c that cancel over clusters: to
all samples together the global direction w_g is invisible at the order at which each cluster shows it.  A network
trained on all of them does not find it; experts that learn the clusters' tasks teach the router the clusters, and then
each expert finds both (:mod:`libmoe.theory.staged`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from libmoe.theory.claim import Claim, claim
from libmoe.theory.staged import Neurons, anyone, best, explained, learn, learn_router, link

CLIP = 20.0
"""Labels are cubic and heavy-tailed: they are clipped to this size."""


class SingleIndex:
    """The distribution: C clusters whose signs are +1 and -1 in turn.

    Args:
        seed: of the directions, which are orthonormal.
        dim, clusters: d and C; ``2 C + 1`` directions are needed.
        separation: rho, how far a cluster's centre is from the origin.
        noise: standard deviation of the label's noise.

    Attributes:
        centre_CD, own_CD, shared_D: v_c, w_c and w_g.
    """

    def __init__(
        self, seed: int, dim: int = 16, clusters: int = 2, separation: float = 3.0, noise: float = 0.1
    ) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        basis, _ = torch.linalg.qr(torch.randn(dim, 2 * clusters + 1, generator=self.generator))
        self.centre_CD, self.own_CD, self.shared_D = basis.T[:clusters], basis.T[clusters:-1], basis.T[-1]
        self.sign_C = 1.0 - 2 * (torch.arange(clusters) % 2)
        self.separation, self.noise = separation, noise

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs ``[B, d]``, labels ``[B]`` and clusters, int64 ``[B]``; fresh at each call."""
        g, clusters = self.generator, len(self.sign_C)
        cluster = torch.randint(clusters, (count,), generator=g)
        x = torch.randn(count, len(self.shared_D), generator=g) + self.separation * self.centre_CD[cluster]
        own = link((x * self.own_CD[cluster]).sum(1))
        y = own + self.sign_C[cluster] * link(x @ self.shared_D) + self.noise * torch.randn(count, generator=g)
        return x, y.clamp(-CLIP, CLIP), cluster


def purity(expert: Tensor, cluster: Tensor) -> float:
    """Share of samples whose cluster is the most frequent one at their expert."""
    pair = torch.zeros(int(expert.max()) + 1, int(cluster.max()) + 1)
    pair.index_put_((expert, cluster), torch.ones(len(expert)), accumulate=True)
    return float(pair.max(1).values.sum() / len(expert))


@dataclass(frozen=True)
class Outcome:
    """Of one seed.

    Attributes:
        purity: of routing after the router has learned.
        explored_shared, explored_own: mean |cos| of neurons after exploration with w_g, and largest with a w_c.
        found_shared: largest |cos| with w_g of any expert after the last stage; ``vanilla_shared``: of the one network.
        explained, vanilla: R^2 of the mixture and of one network with as many neurons.
    """

    purity: float
    explored_shared: float
    explored_own: float
    found_shared: float
    vanilla_shared: float
    explained: float
    vanilla: float


def experiment(
    seed: int,
    *,
    dim: int = 16,
    separation: float = 3.0,
    experts: int = 4,
    width: int = 16,
    steps: int = 2400,
    router_steps: int = 600,
) -> Outcome:
    """Exploration, router learning, expert learning and second layers; and one network with as many neurons."""
    task = SingleIndex(seed, dim, separation=separation)
    g = task.generator
    neurons = Neurons.random(experts, width, dim, g)
    learn(task, neurons, anyone(experts), steps)
    explored = neurons
    theta = learn_router(task, explored, router_steps)
    x, _, cluster = task.draw(4096)
    pure = purity(best(theta)(x, g), cluster)
    neurons = Neurons.random(experts, width, dim, g)
    learn(task, neurons, best(theta), steps)
    vanilla = Neurons.random(1, experts * width, dim, g)
    learn(task, vanilla, anyone(1), steps)
    return Outcome(
        pure,
        float(explored.alignment(task.shared_D[None]).mean()),
        float(explored.alignment(task.own_CD).max()),
        float(neurons.alignment(task.shared_D[None]).max()),
        float(vanilla.alignment(task.shared_D[None]).max()),
        explained(task, neurons, best(theta)),
        explained(task, vanilla, anyone(1)),
    )


def claims(seeds: Sequence[int], quick: bool = False) -> list[Claim]:
    """Two clusters in 16 dimensions; and without separation, where no router can tell them apart."""
    size = {"steps": 800, "router_steps": 200} if quick else {}
    near = [experiment(seed, **size) for seed in seeds]
    same = [experiment(seed, separation=0.0, **size) for seed in seeds]
    lead = [o.explained - o.vanilla for o in near]
    no_lead = [o.explained - o.vanilla for o in same]
    return [
        claim("purity of routing", "above", 0.85, [o.purity for o in near], "stage II: experts teach the router"),
        claim("the same where clusters coincide", "below", 0.6, [o.purity for o in same], "0.5 by chance"),
        claim("|cos| with w_g after exploration, mean", "below", 0.25, [o.explored_shared for o in near], "stage I"),
        claim("|cos| with w_g after the last stage, largest", "above", 0.9, [o.found_shared for o in near], "Thm 4.7"),
        claim("the same in one network", "below", 0.7, [o.vanilla_shared for o in near], "Theorem 4.3"),
        claim("R^2 of the mixture, less that of one network", "above", 0.1, lead, "Theorems 4.3 and 4.7"),
        claim("the same where clusters coincide", "below", 0.1, no_lead, "no advantage without clusters"),
    ]
