"""Attached losses are scaled like the loss that the model returns, and like nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import libmoe
from libmoe.core.context import install, options
from libmoe.core.site import Site

EXACT = 1e-5


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: param.grad.clone() for name, param in model.named_parameters()}


def backward(lab: Any, documents: tuple[int, ...], scale: Callable[[Tensor], Tensor], **ambient: Any) -> dict:
    model = lab.model()
    with options(**ambient):
        output = model(**lab.padded(documents), use_cache=False)
    scale(output.loss).backward()
    return gradients(model)


def test_a_factor_on_the_models_loss_applies_to_attached_losses(lab: Any) -> None:
    """Gradient scalers, division by accumulation steps and multiplication by processes all do this."""
    once = backward(lab, (0, 1, 2), lambda loss: loss)
    many = backward(lab, (0, 1, 2), lambda loss: loss * 1024)
    assert all(torch.equal(many[name], once[name] * 1024) for name in once)


def test_a_plain_loop_that_divides_by_its_accumulation_steps_is_right(lab: Any) -> None:
    """Documents 4 and 5 of equal length twice: the mean over two micro-batches is the mean over the batch."""
    whole = backward(lab, (4, 5), lambda loss: loss)
    model = lab.model()
    for document in (4, 5):
        (model(**lab.padded((document,)), use_cache=False).loss / 2).backward()
    assert lab.difference(gradients(model), whole) < EXACT


def test_losses_do_change_the_gradient_there(lab: Any) -> None:
    model = lab.model(balance=0.0, z_loss=0.0)
    model(**lab.padded((0, 1, 2)), use_cache=False).loss.backward()
    assert lab.difference(gradients(model), backward(lab, (0, 1, 2), lambda loss: loss)) > 100 * EXACT


def test_announced_totals_leave_the_scale_to_the_loop(lab: Any) -> None:
    """With totals the attached part is coefficient * numerator / total, whatever happens to the main loss."""
    totals = {"token": 1000.0}
    with_main, without = (
        backward(lab, (0, 1), lambda loss, f=factor: loss * f, totals=totals) for factor in (3.0, 0.0)
    )
    plain = lab.model(balance=0.0, z_loss=0.0)
    (plain(**lab.padded((0, 1)), use_cache=False).loss * 3).backward()
    main = gradients(plain)
    total = {name: main[name] + without[name] for name in main}
    assert lab.difference(with_main, total) < EXACT


def test_a_loop_with_a_loss_of_its_own_says_its_scale(lab: Any) -> None:
    def step(factor: float, **ambient: Any) -> dict[str, Tensor]:
        model = lab.model()
        batch = lab.padded((0, 1, 2))
        labels = batch.pop("labels")
        with options(**ambient):
            logits = model(**batch, use_cache=False).logits
        (
            nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()) * factor
        ).backward()
        return gradients(model)

    once, scaled, forgotten = step(1.0), step(64.0, loss_scale=64.0), step(64.0)
    assert lab.difference(scaled, {name: 64 * grad for name, grad in once.items()}) < EXACT
    assert lab.difference(forgotten, {name: 64 * grad for name, grad in once.items()}) > 100 * EXACT


class Small(nn.Module):
    """A model of a user that returns its loss in one of many ways."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.layer = libmoe.create("smoe", num_experts=4, balance=1.0).build_layer(
            Site(8, 16, init_std=0.3, seed=0)
        )
        self.form = form

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
        y = self.layer(x)
        loss = y.square().mean()
        return {"tensor": loss, "tuple": (loss, y), "dict": {"loss": loss, "y": y}, "no loss": {"y": y}}[
            self.form
        ]


@pytest.mark.parametrize("form", ["tensor", "tuple", "dict"])
def test_losses_are_found_in_what_models_return(form: str) -> None:
    grads = []
    for factor in (1.0, 8.0):
        model = Small(form).train()
        install(model)
        output = model(torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)))
        loss = {"tensor": lambda o: o, "tuple": lambda o: o[0], "dict": lambda o: o["loss"]}[form](output)
        (loss * factor).backward()
        grads.append(model.layer.router.gate.weight.grad)
    torch.testing.assert_close(grads[1], 8 * grads[0])


def test_a_model_that_returns_no_loss_keeps_the_factor_one() -> None:
    model = Small("no loss").train()
    install(model)
    x = torch.randn(2, 5, 8)
    (0 * model(x)["y"].sum()).backward()
    assert model.layer.router.gate.weight.grad.any()


def test_values_pass_unchanged(lab: Any) -> None:
    plain, noted = lab.model(balance=0.0, z_loss=0.0), lab.model()
    batch = lab.padded((0, 1, 2))
    for model in (plain, noted):
        model.train()
    outputs = [model(**batch, use_cache=False) for model in (plain, noted)]
    assert torch.equal(outputs[0].loss, outputs[1].loss)
    assert torch.equal(outputs[0].logits, outputs[1].logits)
    assert torch.equal(outputs[1]["loss"], outputs[1].to_tuple()[0])
