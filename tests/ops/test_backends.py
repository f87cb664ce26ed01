"""Every backend means what the reference means; the reference means the formula; and broken backends are caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from libmoe.cli.check import run as run_check
from libmoe.core.errors import ConfigError
from libmoe.ops import Rows, StackedFFN, Task, backends
from libmoe.ops.activations import activation
from libmoe.ops.base import Backend
from libmoe.ops.portable import Reference
from libmoe.testing import ContractError, check_backend
from libmoe.testing.backend_cases import Case, Leaves, ffn_cases, form_cases, linear_cases


def enrolled() -> list[str]:
    """Backends that compute on this machine's CPU.

    One that a kernel language's interpreter runs is left out: it is thousands of times slower than on the device it
    is written for, and has tests of its own under the interpreter.
    """
    return [
        name
        for name, backend in backends().items()
        if "cpu" in backend.capabilities.devices
        and backend.verify()[0]
        and not backend.capabilities.interpreted
    ]


@pytest.mark.parametrize("name", enrolled())
def test_backend_keeps_the_contract(name: str) -> None:
    assert len(check_backend(name)) > 100


@pytest.mark.gpu
@pytest.mark.parametrize("name", [n for n, b in backends().items() if "cuda" in b.capabilities.devices])
def test_backend_keeps_the_contract_on_a_gpu(name: str) -> None:
    assert torch.cuda.is_available(), "torch sees no GPU here"
    assert len(check_backend(name, device="cuda")) > 100


# -- the reference itself --------------------------------------------------------------------------------
def formula(case: Case, leaves: Leaves) -> Tensor:
    """One kept assignment after the other."""
    kept_A = [True] * len(case.token_A) if case.kept_A is None else case.kept_A.tolist()
    order = sorted((a for a, kept in enumerate(kept_A) if kept), key=lambda a: int(case.expert_A[a]))
    act = activation(case.activation)
    results = []
    for row, a in enumerate(order):
        token, e = int(case.token_A[a]), int(case.expert_A[a])
        y = leaves["w_in"][e] @ leaves["x"][{"token": token, "assignment": a, "row": row}[case.source]]
        if case.op == "ffn":
            h = y + leaves["b_in"][e] if case.bias else y
            h = act(h[: case.hidden]) * h[case.hidden :] if case.gated else act(h)
            y = leaves["w_out"][e] @ h
            y = y + leaves["b_out"][e] if case.bias else y
        if "weight_A" in leaves:
            y = y * leaves["weight_A"][a]
        results.append(y)
    if case.source == "row":
        return torch.stack(results)
    zero = leaves["x"].new_zeros(case.dim)
    tokens = [[y for a, y in zip(order, results) if case.token_A[a] == t] for t in range(case.num_tokens)]
    return torch.stack([sum(parts, zero) for parts in tokens])


ALL = ffn_cases() | dict(form_cases()) | {f"linear: {name}": case for name, case in linear_cases().items()}


@pytest.mark.parametrize("name", [n for n, case in ALL.items() if 0 < len(case.token_A) < 100 and case.idle])
def test_the_reference_is_the_formula(name: str) -> None:
    case = ALL[name]
    leaves = {n: leaf.requires_grad_() for n, leaf in case.leaves(torch.float64).items()}
    y, expected = case.compute(backends()["reference"], leaves), formula(case, leaves)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-13)
    if not expected.requires_grad:  # everything is dropped
        return
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, list(leaves.values()), grad)
    right = torch.autograd.grad(expected, list(leaves.values()), grad)
    for what, ours, theirs in zip(leaves, found, right, strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=1e-12, atol=1e-13, msg=lambda m, what=what: f"{what}: {m}"
        )


# -- backends of somebody else ---------------------------------------------------------------------------
class Mine(Reference):
    """A sound backend as a user writes it."""

    name = "mine"
    capabilities = replace(
        Reference.capabilities,
        devices=frozenset({"cpu"}),
        dtypes=frozenset({torch.float32}),
        ops=frozenset({"ffn"}),
    )


class RefusesOddWidths(Mine):
    def supports(self, task: Task) -> tuple[bool, str]:
        return (False, "needs even widths") if task.dim % 2 or task.hidden % 2 else super().supports(task)

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        if experts.hidden % 2 or experts.dim % 2:
            raise ValueError("widths are odd")
        return super().ffn(x_SD, experts, rows, weight_A)


class OnlyForward(Mine):
    capabilities = replace(Mine.capabilities, gradient=False)

    def ffn(self, *args: Any) -> Tensor:
        return super().ffn(*args).detach()


class NotDeterministic(Mine):
    capabilities = replace(Mine.capabilities, deterministic=False)

    def ffn(self, *args: Any) -> Tensor:
        return super().ffn(*args) * (1 + 1e-7 * torch.rand(()))


class RowByRow(Mine):
    """Every row in a product of its own, so that its neighbours cannot matter."""

    capabilities = replace(Mine.capabilities, batch_invariant=True)

    def supports(self, task: Task) -> tuple[bool, str]:
        return (False, "is for few rows") if task.rows > 200 else super().supports(task)

    def linear(self, x_RI: Tensor, weight_NOI: Tensor, segments: Any) -> Tensor:
        if not len(x_RI):
            return super().linear(x_RI, weight_NOI, segments)
        expert_R = torch.arange(len(weight_NOI)).repeat_interleave(segments.offsets().diff())
        return torch.stack([torch.mv(weight_NOI[e], x_I) for e, x_I in zip(expert_R.tolist(), x_RI)])


@pytest.mark.parametrize("kind", [Mine, RefusesOddWidths, OnlyForward, NotDeterministic])
def test_sound_backends_pass(kind: type[Backend]) -> None:
    passed = check_backend(kind())
    assert any("batch invariance is not declared; " in line for line in passed)
    assert ("ffn in float32: odd widths" in passed) == (kind is not RefusesOddWidths)
    repeats = "ffn in float32: equal inputs give equal bits, as declared"
    assert (repeats in passed) == (kind is not NotDeterministic)


def test_batch_invariance_is_believed_only_where_it_holds() -> None:
    assert "ffn in float32: batch invariance is as declared" in check_backend(RowByRow())


class HalvesTheRouterGradient(Mine):
    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        weight_A = None if weight_A is None else (weight_A + weight_A.detach()) / 2
        return super().ffn(x_SD, experts, rows, weight_A)


class WeighsRowsInTheirOrder(Mine):
    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        weight_A = None if weight_A is None else weight_A[rows.dispatch.order_A]
        return super().ffn(x_SD, experts, rows, weight_A)


class MultipliesDropsByZero(Mine):
    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        y = super().ffn(x_SD, experts, rows, weight_A)
        return y if weight_A is None else y + 0 * weight_A.sum()


class DifferentiatesDrops(Mine):
    """Hides what is dropped from the result, but not from its gradient."""

    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        if weight_A is not None and rows.dispatch.kept_A is not None:
            weight_A = torch.where(rows.dispatch.kept_A, weight_A.sqrt(), 0).square()
        return super().ffn(x_SD, experts, rows, weight_A)


class SpreadsNaN(Mine):
    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        return super().ffn(x_SD, experts, rows, weight_A) + 0 * x_SD.sum()


class _Garbage(torch.autograd.Function):
    """Leaves what was in memory in the gradient of experts without rows."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, busy_N: Tensor) -> Tensor:
        ctx.save_for_backward(busy_N)
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (busy_N,) = ctx.saved_tensors
        return torch.where(busy_N[:, None, None], grad, 1e-3), None


