"""Grouped linear maps: every backend against float64 loops, values and gradients."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from libmoe.core.errors import ConfigError
from libmoe.ops import Task, backends, grouped_linear

ON_THIS_MACHINE = [
    name
    for name, backend in backends().items()
    if backend.supports(Task("linear", "cpu", torch.float64, True, 9, 3, 7, 5))[0]
]
BOUNDS = {
    "some for each": (0, 3, 4, 9),
    "empty first": (0, 0, 5, 9),
    "empty last": (0, 5, 9, 9),
    "empty middle": (0, 4, 4, 9),
    "all to one": (0, 0, 9, 9),
    "one row": (0, 0, 0, 1),
    "no rows": (0, 0, 0, 0),
}
IN, OUT = 7, 5


def tensors(bounds: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    rows, n = bounds[-1], len(bounds) - 1
    shapes = ((rows, IN), (n, OUT, IN), (n, OUT))
    x, w, b = (torch.randn(*shape, dtype=dtype).requires_grad_() for shape in shapes)
    return x, w, b


def loop(x_RI: Tensor, weight_NOI: Tensor, bounds: tuple[int, ...], bias_NO: Tensor) -> Tensor:
    expert_R = [e for e in range(len(bounds) - 1) for _ in range(bounds[e], bounds[e + 1])]
    rows = [weight_NOI[e] @ x_I + bias_NO[e] for e, x_I in zip(expert_R, x_RI, strict=True)]
    return (
        torch.stack(rows)
        if rows
        else (x_RI.sum() + weight_NOI.sum() + bias_NO.sum()) * x_RI.new_zeros(0, OUT)
    )


@pytest.mark.parametrize("layout", BOUNDS)
@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_backends_equal_loops(backend: str, layout: str) -> None:
    bounds = BOUNDS[layout]
    x, w, b = leaves = tensors(bounds)
    y, expected = grouped_linear(x, w, bounds, b, backend), loop(x, w, bounds, b)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    grad = torch.randn_like(y)
    found = torch.autograd.grad(y, leaves, grad)
    for ours, theirs in zip(found, torch.autograd.grad(expected, leaves, grad), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_gradcheck(backend: str) -> None:
    bounds = BOUNDS["empty middle"]
    assert torch.autograd.gradcheck(lambda x, w, b: grouped_linear(x, w, bounds, b, backend), tensors(bounds))


@pytest.mark.parametrize("frozen", ["rows", "weights"])
@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_either_side_may_be_frozen(backend: str, frozen: str) -> None:
    bounds = BOUNDS["some for each"]
    x, w, _ = tensors(bounds)
    (x if frozen == "rows" else w).requires_grad_(False)
    grouped_linear(x, w, bounds, backend=backend).sum().backward()
    assert (x.grad is None, w.grad is None) == (frozen == "rows", frozen == "weights")


@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_memory_layout_does_not_matter(backend: str) -> None:
    bounds = BOUNDS["some for each"]
    x, w, b = (t.detach() for t in tensors(bounds))
    expected = loop(x, w, bounds, b)
    strided = x.t().contiguous().t().requires_grad_()
    transposed = w.transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
    y = grouped_linear(strided, transposed, bounds, b, backend)
    torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
    y.sum().backward()  # the gradient that arrives is an expanded scalar
    torch.testing.assert_close(
        strided.grad, w.sum(1)[torch.tensor([0] * 3 + [1] + [2] * 5)], rtol=1e-12, atol=1e-12
    )
    row = torch.ones(1, IN, dtype=torch.float64).expand(9, IN).requires_grad_()
    torch.testing.assert_close(grouped_linear(row, w, bounds, b, backend), loop(row, w, bounds, b))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_lower_precision_keeps_its_dtype(backend: str, dtype: torch.dtype) -> None:
    bounds = BOUNDS["empty first"]
    x, w, b = tensors(bounds, dtype)
    y = grouped_linear(x, w, bounds, b, backend)
    assert y.dtype == dtype
    expected = loop(x.double(), w.double(), bounds, b.double())
    error = (y.double() - expected).square().mean().sqrt() / expected.square().mean().sqrt()
    assert error < (0.01 if dtype == torch.bfloat16 else 1e-6)
    y.sum().backward()
    assert x.grad.dtype == w.grad.dtype == b.grad.dtype == dtype


@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_rows_of_other_experts_do_not_touch(backend: str) -> None:
    """NaN in one expert's rows or weights stays there, forward and backward."""
    bounds = (0, 3, 6, 6)
    x, w, _ = (t.detach() for t in tensors(bounds))
    x[3:], w[2] = float("nan"), float("nan")
    x.requires_grad_()
    w.requires_grad_()
    y = grouped_linear(x, w, bounds, backend=backend)
    assert y[:3].isfinite().all() and y[3:].isnan().all()
    y[:3].sum().backward()
    assert x.grad[:3].isfinite().all()
    assert w.grad[0].isfinite().all()
    assert not w.grad[2].any()


@pytest.mark.parametrize("backend", ON_THIS_MACHINE)
def test_autocast_applies_as_to_a_linear_layer(backend: str) -> None:
    bounds = BOUNDS["some for each"]
    x, w, b = tensors(bounds, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = grouped_linear(x, w, bounds, b, backend)
        mixed = grouped_linear(x.bfloat16(), w, bounds, b, backend)
        kept = grouped_linear(x.double(), w.double(), bounds, backend=backend)
    assert y.dtype == mixed.dtype == torch.bfloat16
    assert kept.dtype == torch.float64
    y.float().sum().backward()
    assert w.grad.dtype == torch.float32


@pytest.mark.parametrize(
    ("bounds", "message"),
    [((0, 3, 9), "for 3 experts"), ((0, 3, 4, 8), "do not cut 9 rows"), ((1, 3, 4, 9), "do not cut")],
)
def test_bounds_that_do_not_cover_the_rows_are_refused(bounds: tuple, message: str) -> None:
    x, w, _ = tensors(BOUNDS["some for each"])
    with pytest.raises(ConfigError, match=message):
        grouped_linear(x, w, bounds)


def test_an_unknown_backend_gets_the_nearest() -> None:
    x, w, _ = tensors(BOUNDS["some for each"])
    with pytest.raises(ConfigError, match="did you mean 'loop'"):
        grouped_linear(x, w, BOUNDS["some for each"], backend="lop")


def test_no_gradient_of_the_size_of_all_experts_is_made_per_expert() -> None:
    """Indexing a stacked parameter per expert would allocate N full gradients in backward."""
    n, bounds = 64, tuple(range(65))
    x, w = torch.randn(n, 8, requires_grad=True), torch.randn(n, 16, 8, requires_grad=True)
    y = grouped_linear(x, w, bounds, backend="loop")
    full = w.numel() * 4
    with torch.profiler.profile(profile_memory=True) as profile:
        y.sum().backward()
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert allocated < 3 * full
