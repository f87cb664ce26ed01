"""Experts of two layers that learn stage by stage: directions on the sphere, then a router, then second layers.

The stages and their order are those of arXiv 2506.01656 §4; rates, clipping and the last layer are a reconstruction, as
no code is published.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from libmoe.theory.hermite import hermite

ORDER = 3
"""Information exponent of both tasks, ``He_3 / sqrt(3!)``, and of the activation."""
Assign = Callable[[Tensor, torch.Generator], Tensor]
"""From inputs ``[B, d]`` to the expert of each, int64 ``[B]``."""


def link(z: Tensor) -> Tensor:
    return hermite(ORDER, z) / math.sqrt(math.factorial(ORDER))


def slope(z: Tensor) -> Tensor:
    """Derivative of :func:`link`: ``He_i' = i He_{i-1}``."""
    return ORDER * hermite(ORDER - 1, z) / math.sqrt(math.factorial(ORDER))


class Task(Protocol):
    """What is learned: ``draw(B)`` gives fresh inputs ``[B, d]``, labels ``[B]`` and clusters ``[B]``."""

    generator: torch.Generator

    def draw(self, count: int) -> tuple[Tensor, Tensor, Tensor]: ...


@dataclass
class Neurons:
    """First layers of M experts: directions ``w_MJD`` of norm 1 and fixed signs ``a_MJ``."""

    w_MJD: Tensor
    a_MJ: Tensor

    @classmethod
    def random(cls, experts: int, width: int, dim: int, generator: torch.Generator) -> Neurons:
        w = F.normalize(torch.randn(experts, width, dim, generator=generator), dim=2)
        return cls(w, 1.0 - 2 * torch.randint(2, (experts, width), generator=generator))

    def outputs(self, x: Tensor) -> Tensor:
        """``f_m(x) = mean_j a_mj link(w_mj . x)``: ``[B, d] -> [B, M]``."""
        return (self.a_MJ * link(torch.einsum("bd,mjd->bmj", x, self.w_MJD))).mean(2)

    def step(self, x: Tensor, y: Tensor, expert: Tensor, lr: float) -> None:
        """Projected gradient ascent on each expert's correlation with its samples' labels, then back to the sphere."""
        experts, width, dim = self.w_MJD.shape
        share_BM = F.one_hot(expert, experts) / torch.bincount(expert, minlength=experts).clamp_min(1)
        w = self.w_MJD.view(-1, dim)
        pull = slope(x @ w.T) * (y.unsqueeze(1) * share_BM).repeat_interleave(width, dim=1) * self.a_MJ.view(-1)
        gradient = pull.T @ x
        gradient = gradient - (gradient * w).sum(1, keepdim=True) * w
        self.w_MJD = F.normalize(w + lr * gradient, dim=1).view(experts, width, dim)

    def alignment(self, directions_CD: Tensor) -> Tensor:
        """|cos| of every neuron with every direction: ``[M, J, C]``."""
        return (self.w_MJD @ directions_CD.T).abs()


def learn(task: Task, neurons: Neurons, assign: Assign, steps: int, batch: int = 1024, lr: float = 0.02) -> None:
    """Online spherical SGD: fresh samples at each step, each for the expert that ``assign`` says."""
    for _ in range(steps):
        x, y, _ = task.draw(batch)
        neurons.step(x, y, assign(x, task.generator), lr)


def learn_router(task: Task, neurons: Neurons, steps: int, batch: int = 1024, lr: float = 0.3) -> Tensor:
    """``theta_MD``, from zero, by gradient ascent on ``sum_m p_m(x) y f_m(x)`` with the experts frozen."""
    theta = torch.zeros(len(neurons.w_MJD), neurons.w_MJD.shape[2])
    for _ in range(steps):
        x, y, _ = task.draw(batch)
        gain_BM = (y.unsqueeze(1) * neurons.outputs(x)).clamp(-5, 5)
        p_BM = (x @ theta.T).softmax(1)
        theta += lr * (p_BM * (gain_BM - (p_BM * gain_BM).sum(1, keepdim=True))).T @ x / batch
    return theta


def anyone(experts: int) -> Assign:
    """A router at zero: any expert, with equal probability."""
    return lambda x, generator: torch.randint(experts, (len(x),), generator=generator)


def best(theta: Tensor) -> Assign:
    """Top-1 of the router."""
    return lambda x, generator: (x @ theta.T).argmax(1)


def explained(task: Task, neurons: Neurons, assign: Assign, samples: int = 8192) -> float:
    """R^2 on new samples of second layers fitted by ridge regression to ``ReLU(+-w . x + b)`` for six b in [-3, 3]."""

    def features(x: Tensor, expert: int) -> Tensor:
        z = x @ neurons.w_MJD[expert].T
        bias = torch.linspace(-3, 3, 6)
        ramps = (torch.cat([z, -z], dim=1).unsqueeze(2) + bias).relu().flatten(1)
        return torch.cat([ramps, torch.ones(len(x), 1)], dim=1).double()

    x, y, _ = task.draw(samples)
    new_x, new_y, _ = task.draw(samples)
    mine, new = assign(x, task.generator), assign(new_x, task.generator)
    told = torch.full((samples,), float(y.mean()), dtype=torch.float64)
    for expert in range(len(neurons.w_MJD)):
        if not (mine == expert).any():
            continue
        phi = features(x[mine == expert], expert)
        ridge = 1e-3 * len(phi) * torch.eye(phi.shape[1], dtype=torch.float64)
        weights = torch.linalg.solve(phi.T @ phi + ridge, phi.T @ y[mine == expert].double())
        told[new == expert] = features(new_x[new == expert], expert) @ weights
    return 1 - float((new_y - told).square().mean() / new_y.double().var(unbiased=False))
