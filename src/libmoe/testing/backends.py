"""Contract checks of backends: each against the reference in float64, and what it declares against what it does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain, combinations

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, LibMoEError, unknown
from libmoe.ops import backends
from libmoe.ops.base import Backend
from libmoe.testing.backend_cases import (
    Case,
    Leaves,
    batches,
    by_columns,
    cut_out,
    ffn_cases,
    form_cases,
    linear_cases,
    many_rows,
    top_k,
)
from libmoe.testing.backend_declarations import check_declarations, check_refusals
from libmoe.testing.checks import Checks, Skip

# Largest relative RMSE of an output or a gradient.
BOUNDS = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}
# Parts that are frozen or trained together.
GROUPS = (("x",), ("w_in",), ("b_in",), ("w_out", "b_out"), ("weight_A",))


def check_backend(
    backend: str | Backend, *, device: str = "cpu", dtypes: Sequence[torch.dtype] | None = None
) -> list[str]:
    """Hold a backend to the meaning of the ``reference`` backend and to its own declarations; returns the names.

    Outputs and all gradients are compared with float64 on hostile tasks, in every dtype.  Determinism, batch
    invariance, dtypes, devices and the rest of :class:`~libmoe.ops.base.Capabilities` are tried out.  A task for
    which ``supports`` says no is left out.

    Args:
        backend: a name of :func:`libmoe.ops.backends`, or a backend of your own.
        device: device type to run on.
        dtypes: those to check; all it declares by default.

    Raises:
        ContractError: one line per broken promise.
        ConfigError: unknown backend, or one that does not run here, on this device or in these dtypes.
    """
    if isinstance(backend, str):
        if backend not in backends():
            raise unknown("backend", backend, backends())
        backend = backends()[backend]
    can = backend.capabilities
    ok, reason = backend.verify()
    if not ok:
        raise ConfigError(f"backend {backend.name!r} cannot be checked here: {reason}")
    if device not in can.devices:
        raise ConfigError(
            f"backend {backend.name!r} runs on {', '.join(sorted(can.devices))}, not on {device!r}"
        )
    for dtype in dtypes or ():
        if dtype not in can.dtypes:
            raise ConfigError(f"backend {backend.name!r} does not declare {_short(dtype)}")
    dtypes = dtypes or [dtype for dtype in BOUNDS if dtype in can.dtypes]

    checks = Checks(f"backend {backend.name}")
    check_declarations(checks, backend, device, dtypes)
    if backends().get(backend.name) is backend:  # it is the operations that refuse, and they go by names
        check_refusals(checks, backend.name, device, dtypes[0])
    for dtype in dtypes:
        probe = BackendProbe(backend, device, dtype)
        if "ffn" in can.ops:
            cases = ffn_cases()
            _check_op(checks, f"ffn in {_short(dtype)}", probe, cases, "two experts for each token")
            for name, case in form_cases():
                with checks(f"ffn in {_short(dtype)}: {name}"):
                    probe.compare(case)
            if dtype.itemsize < 4:
                with checks(f"ffn in {_short(dtype)}: routing weights in float32"):
                    probe.check_wide_weights(cases["two experts for each token"])
        if "linear" in can.ops:
            _check_op(
                checks, f"linear in {_short(dtype)}", probe, linear_cases(), "some rows for each expert"
            )
    return checks.finish()


def _check_op(checks: Checks, where: str, probe: BackendProbe, cases: dict[str, Case], plain: str) -> None:
    can = probe.backend.capabilities
    for name, case in cases.items():
        with checks(f"{where}: {name}"):
            probe.compare(case)
    case = cases[plain]
    busy = _like(case, many_rows())
    named: dict[str, Callable[[], None]] = {
        "rows in any memory layout": lambda: probe.check_row_layouts(case),
        "parameters in any memory layout": lambda: probe.check_parameter_layouts(case),
        "an incoming gradient in any memory layout": lambda: probe.check_incoming(case),
        "frozen parts in every combination": lambda: probe.check_frozen(case),
        "without gradient tracking": lambda: probe.check_modes(case),
        "NaN of one row stays there": lambda: probe.check_poison(case),
        "leaves its operands alone": lambda: probe.check_operands(case),
        "passes may overlap and repeat": lambda: probe.check_overlap(busy),
        "a gradient of the gradient is right or refused": lambda: probe.check_twice(case),
    }
    if can.deterministic:
        named["equal inputs give equal bits, as declared"] = lambda: probe.check_repeats((case, busy))
    if can.compile:
        named["compiles without a graph break, as declared"] = lambda: probe.check_compiled(case)
    if probe.device == "cuda" and not can.host_sync:
        named["does not wait for the host, as declared"] = lambda: probe.check_sync(case)
    for name, check in named.items():
        with checks(f"{where}: {name}"):
            check()
    with checks(f"{where}: batch invariance is as declared"):
        difference = probe.batch_difference(case)
        if can.batch_invariant:
            assert difference is None, f"is declared, but {difference}"
        else:
            checks.passed.append(
                f"{where}: batch invariance is not declared; {difference or 'no difference found'}"
            )


@dataclass(frozen=True)
class BackendProbe:
    """One backend on one device in one dtype."""

    backend: Backend
    device: str
    dtype: torch.dtype

    def leaves(self, case: Case, seed: int = 0) -> Leaves:
        """Operands of a case that the backend says it can do."""
        task = case.task(self.dtype, self.device, self.backend.capabilities.gradient)
        if not self.backend.supports(task)[0]:
            raise Skip
        return case.leaves(self.dtype, self.device, seed)

    def incoming(self, case: Case, seed: int = 7) -> Tensor:
        shape = len(case.idle["output"]), case.dim if case.op == "ffn" else case.hidden
        values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        return values.to(self.dtype).to(self.device)

    def trained(self, leaves: Leaves) -> list[str]:
        return list(leaves) if self.backend.capabilities.gradient else []

    def run(self, case: Case, leaves: Leaves, trained: Iterable[str], grad: Tensor) -> Leaves:
        return _run(self.backend, case, leaves, list(trained), grad)

    def expect(self, case: Case, leaves: Leaves, trained: Iterable[str], grad: Tensor) -> Leaves:
        wide = {name: leaf.double() for name, leaf in leaves.items()}
        return _run(backends()["reference"], case, wide, list(trained), grad.double())

    def compare(self, case: Case, leaves: Leaves | None = None, grad: Tensor | None = None) -> None:
        """Output and all gradients against the reference, and the output once more without gradients."""
        leaves = self.leaves(case) if leaves is None else leaves
        grad = self.incoming(case) if grad is None else grad
        trained = self.trained(leaves)
        expected = self.expect(case, leaves, trained, grad)
        self.assert_equal(case, leaves, self.run(case, leaves, trained, grad), expected)
        alone = self.run(case, leaves, (), grad)
        self.assert_equal(case, leaves, alone, {"output": expected["output"]})

    def assert_equal(
        self, case: Case, leaves: Leaves, found: Leaves, expected: Leaves, scale: float = 1.0
    ) -> None:
        poisoned = any(bool(mask.any()) for mask in case.idle.values())
        for name, right in expected.items():
            ours, what = found[name], _called(name)
            dtype = self.dtype if name == "output" else leaves[name].dtype
            assert ours.shape == right.shape, (
                f"{what} has shape {tuple(ours.shape)}, not {tuple(right.shape)}"
            )
            assert ours.dtype == dtype, f"{what} is in {_short(ours.dtype)}, not in {_short(dtype)}"
            poison = "NaN of dropped assignments, or of experts without rows, gets into the "
            assert ours.isfinite().all(), f"{poison}{what}" if poisoned else f"{what} is not finite"
            idle = case.idle[name].to(ours.device)
            assert not ours[idle].any(), f"{what} is not exactly zero where no kept assignment leads"
            error, bound = relative_rmse(ours, right), scale * BOUNDS[self.dtype]
            assert error <= bound, f"{what} differs by {error:.2g} (relative RMSE; allowed {bound:.2g})"

    # -- memory ------------------------------------------------------------------------------------------
    def check_row_layouts(self, case: Case) -> None:
        leaves = self.leaves(case)
        x = leaves["x"]
        for strided in (by_columns(x), cut_out(x), x[:1].expand(x.shape)):
            self.compare(case, leaves | {"x": strided})

    def check_parameter_layouts(self, case: Case) -> None:
        """Also that the gradient of a stored parameter lies in memory as the parameter does."""
        leaves = self.leaves(case)
        parameters = [name for name in leaves if name not in ("x", "weight_A")]
        for layout in (by_columns, cut_out):
            self.compare(case, leaves | {name: layout(leaves[name]) for name in parameters})
        if not self.backend.capabilities.gradient:
            return
        grad = self.incoming(case)
        expected = self.expect(case, leaves, leaves, grad)
        matrices = [name for name in parameters if leaves[name].dim() == 3]
        stored = {name: leaves[name].transpose(1, 2).contiguous().requires_grad_() for name in matrices}
        views = {name: param.transpose(1, 2) for name, param in stored.items()}
        case.compute(self.backend, leaves | views).backward(grad)
        for name, param in stored.items():
            assert param.grad is not None, f"{name} receives no gradient"
            assert param.grad.stride() == param.stride(), f"gradient of {name} has other strides than {name}"
            error = relative_rmse(param.grad.transpose(1, 2), expected[name])
            assert error <= BOUNDS[self.dtype], f"gradient of stored {name} differs by {error:.2g}"

    def check_incoming(self, case: Case) -> None:
        grad = self.incoming(case)
        for strided in (by_columns(grad), cut_out(grad), torch.ones_like(grad[:1, :1]).expand(grad.shape)):
            self.compare(case, grad=strided)

    def check_operands(self, case: Case) -> None:
        leaves, grad = self.leaves(case), self.incoming(case)
        before = {name: leaf.clone() for name, leaf in leaves.items()} | {"incoming gradient": grad.clone()}
        self.run(case, leaves, self.trained(leaves), grad)
        for name, leaf in (leaves | {"incoming gradient": grad}).items():
            assert torch.equal(leaf, before[name]), f"{name} was written to"

    # -- gradient ----------------------------------------------------------------------------------------
    def check_frozen(self, case: Case) -> None:
        leaves, grad = self.leaves(case), self.incoming(case)
        expected = self.expect(case, leaves, self.trained(leaves), grad)
        groups = [group for group in GROUPS if group[0] in leaves]
        for chosen in chain.from_iterable(combinations(groups, size) for size in range(len(groups))):
            trained = [name for group in chosen for name in group if name in self.trained(leaves)]
            found = self.run(case, leaves, trained, grad)
            self.assert_equal(case, leaves, found, {name: expected[name] for name in ("output", *trained)})

    def check_modes(self, case: Case) -> None:
        leaves, grad = self.leaves(case), self.incoming(case)
        expected = self.expect(case, leaves, (), grad)
        tracked = {name: leaf.clone().requires_grad_() for name, leaf in leaves.items()}
        for mode in (torch.no_grad, torch.inference_mode):
            with mode():
                for given in (tracked, self.leaves(case)):
                    y = case.compute(self.backend, given)
                    assert not y.requires_grad, f"output requires a gradient under {mode.__name__}"
                    self.assert_equal(case, leaves, {"output": y}, expected)

    def check_overlap(self, case: Case) -> None:
        """Forward, forward, backward, backward: neither pass may use memory of the other, or of results kept."""
        if not self.backend.capabilities.gradient:
            raise Skip
        steps = []
        for seed in (1, 2):
            leaves = {name: leaf.requires_grad_() for name, leaf in self.leaves(case, seed).items()}
            steps.append((leaves, self.incoming(case, seed), case.compute(self.backend, leaves)))
        expected = [self.expect(case, leaves, leaves, grad) for leaves, grad, _ in steps]
        for again in (True, False):
            found = [_gradients(y, leaves, grad, again) | {"output": y} for leaves, grad, y in steps]
            for (leaves, _, _), ours, right in zip(steps, found, expected, strict=True):
                self.assert_equal(case, leaves, ours, right)

    def check_twice(self, case: Case) -> None:
        """Silence is what must not happen: a penalty on a gradient that is a constant trains nothing."""
        leaves = self.leaves(case)
        trained = self.trained(leaves)
        if not trained:
            raise Skip

        def second(backend: Backend, leaves: Leaves) -> Leaves:
            leaves = {name: leaf.detach().requires_grad_() for name, leaf in leaves.items()}
            y = case.compute(backend, leaves)
            first = torch.autograd.grad(y.square().mean(), list(leaves.values()), create_graph=True)
            assert all(g.requires_grad for g in first), "gradients come back as constants"
            return _gradients(torch.stack([(32 * g).square().sum().float() for g in first]), leaves)

        try:
            found = second(self.backend, leaves)
        except (RuntimeError, LibMoEError):
            return
        expected = second(backends()["reference"], {name: leaf.double() for name, leaf in leaves.items()})
        self.assert_equal(case, leaves, found, expected, scale=10)

    def check_wide_weights(self, case: Case) -> None:
        leaves = self.leaves(case)
        self.compare(case, leaves | {"weight_A": leaves["weight_A"].float()})

    def check_poison(self, case: Case) -> None:
        """NaN in one row, or in what arrives for it, reaches what the reference says it reaches."""
        for poison_grad in (False, True):
            leaves, grad = self.leaves(case), self.incoming(case)
            (grad if poison_grad else leaves["x"])[1] = float("nan")
            trained = self.trained(leaves)
            found = self.run(case, leaves, trained, grad)
            for name, right in self.expect(case, leaves, trained, grad).items():
                ours = found[name].isfinite()
                assert ours[right.isfinite()].all(), f"NaN of one row gets into the {_called(name)} of others"
                assert not ours[right.isnan()].any(), f"NaN of one row is lost in the {_called(name)}"

    # -- declarations ------------------------------------------------------------------------------------
    def check_repeats(self, cases: Iterable[Case]) -> None:
        for case in cases:
            leaves, grad = self.leaves(case), self.incoming(case)
            first, *others = (self.run(case, leaves, self.trained(leaves), grad) for _ in range(4))
            for other in others:
                for name, values in first.items():
                    same = torch.equal(values, other[name])
                    assert same, f"{_called(name)} changes when the same is computed again"

    def batch_difference(self, case: Case) -> str | None:
        """How a row's output changes with the rows beside it, if it does."""
        whole = _like(case, top_k(96, 4, 1 if case.source == "row" else 2, dim=64, hidden=48))
        leaves = self.leaves(whole)
        alone: Tensor | None = None
        for batch in batches(whole):
            chosen = {"x": batch.source.to(self.device), "weight_A": batch.assignment.to(self.device)}
            given = {name: leaf[chosen[name]] if name in chosen else leaf for name, leaf in leaves.items()}
            y = batch.case.compute(self.backend, given)[batch.row]
            alone = y if alone is None else alone
            if not torch.equal(y, alone):
                size, error = batch.case.num_tokens, relative_rmse(y, alone)
                return f"a row alone differs from the same row in a batch of {size} by {error:.1g}"
        return None

    def check_compiled(self, case: Case) -> None:
        leaves, dispatch = self.leaves(case), case.dispatch(self.device)
        expected = case.compute(
            self.backend, leaves, dispatch
        )  # and all index vectors, which stay with dispatch
        compiled = torch.compile(
            lambda given: case.compute(self.backend, given, dispatch), fullgraph=True, backend="eager"
        )
        error = relative_rmse(compiled(leaves), expected)
        assert error <= BOUNDS[self.dtype], f"output differs by {error:.2g} when compiled"

    def check_sync(self, case: Case) -> None:
        leaves, grad = self.leaves(case), self.incoming(case)
        leaves = {name: leaf.requires_grad_(name in self.trained(leaves)) for name, leaf in leaves.items()}
        for mode in ("default", "error"):  # the first call may compile kernels
            dispatch = case.dispatch(self.device)
            torch.cuda.synchronize()
            torch.cuda.set_sync_debug_mode(mode)
            try:
                y = case.compute(self.backend, leaves, dispatch)
                if y.requires_grad:
                    y.backward(grad)
            finally:
                torch.cuda.set_sync_debug_mode("default")


