"""Tasks on which backends are compared: small, and hostile where fast code tends to break.

Everything that must not be read is NaN: states and weights of dropped assignments, states of tokens that reach no
expert, and parameters of experts without rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from libmoe.core.dispatch import Dispatch
from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.base import Backend
from libmoe.ops.task import Rows, StackedFFN, Task

Leaves = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Case:
    """Assignments, widths and the form of the experts; the numbers are random, from a seed of their own.

    Args:
        token_A, expert_A, num_tokens, num_experts, k, kept_A: as in :class:`~libmoe.core.dispatch.Dispatch`.
        op: ``ffn``, or ``linear`` from width ``dim`` to ``hidden``.
        source: what there is one source row for: each ``token``, each ``assignment``, or each computed ``row``.
        weighted: whether there are routing weights.
        dim, hidden, gated, activation, bias: form of the experts.
    """

    token_A: Tensor
    expert_A: Tensor
    num_tokens: int
    num_experts: int
    k: int | None = None
    kept_A: Tensor | None = None
    op: str = "ffn"
    source: str = "token"
    weighted: bool = True
    dim: int = 16
    hidden: int = 24
    gated: bool = True
    activation: str = "silu"
    bias: bool = True

    def dispatch(self, device: str = "cpu") -> Dispatch:
        """The index vectors, made anew, since they keep what was computed once."""
        token_A, expert_A = self.token_A.to(device), self.expert_A.to(device)
        kept_A = None if self.kept_A is None else self.kept_A.to(device)
        return Dispatch(token_A, expert_A, self.num_tokens, self.num_experts, self.k, kept_A)

    def task(self, dtype: torch.dtype, device: str, gradient: bool = True) -> Task:
        form: dict[str, Any] = {}
        if self.op == "ffn":
            form = {"activation": self.activation, "gated": self.gated, "bias": self.bias}
        rows = len(self.token_A)
        return Task(self.op, device, dtype, gradient, rows, self.num_experts, self.dim, self.hidden, **form)

    def compute(self, backend: Backend, leaves: Leaves, dispatch: Dispatch | None = None) -> Tensor:
        """What ``backend`` makes of the task."""
        dispatch = dispatch or self.dispatch(leaves["x"].device.type)
        if self.op == "linear":
            return backend.linear(leaves["x"], leaves["w_in"], dispatch.segments)
        parameters = (leaves["w_in"], leaves["w_out"], leaves.get("b_in"), leaves.get("b_out"))
        experts = StackedFFN(*parameters, self.activation, self.gated)
        rows = (
            Rows(dispatch.segments)
            if self.source == "row"
            else Rows.of(dispatch, own_inputs=self.source == "assignment")
        )
        return backend.ffn(leaves["x"], experts, rows, leaves.get("weight_A"))

    @cached_property
    def idle(self) -> dict[str, Tensor]:
        """For each operand which of its rows the result must not depend on: bool, over the first dimension."""
        kept_A = torch.ones_like(self.token_A, dtype=torch.bool) if self.kept_A is None else self.kept_A
        expert_N = torch.bincount(self.expert_A[kept_A], minlength=self.num_experts) == 0
        token_T = torch.bincount(self.token_A[kept_A], minlength=self.num_tokens) == 0
        row_R = torch.zeros(int(kept_A.sum()), dtype=torch.bool)
        source = {"token": token_T, "assignment": ~kept_A, "row": row_R}[self.source]
        experts = dict.fromkeys(("w_in", "w_out", "b_in", "b_out"), expert_N)
        return {
            "x": source,
            "weight_A": ~kept_A,
            "output": row_R if self.source == "row" else token_T,
        } | experts

    def leaves(self, dtype: torch.dtype, device: str = "cpu", seed: int = 0) -> Leaves:
        """Operands by name, without gradient; what is idle is NaN."""
        generator = torch.Generator().manual_seed(seed)
        n, rows_in = self.num_experts, self.hidden * (2 if self.gated and self.op == "ffn" else 1)
        shapes = {"x": (len(self.idle["x"]), self.dim), "w_in": (n, rows_in, self.dim)}
        if self.op == "ffn":
            shapes["w_out"] = (n, self.dim, self.hidden)
            if self.bias:
                shapes |= {"b_in": (n, rows_in), "b_out": (n, self.dim)}
            if self.weighted and self.source != "row":
                shapes["weight_A"] = (len(self.token_A),)
        leaves = {}
        for name, shape in shapes.items():
            values = torch.randn(shape, dtype=torch.float64, generator=generator)
            if name == "weight_A":
                values = values.sigmoid() + 0.1
            elif name != "x":
                values *= 0.5 if name.startswith("b") else shape[-1] ** -0.5
            values[self.idle[name]] = float("nan")
            leaves[name] = values.to(dtype).to(device)
        return leaves


def top_k(tokens: int, num_experts: int, k: int, skew: float = 0.0, **kwargs: Any) -> Case:
    """Every token goes to ``k`` random experts, with ``skew`` more often to the later ones."""
    expert_TK = (_scores(tokens, num_experts) + torch.linspace(0, skew, num_experts)).topk(k).indices
    token_A = torch.arange(tokens).repeat_interleave(k)
    return Case(token_A, expert_TK.reshape(-1), tokens, num_experts, k, **kwargs)


def to_experts(expert_A: list[int], num_experts: int, **kwargs: Any) -> Case:
    """One expert for each token, given by number."""
    return Case(torch.arange(len(expert_A)), torch.tensor(expert_A), len(expert_A), num_experts, 1, **kwargs)


def many_rows() -> Case:
    """Large enough that fast backends take the ways they are fast by."""
    return top_k(400, 5, 2, skew=2.0, dim=64, hidden=256)


def ffn_cases() -> dict[str, Case]:
    """Feed-forward tasks by what is special about them."""
    plain = top_k(11, 4, 2)
    variable_TN = _scores(9, 4) > 0
    variable_TN[:3] = torch.tensor([[False] * 4, [True] * 4, [False, True, False, False]])
    token_A, expert_A = variable_TN.nonzero(as_tuple=True)
    variable = Case(token_A, expert_A, 9, 4)
    chosen_NC = _scores(9, 4).t().topk(3).indices
    choice = Case(chosen_NC.reshape(-1), torch.arange(4).repeat_interleave(3), 9, 4)
    shuffle = torch.randperm(len(token_A), generator=torch.Generator().manual_seed(1))
    shuffled = replace(variable, token_A=token_A[shuffle], expert_A=expert_A[shuffle])
    dropped = replace(plain, kept_A=torch.arange(22) % 3 != 0)
    dropped.kept_A[:6] = torch.tensor([False, False, True, False, True, True])  # type: ignore[index]
    shuffled_drops = replace(shuffled, kept_A=torch.arange(len(token_A)) % 3 != 1)
    return {
        "two experts for each token": plain,
        "one token": top_k(1, 4, 2),
        "one token, some experts dropped": replace(
            top_k(1, 6, 4), kept_A=torch.tensor([True, False, True, False])
        ),
        "one token, one of many experts": top_k(1, 64, 1, weighted=False, bias=False),
        "one token, own inputs": replace(top_k(1, 4, 3), source="assignment"),
        "no tokens": top_k(0, 4, 2),
        "experts without rows": to_experts([1, 3, 3, 1, 3, 3, 1], 6),
        "all tokens to one expert": to_experts([2] * 7, 4),
        "one expert": to_experts([0] * 5, 1),
        "many experts": top_k(40, 64, 3),
        "odd widths": top_k(11, 4, 2, dim=13, hidden=7),
        "many rows": many_rows(),
        "zero to N experts for a token": variable,
        "experts choose tokens": choice,
        "assignments in any order": shuffled,
        "dropped assignments": dropped,
        "all assignments dropped": replace(plain, kept_A=torch.zeros(22, dtype=torch.bool)),
        "dropped assignments in any order": shuffled_drops,
        "own input for each assignment": replace(plain, source="assignment"),
        "own inputs, some dropped": replace(dropped, source="assignment"),
        "own inputs, some dropped, in any order": replace(shuffled_drops, source="assignment"),
        "sorted rows": replace(plain, source="row"),
        "sorted rows, experts without rows": to_experts([1, 3, 3, 1, 3], 6, source="row"),
        "no rows": replace(top_k(0, 4, 2), source="row"),
        "routing weights of 1": replace(plain, weighted=False),
        "routing weights of 1, in any order": replace(shuffled, weighted=False),
        "no biases": replace(plain, bias=False),
    }


def form_cases() -> Iterator[tuple[str, Case]]:
    """Each activation, gated and plain, with and without biases."""
    for activation in ACTIVATIONS:
        for gated in (True, False):
            for bias in (True, False):
                name = f"{'gated' if gated else 'plain'} {activation}{' with biases' if bias else ''}"
                yield name, top_k(11, 4, 2, activation=activation, gated=gated, bias=bias)


def linear_cases() -> dict[str, Case]:
    """Grouped linear maps by what is special about them."""
    base: dict[str, Any] = {"op": "linear", "source": "row", "weighted": False, "bias": False}
    return {
        "some rows for each expert": top_k(11, 4, 2, **base),
        "one row": to_experts([2], 4, **base),
        "no rows": top_k(0, 4, 2, **base),
        "experts without rows": to_experts([1, 3, 3, 1, 3], 6, **base),
        "all rows for one expert": to_experts([2] * 7, 4, **base),
        "one expert": to_experts([0] * 5, 1, **base),
        "many experts": top_k(40, 64, 3, **base),
        "odd widths": top_k(11, 4, 2, **base | {"dim": 13, "hidden": 7}),
    }


@dataclass(frozen=True)
class Batch:
    """A task made of some tokens of another one: the case, which operands it takes, and the row to look at."""

    case: Case
    source: Tensor
    assignment: Tensor
    row: int


def batches(whole: Case) -> Iterator[Batch]:
    """The first token of a rectangular case: alone, then at changing places among more and more others."""
    assert whole.k is not None
    tokens, k = whole.num_tokens, whole.k
    generator = torch.Generator().manual_seed(0)
    assignment_TK = torch.arange(tokens * k).view(tokens, k)
    for size in (1, 2, 3, 5, 8, 17, 33, 64, tokens):
        others_T = 1 + torch.randperm(tokens - 1, generator=generator)
        place = int(torch.randint(size, (1,), generator=generator))
        chosen_T = torch.cat([others_T[:place], torch.tensor([0]), others_T[place : size - 1]])
        assignment = assignment_TK[chosen_T].reshape(-1)
        token_A = torch.arange(size).repeat_interleave(k)
        case = replace(whole, token_A=token_A, expert_A=whole.expert_A[assignment], num_tokens=size)
        if whole.source == "row":
            dispatch = case.dispatch()
            yield Batch(case, chosen_T[dispatch.order_R], assignment, int(dispatch.place_A[place]))
        else:
            yield Batch(case, chosen_T, assignment, place)


def by_columns(tensor: Tensor) -> Tensor:
    """The same values with the last two dimensions swapped in memory."""
    return tensor.transpose(-1, -2).contiguous().transpose(-1, -2)


def cut_out(tensor: Tensor) -> Tensor:
    """The same values as every second entry of the middle of a larger tensor."""
    larger = tensor.new_zeros(*tensor.shape[:-1], 2 * tensor.shape[-1] + 3)
    larger[..., 1:-2:2] = tensor
    return larger[..., 1:-2:2]


def _scores(tokens: int, num_experts: int) -> Tensor:
    return torch.randn(tokens, num_experts, generator=torch.Generator().manual_seed(0))
