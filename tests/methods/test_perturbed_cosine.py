"""Perturbed cosine routing (arXiv 2405.14131) inside the form of X-MoE."""

from __future__ import annotations

import pytest
import torch

import libmoe
from libmoe.core.errors import ConfigError
from libmoe.core.site import Site
from libmoe.routers import PerturbedCosineGate

N, D = 8, 16


def gate(**options: object) -> PerturbedCosineGate:
    layer = libmoe.create("perturbed-cosine", num_experts=N, **options).build_layer(Site(D, 24))
    return layer.router.gate.double()


def test_logits_divide_by_perturbed_norms() -> None:
    g, x_TD = gate(perturbation=0.25), torch.randn(30, D, dtype=torch.double)
    u_TP, v_NP = x_TD @ g.projection.t(), g.embedding
    norms_TN = (u_TP.norm(dim=-1, keepdim=True) + 0.25) * (v_NP.norm(dim=-1) + 0.25)
    torch.testing.assert_close(g(x_TD), 1.5 * (u_TP @ v_NP.t()) / norms_TN, rtol=1e-6, atol=1e-9)


def test_lengths_matter_and_a_vanishing_perturbation_is_the_plain_cosine() -> None:
    x_TD = torch.randn(30, D, dtype=torch.double)
    g = gate()
    assert (g(0.1 * x_TD).abs() < g(x_TD).abs()).all()
    tiny = gate(perturbation=1e-12)
    plain = libmoe.create("xmoe", num_experts=N).build_layer(Site(D, 24)).router.gate.double()
    plain.load_state_dict(tiny.state_dict(), strict=False)
    torch.testing.assert_close(tiny(x_TD), plain(x_TD), rtol=1e-9, atol=1e-10)


def test_a_zero_token_has_finite_logits_and_gradients() -> None:
    g, x_TD = gate(), torch.zeros(1, D, dtype=torch.double, requires_grad=True)
    g(x_TD).sum().backward()
    assert x_TD.grad.isfinite().all() and g.projection.grad.isfinite().all()


def test_perturbations_are_constant_unless_learned_and_stay_positive() -> None:
    assert "log_t" not in dict(gate().named_parameters())
    learned = gate(learn_perturbation=True)
    optimizer = torch.optim.SGD(learned.parameters(), lr=100.0)
    learned(torch.randn(30, D, dtype=torch.double)).square().sum().backward()
    before = learned.log_t.clone()
    optimizer.step()
    assert not torch.equal(learned.log_t, before) and (learned.log_t.exp() >= 0).all()


def test_a_perturbation_of_zero_is_refused() -> None:
    with pytest.raises(ConfigError, match="perturbation=0"):
        gate(perturbation=0.0)
