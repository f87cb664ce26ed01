"""Plans: what a router decides, as plain data.

A plan says which experts see which rows and how their outputs are mixed.  It owns no weights, can be saved,
moved and replayed, and knows how to drive any :class:`~libmoe.experts.base.Experts` through two primitives:

* ``experts.forward_rows(x_RD, segments)``: rows already sorted by expert go through their expert;
* ``experts.forward_merged(x_GLD, gate_GN)``: one expert per group, averaged in parameter space.

Three kinds ship.  A fourth is a new subclass with its own ``execute``; nothing here has to change for it.

* :class:`SparsePlan`: a list of (token, expert, weight) assignments: fixed or variable k, zero to N experts
  for a token, expert choice, hashing, null experts.
* :class:`SoftPlan`: real mixing matrices from tokens to slots and back (Soft MoE, arXiv 2308.00951).
* :class:`MergePlan`: gates over the *parameters* of the experts (MEO, SMEAR, uniform averaging).

Letters: T tokens, D width, N experts, K experts per token, A assignments, R rows that are computed (kept
assignments sorted by expert), G groups, L tokens of a group, S slots of a group.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from libmoe.core.dispatch import Dispatch, Segments
from libmoe.core.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn


class Plan:
    """Base of all plans: ``num_tokens`` rows in, ``num_tokens`` rows out, ``num_experts`` experts."""

    kind: ClassVar[str]
    num_tokens: int
    num_experts: int

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        """Run ``experts`` on ``x_TD`` as this plan says and return ``y_TD`` in the dtype of ``x_TD``."""
        raise NotImplementedError(f"{type(self).__name__} defines no execute()")

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        """How much each expert was asked to do by unmasked tokens: assignments, or mass for soft plans.

        Counted *before* capacity drops, without gradient, in float32.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no load_N()")

    def map(self, fn: Callable[[Tensor], Tensor]) -> Plan:
        """A copy with ``fn`` applied to every tensor (``detach``, ``cpu``, ...)."""
        values: dict[str, Any] = {}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                value = fn(value)
            elif isinstance(value, dict):
                value = {k: fn(v) for k, v in value.items()}
            values[f.name] = value
        return type(self)(**values)

    def to_tensors(self) -> dict[str, Tensor]:
        """Flat dictionary of tensors that :func:`plan_from_tensors` turns back into an equal plan.

        The tensors are copies that share no memory, as safetensors wants them.
        """

        def copy(tensor: Tensor) -> Tensor:
            return tensor.detach().clone(memory_format=torch.contiguous_format)

        out = {"kind": torch.tensor(list(self.kind.encode()), dtype=torch.uint8)}
        for f in fields(self):  # type: ignore[arg-type]
            value = getattr(self, f.name)
            if isinstance(value, Tensor):
                out[f.name] = copy(value)
            elif isinstance(value, dict):
                out |= {f"{f.name}.{k}": copy(v) for k, v in value.items()}
            elif value is not None:
                out[f.name] = torch.tensor(value)
        return out


