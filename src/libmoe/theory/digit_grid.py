"""One digit of a grid tells the label, the others tell nothing: patch-level routing on real images (arXiv 2306.04073).

The paper has grids of 4 x 4 digits of MNIST, of 28 x 28 pixels each; here they are scikit-learn's, of 8 x 8.  A 0 or 1
stands at a random place among fifteen digits from 2 to 9, and which of the two it is is the label.  A convolutional
network averages over all places.  *Separate* training finds two routers by a linear loss and freezes them; *joint*
training teaches eight with their experts, through softmax gates.  All three have as many filters; in the published
comparison the convolutional network has 4 and the mixtures have 40.  Digits of training are not among those of testing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from libmoe.theory.claim import Claim, claim
from libmoe.theory.digits import digits, halves
from libmoe.theory.patch_pattern import accuracy, keeps, network, train_experts, train_router

PLACES = 16
"""n, digits of an image."""
TELLING = (0, 1)
FILTERS = 40
"""Of each network."""
RATE = 0.5
"""Of SGD: the best or nearly so for each network among 0.02 to 8, with images of other seeds."""


class DigitGrids:
    """Images of 16 digits, of which one tells the label; drawn with replacement.

    Args:
        seed: of the division of digits into those of training and of testing, and of all draws.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        pixels, self.digit_I = digits()
        x_IP = pixels.flatten(1) - pixels.mean()
        self.x_IP = x_IP / x_IP.norm(dim=1).mean()
        parts = [halves(rows, self.generator, len(rows) // 2) for rows in map(self._of, range(10))]
        self.pools = {"train": [first for first, _ in parts], "test": [second for _, second in parts]}

    def _of(self, digit: int) -> Tensor:
        return (self.digit_I == digit).nonzero().squeeze(1)

    def draw(self, count: int, part: str = "train") -> tuple[Tensor, Tensor, Tensor]:
        """Images ``[B, 16, 64]``, labels in {-1, 1} and the place of the digit that tells them."""
        label = torch.randint(2, (count,), generator=self.generator)
        place = torch.randint(PLACES, (count,), generator=self.generator)
        pools = self.pools[part]
        rest = torch.cat([rows for digit, rows in enumerate(pools) if digit not in TELLING])
        row_BN = self._pick(rest, count * PLACES).view(count, PLACES)
        for which, digit in enumerate(TELLING):
            mine = (label == which).nonzero().squeeze(1)
            row_BN[mine, place[mine]] = self._pick(pools[digit], len(mine))
        return self.x_IP[row_BN], 1.0 - 2 * label, place

    def _pick(self, rows: Tensor, count: int) -> Tensor:
        return rows[torch.randint(len(rows), (count,), generator=self.generator)]


@dataclass(frozen=True)
class Outcome:
    """Accuracy on new images of the convolutional network and of both kinds of training, and how often the router of a
    label keeps its digit (separate training; 2 of 16 by chance)."""

    plain: float
    separate: float
    joint: float
    hits: float


def experiment(seed: int, samples: int, *, epochs: int = 100, kept: tuple[int, int] = (2, 6)) -> Outcome:
    """All three networks on the same images; ``kept`` is l of separate and of joint training."""
    task = DigitGrids(seed)
    x, y, _ = task.draw(samples)
    new, answer, place = task.draw(1000, "test")
    plain = network(1, FILTERS, PLACES, task.generator, PLACES)
    plain.router.gate.weight.requires_grad_(False)
    separate = network(2, FILTERS // 2, kept[0], task.generator, PLACES)
    train_router(separate, x, y)
    hits = keeps(separate, new, place)[torch.arange(len(new)), (answer < 0).long()]
    joint = network(8, FILTERS // 8, kept[1], task.generator, PLACES, gates="picked")
    # The weights of an expert's patches sum to 1 in all three: 1/n, 1/l, and softmax gates.
    for layer, divisor in ((plain, PLACES), (separate, kept[0]), (joint, 1)):
        train_experts(layer, divisor, x, y, epochs, RATE)
    told = {"plain": plain, "separate": separate, "joint": joint}
    return Outcome(
        **{name: accuracy(layer, new, answer) for name, layer in told.items()},
        hits=float(hits.float().mean()),
    )


def claims(seeds: Sequence[int], quick: bool = False) -> list[Claim]:
    """With 50, 100, 200 and 400 images (``quick``: 50 and 200, trained for less long)."""
    sizes, epochs = ((50, 200), 30) if quick else ((50, 100, 200, 400), 100)
    found = {n: [experiment(seed, n, epochs=epochs) for seed in seeds] for n in sizes}
    most, source = max(sizes), "§5: fewer samples than a CNN"
    separate = {n: [o.separate - o.plain for o in outcomes] for n, outcomes in found.items()}
    joint = {n: [o.joint - o.plain for o in outcomes] for n, outcomes in found.items()}
    return [
        *(claim(f"lead of joint training with {n} images", "above", 0.0, joint[n], source) for n in sizes),
        *(claim(f"lead of separate training with {n} images", "above", 0.0, separate[n], source) for n in sizes),
        claim(f"accuracy of joint training with {most}", "above", 0.9, [o.joint for o in found[most]], source),
        claim(f"accuracy of the CNN with {most}", "below", 0.9, [o.plain for o in found[most]], source),
        claim(f"how often a router keeps its digit, {most} images", "above", 0.5, [o.hits for o in found[most]],
              "Lemma on routers; 0.125 by chance"),
    ]  # fmt: skip
