"""Contract checks of losses: what must not change their value or gradient."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from libmoe.core.context import ForwardContext, LayerContext, options
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.core.seeding import seeded
from libmoe.core.statistics import StepStatistics
from libmoe.experts import FFNExperts
from libmoe.losses import Loss
from libmoe.losses.gradient import GradientLoss, Seen
from libmoe.routers import TopKRouter
from libmoe.testing.checks import Checks, Skip, assert_close
from libmoe.testing.probes import Side, default_side

MakeRouting = Callable[[Tensor, LayerContext], Routing]

LENGTHS = (6, 3, 5, 4)


def check_loss(
    loss: Loss,
    make_routing: MakeRouting | None = None,
    *,
    dim: int = 16,
    side: Side = default_side,
    at_balance: float | None = None,
) -> list[str]:
    """Check the invariances that the loss's scope promises, in value and in gradient; returns the names.

    Every scope: padding, packing several documents in a row, the order of sequences, recomputation.  ``sequence``:
    also any split into micro-batches.  ``rank`` and ``global_batch`` with ``needs_step_counts``: any split, once the
    step has been counted.

    A loss of the main loss's gradient is shown one for each token, and feed-forward experts.

    Args:
        loss: with any coefficient.
        make_routing: ``(x_TD, ctx) -> Routing``, token by token; a top-2 router of 4 experts by default.
        dim: width D that ``make_routing`` expects.
        side: from a batch size to the side inputs that ``make_routing`` needs, one number per sequence.
        at_balance: value to expect when all experts are chosen equally often with equal probabilities.

    Raises:
        ContractError: one line per broken promise.
    """
    probe = _Probe(loss, make_routing or _default_routing(dim), dim, side)
    checks = Checks(repr(loss))
    with checks("gives a finite numerator and a denominator without gradient"):
        probe.check_form()
    with checks("leaves its coefficient to the layer"):
        doubled = copy.copy(loss)
        doubled.coefficient = 2 * loss.coefficient + 1
        changed = _Probe(doubled, probe.make_routing, dim, side)
        changed.reference.compare(probe.reference, "coefficient changed")
    with checks("ignores padding"):
        for columns in (6, 9):
            for end in ("right", "left"):
                found = probe.measure(probe.padded(columns, end))
                assert not found.padding_grad, "padding receives a gradient"
                found.compare(probe.reference, f"padding on the {end}")
    with checks("gives the same for packed documents"):
        probe.measure(probe.packed()).compare(probe.reference, "documents packed in a row")
    with checks("ignores the order of sequences"):
        probe.measure(probe.padded(order=(2, 0, 3, 1))).compare(probe.reference, "sequences in another order")
    with checks("does not depend on the split into micro-batches"):
        probe.check_split()
    with checks("is the same when recomputed"):
        probe.check_recompute()
    with checks("is finite for a batch of padding"):
        numerator, _ = probe.compute(probe.nothing())
        assert numerator.isfinite(), "numerator is not finite"
    if at_balance is not None:
        with checks(f"is {at_balance:g} at perfect balance"):
            probe.check_balanced(at_balance)
    return checks.finish()


@dataclass
class _Batch:
    """One layout of some of the probe's sequences; ``place_BL`` says where each token of the probe went (-1: pad)."""

    x_BLD: Tensor
    place_BL: Tensor
    positions_BL: Tensor | None = None

    side: dict[str, Tensor] = field(default_factory=dict)

    def context(self, statistics: StepStatistics | None = None) -> LayerContext:
        inputs = {
            "input_ids": self.place_BL.clamp_min(0),
            "attention_mask": (self.place_BL >= 0).long(),
            "position_ids": self.positions_BL,
        }
        with options(statistics=statistics, side=self.side):
            return ForwardContext(inputs).layer(0, tuple(self.place_BL.shape), training=True)


@dataclass
class _Measured:
    """Value of a loss and its gradient for each of the probe's tokens, and the largest one of padding."""

    value: Tensor
    grad_TD: Tensor
    padding_grad: float

    def compare(self, expected: _Measured, what: str) -> None:
        assert_close(self.value, expected.value, f"value ({what})")
        assert_close(self.grad_TD, expected.grad_TD, f"gradient ({what})")


