"""Let recorders see the routing of any MoE model of transformers, by hooks and without touching what it computes.

    with observe(model), libmoe.options(recorders=[TraceRecorder("trace")]):
        model(**batch)

Interventions that edit a finished decision (ablate, swap, replay, ...) work the same way:

    with observe(model), libmoe.options(interventions=[AblateExperts([3], layers=[0])]):
        model(**batch)

LibMoE's own layers need none of this.  In transformers the module with a layer's experts is called with the tokens,
the chosen experts and their weights; that call is what is observed, so no family has to be known by name.  The few
families that call their experts in another way have a reader of their own in :data:`libmoe.analysis.calls.READERS`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from libmoe.analysis.calls import READERS, arguments_of, is_columns, plan_of
from libmoe.core import context
from libmoe.core.errors import ConfigError
from libmoe.core.interventions import Intervention
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.layers import MoELayer, moe_layers


@dataclass
class ObservedLayer:
    """An MoE layer of a transformers model.

    Attributes:
        index: place among the model's MoE layers, from 0, in order of the model's modules.
        path: name of the block (router and experts) in the model.
        block, experts: the modules.
        num_experts: N.
        score: what turns its logits into scores, as far as its weights tell.
    """

    index: int
    path: str
    block: nn.Module
    experts: nn.Module
    num_experts: int
    score: str = ""
    _shape: tuple[int, ...] = ()
    _logits: Tensor | None = field(default=None, repr=False)

    def enter(self, hidden_states: Tensor) -> None:
        self._shape, self._logits = tuple(hidden_states.shape[:-1]), None

    def note_logits(self, output: Any) -> None:
        """Of what a part of the block returned, the last matrix with a column for each expert, if there is one."""
        for value in output if isinstance(output, tuple) else (output,):
            if (
                isinstance(value, Tensor)
                and value.is_floating_point()
                and value.shape[-1] == self.num_experts
            ):
                self._logits = value.detach().reshape(-1, self.num_experts)

    def observe(self, plan: SparsePlan, editable: bool = False) -> SparsePlan | None:
        """Hand a decision to interventions and recorders; returns what interventions made of it, if there were any.

        Args:
            editable: whether the block computes what it is told instead.

        Raises:
            ConfigError: an intervention needs what cannot be edited here.
        """
        forward = context.current()
        if forward is None or forward.recomputing:
            return None
        logits_TN = (
            self._logits if self._logits is not None and len(self._logits) == plan.num_tokens else None
        )
        if logits_TN is not None and not self.score:
            self.score = explaining_score(logits_TN, plan)
        scores_TN = None if logits_TN is None else SCORES[self.score](logits_TN.float())
        shape = self._shape if torch.Size(self._shape).numel() == plan.num_tokens else (1, plan.num_tokens)
        ctx = forward.layer(self.index, shape, self.block.training)
        routing = Routing(plan, logits_TN, scores_TN)
        edits = [edit for edit in forward.options.interventions if edit.applies(ctx)]
        for edit in edits:
            if edit.edits_selection or not editable:
                raise self._cannot(edit)
            routing = edit.edit_routing(routing, ctx)
        forward.routings[self.index] = routing
        for record in forward.options.recorders:
            record(ctx, routing)
        if not isinstance(routing.plan, SparsePlan):
            raise self._cannot(edits[-1])
        return routing.plan if edits else None

    def _cannot(self, edit: Intervention) -> ConfigError:
        return ConfigError(
            f"{type(edit).__name__} cannot edit layer {self.index}: of {type(self.block).__name__}, a block of "
            "transformers, only decisions that it hands to its experts can be edited; libmoe.import_ the model first"
        )


SCORES: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": lambda logits_TN: logits_TN.softmax(-1),
    "sigmoid": torch.sigmoid,
}


EXACT = 0.01
"""Largest mean error of a share that counts as an explanation; half precision errs by less."""


def explaining_score(logits_TN: Tensor, plan: SparsePlan) -> str:
    """``sigmoid`` where its scores of the chosen experts explain the weights and softmax's do not.

    Proportions are compared, as weights may be scaled; with one expert for each token, the weights themselves.
    """
    token_A, expert_A, weight_A = plan.token_A, plan.expert_A, plan.weight_A.detach().float()
    single = len(token_A) <= plan.num_tokens

    def share(value_A: Tensor) -> Tensor:
        sum_T = value_A.new_zeros(plan.num_tokens).index_add_(0, token_A, value_A)
        return value_A if single else value_A / sum_T[token_A].clamp_min(1e-30)

    def miss(score: str) -> float:
        return float(
            (share(SCORES[score](logits_TN.float())[token_A, expert_A]) - share(weight_A)).abs().mean()
        )

    error = miss("sigmoid")
    return "sigmoid" if error < EXACT and error < miss("softmax") / 2 else "softmax"


@contextlib.contextmanager
def observe(model: nn.Module) -> Iterator[list[ObservedLayer]]:
    """While the block runs, recorders and interventions of :func:`libmoe.options` reach the MoE layers of a model of
    transformers.

    Yields:
        The layers that were found, without LibMoE's own, which are seen anyway.

    Raises:
        ConfigError: the model has no MoE layer that can be observed.
    """
    layers = find_layers(model)
    if not layers and not list(moe_layers(model)):
        raise ConfigError(
            f"{type(model).__name__} has no MoE layer that can be observed: none of its modules is called with tokens, "
            "chosen experts and weights"
        )
    handles = [handle for layer in layers for handle in _watch(layer)]
    if layers:
        handles += context.install(model)
    try:
        yield layers
    finally:
        for handle in handles:
            handle.remove()


def find_layers(model: nn.Module) -> list[ObservedLayer]:
    """The MoE layers of a transformers model that are not LibMoE's, without hooking anything."""
    found: list[ObservedLayer] = []
    ours = list(moe_layers(model))
    for path, block in model.named_modules():
        for experts in _experts_of(block):
            found.append(ObservedLayer(len(ours) + len(found), path, block, experts, _count(block, experts)))
    return found


