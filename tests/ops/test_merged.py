"""Experts averaged in parameter space: every form against float64 loops, and what each promises of its memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from libmoe.core.errors import ConfigError
from libmoe.core.plan import MergePlan
from libmoe.experts import FFNExperts
from libmoe.ops import merged
from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.merged import FORMS, cheapest_form, merged_linear

SHAPES = {  # groups, length, experts, out, in
    "several groups": (3, 5, 4, 7, 6),
    "one group": (1, 5, 4, 7, 6),
    "one token": (1, 1, 3, 7, 6),
    "a group for each token": (6, 1, 3, 5, 4),
    "one expert": (3, 2, 1, 5, 4),
    "widths of one": (3, 2, 4, 1, 1),
    "no groups": (0, 4, 3, 7, 6),
    "no tokens": (3, 0, 3, 7, 6),
}
LIMITS = {
    "one tile": (8 << 20, 64),
    "tiles of rows": (800, 2),
    "tiles of groups": (1, 64),
    "tiny tiles": (1, 2),
}
BOUND = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2, torch.float16: 3e-3}


def fits(form: str, groups: int) -> bool:
    return form != "one" or groups == 1


def cut(monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    size, rows = LIMITS[limit]
    monkeypatch.setitem(merged.TILE_BYTES, "cpu", size)
    monkeypatch.setattr(merged, "MIN_ROWS", rows)


def leaves(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> list[Tensor]:
    groups, length, n, out, inner = shape
    sizes = ((groups, length, inner), (groups, n), (n, out, inner), (n, out))
    return [torch.randn(*size, dtype=torch.float64).to(dtype).requires_grad_() for size in sizes]


def loop(x_GLI: Tensor, gate_GN: Tensor, weight_NOI: Tensor, bias_NO: Tensor) -> Tensor:
    y_GLO = x_GLI.new_zeros(*x_GLI.shape[:2], weight_NOI.shape[1])
    for g in range(x_GLI.shape[0]):
        weight_OI = sum(gate * weight for gate, weight in zip(gate_GN[g], weight_NOI, strict=True))
        bias_O = sum(gate * bias for gate, bias in zip(gate_GN[g], bias_NO, strict=True))
        for i in range(x_GLI.shape[1]):
            y_GLO[g, i] = weight_OI @ x_GLI[g, i] + bias_O
    return y_GLO


def rmse(found: Tensor, expected: Tensor) -> float:
    error, size = (found.double() - expected.double()).norm(), expected.double().norm()
    return (error / size if size else error).item()


def check(form: str, found_of: list[Tensor], function: Callable[..., Tensor] = loop) -> None:
    """Output and all gradients against ``function`` in float64."""
    exact_of = [t.detach().double().requires_grad_(t.requires_grad) for t in found_of]
    found, exact = merged_linear(*found_of, form=form), function(*exact_of)
    assert found.dtype == found_of[0].dtype
    grad = torch.randn(exact.shape, dtype=torch.float64)
    ours = torch.autograd.grad(found, [t for t in found_of if t.requires_grad], grad.to(found.dtype))
    learned = [t for t in exact_of if t.requires_grad]
    theirs = (
        torch.autograd.grad(exact, learned, grad, allow_unused=True) if exact.requires_grad else [None] * 4
    )
    bound = BOUND[found_of[0].dtype]
    assert rmse(found, exact) < bound
    for ours_1, theirs_1, leaf in zip(ours, theirs, learned, strict=True):
        assert rmse(ours_1, torch.zeros_like(leaf) if theirs_1 is None else theirs_1) < bound


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("form", [*FORMS, "auto"])
def test_every_form_equals_loops(monkeypatch: pytest.MonkeyPatch, form: str, shape: str, limit: str) -> None:
    cut(monkeypatch, limit)
    if fits(form, SHAPES[shape][0]):
        check(form, leaves(SHAPES[shape]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_lower_precision(monkeypatch: pytest.MonkeyPatch, form: str, limit: str, dtype: torch.dtype) -> None:
    cut(monkeypatch, limit)
    check(form, leaves((1 if form == "one" else 3, 5, 4, 7, 6), dtype))


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_gradcheck(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    cut(monkeypatch, "tiny tiles")
    shape = (1 if form == "one" else 2, 3, 2, 3, 2)
    assert torch.autograd.gradcheck(lambda *given: merged_linear(*given, form=form), leaves(shape))


@pytest.mark.parametrize("trained", ["rows", "gate", "weight", "bias"])
@pytest.mark.parametrize("form", ["merge", "mix"])
def test_anything_may_be_frozen(form: str, trained: str) -> None:
    given = leaves(SHAPES["several groups"])
    for name, leaf in zip(("rows", "gate", "weight", "bias"), given, strict=True):
        leaf.requires_grad_(name == trained)
    check(form, given)
    kept: list[Tensor] = []
    with (
        torch.no_grad(),
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
    ):
        assert not merged_linear(*given, form=form).requires_grad
    assert not kept


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_memory_layout_does_not_matter(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    cut(monkeypatch, "tiny tiles")
    x, gate, weight, bias = (t.detach() for t in leaves((1 if form == "one" else 3, 5, 4, 7, 6)))
    strided = [
        x.transpose(0, 2).contiguous().transpose(0, 2),
        gate.t().contiguous().t(),
        weight.transpose(1, 2).contiguous().transpose(1, 2),
        bias.t().contiguous().t(),
    ]
    check(form, [t.requires_grad_() for t in strided])
    expanded = x[:, :1].expand_as(x).detach().requires_grad_()
    y = merged_linear(expanded, gate, weight, bias, form)
    assert rmse(y, loop(expanded, gate, weight, bias)) < 1e-13
    y.sum().backward()  # the gradient that arrives is one number, expanded
    expected = torch.einsum("gn,noi->gi", gate, weight).unsqueeze(1).expand_as(x)
    assert rmse(expanded.grad, expected) < 1e-13


@pytest.mark.parametrize(("groups", "out"), [(512, 1), (1, 512)])
def test_sums_over_tiles_are_kept_in_float32(monkeypatch: pytest.MonkeyPatch, groups: int, out: int) -> None:
    """512 ones added one after the other in bfloat16 stop at 256."""
    monkeypatch.setitem(merged.TILE_BYTES, "cpu", 1)
    monkeypatch.setattr(merged, "MIN_ROWS", 1)
    x, gate, weight = (
        torch.ones(size, dtype=torch.bfloat16, requires_grad=True)
        for size in ((groups, 1, 1), (groups, 1), (1, out, 1))
    )
    merged_linear(x, gate, weight, form="merge").sum().backward()
    assert (x.grad == out).all() and (gate.grad == out).all() and (weight.grad == groups).all()


def test_sums_over_experts_are_kept_in_float32() -> None:
    x, gate, weight = (
        torch.ones(size, dtype=torch.bfloat16, requires_grad=True)
        for size in ((1, 1, 1), (1, 512), (512, 1, 1))
    )
    y = merged_linear(x, gate, weight, form="mix")
    y.backward()
    assert y == 512 and x.grad == 512


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_a_gate_of_higher_precision_gets_a_gradient_in_it(form: str) -> None:
    x, gate, weight, _ = (t.detach() for t in leaves((1, 4, 3, 5, 6)))
    gate = gate.float().requires_grad_()
    merged_linear(x.bfloat16(), gate, weight.bfloat16(), form=form).sum().backward()
    assert gate.grad.dtype == torch.float32


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_autocast_applies_as_to_a_linear_layer(form: str) -> None:
    x, gate, weight, bias = given = leaves((1, 4, 3, 5, 6), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = merged_linear(*given, form=form)
        y.float().sum().backward()
        mixed = merged_linear(x.bfloat16(), gate, weight, bias, form)
        kept = merged_linear(*(t.double() for t in given), form=form)
    assert y.dtype == mixed.dtype == torch.bfloat16
    assert kept.dtype == torch.float64
    assert rmse(y, loop(*given)) < 0.02
    assert rmse(kept, loop(*(t.double() for t in given))) < 1e-13
    assert all(leaf.grad.dtype == torch.float32 for leaf in given)


def bytes_of(run: Callable[[], object]) -> list[int]:
    """Bytes of every allocation that ``run`` makes."""
    with torch.profiler.profile(profile_memory=True) as profile:
        run()
    return [event.self_cpu_memory_usage for event in profile.events() if event.self_cpu_memory_usage > 0]


def kept_bytes(run: Callable[[], object]) -> int:
    """Bytes of the tensors that autograd keeps for the backward pass of ``run``."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(kept.values())


