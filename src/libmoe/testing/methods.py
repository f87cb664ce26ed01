"""Contract checks of methods: everything at once, at a small site."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.utils.checkpoint import checkpoint

from libmoe.controllers import StepInfo
from libmoe.core.context import checkpoint_contexts, options
from libmoe.core.statistics import StepStatistics
from libmoe.experts import FFN, FFNExperts
from libmoe.layers import MoELayer, moe_layers
from libmoe.methods import METHODS, Method, create
from libmoe.testing.checks import Checks, ContractError, Skip, assert_close
from libmoe.testing.experts import check_experts
from libmoe.testing.losses import check_loss
from libmoe.testing.probes import VOCABULARY, Side, Stack, default_side, site
from libmoe.testing.routers import check_declarations, check_router

SHAPE = (3, 8)


def check_method(
    name: str, options: Mapping[str, Any] | None = None, *, dim: int = 16, side: Side = default_side
) -> list[str]:
    """Build a registered method at a small site and check the layer, its parts and its controllers.

    Args:
        name: as registered.
        options: of the method; defaults otherwise.
        dim: width of the site.
        side: from a batch size to the side inputs that the router needs, one number per sequence.

    Raises:
        ContractError: one line per broken promise.
        ConfigError: there is no such method or option.
    """
    method = create(name, options)
    probe = _Probe(method, dim, side)
    checks = Checks(f"method {name!r}")
    if probe.build() is None:
        return checks.finish()
    with checks("trains: finite output and gradients, one for every parameter that is not frozen"):
        probe.check_gradients()
    with checks("builds the same layer twice from one seed, whatever was drawn before"):
        probe.check_seeding()
    with checks("can be saved and loaded"):
        probe.check_state()
    with checks("keeps bfloat16"):
        probe.check_bfloat16()
    with checks("gives the same loss, gradients and counts under activation checkpointing"):
        probe.check_checkpointing()
    with checks(
        "computes the same in a compiled model, which breaks its graph for the context and MoE layers alone"
    ):
        probe.check_compiled()
    with checks("has controllers whose state can be saved"):
        probe.check_controllers()
    layers = [layer for _, layer in moe_layers(probe.build())]
    if layers:
        router, width = layers[0].router, dim // layers[0].parts
        _include(checks, "router", lambda: check_router(router, dim=width, side=side))
        _include(checks, "experts", lambda: check_experts(layers[0].experts, width))
        route = copy.deepcopy(router).double().eval()
        for loss in layers[0].losses:
            if loss.coefficient > 0:
                _include(checks, f"{loss.name} loss", partial(check_loss, loss, route, dim=width, side=side))
    facts = METHODS.info(name).facts
    if facts.get("exact_upcycling"):
        with checks("gives the dense output when every expert is the dense FFN"):
            probe.check_upcycling(name, options)
    declared = []
    for fact in ("causal", "batch_independent"):
        fits = says = facts.get(fact, True)
        if layers:
            fits = all(getattr(layer.router, fact) for layer in layers)
            with checks(f"declares no {fact}=False that its routers do not"):
                # Options may make a method stricter than it is as it stands.
                assert says or options or not fits, f"declares {fact}=False but no router of it does"
        declared.append(fits)
    with checks("can be audited"):
        check_declarations(checks, method, *declared, dim=dim, side=side)
    return checks.finish()


def _include(checks: Checks, part: str, run: Callable[[], list[str]]) -> None:
    """Add the outcome of another checker, with the part's name before each line."""
    try:
        checks.passed += [f"{part}: {name}" for name in run()]
    except ContractError as error:
        checks.failed += [f"{part}: {line.removeprefix('  - ')}" for line in str(error).splitlines()[1:]]