def _experts_of(block: nn.Module) -> list[nn.Module]:
    """The module with the experts of a block; for readers of their own, the part that decides."""
    reader = READERS.get(type(block).__name__)
    if reader is not None:
        return [getattr(block, reader[0])]
    experts = getattr(block, "experts", None)
    if isinstance(block, MoELayer) or not isinstance(experts, nn.Module) or type(experts).__name__ in READERS:
        return []
    return [experts] if _count(block, experts) > 1 else []


def _count(block: nn.Module, experts: nn.Module) -> int:
    for module in (experts, block, *block.children()):
        count = getattr(module, "num_experts", None)
        if isinstance(count, int):
            return count
    return len(list(experts.children())) if isinstance(experts, nn.ModuleList | nn.ModuleDict) else 0


def _watch(layer: ObservedLayer) -> list[torch.utils.hooks.RemovableHandle]:
    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layer.enter(args[0] if args else next(iter(kwargs.values())))

    def logits(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        layer.note_logits(output)

    def decided(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        inputs = [*args, *kwargs.values()]
        columns = is_columns(inputs, layer.num_experts)
        edited = layer.observe(plan_of(inputs, columns, layer.num_experts), editable=not columns)
        if edited is None:
            return None
        inputs[1:3] = arguments_of(inputs, edited)
        return tuple(inputs[: len(args)]), dict(zip(kwargs, inputs[len(args) :]))

    reader = READERS.get(type(layer.block).__name__)
    handles = [layer.block.register_forward_pre_hook(enter, with_kwargs=True)]
    if reader is not None:
        read = reader[1]

        def answered(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            layer.observe(read(layer, output))

        return [*handles, layer.experts.register_forward_hook(answered)]
    handles += [
        part.register_forward_hook(logits) for part in layer.block.children() if part is not layer.experts
    ]
    return [*handles, layer.experts.register_forward_pre_hook(decided, with_kwargs=True)]