@dataclass(eq=False)
class SparsePlan(Plan):
    """Assignments ``(token_A[a], expert_A[a])`` mixed with ``weight_A[a]``; the weight carries the gradient.

    Args:
        token_A, expert_A: int64 ``[A]``.
        weight_A: ``[A]``, differentiable.
        num_tokens, num_experts: T and N.
        k: set when the list is rectangular, that is ``token_A == arange(T).repeat_interleave(k)``; it allows
            a combine without atomics whose summation order never changes.
        kept_A: bool ``[A]``; ``False`` marks assignments dropped by capacity.  They still count as load.
        scale_input: multiply the expert's *input* rather than its output by the weight.
        extra_A: further data per assignment, handed to the experts in row order.
    """

    kind: ClassVar[str] = "sparse"

    token_A: Tensor
    expert_A: Tensor
    weight_A: Tensor
    num_tokens: int
    num_experts: int
    k: int | None = None
    kept_A: Tensor | None = None
    scale_input: bool = False
    extra_A: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def from_topk(
        cls, expert_TK: Tensor, weight_TK: Tensor, num_experts: int, kept_TK: Tensor | None = None, **kwargs: Any
    ) -> SparsePlan:
        """Rectangular plan from ``[T, K]`` choices and weights."""
        num_tokens, k = expert_TK.shape
        token_A = torch.arange(num_tokens, device=expert_TK.device).repeat_interleave(k)
        kept_A = None if kept_TK is None else kept_TK.reshape(-1)
        return cls(
            token_A, expert_TK.reshape(-1), weight_TK.reshape(-1), num_tokens, num_experts, k, kept_A, **kwargs
        )

    @classmethod
    def from_mask(cls, weight_TN: Tensor, mask_TN: Tensor, kept_TN: Tensor | None = None) -> SparsePlan:
        """Variable-k plan: every ``True`` of ``mask_TN`` is an assignment with the weight at its place."""
        token_A, expert_A = mask_TN.nonzero(as_tuple=True)
        num_tokens, num_experts = mask_TN.shape
        kept_A = None if kept_TN is None else kept_TN[token_A, expert_A]
        weight_A = weight_TN[token_A, expert_A]
        return cls(token_A, expert_A, weight_A, num_tokens, num_experts, kept_A=kept_A)

    @cached_property
    def dispatch(self) -> Dispatch:
        """Rows sorted by expert and back (each index vector computed once per plan)."""
        return Dispatch(
            self.token_A, self.expert_A, self.num_tokens, self.num_experts, self.k, self.kept_A, self.extra_A
        )

    @property
    def order_R(self) -> Tensor:
        """Indices of the kept assignments, stably sorted by expert."""
        return self.dispatch.order_R

    @property
    def segments(self) -> Segments:
        return self.dispatch.segments

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        order_R = self.order_R
        x_RD = self.dispatch.gather(x_TD) if x_AD is None else x_AD[order_R]
        if self.scale_input:
            x_RD = x_RD * self.weight_A[order_R].unsqueeze(1).to(x_RD.dtype)
        y_RD = experts.forward_rows(x_RD, self.segments)
        return self.combine(y_RD).to(x_TD.dtype)

    def combine(self, y_RD: Tensor) -> Tensor:
        """Weighted sum over each token's experts, accumulated in at least float32: ``[R, D] -> [T, D]``."""
        return self.dispatch.sum_rows(y_RD, None if self.scale_input else self.weight_A)

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        expert_A = self.expert_A if mask_T is None else self.expert_A[mask_T[self.token_A]]
        return torch.bincount(expert_A, minlength=self.num_experts).float()

    def experts_per_token(self) -> Tensor:
        """Kept experts of each token, int64 ``[T]``."""
        token_A = self.token_A if self.kept_A is None else self.token_A[self.kept_A]
        return torch.bincount(token_A, minlength=self.num_tokens)