@pytest.mark.parametrize(("form", "length"), [("merge", 8), ("mix", 2)])
def test_merged_weights_of_all_groups_never_exist(
    monkeypatch: pytest.MonkeyPatch, form: str, length: int
) -> None:
    """All that both passes allocate, one thing after the other, is less than the merged weights of all groups."""
    limit, groups, width = 32 << 10, 256, 64
    monkeypatch.setitem(merged.TILE_BYTES, "cpu", limit)
    x, gate, weight, _ = leaves((groups, length, 8, width, width), torch.float32)
    merged_weights = groups * width * width * 4

    def both_passes(form: str) -> None:
        merged_linear(x, gate, weight, form=form).sum().backward()

    both_passes("auto")
    assert cheapest_form(x, weight) == form
    sizes = bytes_of(lambda: both_passes("auto"))
    assert max(sizes) <= max(x.nbytes, weight.nbytes)
    assert sum(sizes) < 6 * x.nbytes + 2 * weight.nbytes + 2 * limit < merged_weights
    assert max(bytes_of(lambda: both_passes("reference"))) == merged_weights


@pytest.mark.parametrize(("form", "length"), [("merge", 16), ("mix", 1)])
def test_only_what_was_given_is_kept_for_the_backward_pass(form: str, length: int) -> None:
    given = leaves((64, length, 4, 32, 32), torch.float32)
    assert kept_bytes(lambda: merged_linear(*given)) == sum(t.nbytes for t in given)
    assert kept_bytes(lambda: merged_linear(*given, form="reference")) > 64 * 32 * 32 * 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("form", "groups"), [("merge", 4), ("mix", 4), ("one", 1)])