def _default_routing(dim: int) -> MakeRouting:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        router = TopKRouter(dim, 4, 2).double()
        torch.nn.init.normal_(router.gate.weight, std=dim**-0.5)
    return router


class _Probe:
    def __init__(self, loss: Loss, make_routing: MakeRouting, dim: int, side: Side) -> None:
        self.loss, self.make_routing, self.dim, self.side = loss, make_routing, dim, side
        generator = torch.Generator().manual_seed(4)
        self.x_TD = torch.randn(sum(LENGTHS), dim, generator=generator, dtype=torch.float64)
        self.grad_TD = torch.randn(sum(LENGTHS), dim, generator=generator, dtype=torch.float64)
        self.starts = [sum(LENGTHS[:i]) for i in range(len(LENGTHS))]

    @cached_property
    def reference(self) -> _Measured:
        return self.measure(self.padded())

    # -- layouts -----------------------------------------------------------------------------------------
    def _rows(self, rows: Sequence[Sequence[int]], width: int, end: str = "right") -> _Batch:
        """Rows of documents (numbers into ``LENGTHS``), padded to ``width`` with junk at one end."""
        place_BL = torch.full((len(rows), width), -1)
        positions_BL = torch.zeros_like(place_BL)
        for b, documents in enumerate(rows):
            column = 0 if end == "right" else width - sum(LENGTHS[d] for d in documents)
            for d in documents:
                here = slice(column, column + LENGTHS[d])
                place_BL[b, here] = torch.arange(self.starts[d], self.starts[d] + LENGTHS[d])
                positions_BL[b, here] = torch.arange(LENGTHS[d])
                column += LENGTHS[d]
        junk_BLD = 3 * torch.randn(*place_BL.shape, self.dim, dtype=torch.float64)
        x_BLD = torch.where((place_BL >= 0).unsqueeze(2), self.x_TD[place_BL.clamp_min(0)], junk_BLD)
        # A document keeps its side input wherever it goes; junk has that of document 0.
        owner_BL = torch.bucketize(place_BL.clamp_min(0), torch.tensor(self.starts), right=True) - 1
        side = {name: value[owner_BL] for name, value in self.side(len(LENGTHS)).items()}
        packed = any(len(documents) > 1 for documents in rows)
        return _Batch(x_BLD, place_BL, positions_BL if packed else None, side)

    def padded(self, width: int = 6, end: str = "right", order: Sequence[int] = (0, 1, 2, 3)) -> _Batch:
        return self._rows([[d] for d in order], width, end)

    def packed(self) -> _Batch:
        return self._rows([[0, 1], [2, 3]], 10)

    def nothing(self) -> _Batch:
        return self._rows([[], []], 3)

    # -- measuring ---------------------------------------------------------------------------------------
    def compute(self, batch: _Batch, ctx: LayerContext | None = None) -> tuple[Tensor, Tensor]:
        return self._compute(batch, batch.x_BLD.reshape(-1, self.dim), ctx or batch.context())

    def _compute(self, batch: _Batch, x_TD: Tensor, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        routing = self.make_routing(x_TD, ctx)
        if not isinstance(self.loss, GradientLoss):
            return self.loss.compute(routing, ctx)
        place_T = batch.place_BL.reshape(-1)
        junk_TD = 3 * torch.randn(len(place_T), self.dim, dtype=torch.float64)
        grad_TD = torch.where((place_T >= 0).unsqueeze(1), self.grad_TD[place_T.clamp_min(0)], junk_TD)
        with seeded(0, "experts"):
            experts = FFNExperts(routing.plan.num_experts, self.dim, 8, init_std=None).double()
        return self.loss.compute_seeing(routing, ctx, Seen(x_TD.detach(), grad_TD, experts))

    def measure(self, *batches: _Batch, statistics: StepStatistics | None = None) -> _Measured:
        """Sum of numerators over sum of denominators, with the gradient with respect to the tokens."""
        numerators, denominators, leaves = [], [], []
        for batch in batches:
            x_TD = batch.x_BLD.reshape(-1, self.dim).requires_grad_()
            ctx = batch.context(statistics)
            numerator, denominator = self._compute(batch, x_TD, ctx)
            numerators.append(numerator)
            denominators.append(denominator.detach())
            leaves.append(x_TD)
        value = torch.stack(numerators).sum() / torch.stack(denominators).sum()
        constant = [None] * len(leaves)  # at this routing: what the loss teaches may need noise, say
        grads = torch.autograd.grad(value, leaves, allow_unused=True) if value.requires_grad else constant
        grad_TD, padding_grad = torch.zeros_like(self.x_TD), 0.0
        for batch, grad in zip(batches, grads, strict=True):
            if grad is None:
                continue
            place_T = batch.place_BL.reshape(-1)
            padding_grad = max([padding_grad, *grad[place_T < 0].abs().flatten().tolist()])
            grad_TD[place_T[place_T >= 0]] = grad[place_T >= 0]
        return _Measured(value.detach(), grad_TD, padding_grad)

    # -- checks ------------------------------------------------------------------------------------------
    def check_form(self) -> None:
        batch = self.padded()
        batch.x_BLD.requires_grad_()
        numerator, denominator = self.compute(batch)
        assert numerator.dim() == denominator.dim() == 0, "numerator and denominator must be scalars"
        assert numerator.isfinite() and denominator > 0, f"numerator {numerator}, denominator {denominator}"
        assert not denominator.requires_grad, "the denominator carries a gradient"
        assert self.loss.name != Loss.name, "the class has no name of its own for logs"

    def check_split(self) -> None:
        splits = [[[0], [1], [2], [3]], [[0, 1], [2, 3]], [[2], [3, 0, 1]]]
        if self.loss.scope == "micro_batch":
            raise Skip
        if self.loss.scope != "sequence" and not self.loss.needs_step_counts:
            raise Skip
        for split in splits:
            batches = [self._rows([[d] for d in documents], 6) for documents in split]
            statistics = self._counted(batches) if self.loss.needs_step_counts else None
            name = " + ".join(str(len(documents)) for documents in split)
            self.measure(*batches, statistics=statistics).compare(self.reference, f"{name} sequences")

    def _counted(self, batches: Sequence[_Batch]) -> StepStatistics:
        """Statistics after a counting pass; then one batch more is seen, which must not matter."""
        statistics = StepStatistics()
        statistics.begin_counting()
        for batch in batches:
            self._see(batch, statistics)
        statistics.end_counting()
        self._see(batches[0], statistics)
        return statistics

    def _see(self, batch: _Batch, statistics: StepStatistics) -> None:
        with torch.no_grad():
            ctx = batch.context(statistics)
            routing = self.make_routing(batch.x_BLD.reshape(-1, self.dim), ctx)
            mask_T = batch.place_BL.reshape(-1) >= 0
            statistics.add(0, routing.plan.load_N(mask_T), mask_T.sum().float())

    def check_recompute(self) -> None:
        """The step's counts move on between forward and recomputation; the loss must not."""
        batch = self.padded()
        statistics = StepStatistics()
        self._see(batch, statistics)
        ctx = batch.context(statistics)
        first, _ = self.compute(batch, ctx)
        self._see(self._rows([[3]], 6), statistics)
        ctx.forward.recomputing = True
        again, _ = self.compute(batch, ctx)
        assert torch.equal(first, again), f"numerator {again.item():.6g} instead of {first.item():.6g}"

    def check_balanced(self, expected: float) -> None:
        """Two sequences in which each expert has one token and every probability is 1 / N."""
        n = 4
        expert_TK = torch.arange(n).repeat(2).unsqueeze(1)
        uniform_TN = torch.full((2 * n, n), 1 / n, dtype=torch.float64)
        plan = SparsePlan.from_topk(expert_TK, uniform_TN[:, :1], n)
        ctx = ForwardContext().layer(0, (2, n), training=True)
        numerator, denominator = self.loss.compute(
            Routing(plan, torch.zeros_like(uniform_TN), uniform_TN), ctx
        )
        assert_close(numerator / denominator, torch.tensor(expected, dtype=torch.float64), "value")
