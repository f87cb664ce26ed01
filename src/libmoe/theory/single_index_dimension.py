"""How long exploration takes in more dimensions (arXiv 2506.01656, Theorem 4.7; :mod:`libmoe.theory.single_index`).

Online SGD needs samples of the order ``d^(k* - 1)`` to find a direction whose information exponent is k*, here 3; with
batches so large that their noise does not matter it follows the gradient flow, in ``d^(k*/2 - 1)`` steps.  Now and then
exploration stops, experts as they are teach a new router, and its purity is looked at.  A router learns from experts
that know nothing, too: random neurons answer one cluster more than another, and in few dimensions a random direction is
not far from the one between the centres.  So the steps counted are those after which purity stays up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from libmoe.theory.claim import Claim, claim
from libmoe.theory.single_index import SingleIndex, purity
from libmoe.theory.staged import Neurons, anyone, best, learn, learn_router

DIMS = (8, 16, 32)
LOOKS = (0, 25, 50, 100, 200, 400, 800, 1600)
"""Steps of exploration after which a router is taught."""
PURE, FOUND = 0.9, 0.7
"""What counts as pure routing, and as a direction that has been found (|cos|)."""


@dataclass(frozen=True)
class Outcome:
    """Of one seed in d dimensions.

    Attributes:
        found: steps after which half of the neurons have found a cluster's direction.
        purity: of the routers taught after each of the looks.
        looks: steps of exploration before each.

    Steps that were too few for it count as twice as many.
    """

    found: int
    purity: tuple[float, ...]
    looks: tuple[int, ...]

    @property
    def pure(self) -> int:
        """Steps after which purity is 0.9 and stays there; 1 instead of none, so that there is a logarithm."""
        late = [step for step, value in zip(self.looks, self.purity, strict=True) if value < PURE]
        later = [step for step in self.looks if not late or step > late[-1]]
        return max(1, later[0]) if later else 2 * self.looks[-1]


def experiment(
    seed: int,
    dim: int,
    *,
    looks: Sequence[int] = LOOKS,
    experts: int = 4,
    width: int = 16,
    router_steps: int = 300,
    separation: float = 3.0,
) -> Outcome:
    """Exploration with looks at what it is good for."""
    task = SingleIndex(seed, dim, separation=separation)
    neurons = Neurons.random(experts, width, dim, task.generator)
    found, purities = 2 * looks[-1], []
    for step in range(looks[-1] + 1):
        if float(neurons.alignment(task.own_CD).amax(2).median()) >= FOUND:
            found = min(found, step)
        if step in looks:
            theta = learn_router(task, neurons, router_steps)
            x, _, cluster = task.draw(4096)
            purities.append(purity(best(theta)(x, task.generator), cluster))
        if step < looks[-1]:
            learn(task, neurons, anyone(experts), 1)
    return Outcome(max(1, found), tuple(purities), tuple(looks))


def slope(steps: Sequence[float], dims: Sequence[int] = DIMS) -> float:
    """Exponent b of ``steps = a d^b`` by least squares of logarithms."""
    x, y = (torch.tensor(values, dtype=torch.float64).log() for values in (dims, steps))
    x = x - x.mean()
    return float((x * (y - y.mean())).sum() / x.square().sum())


def claims(seeds: Sequence[int], quick: bool = False) -> list[Claim]:
    """In 8, 16 and 32 dimensions (``quick``: fewer looks)."""
    size = {"looks": (0, 50, 200), "router_steps": 100} if quick else {}
    found = {dim: [experiment(seed, dim, **size) for seed in seeds] for dim in DIMS}  # type: ignore[arg-type]
    by_seed = list(zip(*found.values(), strict=True))
    theorem = "Theorem 4.7: about d^(k* - 1), k* = 3"
    steps = [slope([o.found for o in row]) for row in by_seed]
    stays = [slope([o.pure for o in row]) for row in by_seed]
    return [
        claim("exponent in d of steps to |cos| 0.7", "above", 0.0, steps, "k*/2 - 1 = 0.5 without noise"),
        claim("the same, at most", "below", 2.0, steps, theorem),
        claim("exponent in d of steps to purity 0.9 that stays", "above", 0.0, stays, theorem),
        claim("the same, at most", "below", 2.0, stays, theorem),
        *(
            claim(
                f"purity after exploration, d = {dim}",
                "above",
                PURE,
                [o.purity[-1] for o in outcomes],
                "stage II",
            )
            for dim, outcomes in found.items()
        ),
        *(
            claim(
                f"purity without exploration, d = {dim}",
                "below",
                PURE,
                [o.purity[0] for o in outcomes],
                "ours",
            )
            for dim, outcomes in found.items()
        ),
    ]