class LeavesGradientsUnwritten(Mine):
    def ffn(self, x_SD: Tensor, experts: StackedFFN, rows: Rows, weight_A: Tensor | None = None) -> Tensor:
        w_out = _Garbage.apply(experts.w_out, rows.segments.offsets().diff() > 0)
        return super().ffn(x_SD, replace(experts, w_out=w_out), rows, weight_A)


class _Constant(torch.autograd.Function):
    """The right gradient, cut from the graph."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.detach()


class GradientsAreConstants(Mine):
    def ffn(self, *args: Any) -> Tensor:
        return _Constant.apply(super().ffn(*args))


class _SharedMemory(torch.autograd.Function):
    memory = np.empty(1 << 16, dtype=np.float32)

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return torch.from_numpy(_SharedMemory.memory[: y.numel()]).view(y.shape).copy_(y)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


class ReusesItsOutput(Mine):
    def ffn(self, *args: Any) -> Tensor:
        return _SharedMemory.apply(super().ffn(*args))


class NeedsTrainedRows(Mine):
    def ffn(self, x_SD: Tensor, *args: Any) -> Tensor:
        y = super().ffn(x_SD, *args)
        return y if x_SD.requires_grad else y.detach()


class WritesToItsRows(Mine):
    def ffn(self, x_SD: Tensor, *args: Any) -> Tensor:
        y = super().ffn(x_SD, *args)
        if x_SD.is_contiguous():
            x_SD.data.mul_(2)
        return y


class ReadsMemoryAsItLies(Mine):
    def ffn(self, x_SD: Tensor, *args: Any) -> Tensor:
        return super().ffn(torch.as_strided(x_SD, x_SD.shape, (x_SD.shape[1], 1)), *args)


class Widens(Mine):
    def ffn(self, *args: Any) -> Tensor:
        return super().ffn(*args).double()


class IsNotDeterministic(NotDeterministic):
    capabilities = Mine.capabilities


class IsNotBatchInvariant(Mine):
    capabilities = replace(Mine.capabilities, batch_invariant=True)

    def ffn(self, x_SD: Tensor, *args: Any) -> Tensor:
        return super().ffn(x_SD, *args) * (1 + 1e-6 * (len(x_SD) > 4))


class FailsInside(RefusesOddWidths):
    supports = Mine.supports


class HasNoReason(Mine):
    def supports(self, task: Task) -> tuple[bool, str]:
        return super().supports(task)[0], ""


class VerifiesNothing(Mine):
    def verify(self) -> tuple[bool, str]:
        return True, ""


class AcceptsEverything(Mine):
    def supports(self, task: Task) -> tuple[bool, str]:
        return True, "of course"


class DeclaresWhatItRefuses(Mine):
    capabilities = replace(Mine.capabilities, ops=frozenset({"ffn", "linear"}))

    def supports(self, task: Task) -> tuple[bool, str]:
        return (False, "not today") if task.op == "linear" else super().supports(task)


class TakesNoTime(Mine):
    def seconds(self, task: Task) -> float:
        return 1.0


class BreaksTheGraph(Mine):
    capabilities = replace(Mine.capabilities, compile=True)

    def ffn(self, *args: Any) -> Tensor:
        y = super().ffn(*args)
        return y if float(y.detach().sum()) else y + 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (HalvesTheRouterGradient, "two experts for each token: gradient of weight_A differs by 0.5 "),
        (WeighsRowsInTheirOrder, "two experts for each token: output differs by "),
        (MultipliesDropsByZero, ": dropped assignments: NaN of dropped assignments, .* gets into the output"),
        (DifferentiatesDrops, ": dropped assignments: NaN of dropped .* gets into the gradient of weight_A"),
        (SpreadsNaN, "NaN of one row stays there: NaN of one row gets into the output of others"),
        (
            LeavesGradientsUnwritten,
            "experts without rows: gradient of w_out is not exactly zero where no kept assignment leads",
        ),
        (GradientsAreConstants, "a gradient of the gradient is right or refused: gradient of x differs"),
        (ReusesItsOutput, "passes may overlap and repeat: output differs"),
        (
            NeedsTrainedRows,
            r"frozen parts in every combination: output has requires_grad=False when \['w_in'\]",
        ),
        (WritesToItsRows, "leaves its operands alone: x was written to"),
        (ReadsMemoryAsItLies, "rows in any memory layout: output differs"),
        (Widens, "output is in float64, not in float32"),
        (IsNotDeterministic, "equal inputs give equal bits, as declared: output changes when"),
        (
            IsNotBatchInvariant,
            "batch invariance is as declared: is declared, but a row alone differs from the same row in a batch",
        ),
        (FailsInside, "odd widths: raises ValueError: widths are odd"),
        (HasNoReason, "refuses what it does not declare: the reason is ''"),
        (VerifiesNothing, "says in one line whether it runs here: the reason is ''"),
        (AcceptsEverything, r"refuses what it does not declare: supports\(\) accepts "),
        (
            DeclaresWhatItRefuses,
            r"supports linear, as declared: supports\(\) refuses it in every dtype: not today",
        ),
        (TakesNoTime, r"estimates a time that grows with the task: seconds\(\) gives \[1.0, 1.0"),
        (BreaksTheGraph, "compiles without a graph break, as declared: raises"),
    ],
)
def test_broken_backends_are_named(kind: type[Backend], message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_backend(kind())


# -- calls that cannot be answered -----------------------------------------------------------------------
def test_an_unknown_backend_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown backend 'cpu_fusd'; did you mean 'cpu_fused'"):
        check_backend("cpu_fusd")


def test_a_backend_that_does_not_run_here_says_why() -> None:
    class Elsewhere(Mine):
        def verify(self) -> tuple[bool, str]:
            return False, "needs a machine that does not exist"

    with pytest.raises(
        ConfigError, match="'mine' cannot be checked here: needs a machine that does not exist"
    ):
        check_backend(Elsewhere())
    with pytest.raises(ConfigError, match="'mine' runs on cpu, not on 'cuda'"):
        check_backend(Mine(), device="cuda")
    with pytest.raises(ConfigError, match="'mine' does not declare bfloat16"):
        check_backend(Mine(), dtypes=[torch.bfloat16])


# -- the command -----------------------------------------------------------------------------------------
def test_the_command_checks_backends_too(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    checked = []
    monkeypatch.setattr("libmoe.testing.check_backend", lambda name: checked.append(name) or ["is quick"])
    run_check("loop", [], as_json=False)
    assert checked == ["loop"] and "is quick" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="backend 'loop' has no options; leave out --set top_k=1"):
        run_check("loop", ["top_k=1"], as_json=False)
