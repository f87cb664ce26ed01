"""What the fused CPU backend gives for a case of the backend contract."""

from __future__ import annotations

import torch

from libmoe.ops import backends
from libmoe.testing.backend_cases import Case, Leaves

FUSED = backends()["cpu_fused"]


def results(case: Case, dtype: torch.dtype = torch.float32) -> Leaves:
    """Output and gradients of the fused pass."""
    leaves = {name: leaf.requires_grad_() for name, leaf in case.leaves(dtype).items()}
    y = case.compute(FUSED, leaves)
    grad = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    return {"y": y} | dict(zip(leaves, torch.autograd.grad(y, list(leaves.values()), grad)))


def plain_results(case: Case) -> Leaves:
    """The same without their graph: can be sent by another process, which finds this function by its name."""
    return {name: values.detach() for name, values in results(case).items()}


def assert_same_bits(found: Leaves, expected: Leaves) -> None:
    for name, right in expected.items():
        assert torch.equal(found[name], right), name
