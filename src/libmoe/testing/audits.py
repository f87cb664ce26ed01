"""Audits: does a token's routing depend on what it must not see?

The part runs in float64 and eval mode on random tokens.  Then later tokens, other sequences or padding are changed
and everything about the remaining tokens (their plan and the layer's output) is compared.  A leak that is found is
a proof; none found is strong evidence, because the changes include crowding (all other tokens become copies of
one token), cutting the others off, and random tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from libmoe.testing.probes import (
    VOCABULARY,
    Side,
    Stack,
    Target,
    as_layers,
    default_side,
    per_token,
    run,
    shake,
)

TOLERANCE = 1e-7


@dataclass(frozen=True)
class AuditReport:
    """What an audit found.

    Attributes:
        causal: no token depends on later tokens of its sequence, nor on their number.
        batch_independent: no sequence depends on the other sequences of the batch, nor on their number.
        padding_invariant: no real token depends on padding, on either side.
        evidence: one line per leak, naming the first token that changed; empty without leaks.
    """

    causal: bool
    batch_independent: bool
    padding_invariant: bool
    evidence: str


@dataclass
class Batch:
    """Hidden states ``[B, L, D]`` with the token ids and the padding mask that go with them."""

    x_BLD: Tensor
    ids_BL: Tensor
    mask_BL: Tensor | None = None

    @classmethod
    def random(cls, batch: int, length: int, dim: int) -> Batch:
        x_BLD = 2 * torch.randn(batch, length, dim, dtype=torch.float64)
        return cls(x_BLD, torch.randint(VOCABULARY, (batch, length)))

    def inputs(self) -> dict[str, Tensor | None]:
        """The model's arguments; positions count real tokens, as transformers' generate counts them."""
        real_BL = torch.ones_like(self.ids_BL) if self.mask_BL is None else self.mask_BL
        positions_BL = (real_BL.cumsum(1) - 1).clamp_min(0)
        return {"input_ids": self.ids_BL, "attention_mask": self.mask_BL, "position_ids": positions_BL}

    def at(self, rows: slice, columns: slice) -> Batch:
        return Batch(self.x_BLD[rows, columns], self.ids_BL[rows, columns])

    def put(self, other: Batch, rows: slice, columns: slice) -> Batch:
        """A copy with a part replaced by ``other`` (which may have one row or column that repeats)."""
        x_BLD, ids_BL = self.x_BLD.clone(), self.ids_BL.clone()
        x_BLD[rows, columns], ids_BL[rows, columns] = other.x_BLD, other.ids_BL
        return Batch(x_BLD, ids_BL)

    def pad(self, columns: int, side: str) -> Batch:
        """Random tokens that the mask marks as padding, to the ``left`` or to the ``right``."""
        junk = Batch.random(self.x_BLD.shape[0], columns, self.x_BLD.shape[2])
        parts = (junk, self) if side == "left" else (self, junk)
        mask_BL = torch.cat([torch.full_like(p.ids_BL, int(p is self)) for p in parts], dim=1)
        return Batch(torch.cat([p.x_BLD for p in parts], 1), torch.cat([p.ids_BL for p in parts], 1), mask_BL)


class Auditor:
    """Runs one model on changed batches and looks for the first token whose routing differs."""

    def __init__(self, target: Target, dim: int, side: Side, training: bool = False) -> None:
        self.model = Stack(as_layers(target, dim)).double().train(training)
        shake(self.model)
        self.dim, self.side, self.tolerance = dim, side, TOLERANCE

    def report(self) -> AuditReport:
        """The first leak of each kind."""
        searches = (self.leaks_from_the_future(), self.leaks_from_the_batch(), self.leaks_from_padding())
        leaks = [next(search, None) for search in searches]
        causal, batch_independent, padding_invariant = (leak is None for leak in leaks)
        return AuditReport(causal, batch_independent, padding_invariant, "\n".join(leak for leak in leaks if leak))

    def observe(self, batch: Batch, rows: slice | None = None) -> dict[str, Tensor]:
        """Everything about each token, ``[B, L, ...]``; ``rows`` tells which side inputs the batch has."""

        def side(size: int) -> dict[str, Tensor]:
            return (
                {k: v[rows] for k, v in self.side(3).items()} if rows is not None else dict(self.side(size))
            )

        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # in training, chance falls the same way for batches of the same shape
            y_BLD, plans = run(self.model, batch.x_BLD, side, **batch.inputs())
        shape = y_BLD.shape[:2]
        seen = {
            f"{name} of layer {i}": value.reshape(*shape, -1)
            for i, plan in enumerate(plans)
            for name, value in per_token(plan).items()
        }
        return seen | {"output": y_BLD}

    def leaks_from_the_future(self) -> Iterator[str]:
        length = 16
        batch = Batch.random(3, length, self.dim)
        before = self.observe(batch)
        every = slice(None)
        for cut in (4, 1, 15, 9):
            later = slice(cut, length)
            changes = {
                "were replaced": batch.put(Batch.random(3, length - cut, self.dim), every, later),
                "became copies of token 0": batch.put(batch.at(every, slice(0, 1)), every, later),
            }
            if not self.model.training:
                changes["were cut off"] = batch.at(every, slice(0, cut))
            for how, changed in changes.items():
                yield from self._compare(
                    before, self.observe(changed), slice(0, cut), f"tokens {cut}..{length - 1} {how}"
                )

    def leaks_from_the_batch(self) -> Iterator[str]:
        batch = Batch.random(3, 10, self.dim)
        before = self.observe(batch)
        every = slice(None)
        for own in range(3):
            row = slice(own, own + 1)
            alone = batch.at(row, every)
            here = {name: value[row] for name, value in before.items()}
            changes = {
                "were replaced": Batch.random(3, 10, self.dim).put(alone, row, every),
                "became copies of its first token": batch.put(batch.at(row, slice(0, 1)), every, every).put(
                    alone, row, every
                ),
            }
            for how, changed in changes.items():
                after = {name: value[row] for name, value in self.observe(changed).items()}
                yield from self._compare(here, after, every, f"the other sequences {how}", own)
            after = self.observe(alone, rows=row)
            yield from self._compare(here, after, every, "the other sequences were taken away", own)

    def leaks_from_padding(self) -> Iterator[str]:
        batch = Batch.random(3, 7, self.dim)
        before = self.observe(batch)
        for where, real in (("right", slice(0, 7)), ("left", slice(5, 12))):
            padded = self.observe(batch.pad(5, where))
            kept = {name: value[:, real] for name, value in padded.items()}
            yield from self._compare(before, kept, slice(None), f"padding came on the {where}")

    def _compare(
        self, before: dict[str, Tensor], after: dict[str, Tensor], columns: slice, change: str, row: int = 0
    ) -> Iterator[str]:
        for name, old in before.items():
            new = after.get(name)
            # What has another number of slots per token cannot be compared; the output still is.
            if new is None or old.shape[2:] != new.shape[2:]:
                continue
            old, new = old[:, columns], new[:, columns]
            scale = old.abs().amax().clamp_min(1.0) if old.numel() else 1.0
            wrong_BL = ((new - old).abs() > self.tolerance * scale).any(-1) | new.isnan().any(-1)
            if wrong_BL.any():
                token = int(wrong_BL.any(0).nonzero()[0])
                sequence = int(wrong_BL[:, token].nonzero()[0]) + row
                yield f"token {token} of sequence {sequence} changed its {name} when {change}"


def audit(target: Target, *, dim: int = 16, side: Side = default_side) -> AuditReport:
    """Find out what routing depends on, whatever the part declares.

    Args:
        target: a router, an MoE layer, a method or its name, or a function without arguments that makes a router
            or layer.  Routers run with feed-forward experts.
        dim: model width D that the target was made for.
        side: from a batch size to the side inputs, one number per sequence.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Auditor(target, dim, side).report()


def sees_the_future_in_training(target: Target, *, dim: int = 16, side: Side = default_side) -> str | None:
    """How a token depends on later ones in training, whatever is done about that when it serves.

    Later tokens are replaced but never taken away: with another number of tokens chance falls differently.

    Args:
        target, dim, side: see :func:`audit`.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return next(Auditor(target, dim, side, training=True).leaks_from_the_future(), None)
