"""Activations that are written out, against autograd."""

from __future__ import annotations

import pytest
import torch

from libmoe.ops.activations import ACTIVATIONS
from libmoe.ops.cpu.elementwise import FORMS, act, act_backward


def test_every_activation_is_written_out() -> None:
    assert set(FORMS) == set(ACTIVATIONS)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_written_out_activations_equal_autograd(name: str) -> None:
    values = torch.cat([torch.linspace(-6, 6, 97), torch.tensor([-80.0, -0.0, 0.0, 80.0])]).double()
    both = torch.stack([values, torch.randn(101, dtype=torch.float64)], dim=1)  # read where it lies: strided
    x = both[:, :1]
    tracked = x.clone().requires_grad_()
    expected = ACTIVATIONS[name](tracked)
    out = torch.full_like(x, float("nan"))
    act(FORMS[name], x, out)
    torch.testing.assert_close(out, expected.detach(), rtol=1e-14, atol=1e-15)
    grad = torch.randn_like(x)
    (expected_grad,) = torch.autograd.grad(expected, tracked, grad)
    wide = torch.full((101, 2), float("nan"), dtype=torch.float64)
    act_backward(FORMS[name], grad, x, wide[:, 1:])
    torch.testing.assert_close(wide[:, 1:], expected_grad, rtol=1e-13, atol=1e-14)
    assert wide[:, 0].isnan().all(), "wrote beside its memory"
