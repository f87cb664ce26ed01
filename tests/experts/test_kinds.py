"""Every kind of experts keeps the contract, and does what its paper says."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Segments
from libmoe.experts import (
    FFN,
    ConstantExperts,
    CopyExperts,
    Experts,
    FFNExperts,
    ModuleExperts,
    SharedExpert,
    UnionExperts,
    ZeroExperts,
)
from libmoe.testing import check_experts

D = 5


def biased(experts: FFNExperts) -> FFNExperts:
    nn.init.normal_(experts.b_in)
    nn.init.normal_(experts.b_out)
    return experts


def widths() -> ModuleExperts:
    return ModuleExperts([FFN(D, 3), nn.Sequential(nn.Linear(D, 7), nn.GELU(), nn.Linear(7, D)), FFN(D, 11)])


KINDS: dict[str, Callable[[], Experts]] = {
    "gated FFN": lambda: FFNExperts(4, D, 6, init_std=None),
    "plain FFN with biases": lambda: biased(
        FFNExperts(3, D, 7, "gelu", gated=False, bias=True, init_std=None)
    ),
    "gated FFN with biases": lambda: biased(FFNExperts(3, D, 2, "tanh", bias=True, init_std=None)),
    "one expert": lambda: FFNExperts(1, D, 3, init_std=None),
    "readable backend": lambda: FFNExperts(3, D, 3, init_std=None, backend="reference"),
    "modules of several widths": widths,
    "zero": lambda: ZeroExperts(2),
    "copy": lambda: CopyExperts(2),
    "constant": lambda: ConstantExperts(3, D, init_std=1.0),
    "union": lambda: UnionExperts(
        [FFNExperts(2, D, 3, init_std=None), ZeroExperts(1), ConstantExperts(2, D)]
    ),
    "union of unions": lambda: UnionExperts([UnionExperts([CopyExperts(1), widths()]), FFNExperts(2, D, 4)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_contract(kind: str) -> None:
    checked = check_experts(KINDS[kind](), D)
    assert len(checked) >= 8
    assert ("averages parameters" in checked) == ("FFN" in kind or kind in ("one expert", "readable backend"))


def rows(*counts: int) -> Segments:
    return Segments((0, *torch.tensor(counts).cumsum(0).tolist()))


def test_null_experts_of_moe_plus_plus() -> None:
    """Zero, copy and constant experts (arXiv 2410.07348, eq. 3-5)."""
    x = torch.randn(3, D)
    assert not ZeroExperts(1).forward_rows(x, rows(3)).any()
    assert torch.equal(CopyExperts(1).forward_rows(x, rows(3)), x)
    constant = ConstantExperts(1, D, init_std=1.0)
    a1, a2 = (x @ constant.mix[0].t()).softmax(-1).split(1, dim=-1)
    torch.testing.assert_close(constant.forward_rows(x, rows(3)), a1 * x + a2 * constant.constant[0])
    assert sum(ZeroExperts(4).params_per_expert() + CopyExperts(4).params_per_expert()) == 0


def test_accounting_of_ffn_experts() -> None:
    gated, plain = FFNExperts(2, 4, 3, bias=True), FFNExperts(2, 4, 3, gated=False)
    assert gated.params_per_expert() == [6 * 4 + 4 * 3 + 6 + 4] * 2
    assert plain.params_per_expert() == [3 * 4 + 4 * 3] * 2
    assert gated.flops_per_row() == [2 * (6 * 4 + 4 * 3)] * 2


def test_a_dense_ffn_can_be_loaded_and_taken_out_again() -> None:
    experts, ffn = FFNExperts(3, D, 4, bias=True), FFN(D, 4, bias=True)
    nn.init.normal_(ffn.b_out)
    experts.load_ffn(1, ffn)
    x = torch.randn(2, D)
    assert torch.equal(experts.materialise(1)(x), ffn(x))
    torch.testing.assert_close(experts.forward_rows(x, rows(0, 2, 0)), ffn(x))
    experts.w_in.data.zero_()
    assert ffn.w_in.any()


@pytest.mark.parametrize("kind", ["gated FFN", "constant", "union", "modules of several widths"])
def test_materialising_draws_no_random_numbers_and_keeps_dtype(kind: str) -> None:
    experts = KINDS[kind]().double()
    state = torch.get_rng_state()
    dense = experts.materialise(experts.num_experts - 1)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.dtype == torch.float64 and p.requires_grad for p in dense.parameters())


def test_merged_experts_average_parameters_not_outputs() -> None:
    experts = FFNExperts(2, D, 4, init_std=None).double()
    x_GLD = torch.randn(1, 3, D, dtype=torch.float64)
    gate_GN = torch.tensor([[0.3, 0.7]], dtype=torch.float64)
    w_in, w_out = ((gate_GN[0].view(-1, 1, 1) * w).sum(0) for w in (experts.w_in, experts.w_out))
    gate, up = F.linear(x_GLD, w_in).chunk(2, -1)
    merged = experts.forward_merged(x_GLD, gate_GN)
    torch.testing.assert_close(merged, F.linear(F.silu(gate) * up, w_out))
    outputs = sum(g * experts.materialise(e)(x_GLD) for e, g in enumerate(gate_GN[0]))
    assert (merged - outputs).abs().max() > 1e-3


@pytest.mark.parametrize("init_std", [0.0, 0.02, 0.5, None])
def test_initial_scale_is_what_was_asked_for(init_std: float | None) -> None:
    experts = FFNExperts(8, 64, 32, init_std=init_std)
    expected = (64**-0.5, 32**-0.5) if init_std is None else (init_std, init_std)
    for weight, std in zip((experts.w_in, experts.w_out), expected, strict=True):
        assert weight.std().item() == pytest.approx(std, rel=0.05)


def test_expert_dropout_only_while_training() -> None:
    experts = FFNExperts(2, D, 64, dropout=0.5, init_std=None)
    x = torch.randn(4, D)
    assert not torch.equal(experts.forward_rows(x, rows(2, 2)), experts.forward_rows(x, rows(2, 2)))
    experts.eval()
    assert torch.equal(experts.forward_rows(x, rows(2, 2)), experts.forward_rows(x, rows(2, 2)))


def test_a_shared_expert_may_be_gated_by_its_input() -> None:
    ffn, x = FFN(D, 4), torch.randn(3, D)
    plain, gated = SharedExpert(ffn), SharedExpert(ffn, gated_by_input=True)
    assert torch.equal(plain(x), ffn(x))
    torch.testing.assert_close(gated(x), 0.5 * ffn(x))  # the gate starts at zero
    nn.init.normal_(gated.gate)
    torch.testing.assert_close(gated(x), torch.sigmoid(x @ gated.gate.t()) * ffn(x))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FFNExperts(0, D, 4), "num_experts must be at least 1"),
        (lambda: FFNExperts(2, D, 0), "expert_hidden must be at least 1"),
        (lambda: FFNExperts(2, D, 4, "sillu"), "did you mean 'silu'"),
        (lambda: ModuleExperts([]), "num_experts must be at least 1"),
        (lambda: ZeroExperts(2).forward_merged(torch.rand(1, 2, D), torch.rand(1, 2)), "cannot be averaged"),
    ],
)
def test_bad_arguments_are_refused(make: Callable, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()


def test_a_kind_without_forward_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Experts defines no forward_rows"):
        Experts(2).forward_rows(torch.rand(1, D), rows(1, 0))