def test_repeats_are_equal_to_the_last_bit(form: str, groups: int, dtype: torch.dtype) -> None:
    given = leaves((groups, 9, 5, 33, 17), dtype)

    def once() -> list[Tensor]:
        y = merged_linear(*given, form=form)
        return [y, *torch.autograd.grad(y.square().sum(), given)]

    assert all(torch.equal(a, b) for a, b in zip(once(), once(), strict=True))


def test_checkpointing_changes_no_bit() -> None:
    given = leaves(SHAPES["several groups"])
    plain = torch.autograd.grad(merged_linear(*given, form="merge").square().sum(), given)
    y = checkpoint(lambda *t: merged_linear(*t, form="merge"), *given, use_reentrant=False)
    again = torch.autograd.grad(y.square().sum(), given)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize(
    ("groups", "length", "form"), [(1, 64, "one"), (64, 1, "mix"), (8, 64, "merge"), (3, 0, "mix")]
)
def test_the_cheapest_form(groups: int, length: int, form: str) -> None:
    assert cheapest_form(torch.empty(groups, length, 4), torch.empty(8, 4, 4)) == form


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_merge_plan_runs_the_averaged_network(activation: str, gated: bool) -> None:
    """SMEAR (arXiv 2306.03745): average the parameters of whole experts, biases included, then run the result."""
    experts = FFNExperts(3, 4, 5, activation, gated, bias=True, init_std=None).double()
    torch.nn.init.normal_(experts.b_in)
    torch.nn.init.normal_(experts.b_out)
    for groups, tokens in ((2, 20), (4, 4), (1, 3)):
        gate_GN = torch.rand(groups, 3, dtype=torch.float64).requires_grad_()
        x_TD = torch.randn(tokens, 4, dtype=torch.float64).requires_grad_()
        learned = [x_TD, gate_GN, *experts.parameters()]
        found = experts.execute(x_TD, MergePlan(gate_GN, tokens))
        expected = []
        for gate_N, x_LD in zip(gate_GN, x_TD.chunk(groups), strict=True):
            w_in, w_out, b_in, b_out = (
                torch.tensordot(gate_N, p, 1)
                for p in (experts.w_in, experts.w_out, experts.b_in, experts.b_out)
            )
            h = F.linear(x_LD, w_in, b_in)
            h = ACTIVATIONS[activation](h[:, :5]) * h[:, 5:] if gated else ACTIVATIONS[activation](h)
            expected.append(F.linear(h, w_out, b_out))
        grad = torch.randn_like(found)
        assert rmse(found, torch.cat(expected)) < 1e-13
        ours = torch.autograd.grad(found, learned, grad)
        for a, b in zip(ours, torch.autograd.grad(torch.cat(expected), learned, grad), strict=True):
            assert rmse(a, b) < 1e-12


def test_a_linear_map_averaged_is_its_outputs_averaged() -> None:
    """MEO (arXiv 2310.09832): for one linear map, merging experts equals summing their outputs."""
    x, gate, weight, bias = leaves(SHAPES["several groups"])
    outputs = sum(gate[:, e].view(-1, 1, 1) * F.linear(x, weight[e], bias[e]) for e in range(gate.shape[1]))
    assert rmse(merged_linear(x, gate, weight, bias, "merge"), outputs) < 1e-13


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_gradients_can_be_differentiated_again(form: str) -> None:
    given = leaves((1 if form == "one" else 2, 2, 2, 3, 2))
    assert torch.autograd.gradgradcheck(lambda *t: merged_linear(*t, form=form), given)


@pytest.mark.parametrize("form", ["merge", "mix", "one"])
def test_it_can_be_planned_on_meta_and_compiled_whole(form: str) -> None:
    given = leaves((1 if form == "one" else 3, 5, 4, 7, 6), torch.float32)
    y = merged_linear(*given, form=form)
    assert merged_linear(*(t.to("meta") for t in given), form=form).shape == y.shape
    compiled = torch.compile(lambda *t: merged_linear(*t, form=form), backend="aot_eager", fullgraph=True)
    assert rmse(compiled(*given), y) < 1e-6


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda x, g, w: merged_linear(x, g, w, form="merg"), "did you mean 'merge'"),
        (lambda x, g, w: merged_linear(x, g, w, form="one"), "is for one group, not 3"),
        (lambda x, g, w: merged_linear(x, g[:, 1:], w), r"gate_GN has shape \(3, 3\).* \(3, 4\)"),
        (lambda x, g, w: merged_linear(x[..., 1:], g, w), "x_GLI has shape"),
        (lambda x, g, w: merged_linear(x.float(), g, w), "x_GLI has .* torch.float32"),
        (
            lambda x, g, w: MergePlan(g, 7).execute(FFNExperts(4, 6, 3).double(), x[0, :1].expand(7, 6)),
            "3 groups cannot cut 7 tokens into equal groups",
        ),
    ],
)
def test_what_does_not_fit_is_refused(run: Callable, message: str) -> None:
    x, gate, weight, _ = leaves(SHAPES["several groups"])
    with pytest.raises(ConfigError, match=message):
        run(x, gate, weight)
