"""Contract checks of experts: the fast form against one dense module per expert."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from libmoe.core.errors import ConfigError
from libmoe.core.plan import Segments
from libmoe.experts import Experts, UnionExperts, ZeroExperts
from libmoe.testing.checks import Checks, Skip, assert_close

Extra = Callable[[int], dict[str, Tensor]]


def check_experts(experts: Experts, dim: int, *, extra: Extra | None = None) -> list[str]:
    """Compare ``forward_rows`` with ``materialise`` in float64 and check the accounting; returns the names.

    Gradients of parameters are compared with finite differences of the materialised experts, so that any way of
    storing parameters (stacked, factored, shared) is held to the same meaning.  A kind without ``exact_gradients`` is
    held to its own tests there.

    Args:
        experts: the experts; a copy is used.
        dim: their width D.
        extra: from a number of rows to what the experts read from ``Segments.extra_R``, for kinds that do.

    Raises:
        ContractError: one line per broken promise.
    """
    experts = copy.deepcopy(experts).double().eval()
    probe = _Probe(experts, dim, extra)
    n = experts.num_experts
    checks = Checks(f"{type(experts).__name__} of {n} experts")
    layouts = {
        "some rows for each expert": [1 + (3 * e) % 4 for e in range(n)],
        "experts without rows": [2 * (e % 2) for e in range(n)],
        "all rows for one expert": [5 * (e == n - 1) for e in range(n)],
        "no rows": [0] * n,
    }
    for name, counts in layouts.items():
        with checks(f"computes what its materialised experts compute: {name}"):
            probe.check_rows(counts)
    some = layouts["some rows for each expert"]
    with checks("has the gradients of its materialised experts"):
        probe.check_gradients(some)
    with checks("takes rows that are not contiguous"):
        probe.check_strided(some)
    with checks("composes with other kinds"):
        probe.check_union(some)
    with checks("counts parameters"):
        own = experts.params_per_expert()
        total = sum(p.numel() for p in experts.parameters())
        assert len(own) == n, f"params_per_expert() has {len(own)} entries"
        assert 0 <= sum(own) <= total, f"experts own {sum(own)} of {total} parameters"
        for e, count in enumerate(own):
            dense = sum(p.numel() for p in experts.materialise(e).parameters())
            assert count <= dense, f"expert {e} owns {count} parameters but its dense form has {dense}"
    with checks("counts FLOPs"):
        probe.check_flops()
    with checks("materialises copies"):
        for param in experts.materialise(0).parameters():
            for ours in experts.parameters():
                assert param.untyped_storage().data_ptr() != ours.untyped_storage().data_ptr(), (
                    "memory is shared"
                )
    with checks("averages parameters"):
        probe.check_merged()
    return checks.finish()


class _Probe:
    def __init__(self, experts: Experts, dim: int, extra: Extra | None) -> None:
        self.experts, self.dim, self.extra = experts, dim, extra

    def segments(self, counts: Sequence[int]) -> Segments:
        bounds = (0, *torch.tensor(list(counts)).cumsum(0).tolist())
        return Segments(bounds, self.extra(bounds[-1]) if self.extra else {})

    def rows(self, counts: Sequence[int]) -> Tensor:
        return torch.randn(sum(counts), self.dim, dtype=torch.float64)

    def dense(self, x_RD: Tensor, counts: Sequence[int]) -> Tensor:
        """Row by row through the materialised experts."""
        modules = [self.experts.materialise(e).double().eval() for e in range(self.experts.num_experts)]
        expert_R = [e for e, count in enumerate(counts) for _ in range(count)]
        rows = [modules[e](row.unsqueeze(0)) for e, row in zip(expert_R, x_RD, strict=True)]
        return torch.cat(rows) if rows else x_RD

    def check_rows(self, counts: Sequence[int]) -> None:
        x_RD, reference_RD = (self.rows(counts).requires_grad_() for _ in range(2))
        reference_RD.data.copy_(x_RD.data)
        y_RD = self.experts.forward_rows(x_RD, self.segments(counts))
        expected_RD = self.dense(reference_RD, counts)
        assert y_RD.shape == expected_RD.shape, f"rows come back as {tuple(y_RD.shape)}"
        assert y_RD.dtype == torch.float64, f"float64 rows come back as {y_RD.dtype}"
        assert_close(y_RD, expected_RD, "output")
        if not expected_RD.requires_grad or not y_RD.numel():
            return
        grad_RD = torch.randn_like(expected_RD)
        expected = torch.autograd.grad(expected_RD, reference_RD, grad_RD, allow_unused=True)[0]
        if expected is not None:
            (found,) = torch.autograd.grad(y_RD, x_RD, grad_RD)
            assert_close(found, expected, "gradient of the input")

    def check_gradients(self, counts: Sequence[int]) -> None:
        params = {n: p for n, p in self.experts.named_parameters() if p.requires_grad}
        if not params or not all(getattr(m, "exact_gradients", True) for m in self.experts.modules()):
            raise Skip
        x_RD = self.rows(counts)
        weight_RD = torch.randn_like(x_RD)
        loss = (self.experts.forward_rows(x_RD, self.segments(counts)) * weight_RD).sum()
        grads = torch.autograd.grad(loss, list(params.values()), allow_unused=True)
        for (name, param), grad in zip(params.items(), grads, strict=True):
            assert grad is not None, f"{name} receives no gradient"
            direction = torch.randn_like(param)
            eps, sums = 1e-5, []
            for sign in (1, -1):
                with torch.no_grad():
                    param.add_(direction, alpha=sign * eps)
                    sums.append(float((self.dense(x_RD, counts) * weight_RD).sum()))
                    param.sub_(direction, alpha=sign * eps)
            slope = torch.tensor((sums[0] - sums[1]) / (2 * eps))
            assert_close((grad * direction).sum(), slope, f"gradient of {name}", 1e-6)

    def check_strided(self, counts: Sequence[int]) -> None:
        x_RD = self.rows(counts)
        segments = self.segments(counts)
        strided_RD = x_RD.t().contiguous().t()
        expected = self.experts.forward_rows(x_RD, segments)
        assert_close(self.experts.forward_rows(strided_RD, segments), expected, "output")

    def check_union(self, counts: Sequence[int]) -> None:
        union = UnionExperts([ZeroExperts(2), self.experts, ZeroExperts(1)])
        around = [1, 2, *counts, 3]
        x_RD = self.rows(around)
        inner = slice(3, 3 + sum(counts))
        segments = self.segments(around)
        y_RD = union.forward_rows(x_RD, segments)
        alone = Segments(self.segments(counts).bounds, {k: v[inner] for k, v in segments.extra_R.items()})
        assert_close(y_RD[inner], self.experts.forward_rows(x_RD[inner], alone), "output within a union")
        assert not y_RD[:3].any() and not y_RD[-3:].any(), "rows of other experts were touched"

    def check_flops(self) -> None:
        declared = self.experts.flops_per_row()
        assert len(declared) == self.experts.num_experts, f"flops_per_row() has {len(declared)} entries"
        rows = 4
        for e, flops in enumerate(declared):
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                self.experts.materialise(e).double().eval()(torch.randn(rows, self.dim, dtype=torch.float64))
            counted = counter.get_total_flops() / rows
            assert flops == counted, f"expert {e} declares {flops:g} FLOPs per row, torch counts {counted:g}"

    def check_merged(self) -> None:
        """One-hot gates pick an expert; equal experts average to themselves, whatever the gates."""
        n = self.experts.num_experts
        x_GLD = torch.randn(n, 3, self.dim, dtype=torch.float64)
        try:
            y_GLD = self.experts.forward_merged(x_GLD, torch.eye(n, dtype=torch.float64))
        except ConfigError:
            raise Skip from None
        modules: list[nn.Module] = [self.experts.materialise(e).double().eval() for e in range(n)]
        expected_GLD = torch.stack([module(x_LD) for module, x_LD in zip(modules, x_GLD, strict=True)])
        assert_close(y_GLD, expected_GLD, "output with one-hot gates")
