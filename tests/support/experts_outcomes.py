"""What transformers' experts give under one implementation or another, and how close two results are."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

import experts_families

DOUBLE, SINGLE = 1e-10, 2e-5


def tokens(rows: int = 2, length: int = 7) -> Tensor:
    return torch.randint(3, 97, (rows, length), generator=torch.Generator().manual_seed(1))


def outcome(model: nn.Module, implementation: str) -> tuple[Tensor, dict[str, Tensor | None], list[str]]:
    """Main output, gradients of all parameters for a fixed projection of it, and which experts classes ran."""
    model.set_experts_implementation(implementation)
    model.zero_grad(set_to_none=True)
    ran: list[str] = []
    hooks = [
        m.register_forward_hook(lambda m, *_: ran.append(type(m).__name__))
        for m in experts_families.experts_in(model)
    ]
    output = model(tokens())[0]
    for hook in hooks:
        hook.remove()
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    (output * probe.to(output)).sum().backward()
    return output.detach(), {name: p.grad for name, p in model.named_parameters()}, ran


def assert_close(
    found: Tensor | None, expected: Tensor | None, tolerance: float, least: float, what: str = ""
) -> None:
    """Largest difference against the largest number, or against ``least`` where that is larger."""
    assert (found is None) == (expected is None), what
    if found is not None and expected is not None and expected.numel():
        difference = float((found - expected).detach().abs().max())
        assert difference <= tolerance * max(float(expected.abs().max()), least), what


def run_experts(
    module: nn.Module, implementation: str, x_TD: Tensor, index_TK: Tensor, weight_TK: Tensor
) -> list[Tensor | None]:
    """Output, and gradients of the input, the routing weights and the parameters."""
    module.config._experts_implementation = implementation
    leaves = [x_TD.clone().requires_grad_(), weight_TK.clone().requires_grad_(), *module.parameters()]
    output = module(leaves[0], index_TK, leaves[1])
    assert output.dtype == x_TD.dtype
    probe = torch.randn(output.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    gradients = torch.autograd.grad(output, leaves, probe.to(output), allow_unused=True)
    return [output.detach(), *(torch.zeros_like(p) if g is None else g for p, g in zip(leaves, gradients))]


def routed(
    module: nn.Module, count: int, dtype: torch.dtype, elsewhere: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """Random inputs; with ``elsewhere`` some choices carry the mark of experts that another process has."""
    width = (module.down_proj.transpose(1, 2) if module.is_transposed else module.down_proj).shape[1]
    x_TD, weight_TK = torch.randn(count, width, dtype=dtype), torch.rand(count, 2, dtype=dtype)
    index_TK = torch.rand(count, module.num_experts + elsewhere).topk(2).indices
    return x_TD, index_TK, weight_TK.masked_fill(index_TK == module.num_experts, 0)


@functools.cache
def mixtral() -> nn.Module:
    return experts_families.model_of("mixtral")


def fresh_experts() -> nn.Module:
    return experts_families.experts_of("mixtral", "MixtralExperts")


def relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
