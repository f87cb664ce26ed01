"""LoRA (arXiv 2106.09685) on stacked experts: against a loop over dense experts, and against merged weights."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts import FFNExperts
from libmoe.experts.lora import LoRAExperts, LoRALinear
from libmoe.ops import backends
from libmoe.testing import check_experts

N, D, H, T, K, RANK = 4, 6, 10, 11, 2, 3
FORMS = {
    "gated": {},
    "plain with biases": {"activation": "gelu", "gated": False, "bias": True},
    "other width": {"out_dim": 9},
}


def experts(form: str = "gated", **options: float) -> LoRAExperts:
    """With adapters that do something."""
    made = LoRAExperts(FFNExperts(N, D, H, init_std=0.5, **FORMS[form]), RANK, 6.0, **options).double()
    for adapter in made.lora.values():
        nn.init.normal_(adapter.b)
    return made


def plan() -> SparsePlan:
    expert_TK = torch.stack([torch.randperm(N - 1)[:K] for _ in range(T)])  # the last one gets nothing
    return SparsePlan.from_topk(expert_TK, torch.rand(T, K).double().requires_grad_(), N)


def loop(own: LoRAExperts, x_TD: Tensor, chosen: SparsePlan) -> Tensor:
    """Token by token, choice by choice, from the formula: ``(W + alpha / r B A) x`` for each linear."""
    base, scale, rows = own.base, 6.0 / RANK, []
    for token, expert, weight in zip(chosen.token_A, chosen.expert_A, chosen.weight_A, strict=True):
        x, e = x_TD[token], int(expert)
        low = {n: scale * p.b[e] @ p.a[e] for n, p in own.lora.items()}
        w_in = base.w_in[e] + torch.cat([low[n] for n in ("gate", "up") if n in low])
        h = F.linear(x, w_in, None if base.b_in is None else base.b_in[e])
        h = F.silu(h[:H]) * h[H:] if base.gated else F.gelu(h)
        y = F.linear(h, base.w_out[e] + low["down"], None if base.b_out is None else base.b_out[e])
        rows.append(weight * y)
    y_TKD = torch.stack(rows).view(T, K, -1)
    return y_TKD.sum(1)


def usable() -> list[str]:
    able = (b for b in backends().values() if b.verify()[0] and not b.capabilities.interpreted)
    return [b.name for b in able if "cpu" in b.capabilities.devices and torch.float64 in b.capabilities.dtypes]


@pytest.mark.parametrize("backend", ["auto", *usable()])
@pytest.mark.parametrize("form", FORMS)
def test_outputs_and_all_gradients_are_those_of_a_loop_over_experts(form: str, backend: str) -> None:
    own, chosen, x_TD = experts(form), plan(), torch.randn(T, D).double().requires_grad_()
    own.base.backend = backend
    y_TD, expected_TD = own.execute(x_TD, chosen), loop(own, x_TD, chosen)
    torch.testing.assert_close(y_TD, expected_TD, rtol=1e-10, atol=1e-12)
    learned = [x_TD, chosen.weight_A, *own.lora.parameters()]
    weight_TD = torch.randn_like(y_TD)
    found = torch.autograd.grad((y_TD * weight_TD).sum(), learned)
    for one, other in zip(found, torch.autograd.grad((expected_TD * weight_TD).sum(), learned), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11)
    assert not found[2][-1].any(), "an expert without tokens learns nothing"


@pytest.mark.parametrize("form", ["gated", "plain with biases"])
def test_contract(form: str) -> None:
    checked = check_experts(experts(form), D)
    assert len(checked) >= 10


@pytest.mark.parametrize("form", FORMS)
def test_adapters_add_exactly_nothing_at_first(form: str) -> None:
    base = FFNExperts(N, D, H, init_std=0.5, **FORMS[form]).double()
    x_TD, chosen = torch.randn(T, D).double(), plan()
    own = LoRAExperts(base, RANK)
    assert all(adapter.a.any() and not adapter.b.any() for adapter in own.lora.values())
    for adapter in own.lora.values():
        rows = len(chosen.order_R)
        x_RI = torch.randn(rows, adapter.a.shape[2]).double()
        assert torch.equal(adapter(x_RI, chosen.segments, "auto"), torch.zeros(rows, adapter.b.shape[1]).double())
    torch.testing.assert_close(own.execute(x_TD, chosen), base.execute(x_TD, chosen), rtol=0, atol=1e-13)


def test_only_adapters_learn() -> None:
    own = experts()
    assert {name.split(".")[0] for name, p in own.named_parameters() if p.requires_grad} == {"lora"}
    assert own.lora["gate"].a.shape == (N, RANK, D) and own.lora["down"].b.shape == (N, D, RANK)
    assert own.params_per_expert() == [3 * D * H + 3 * RANK * (D + H)] * N
    bound = D**-0.5
    drawn = LoRAExperts(FFNExperts(50, D, H), 8).lora["up"].a
    assert drawn.abs().max() <= bound and float(drawn.detach().std()) == pytest.approx(bound / 3**0.5, rel=0.05)


@pytest.mark.parametrize("form", FORMS)
def test_merged_experts_compute_the_same(form: str) -> None:
    own, chosen, x_TD = experts(form), plan(), torch.randn(T, D).double()
    merged = own.merged()
    assert type(merged) is FFNExperts and merged.w_in.dtype == torch.float64
    torch.testing.assert_close(merged.execute(x_TD, chosen), own.execute(x_TD, chosen), rtol=1e-10, atol=1e-12)
    before = own.base.w_in.clone()
    with torch.no_grad():
        merged.w_in.zero_()
    assert torch.equal(own.base.w_in, before), "a copy"


def test_dropout_is_of_the_adapters_inputs_while_training() -> None:
    own, chosen, x_TD = experts(dropout=0.5), plan(), torch.randn(T, D).double()
    quiet = own.eval().execute(x_TD, chosen)
    assert torch.equal(own.execute(x_TD, chosen), quiet)
    own.train()
    assert not torch.allclose(own.execute(x_TD, chosen), own.execute(x_TD, chosen))
    for adapter in own.lora.values():
        nn.init.zeros_(adapter.b)
    assert torch.equal(own.execute(x_TD, chosen), own.execute(x_TD, chosen)), "the experts themselves drop nothing"
    # Inputs that stay are scaled up, so that the mean is what it is without dropout.
    adapter = own.lora["up"]
    nn.init.normal_(adapter.b)
    x_RD, segments = torch.randn(1, D).double().expand(4000, D), SparsePlan.from_topk(
        torch.zeros(4000, 1, dtype=torch.long), torch.ones(4000, 1), N
    ).segments
    mean = adapter(x_RD, segments, "auto").mean(0)
    expected = adapter.eval()(x_RD, segments, "auto")[0]
    assert (mean - expected).abs().max() < 0.1 * expected.abs().max()


def test_half_precision_under_autocast() -> None:
    own = experts().float()
    x_TD, chosen = torch.randn(T, D), plan().map(lambda t: t.float() if t.is_floating_point() else t)
    with torch.autocast("cpu", torch.bfloat16):
        low = own.execute(x_TD, chosen)
    full = own.execute(x_TD, chosen)
    assert low.dtype == torch.float32 and 0 < (low - full).abs().max() < 0.1 * full.abs().max()


def test_a_linear_with_an_adapter() -> None:
    linear, x = nn.Linear(D, H), torch.randn(2, 3, D)
    own = LoRALinear(linear, D, H, RANK, 6.0, 0.0)
    assert torch.equal(own(x), linear(x))
    nn.init.normal_(own.lora.b)
    expected = F.linear(x, linear.weight + 2.0 * own.lora.b[0] @ own.lora.a[0], linear.bias)
    torch.testing.assert_close(own(x), expected)
    assert [name for name, p in own.named_parameters() if p.requires_grad] == ["lora.a", "lora.b"]


@pytest.mark.parametrize("wrong", [{"rank": 0}, {"dropout": 1.0}, {"alpha": float("inf")}])
def test_impossible_adapters_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=f"lora_{next(iter(wrong))}"):
        LoRAExperts(FFNExperts(N, D, H), **wrong)