class _Probe:
    def __init__(self, method: Method, dim: int, side: Side) -> None:
        self.method, self.dim, self.side = method, dim, side

    def build(self, seed: int | None = 0) -> Stack | None:
        layers = [self.method.build_layer(site(self.dim, index, 2, seed)) for index in range(2)]
        return Stack(layers) if all(layer is not None for layer in layers) else None

    def model(self, seed: int | None = 0) -> Stack:
        model = self.build(seed)
        assert model is not None
        return model

    def inputs(self, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(5)
        x_BLD = torch.randn(*SHAPE, self.dim, generator=generator).to(dtype)
        mask_BL = torch.ones(SHAPE, dtype=torch.long)
        mask_BL[1, 5:] = 0
        ids_BL = torch.randint(VOCABULARY, SHAPE, generator=generator)
        return {"inputs_embeds": x_BLD, "input_ids": ids_BL, "attention_mask": mask_BL}

    def run(self, model: nn.Module, dtype: torch.dtype = torch.float32, **ambient: Any) -> Tensor:
        torch.manual_seed(6)
        with options(side=dict(self.side(SHAPE[0])), step=1, total_steps=10, **ambient):
            return model(**self.inputs(dtype))

    def check_gradients(self) -> None:
        model = self.model().train()
        y_BLD = self.run(model)
        assert y_BLD.shape == (*SHAPE, self.dim), f"output has shape {tuple(y_BLD.shape)}"
        assert y_BLD.isfinite().all(), "output is not finite"
        y_BLD.square().mean().backward()
        for name, param in model.named_parameters():
            if param.requires_grad:
                assert param.grad is not None, f"{name} receives no gradient; freeze it or use it"
                assert param.grad.isfinite().all(), f"the gradient of {name} is not finite"

    def check_seeding(self) -> None:
        first = self.model().state_dict()
        torch.rand(7)
        for name, value in self.model().state_dict().items():
            assert torch.equal(value, first[name]), f"{name} differs"

    def check_state(self) -> None:
        model, other = self.model(seed=0).eval(), self.model(seed=1).eval()
        other.load_state_dict(model.state_dict())
        assert torch.equal(self.run(model), self.run(other)), "the loaded layer computes something else"

    def check_bfloat16(self) -> None:
        for training in (True, False):
            y_BLD = self.run(self.model().bfloat16().train(training), torch.bfloat16)
            assert y_BLD.dtype == torch.bfloat16, f"output has dtype {y_BLD.dtype}"
            assert y_BLD.isfinite().all(), "output is not finite"

    def check_checkpointing(self) -> None:
        results = []
        for recompute in (False, True):
            model = self.model().train()
            if recompute:
                for layer in model.layers:
                    _checkpoint(layer)
            statistics = StepStatistics()
            y_BLD = self.run(model, statistics=statistics)
            y_BLD.square().mean().backward()
            grads = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
            results.append((y_BLD, grads, statistics))
        (y, grads, counts), (y_again, grads_again, counts_again) = results
        assert torch.equal(y, y_again), "the output differs"
        for name, grad in grads.items():
            assert_close(grads_again[name], grad, f"the gradient of {name}", 1e-6)
        for index, load in counts.seen.items():
            assert torch.equal(counts_again.seen[index].count_N, load.count_N), (
                f"layer {index} is counted differently"
            )

    def check_compiled(self) -> None:
        results = []
        torch._dynamo.reset()
        counters.clear()
        for compiled in (False, True):
            model = self.model().train()
            y_BLD = self.run(torch.compile(model, backend="eager") if compiled else model)
            y_BLD.square().mean().backward()
            results.append((y_BLD, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}))
        (y, grads), (y_compiled, grads_compiled) = results
        for reason in counters["graph_break"]:
            assert "torch.compiler.disable()" in reason, f"the graph breaks: {' '.join(reason.split())}"
        assert_close(y_compiled, y, "output", 1e-6)
        for name, grad in grads.items():
            assert_close(grads_compiled[name], grad, f"the gradient of {name}", 1e-6)

    def check_upcycling(self, name: str, options: Mapping[str, Any] | None) -> None:
        place = site(self.dim)
        layer = create(name, {**(options or {}), "expert_hidden": place.hidden}).build_layer(place)
        if (
            not isinstance(layer, MoELayer)
            or not isinstance(layer.experts, FFNExperts)
            or layer.shared is not None
        ):
            raise Skip
        ffn = FFN(place.dim, place.hidden, place.activation, place.gated, place.bias, 0.2, place.out_dim)
        for expert in range(layer.experts.num_experts):
            layer.experts.load_ffn(expert, ffn)
        model = Stack([layer]).eval()
        x_BLD = self.inputs()["inputs_embeds"]
        assert_close(self.run(model) - x_BLD, ffn(x_BLD), "output", 1e-5)

    def check_controllers(self) -> None:
        if not self.method.build_controllers():
            raise Skip
        model = self.model().train()
        states = []
        controllers = self.method.build_controllers()
        info = StepInfo(model, torch.optim.SGD(model.parameters(), lr=0.1), total_steps=10)
        for controller in controllers:
            controller.start(info)
        for step in range(2):
            for controller in controllers:
                controller.before_step(info)
            statistics = StepStatistics()
            self.run(model, statistics=statistics).square().mean().backward()
            info.step, info.loads, info.statistics = step + 1, statistics.reduced(), statistics
            for controller in controllers:
                controller.after_backward(info)
            for controller in controllers:
                controller.after_step(info)
        states = [controller.state_dict() for controller in controllers]
        restored = json.loads(json.dumps(states))
        assert restored == states, (
            "state_dict() is not plain JSON (numbers, text, lists, dictionaries with text keys)"
        )
        for controller, state in zip(self.method.build_controllers(), restored, strict=True):
            controller.load_state_dict(state)
            assert controller.state_dict() == state, f"{type(controller).__name__} forgets its state"
        assert all(p.isfinite().all() for p in model.parameters()), (
            "controllers leave parameters that are not finite"
        )


def _checkpoint(layer: nn.Module) -> None:
    """Recompute ``layer`` in backward."""
    forward = layer.forward

    def recomputed(hidden_states: Tensor) -> Tensor:
        return checkpoint(forward, hidden_states, use_reentrant=False, context_fn=checkpoint_contexts)

    layer.forward = recomputed
