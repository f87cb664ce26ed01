"""``check_experts``, ``check_loss`` and ``check_method`` name what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from libmoe.controllers import Controller, StepInfo
from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.experts import FFN, CopyExperts, FFNExperts, ModuleExperts
from libmoe.losses import BalanceLoss, Loss, ZLoss
from libmoe.methods import METHODS, register_method
from libmoe.methods.smoe import SMoE
from libmoe.testing import ContractError, check_experts, check_loss, check_method

D = 6


# -- experts ---------------------------------------------------------------------------------------------
class Base(FFNExperts):
    def __init__(self) -> None:
        super().__init__(3, D, 4, init_std=None)


class OffByOne(Base):
    def materialise(self, expert: int) -> FFN:
        return super().materialise((expert + 1) % 3)


class StopsGradientOfRows(Base):
    def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
        return super().forward_rows(x_RD.detach(), segments) + 0 * x_RD


class StopsGradientOfWeights(Base):
    def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
        weight, self.w_out = self.w_out, nn.Parameter(self.w_out.detach())
        try:
            return super().forward_rows(x_RD, segments)
        finally:
            self.w_out = weight


class FailsOnEmptySegments(Base):
    def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
        bounds = segments.bounds
        parts = [x_RD[s:t] - x_RD[s:t].amin() for s, t in pairwise(bounds)]
        return super().forward_rows(torch.cat(parts), segments)


class MixesRows(Base):
    def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
        return super().forward_rows(x_RD + 0.01 * x_RD.sum(0), segments)


class CountsTooMany(Base):
    def params_per_expert(self) -> list[int]:
        return [10_000] * 3


class CountsNoFlops(Base):
    def flops_per_row(self) -> list[float]:
        return [0.0] * 3


class SharesMemory(Base):
    def materialise(self, expert: int) -> FFN:
        ffn = super().materialise(expert)
        ffn.w_in.data = self.w_in.data[expert]
        return ffn


class AveragesOutputs(Base):
    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        return super().forward_merged(x_GLD, gate_GN.roll(1, dims=1))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            OffByOne,
            "computes what its materialised experts compute: some rows for each expert: output differs by",
        ),
        (StopsGradientOfRows, "gradient of the input differs"),
        (StopsGradientOfWeights, "has the gradients of its materialised experts: w_out receives no gradient"),
        (FailsOnEmptySegments, "experts without rows: raises"),
        (MixesRows, "output differs"),
        (CountsTooMany, r"experts own 30000 of \d+ parameters"),
        (CountsNoFlops, r"expert 0 declares 0 FLOPs per row, torch counts 144"),
        (SharesMemory, "materialises copies: memory is shared"),
        (AveragesOutputs, "averages parameters: output with one-hot gates differs"),
    ],
)
def test_broken_experts_are_named(kind: type, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_experts(kind(), D)


def test_good_experts_pass_and_are_left_alone() -> None:
    experts = Base()
    before = experts.w_in.clone()
    assert "averages parameters" in check_experts(experts, D)
    assert torch.equal(experts.w_in, before) and experts.training
    assert "averages parameters" not in check_experts(CopyExperts(2), D)
    check_experts(ModuleExperts([nn.Linear(D, D), FFN(D, 3)]), D)


def test_experts_may_read_data_of_assignments() -> None:
    class Scaled(Base):
        def forward_rows(self, x_RD: Tensor, segments) -> Tensor:
            return super().forward_rows(x_RD, segments) * segments.extra_R["one"].unsqueeze(1)

    check_experts(Scaled(), D, extra=lambda rows: {"one": torch.ones(rows, dtype=torch.float64)})


# -- losses ----------------------------------------------------------------------------------------------
class CountsPadding(BalanceLoss):
    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        scores_TN = routing.scores_TN
        return scores_TN.square().sum(), scores_TN.new_tensor(float(len(scores_TN)))


class DividesByItself(ZLoss):
    """A mean of means: depends on how the batch was cut."""

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        numerator, denominator = super().compute(routing, ctx)
        return numerator / denominator.sqrt(), denominator / denominator.sqrt()


class IgnoresDocuments(BalanceLoss):
    """Rows instead of documents: packing changes the loss."""

    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        mask_T = ctx.mask_T
        weight_T = torch.where(mask_T, 1.0, 0.0).double()
        batch, length = ctx.batch_shape
        mass_BN = (routing.scores_TN * weight_T.unsqueeze(1)).view(batch, length, -1).sum(1)
        return mass_BN.square().sum(), weight_T.sum()


class AppliesItsCoefficient(ZLoss):
    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        numerator, denominator = super().compute(routing, ctx)
        return self.coefficient * numerator, denominator


class LearnsItsDenominator(ZLoss):
    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        numerator, denominator = super().compute(routing, ctx)
        return numerator, denominator + 0 * routing.logits_TN.sum()


class NotMemoised(BalanceLoss):
    def compute(self, routing: Routing, ctx: LayerContext) -> tuple[Tensor, Tensor]:
        ctx.forward._memo.clear()
        return super().compute(routing, ctx)


class Nameless(ZLoss):
    name = Loss.name


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (CountsPadding(0.1), "ignores padding: padding receives a gradient|ignores padding: value"),
        (DividesByItself(0.1), "does not depend on the split into micro-batches"),
        (IgnoresDocuments(0.1), "gives the same for packed documents"),
        (AppliesItsCoefficient(0.1), "leaves its coefficient to the layer"),
        (LearnsItsDenominator(0.1), "the denominator carries a gradient"),
        (NotMemoised(0.1, "rank"), "is the same when recomputed"),
        (Nameless(0.1), "no name of its own"),
        (BalanceLoss(0.1, weights=(2.0, 2.0, 2.0, 2.0)), "is 1 at perfect balance: value differs by"),
    ],
)
def test_broken_losses_are_named(loss: Loss, message: str) -> None:
    with pytest.raises(ContractError, match=message):
        check_loss(loss, at_balance=1.0)


def test_only_what_the_scope_promises_is_checked() -> None:
    split = "does not depend on the split into micro-batches"
    assert split in check_loss(BalanceLoss(0.1, "sequence"))
    assert split in check_loss(BalanceLoss(0.1, "global_batch"))
    assert split not in check_loss(BalanceLoss(0.1, "micro_batch"))


# -- methods ---------------------------------------------------------------------------------------------
@pytest.fixture
def registered() -> Iterator[Any]:
    """Register a class as ``test-method`` for one test."""

    def register(cls: type, **facts: Any) -> None:
        register_method("test-method", summary="for one test", **facts)(dataclass(kw_only=True)(cls))

    yield register
    METHODS._entries.pop("test-method", None)


class Unseeded(SMoE):
    def build_layer(self, site) -> nn.Module:
        layer = super().build_layer(site)
        nn.init.normal_(layer.router.gate.weight)
        return layer


class UnusedParameter(SMoE):
    def build_router(self, site) -> nn.Module:
        router = super().build_router(site)
        router.unused = nn.Parameter(torch.zeros(2))
        return router


class KeepsStateOutside(SMoE):
    def build_router(self, site) -> nn.Module:
        router = super().build_router(site)
        router.gate.register_buffer("scale", torch.rand(()) + 0.5, persistent=False)
        router.gate.register_forward_hook(lambda module, args, output: output * module.scale)
        return router


class Upcasts(SMoE):
    def build_layer(self, site) -> nn.Module:
        layer = super().build_layer(site)
        layer.register_forward_hook(lambda module, args, output: output.float())
        return layer


class Forgetful(Controller):
    def __init__(self) -> None:
        self.steps = 0

    def after_step(self, info: StepInfo) -> None:
        self.steps += 1

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}


class WithController(SMoE):
    def build_controllers(self) -> list[Controller]:
        return [Forgetful()]


class NotExact(SMoE):
    """Gates that do not sum to 1 do not give the dense output back."""

    renormalise: bool = False


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (Unseeded, "builds the same layer twice from one seed.*: layers.0.router.gate.weight differs"),
        (UnusedParameter, "router.unused receives no gradient; freeze it or use it"),
        (KeepsStateOutside, "can be saved and loaded: the loaded layer computes something else"),
        (Upcasts, "keeps bfloat16: "),
        (WithController, "has controllers whose state can be saved: Forgetful forgets its state"),
        (NotExact, "gives the dense output when every expert is the dense FFN: output differs"),
    ],
)
def test_broken_methods_are_named(registered: Any, method: type, message: str) -> None:
    registered(method)
    with pytest.raises(ContractError, match=message):
        check_method("test-method")


def test_false_declarations_of_a_method_are_named(registered: Any) -> None:
    registered(SMoE, causal=False)
    with pytest.raises(ContractError, match="declares causal=False but no router of it does"):
        check_method("test-method")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("expert-choice", {"eval_policy": "token"}),
        ("expert-choice", {"eval_policy": "predictor", "jitter": 0.1}),
        ("soft-moe", {"dispatch": "identity", "combine": "identity", "slots_per_expert": 8}),
    ],
)
def test_options_that_end_a_leak_pass_the_checks(name: str, options: dict[str, Any]) -> None:
    """The first two look ahead in training alone, the last not at all."""
    assert check_method(name, options)


def test_options_reach_the_method() -> None:
    assert check_method(
        "smoe", {"num_experts": 3, "noise": "learned", "shared_hidden": 4, "capacity_factor": 1.0}
    )
    with pytest.raises(ConfigError, match="did you mean 'num_experts'"):
        check_method("smoe", {"num_expert": 3})
    with pytest.raises(ConfigError, match="did you mean 'smoe'"):
        check_method("smo")