@dataclass(eq=False)
class SoftPlan(Plan):
    """Slots mixed from tokens by ``dispatch_GLS`` and tokens mixed from slots by ``combine_GLS``.

    The S slots of a group are ordered by expert, S / N for each.  Tokens are laid out ``[G, L]`` in the
    flattened batch.
    """

    kind: ClassVar[str] = "soft"

    dispatch_GLS: Tensor
    combine_GLS: Tensor
    num_experts: int

    @property
    def num_tokens(self) -> int:  # type: ignore[override]
        return self.dispatch_GLS.shape[0] * self.dispatch_GLS.shape[1]

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        (groups, length, slots), dim = self.dispatch_GLS.shape, x_TD.shape[1]
        per_expert = slots // self.num_experts
        if x_TD.shape[0] != self.num_tokens:
            raise ConfigError(f"a soft plan of {self.num_tokens} tokens does not fit {x_TD.shape[0]} tokens")
        if slots != per_expert * self.num_experts:
            raise ConfigError(f"{self.num_experts} experts cannot share {slots} slots evenly")
        x_GLD = x_TD.reshape(groups, length, dim)
        # In the dtype of the tokens, where products accumulate in float32: no wider copy of tokens or slots.
        slot_GSD = torch.bmm(self.dispatch_GLS.to(x_TD.dtype).mT, x_GLD)
        # Rows must be sorted by expert across all groups: [G, N, P, D] -> [N, G * P, D].
        shape = groups, self.num_experts, per_expert, dim
        x_RD = slot_GSD.view(shape).transpose(0, 1).reshape(groups * slots, dim)
        y_RD = experts.forward_rows(x_RD, Segments.equal(self.num_experts, groups * per_expert))
        out = y_RD.shape[1]
        y_NGPD = y_RD.reshape(self.num_experts, groups, per_expert, out)
        y_GSD = y_NGPD.transpose(0, 1).reshape(groups, slots, out)
        y_GLD = torch.bmm(self.combine_GLS.to(y_GSD.dtype), y_GSD)
        return y_GLD.flatten(0, 1).to(x_TD.dtype)

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        shape = (self.num_tokens, self.num_experts, self.combine_GLS.shape[2] // self.num_experts)
        mass_TN = self.combine_GLS.detach().float().reshape(shape).sum(-1)
        return mass_TN.sum(0) if mask_T is None else mass_TN[mask_T].sum(0)


@dataclass(eq=False)
class MergePlan(Plan):
    """One merged expert per group: parameters averaged with ``gate_GN``; tokens are laid out ``[G, L]``."""

    kind: ClassVar[str] = "merge"

    gate_GN: Tensor
    num_tokens: int

    @property
    def num_experts(self) -> int:  # type: ignore[override]
        return self.gate_GN.shape[1]

    def execute(self, experts: nn.Module, x_TD: Tensor, x_AD: Tensor | None = None) -> Tensor:
        groups, dim = self.gate_GN.shape[0], x_TD.shape[1]
        length = self.num_tokens // max(groups, 1)
        if x_TD.shape[0] != groups * length:
            raise ConfigError(
                f"a merge plan of {groups} groups cannot cut {x_TD.shape[0]} tokens into equal groups"
            )
        y_GLD = experts.forward_merged(x_TD.reshape(groups, length, dim), self.gate_GN)
        return y_GLD.flatten(0, 1).to(x_TD.dtype)

    def load_N(self, mask_T: Tensor | None = None) -> Tensor:
        groups = self.gate_GN.shape[0]
        if mask_T is None:
            tokens_G = self.gate_GN.new_full((groups,), self.num_tokens / max(groups, 1))
        else:
            tokens_G = mask_T.view(groups, self.num_tokens // max(groups, 1)).sum(1).to(self.gate_GN.dtype)
        return (self.gate_GN.detach() * tokens_G.unsqueeze(1)).sum(0).float()


def _all_kinds(base: type[Plan] = Plan) -> dict[str, type[Plan]]:
    kinds: dict[str, type[Plan]] = {}
    for cls in base.__subclasses__():
        kinds[cls.kind] = cls
        kinds |= _all_kinds(cls)
    return kinds


def plan_from_tensors(tensors: dict[str, Tensor]) -> Plan:
    """Inverse of :meth:`Plan.to_tensors`.

    Raises:
        CheckpointError: the dictionary does not describe a known kind of plan.
    """
    kind = bytes(tensors["kind"].tolist()).decode() if "kind" in tensors else "(none)"
    kinds = _all_kinds()
    if kind not in kinds:
        raise CheckpointError(f"stored plan has kind {kind!r}; known kinds: {', '.join(sorted(kinds))}")
    cls = kinds[kind]
    values: dict[str, Any] = {}
    for f in fields(cls):  # type: ignore[arg-type]
        if f.name in tensors:
            # A field's type is text, or the class itself where annotations are not postponed.
            is_tensor = "Tensor" in str(f.type)
            values[f.name] = tensors[f.name] if is_tensor else tensors[f.name].item()
        nested = {k.split(".", 1)[1]: v for k, v in tensors.items() if k.startswith(f.name + ".")}
        if nested:
            values[f.name] = nested
    return cls(**values)
