"""What every expert would return for every token, without touching what the model computes.

    alike, ranks = OutputSimilarity(), NormRanks()
    with probing(model, [alike, ranks]):
        model(**batch)

The model runs as always, with the experts that its routers choose.  Beside each MoE layer all of its experts are run on
the input that they were called with; nothing of that flows on, so that later layers get what they get without probing
(arXiv 2406.18219 §4.1).  Only some tokens of one layer are held at a time.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import libmoe.core.context as context
from libmoe.analysis.calls import READERS, arguments_of, choice_and_weight
from libmoe.analysis.experts.layers import ExpertLayer, expert_matrices, layers_of
from libmoe.analysis.observe import observe
from libmoe.core.context import LayerContext
from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.core.routing import Routing
from libmoe.experts import Experts
from libmoe.layers import MoELayer

CELLS = 1 << 24
"""Numbers of the outputs that are held at once."""


@dataclass(frozen=True)
class Probed:
    """Some tokens at one layer.

    Attributes:
        layer: the layer.
        x_TD: what its experts were called with.
        output_NTD: what each expert returns for it, float32 and not multiplied by any weight.
        weight_TN: the weights of the layer's own decision, 0 for experts that were not chosen (or were dropped);
            ``None`` for plans that mix tokens or parameters.
        logits_TN: of the router, if they are known.
    """

    layer: ExpertLayer
    x_TD: Tensor
    output_NTD: Tensor
    weight_TN: Tensor | None
    logits_TN: Tensor | None


Consumer = Callable[[Probed], None]


@dataclass
class _Call:
    """How the experts of a layer were called."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @property
    def inputs(self) -> list[Any]:
        return [*self.args, *self.kwargs.values()]

    def again(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The same call with other inputs."""
        return tuple(inputs[: len(self.args)]), dict(zip(self.kwargs, inputs[len(self.args) :]))


@contextlib.contextmanager
def probing(
    model: nn.Module,
    consumers: Sequence[Consumer],
    *,
    layers: Sequence[int] | None = None,
    cells: int = CELLS,
) -> Iterator[None]:
    """While the block runs, hand the outputs of all experts to ``consumers``, layer by layer and some tokens at a time.

    Padding is left out.  Time grows from the chosen experts to all N.

    Args:
        model: a LibMoE model or any MoE model of transformers, in evaluation mode.
        layers: only these.
        cells: how many numbers of outputs may be held at once (4 bytes each).

    Raises:
        ConfigError: the model is in training mode (dropout would draw other random numbers than without probing), has
            no MoE layer, or not the one that is asked for.
    """
    if model.training:
        raise ConfigError("the model is in training mode; call model.eval() before probing it")
    found = {layer.index: layer for layer in layers_of(model, layers)}
    calls: dict[int, _Call] = {}

    def record(ctx: LayerContext, routing: Routing) -> None:
        if ctx.index in calls:
            with torch.no_grad():
                for probed in _probe(found[ctx.index], calls.pop(ctx.index), ctx, routing, cells):
                    for consume in consumers:
                        consume(probed)

    handles = [_note(layer, calls) for layer in found.values()]
    try:
        with observe(model), context.options(recorders=[record]):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _note(layer: ExpertLayer, calls: dict[int, _Call]) -> torch.utils.hooks.RemovableHandle:
    """Keep what the layer (of transformers: its experts) is called with until the decision is known."""

    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        calls[layer.index] = _Call(args, kwargs)

    source = layer.source
    entrance = source if isinstance(source, MoELayer) else source.experts
    return entrance.register_forward_pre_hook(note, with_kwargs=True, prepend=True)


def _probe(
    layer: ExpertLayer, call: _Call, ctx: LayerContext, routing: Routing, cells: int
) -> Iterator[Probed]:
    x_TD = call.inputs[0].detach()
    x_TD = x_TD.reshape(-1, x_TD.shape[-1])
    mask_T = ctx.mask_T
    real = torch.arange(len(x_TD), device=x_TD.device)
    if mask_T is not None and len(mask_T) == len(x_TD):
        real = real[mask_T.to(x_TD.device)]
    weight_TN, logits_TN = _weights(routing), routing.logits_TN
    if logits_TN is not None and logits_TN.shape != (len(x_TD), layer.num_experts):
        logits_TN = None  # of slots, say
    run = _runner(layer, call)
    step = max(1, cells // (layer.num_experts * x_TD.shape[1]))
    for token_T in real.split(step):
        chunk_TD = x_TD[token_T]
        output_NTD = torch.stack([run(expert, chunk_TD).float() for expert in range(layer.num_experts)])
        yield Probed(
            layer,
            chunk_TD,
            output_NTD,
            None if weight_TN is None else weight_TN[token_T],
            None if logits_TN is None else logits_TN.detach()[token_T],
        )


def _weights(routing: Routing) -> Tensor | None:
    plan = routing.plan
    if not isinstance(plan, SparsePlan):
        return None
    weight_A = plan.weight_A.detach().float()
    if plan.kept_A is not None:
        weight_A = weight_A * plan.kept_A
    weight_TN = weight_A.new_zeros(plan.num_tokens, plan.num_experts)
    return weight_TN.index_put_((plan.token_A, plan.expert_A), weight_A, accumulate=True)


def _runner(layer: ExpertLayer, call: _Call) -> Callable[[int, Tensor], Tensor]:
    """A function ``(expert, [T, D]) -> [T, D]`` that runs one expert with weight 1."""
    experts = layer.experts

    def alone(expert: int, x_TD: Tensor) -> SparsePlan:
        expert_T1 = torch.full((len(x_TD), 1), expert, device=x_TD.device)
        return SparsePlan.from_topk(expert_T1, x_TD.new_ones(len(x_TD), 1), layer.num_experts)

    if isinstance(experts, Experts):
        return lambda expert, x_TD: experts.execute(x_TD, alone(expert, x_TD))
    if isinstance(experts, nn.ModuleList | nn.ModuleDict):
        modules = list(experts.children())
        return lambda expert, x_TD: modules[expert](x_TD)
    if type(layer.block).__name__ in READERS:  # called in ways of their own, but computing the common form
        matrices, activation = expert_matrices(layer), layer.activation
        return lambda expert, x_TD: matrices[expert].output(x_TD, activation)

    def run(expert: int, x_TD: Tensor) -> Tensor:
        first = [
            value.reshape(-1, value.shape[-1])[: len(x_TD), :1] for value in choice_and_weight(call.inputs)
        ]
        plan = alone(expert, x_TD)
        args, kwargs = call.again([x_TD, *arguments_of([x_TD, *first], plan), *call.inputs[3:]])
        # Past the hooks of the module, which are there to see what the model itself does.
        output: Tensor = experts.forward(*args, **kwargs)
        return output

    return run
