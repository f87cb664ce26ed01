"""Equally many rows for each expert: batched products against loops, and the soft plan that makes such rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from libmoe.core.dispatch import Segments
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SoftPlan
from libmoe.experts import FFNExperts, ModuleExperts, UnionExperts, ZeroExperts
from libmoe.ops import Rows, StackedFFN, ffn, soft
from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.soft import batched_ffn

N, R, D, H = 3, 5, 4, 6
BOUND = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def stacked(
    activation: str = "silu", gated: bool = True, bias: bool = True, dtype: torch.dtype = torch.float64
) -> StackedFFN:
    width = 2 * H if gated else H
    sizes = [(N, width, D), (N, D, H), *([(N, width), (N, D)] if bias else [])]
    parameters = [torch.randn(*size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]
    return StackedFFN(*parameters, activation=activation, gated=gated)


def rows(count: int = R, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(N, count, D, dtype=torch.float64).to(dtype).requires_grad_()


def learned(x_NRD: Tensor, experts: StackedFFN) -> list[Tensor]:
    return [t for t in (x_NRD, *experts.parameters()) if t is not None and t.requires_grad]


def loop(x_NRD: Tensor, experts: StackedFFN) -> Tensor:
    outputs = []
    for e in range(N):
        w_in, w_out, b_in, b_out = (None if p is None else p[e] for p in experts.parameters())
        h = x_NRD[e] @ w_in.t() + (0 if b_in is None else b_in)
        act = ACTIVATIONS[experts.activation]
        h = act(h[:, :H]) * h[:, H:] if experts.gated else act(h)
        outputs.append(h @ w_out.t() + (0 if b_out is None else b_out))
    return torch.stack(outputs)


def rmse(found: Tensor, expected: Tensor) -> float:
    error, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return (error / size if size else error).item()


def check(x_NRD: Tensor, experts: StackedFFN) -> None:
    """Output and all gradients against loops in float64."""
    exact_x = x_NRD.detach().double().requires_grad_(x_NRD.requires_grad)
    exact = [
        None if p is None else p.detach().double().requires_grad_(p.requires_grad)
        for p in experts.parameters()
    ]
    exact_experts = replace(experts, w_in=exact[0], w_out=exact[1], b_in=exact[2], b_out=exact[3])
    found, expected = batched_ffn(x_NRD, experts), loop(exact_x, exact_experts)
    assert found.dtype == x_NRD.dtype and found.shape == expected.shape
    assert rmse(found, expected) < BOUND[x_NRD.dtype]
    grad = torch.randn_like(expected)
    ours = torch.autograd.grad(found, learned(x_NRD, experts), grad.to(found.dtype))
    theirs = torch.autograd.grad(expected, learned(exact_x, exact_experts), grad)
    for a, b in zip(ours, theirs, strict=True):
        assert rmse(a, b) < 3 * BOUND[x_NRD.dtype]


@pytest.fixture(params=["batched", "sorted rows"], autouse=True)
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test runs on either side of the size at which a CPU changes over."""
    monkeypatch.setattr(soft, "SMALL_ON_CPU", 1e30 if request.param == "batched" else -1.0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_form_of_expert_equals_loops(activation: str, gated: bool, bias: bool) -> None:
    check(rows(), stacked(activation, gated, bias))


@pytest.mark.parametrize("count", [0, 1, 17])
def test_any_number_of_rows(count: int) -> None:
    check(rows(count), stacked())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision(dtype: torch.dtype) -> None:
    check(rows(9, dtype), stacked(dtype=dtype))


def test_gradcheck() -> None:
    experts = stacked("gelu")
    x_NRD = rows(2)

    def run(x: Tensor, *parameters: Tensor) -> Tensor:
        return batched_ffn(x, StackedFFN(*parameters, activation="gelu"))

    assert torch.autograd.gradcheck(run, (x_NRD, *experts.parameters()))
    assert torch.autograd.gradgradcheck(run, (x_NRD, *experts.parameters()))


@pytest.mark.parametrize("trained", ["rows", "w_in", "w_out", "b_in", "b_out"])
def test_anything_may_be_frozen(trained: str) -> None:
    x_NRD, experts = rows(), stacked()
    for name, leaf in zip(("rows", "w_in", "w_out", "b_in", "b_out"), learned(x_NRD, experts), strict=True):
        leaf.requires_grad_(name == trained)
    check(x_NRD, experts)


def test_memory_layout_does_not_matter() -> None:
    x_NRD, experts = rows(), stacked()
    w_in, w_out = (
        p.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()
        for p in (experts.w_in, experts.w_out)
    )
    strided = x_NRD.detach().transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    assert not strided.is_contiguous()
    check(strided, replace(experts, w_in=w_in, w_out=w_out))
    batched_ffn(x_NRD, experts).sum().backward()  # the gradient that arrives is one number, expanded
    assert rmse(x_NRD.grad, torch.autograd.grad(loop(x_NRD, experts).sum(), x_NRD)[0]) < 1e-13


def test_autocast_applies_as_to_a_linear_layer() -> None:
    x_NRD, experts = rows(dtype=torch.float32), stacked(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y_NRD = batched_ffn(x_NRD, experts)
        y_NRD.float().sum().backward()
        kept = batched_ffn(x_NRD.double(), experts.to(torch.float64))
    assert y_NRD.dtype == torch.bfloat16 and kept.dtype == torch.float64
    assert rmse(y_NRD, loop(x_NRD, experts)) < 0.02
    assert all(leaf.grad.dtype == torch.float32 for leaf in learned(x_NRD, experts))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_repeats_are_equal_to_the_last_bit(dtype: torch.dtype) -> None:
    x_NRD, experts = rows(33, dtype), stacked(dtype=dtype)

    def once() -> list[Tensor]:
        y_NRD = batched_ffn(x_NRD, experts)
        return [y_NRD, *torch.autograd.grad(y_NRD.square().sum(), learned(x_NRD, experts))]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_only_rows_and_the_first_product_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soft, "SMALL_ON_CPU", 1e30)
    x_NRD, experts = rows(16), stacked(bias=False)
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        batched_ffn(x_NRD, experts)
    first_product = N * 16 * 2 * H * 8
    assert sum(kept.values()) == x_NRD.nbytes + first_product + experts.w_in.nbytes + experts.w_out.nbytes


def test_gradients_come_in_the_layout_of_the_weights() -> None:
    """Otherwise the optimiser's parameters would copy them, transposing, in every step."""
    x_NRD, experts = rows(), stacked()
    for grad in torch.autograd.grad(batched_ffn(x_NRD, experts).sum(), learned(x_NRD, experts)):
        assert grad.is_contiguous()


@pytest.mark.parametrize("backend", ["auto", "reference", "loop"])
def test_equal_segments_change_no_result(backend: str) -> None:
    experts = FFNExperts(N, D, H, init_std=None, backend=backend).double()
    x_RD = torch.randn(N * R, D, dtype=torch.float64)
    equal = Segments.equal(N, R)
    assert equal.bounds == (0, R, 2 * R, 3 * R)
    y_RD = experts.forward_rows(x_RD, equal)
    assert rmse(y_RD, experts.forward_rows(x_RD, Segments(equal.bounds))) < 1e-13
    assert rmse(y_RD, ffn(x_RD, experts.stacked, Rows(equal), backend="reference")) < 1e-13


def mixed(plan: SoftPlan, modules: list[nn.Module], x_TD: Tensor) -> Tensor:
    """Soft MoE, arXiv 2308.00951 §2.1: slots from tokens, each slot through its expert, tokens from slots."""
    groups, length, slots = plan.dispatch_GLS.shape
    outputs = []
    for g, x_LD in enumerate(x_TD.view(groups, length, -1)):
        slot_SD = plan.dispatch_GLS[g].t() @ x_LD
        per_expert = slots // len(modules)
        y_SD = torch.stack([modules[s // per_expert](slot_SD[s]) for s in range(slots)])
        outputs.append(plan.combine_GLS[g] @ y_SD)
    return torch.cat(outputs)


def kinds() -> dict[str, FFNExperts | ModuleExperts | UnionExperts]:
    return {
        "stacked": FFNExperts(N, D, H, "gelu", bias=True, init_std=None),
        "modules": ModuleExperts(
            [nn.Sequential(nn.Linear(D, h), nn.Tanh(), nn.Linear(h, D)) for h in (1, 2, 3)]
        ),
        "union": UnionExperts([FFNExperts(2, D, H, init_std=None), ZeroExperts(1)]),
    }


@pytest.mark.parametrize(("groups", "length", "per_expert"), [(2, 7, 1), (3, 4, 2), (1, 1, 1), (4, 1, 3)])
@pytest.mark.parametrize("kind", kinds())
def test_a_soft_plan_mixes_runs_and_mixes(kind: str, groups: int, length: int, per_expert: int) -> None:
    experts = kinds()[kind].double()
    shape = (groups, length, N * per_expert)
    dispatch, combine = (torch.randn(shape, dtype=torch.float64).requires_grad_() for _ in range(2))
    plan = SoftPlan(dispatch, combine, N)
    x_TD = torch.randn(groups * length, D, dtype=torch.float64).requires_grad_()
    found = experts.execute(x_TD, plan)
    expected = mixed(plan, [experts.materialise(e) for e in range(N)], x_TD)
    assert rmse(found, expected) < 1e-13
    grad = torch.randn_like(found)
    ours = torch.autograd.grad(found, (x_TD, dispatch, combine), grad)
    for a, b in zip(ours, torch.autograd.grad(expected, (x_TD, dispatch, combine), grad), strict=True):
        assert rmse(a, b) < 1e-12


def test_a_soft_plan_makes_no_wide_copy_of_half_precision() -> None:
    experts = FFNExperts(4, 64, 8).bfloat16()
    plan = SoftPlan(*(torch.rand(2, 32, 32) for _ in range(2)), 4)
    x_TD = torch.randn(64, 64).bfloat16()
    experts.execute(x_TD, plan)
    with torch.profiler.profile(profile_memory=True) as profile:
        y_TD = experts.execute(x_TD, plan)
    assert y_TD.dtype == torch.bfloat16
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= x_TD.nbytes


def test_it_can_be_planned_on_meta_and_compiled_whole() -> None:
    x_NRD, experts = rows(dtype=torch.float32), stacked(dtype=torch.float32)
    y_NRD = batched_ffn(x_NRD, experts)
    compiled = torch.compile(batched_ffn, backend="aot_eager", fullgraph=True)
    assert rmse(compiled(x_NRD, experts), y_NRD) < 1e-6
    on_meta = StackedFFN(*(p.to("meta") for p in experts.parameters()), activation="silu")
    assert batched_ffn(x_NRD.to("meta"), on_meta).shape == y_NRD.shape


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda: batched_ffn(rows()[1:], stacked()), r"\(2, 5, 4\).* do not fit 3 experts"),
        (lambda: batched_ffn(rows().float(), stacked()), "torch.float32 do not fit"),
        (lambda: batched_ffn(rows(), stacked(), "lop"), "did you mean 'loop'"),
        (
            lambda: SoftPlan(*torch.rand(2, 1, 4, 5), N).execute(ZeroExperts(N), torch.rand(4, D)),
            "3 experts cannot share 5 slots",
        ),
        (
            lambda: SoftPlan(*torch.rand(2, 1, 4, 6), N).execute(ZeroExperts(N), torch.rand(3, D)),
            "soft plan of 4 tokens does not fit 3",
        ),
    ],
)
def test_what_does_not_fit_is_refused(run: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run()
