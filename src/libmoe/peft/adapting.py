"""Putting instance-gated LoRA experts into a model, and folding them into its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatch

import torch
from torch import Tensor, nn

from libmoe.core.context import ForwardContext, install, use
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.seeding import seeded
from libmoe.layers import moe_layers, put
from libmoe.peft.instance import NAME, InstanceGate, SharedChoice, decide, keep
from libmoe.peft.linear import LoRAExpertsLinear
from libmoe.peft.plan import GroupPlan

KIND = "instance-lora"
"""How saved models and adapters call this change of a model."""


@dataclass(kw_only=True)
class InstanceLoRA:
    """LoRA experts that one gate chooses by instruction, once for each sample (Octavius, arXiv 2311.02684).

    As published for Vicuna-13B: rank and alpha 32, dropout 0.1, two of 4 experts for tasks about images (3 about
    point clouds, 6 about both) at the four projections of attention; Adam with betas 0.9 and 0.95, learning rate
    5e-4, weight decay 1e-3, batches of 64, two epochs, gradients clipped at norm 1, fp16.

    Attributes:
        num_experts, top_k: E, and how many of them a sample uses; 1 and 1 is plain LoRA.
        rank, alpha: r and the numerator of the scale ``alpha / r``; ``None`` for r.
        dropout: of the experts' input.
        targets: linears of the language model by name or by shell pattern on their path.
        trainable: shell patterns on the names of further parameters that stay trainable (the published recipe trains
            what connects encoders: ``*multi_modal_projector*``); all others are frozen.
        scale_init, include_padding: see :class:`~libmoe.peft.instance.InstanceGate`.
    """

    num_experts: int = 4
    top_k: int = 2
    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.1
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj"])
    trainable: list[str] = field(default_factory=list)
    scale_init: bool = False
    include_padding: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= self.num_experts:
            raise ConfigError(f"peft.top_k={self.top_k} must be between 1 and num_experts={self.num_experts}")
        if self.rank < 1:
            raise ConfigError(f"peft.rank={self.rank} must be at least 1")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"peft.dropout={self.dropout} must be at least 0 and below 1")
        if not self.targets:
            raise ConfigError("peft.targets=[] adapts nothing; name linears of the language model, such as q_proj")


def add_instance_lora(
    model: nn.Module,
    config: InstanceLoRA | None = None,
    *,
    paths: Sequence[str] | None = None,
    seed: int | None = None,
) -> nn.Module:
    """Put LoRA experts beside linears of ``model`` and one gate before all of them, in place; returns the same model.

    Afterwards the experts and the gate are trained and everything else is frozen.  The model computes what it did
    until they have learned something.  Any causal model of transformers will do, with or without images; generation
    keeps the choice made for the prompt (which must be read whole: no ``prefill_chunk_size``).  A LibMoE model that is
    to be saved as a whole is changed with :func:`libmoe.models.adapt`, which remembers it.

    Args:
        paths: the linears; found by ``config.targets`` where not given.
        seed: base seed of initial weights; ``None`` draws from torch's global generator.

    Raises:
        ConfigError: no linear of these names, a model of two stacks, or one that has such experts already.
    """
    config = config or InstanceLoRA()
    if hasattr(model, NAME):
        raise ConfigError(f"{type(model).__name__} has instance-gated experts already; train these, or merge them")
    if getattr(model.config, "is_encoder_decoder", False):
        raise ConfigError(f"{type(model).__name__}: instance-gated experts need a model of one stack, not two")
    chosen = find_targets(model, config.targets) if paths is None else list(paths)
    shared = SharedChoice()
    added = {}
    for path in chosen:
        with seeded(seed, "lora", path):
            added[path] = LoRAExpertsLinear(
                model.get_submodule(path), config.num_experts, config.rank, shared,
                alpha=config.alpha, dropout=config.dropout,
            )  # fmt: skip
    options = {"scale_init": config.scale_init, "include_padding": config.include_padding}
    with seeded(seed, NAME):
        table = model.get_input_embeddings()
        gate = InstanceGate(table.weight.shape[1], config.num_experts, config.top_k, **options)
    gate.index, gate.config = len(list(moe_layers(model))), config
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch(name, pattern) for pattern in config.trainable))
    put(model, added)
    wide = torch.promote_types(table.weight.dtype, torch.float32)  # a gate in half precision flips choices
    setattr(model, NAME, gate.to(table.weight.device, wide).train(model.training))
    if decide not in model._forward_pre_hooks.values():
        if not hasattr(model, "libmoe"):  # which has its hooks already
            install(model)
        model.register_forward_pre_hook(decide, with_kwargs=True)
        model.register_forward_hook(keep, prepend=True, with_kwargs=True)  # while the context is still there
    return model


def find_targets(model: nn.Module, targets: Sequence[str]) -> list[str]:
    """Paths of the linears of the language model that ``targets`` name.

    Raises:
        ConfigError: a target without any.
    """
    # Models inside that read pixels or audio have rows of their own, which are no samples.
    apart = [m for m in model.modules() if getattr(m, "main_input_name", "input_ids") != "input_ids"]
    inside = {id(m) for other in apart for m in other.modules()} | {id(model.get_output_embeddings())}
    linears = [p for p, m in model.named_modules() if isinstance(m, nn.Linear) and id(m) not in inside]
    found: dict[str, None] = {}
    for target in targets:
        named = [p for p in linears if p.rpartition(".")[2] == target or fnmatch(p, target)]
        if not named:
            raise unknown("peft.targets", target, {p.rpartition(".")[2] for p in linears})
        found |= dict.fromkeys(named)
    return list(found)


def adapted(model: nn.Module) -> dict[str, LoRAExpertsLinear]:
    """The linears with LoRA experts, by path."""
    return {path: module for path, module in model.named_modules() if isinstance(module, LoRAExpertsLinear)}


@torch.no_grad()
def merge(model: nn.Module, instruction: Tensor) -> nn.Module:
    """Fold the experts that one instruction chooses into the weights, in place; returns the same model, without gate.

    It then computes for every input what it computed after this instruction, at the cost of the model without experts.

    Args:
        instruction: token ids ``[L]``.

    Raises:
        ConfigError: there are no instance-gated experts.
    """
    if not hasattr(model, NAME):
        raise ConfigError(f"{type(model).__name__} has no instance-gated experts to merge")
    device = model.get_input_embeddings().weight.device
    inputs = {"input_ids": instruction.reshape(1, -1).to(device)}
    with use(ForwardContext(inputs)) as context:
        decide(model, (), inputs)
        plan = context.shared[NAME]
    assert isinstance(plan, GroupPlan)
    put(model, {path: m.merged(plan.expert_GK[0], plan.weight_GK[0]) for path, m in adapted(model).items()})
    delattr(model, NAME)
    record = getattr(model, "libmoe", None)
    if record is not None:
        record.edits = [edit for edit in record.edits if edit.kind != KIND]
    return model