def _run(backend: Backend, case: Case, leaves: Leaves, trained: list[str], grad: Tensor) -> Leaves:
    """Output and the gradients of ``trained``, all else frozen."""
    leaves = {name: leaf.detach().requires_grad_(name in trained) for name, leaf in leaves.items()}
    y = case.compute(backend, leaves)
    assert y.requires_grad == bool(trained), (
        f"output has requires_grad={y.requires_grad} when {trained} are trained"
    )
    return {"output": y.detach()} | _gradients(y, {name: leaves[name] for name in trained}, grad)


def _gradients(y: Tensor, leaves: Leaves, grad: Tensor | None = None, retain_graph: bool = False) -> Leaves:
    if not leaves:
        return {}
    grad = torch.ones_like(y) if grad is None else grad
    found = torch.autograd.grad(y, list(leaves.values()), grad, retain_graph=retain_graph, allow_unused=True)
    for name, gradient in zip(leaves, found, strict=True):
        assert gradient is not None, f"{name} receives no gradient"
    return dict(zip(leaves, found, strict=True))


def relative_rmse(found: Tensor, expected: Tensor) -> float:
    """Root mean square of the difference over that of ``expected``; 0 for nothing, infinite for NaN."""
    difference = (found.detach().double() - expected.detach().double()).square().sum().sqrt()
    if difference == 0:
        return 0.0
    error = float(difference / expected.detach().double().square().sum().sqrt())
    return error if math.isfinite(error) else math.inf


def _like(case: Case, sizes: Case) -> Case:
    """The task of ``case`` at other sizes."""
    return replace(sizes, op=case.op, source=case.source, weighted=case.weighted, bias=case.bias)


def _called(name: str) -> str:
    return "output" if name == "output" else f"gradient of {name}"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
