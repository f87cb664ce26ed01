"""No stages: router and experts learn at once from the squared error (:mod:`libmoe.theory.single_index`).

The stages of arXiv 2506.01656 make learning provable; practice has none.  Here ``sum_m p_m(x) f_m(x)`` with
``p = softmax(theta x)`` is fitted by online SGD on all parameters together, from a router at zero, at the rates of the
stages, and with a quarter of their samples.  This is no experiment of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.theory.claim import Claim, claim
from libmoe.theory.single_index import CLIP, SingleIndex, purity
from libmoe.theory.single_index import experiment as staged
from libmoe.theory.staged import Neurons, Task, best, explained, link, slope


@dataclass
class Mixture:
    """A softmax mixture of experts of two layers: ``theta_MD`` and the experts' neurons, whose ``a_MJ`` learn, too."""

    theta_MD: Tensor
    neurons: Neurons

    @classmethod
    def random(cls, experts: int, width: int, dim: int, generator: torch.Generator) -> Mixture:
        return cls(torch.zeros(experts, dim), Neurons.random(experts, width, dim, generator))

    def step(self, x: Tensor, y: Tensor, lr: float, router_lr: float) -> None:
        """Descent of half the squared error on one batch: directions stay on the sphere.

        Gradients of neurons are multiplied by M J, as an expert is a mean over J and has a share of 1 / M at first; so
        they have the size of those in :meth:`~libmoe.theory.staged.Neurons.step`.  Labels are heavy-tailed: what is
        left of them is clipped to 20, and the gain of an expert to 5, as in the stages.
        """
        neurons, batch = self.neurons, len(x)
        z_BMJ = torch.einsum("bd,mjd->bmj", x, neurons.w_MJD)
        h_BMJ, p_BM = link(z_BMJ), (x @ self.theta_MD.T).softmax(1)
        f_BM = (neurons.a_MJ * h_BMJ).mean(2)
        left_B1 = (y - (p_BM * f_BM).sum(1)).clamp(-CLIP, CLIP).unsqueeze(1)
        share_BM = len(self.theta_MD) * p_BM * left_B1 / batch
        up_MJD = torch.einsum("bmj,bd->mjd", slope(z_BMJ) * neurons.a_MJ * share_BM.unsqueeze(2), x)
        up_MJD = up_MJD - (up_MJD * neurons.w_MJD).sum(2, keepdim=True) * neurons.w_MJD
        up_MJ = torch.einsum("bmj,bm->mj", h_BMJ, share_BM)
        gain_BM = (left_B1 * f_BM).clamp(-5, 5)
        up_MD = (p_BM * (gain_BM - (p_BM * gain_BM).sum(1, keepdim=True))).T @ x / batch
        neurons.w_MJD = F.normalize(neurons.w_MJD + lr * up_MJD, dim=2)
        neurons.a_MJ = neurons.a_MJ + lr * up_MJ
        self.theta_MD = self.theta_MD + router_lr * up_MD

    def learn(
        self, task: Task, steps: int, batch: int = 1024, lr: float = 0.02, router_lr: float = 0.3
    ) -> None:
        """Online: fresh samples at each step."""
        for _ in range(steps):
            x, y, _ = task.draw(batch)
            self.step(x, y, lr, router_lr)


@dataclass(frozen=True)
class Outcome:
    """Of one seed.

    Attributes:
        purity: of top-1 routing.
        own, shared: largest |cos| of a neuron with a cluster's direction, and with w_g.
        explained, vanilla: R^2 of the mixture's experts, and of one network with as many neurons that learned alike.
    """

    purity: float
    own: float
    shared: float
    explained: float
    vanilla: float


def experiment(
    seed: int, *, separation: float = 3.0, experts: int = 4, width: int = 16, steps: int = 1350
) -> Outcome:
    """Joint training of a mixture, and of one expert as wide as all of its."""
    task = SingleIndex(seed, separation=separation)
    dim, g = len(task.shared_D), task.generator
    mixture = Mixture.random(experts, width, dim, g)
    mixture.learn(task, steps)
    x, _, cluster = task.draw(4096)
    vanilla = Mixture.random(1, experts * width, dim, g)
    vanilla.learn(task, steps)
    return Outcome(
        purity(best(mixture.theta_MD)(x, g), cluster),
        float(mixture.neurons.alignment(task.own_CD).max()),
        float(mixture.neurons.alignment(task.shared_D[None]).max()),
        explained(task, mixture.neurons, best(mixture.theta_MD)),
        explained(task, vanilla.neurons, best(vanilla.theta_MD)),
    )


def claims(seeds: Sequence[int], quick: bool = False) -> list[Claim]:
    """Two clusters in 16 dimensions, a quarter of the stages' samples (``quick``: fewer of both)."""
    size, stages = ({"steps": 450}, {"steps": 800, "router_steps": 200}) if quick else ({}, {})
    near = [experiment(seed, **size) for seed in seeds]
    same = [experiment(seed, separation=0.0, **size) for seed in seeds]
    by_stages = [staged(seed, **stages) for seed in seeds]
    purer = [a.purity - b.purity for a, b in zip(near, by_stages, strict=True)]
    better = [a.explained - b.explained for a, b in zip(near, by_stages, strict=True)]
    lead = [o.explained - o.vanilla for o in near]
    ours = "not in the paper"
    return [
        claim("purity of routing without stages", "above", 0.85, [o.purity for o in near], ours),
        claim("the same where clusters coincide", "below", 0.6, [o.purity for o in same], "0.5 by chance"),
        claim("|cos| with a w_c, largest", "above", 0.9, [o.own for o in near], ours),
        claim("|cos| with w_g, largest", "above", 0.9, [o.shared for o in near], ours),
        claim("R^2 of the mixture, less that of one network", "above", 0.1, lead, ours),
        claim("purity, less that of the stages", "above", 0.0, purer, ours),
        claim("R^2, less that of the stages", "above", 0.0, better, ours),
    ]
