"""One choice of experts for a whole sample, made from its instruction and used by every layer for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.context import ForwardContext, current, current_or_new
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.tokens import before_targets, cache_of, image_token, named_inputs
from libmoe.peft.plan import GroupPlan

NAME = "instance_gate"


class InstanceGate(nn.Module):
    """Top-k experts for each sample from the embeddings of its instruction (Octavius, arXiv 2311.02684 §3.2).

    ``p = softmax(mean over the instruction of u W)``; the k largest probabilities, divided by their sum, are the
    weights (the GShard policy with its random second choice is published too, but has no effect there).  There is no
    balance loss and no capacity.

    Args:
        dim, num_experts, top_k: D, E and k.
        scale_init: draw W from N(0, 1/D) rather than from N(0, 1), for embeddings of unit variance, under which the
            published gate starts saturated.
        include_padding: as published, the mean is over the longest instruction of the batch, shorter ones being filled
            up with the embedding of padding; a sample's choice then depends on the others of its batch.

    Attributes:
        index: number under which recorders and statistics know this gate.
        kept: by cache of generation, the choice it began with.
        config: what the model's experts were made from.
    """

    config: Any = None

    def __init__(
        self, dim: int, num_experts: int, top_k: int = 2, *, scale_init: bool = False, include_padding: bool = False
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ConfigError(f"top_k={top_k} must be between 1 and num_experts={num_experts}")
        self.num_experts, self.top_k, self.include_padding, self.index = num_experts, top_k, include_padding, 0
        self.weight = nn.Parameter(torch.randn(dim, num_experts) * (dim**-0.5 if scale_init else 1.0))
        self.kept: WeakKeyDictionary[Any, GroupPlan] = WeakKeyDictionary()

    def forward(self, u_BLD: Tensor, instruction_BL: Tensor, padding_D: Tensor) -> Routing:
        """One choice for each sample; a row without any instruction gets the mean of nothing, 0.

        Args:
            u_BLD: embeddings of all tokens.
            instruction_BL: bool, the tokens that count.
            padding_D: embedding of padding, for ``include_padding``.
        """
        dtype = torch.promote_types(u_BLD.dtype, torch.float32)
        with torch.autocast(u_BLD.device.type, enabled=False):
            weight_DE = self.weight.to(dtype)
            logits_BLE = u_BLD.to(dtype) @ weight_DE
            count_B1 = instruction_BL.sum(1, keepdim=True)
            sum_BE = logits_BLE.masked_fill(~instruction_BL.unsqueeze(2), 0).sum(1)
            if self.include_padding:
                longest = count_B1.amax()
                sum_BE = sum_BE + (longest - count_B1) * (padding_D.to(dtype) @ weight_DE)
                count_B1 = longest.expand_as(count_B1)
            logits_BE = sum_BE / count_B1.clamp_min(1)
            scores_BE = logits_BE.softmax(-1)
        expert_BK = scores_BE.detach().topk(self.top_k, dim=-1).indices
        weight_BK = scores_BE.gather(1, expert_BK)
        weight_BK = weight_BK / (weight_BK.sum(-1, keepdim=True) + 1e-9)
        return Routing(GroupPlan(expert_BK, weight_BK, len(u_BLD), self.num_experts), logits_BE, scores_BE)

    def extra_repr(self) -> str:
        return f"num_experts={self.num_experts}, top_k={self.top_k}"


class SharedChoice(nn.Module):
    """The gate of a layer that takes the choice made for the whole model."""

    def forward(self, x: Tensor) -> GroupPlan:
        plan = current_or_new().shared.get(NAME)
        if plan is None:
            raise ConfigError("instance-gated experts run inside their model, which reads the instruction; call that")
        tokens = x.shape[:-1].numel()
        if x.dim() > 2 and len(x) != len(plan.expert_GK):
            raise ConfigError(
                f"a batch of {len(plan.expert_GK)} samples reaches instance-gated experts as {len(x)} rows; "
                "leave these linears out of targets"
            )
        return replace(plan, num_tokens=tokens)


def decide(model: Any, args: tuple, kwargs: dict) -> None:
    """Forward pre-hook of the root model: choose for every sample, or keep what generation began with.

    Raises:
        ConfigError: there is no text to read, or a cache from elsewhere to go on from.
    """
    gate = getattr(model, NAME, None)
    if gate is None:  # it was merged
        return
    context = current_or_new()
    inputs = named_inputs(model, args, kwargs)
    cache = cache_of(inputs)
    if cache is not None and cache.get_seq_length() > 0:
        if cache not in gate.kept:
            raise ConfigError("generation goes on from a cache whose instruction this model has not seen; start anew")
        context.shared[NAME] = gate.kept[cache]
        return
    u_BLD = _embeddings(model, inputs)
    padding_D = u_BLD.new_zeros(u_BLD.shape[-1])
    if gate.include_padding:
        padding = torch.full((1, 1), padding_id(model), device=u_BLD.device)
        padding_D = _embeddings(model, {"input_ids": padding})[0, 0]
    routing = gate(u_BLD, instruction(model, inputs, context, u_BLD), padding_D)
    context.shared[NAME] = routing.plan
    _tell(routing, gate, context, u_BLD)


@torch.no_grad()
def _embeddings(model: Any, inputs: Mapping[str, Any]) -> Tensor:
    """Of the tokens as the embedding table holds them: an image's places do not tell the image."""
    ids, given = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if ids is None and given is None:
        raise ConfigError("instance-gated experts read an instruction: call the model with input_ids")
    return model.get_input_embeddings()(ids) if ids is not None else given


def padding_id(model: Any) -> int:
    """Token id of padding, 0 where the model's configuration names none."""
    return getattr(model.config.get_text_config(), "pad_token_id", None) or 0


def keep(model: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
    """Forward hook of the root model: whoever goes on from this cache goes on with this choice."""
    context, gate = current(), getattr(model, NAME, None)
    plan = None if context is None else context.shared.get(NAME)
    cache = cache_of(output) if isinstance(output, Mapping) else None
    if gate is not None and plan is not None and cache is not None:
        gate.kept[cache] = plan.map(Tensor.detach)


def instruction(model: Any, inputs: Mapping[str, Any], context: ForwardContext, u_BLD: Tensor) -> Tensor:
    """bool ``[B, L]``: the tokens of the instruction, without padding and without the places of images.

    The side input ``instruction`` says which tokens they are.  Otherwise they are those before the first target, and
    without targets, as in generation, all: who scores continuations without labels has to say where they begin.

    Raises:
        ConfigError: a side input of another shape.
    """
    shape, device = u_BLD.shape[:2], u_BLD.device
    said, targets = context.options.side.get("instruction"), context.targets
    if said is not None:
        if said.shape != shape:
            raise ConfigError(f"side input 'instruction' has shape {tuple(said.shape)}; expected {tuple(shape)}")
        found_BL = said.to(device).bool()
    elif targets is not None:
        found_BL = before_targets(F.pad(targets, (0, shape[1] - targets.shape[1]), value=-100))
    else:
        found_BL = torch.ones(shape, dtype=torch.bool, device=device)
    mask, ids = context.tokens.mask, inputs.get("input_ids")
    if mask is not None and mask.shape[1] >= shape[1]:
        found_BL = found_BL & mask[:, mask.shape[1] - shape[1] :].bool()
    image = image_token(model)
    return found_BL if ids is None or image is None else found_BL & (ids != image)


def _tell(routing: Routing, gate: InstanceGate, context: ForwardContext, u_BLD: Tensor) -> None:
    """Statistics and recorders see the choice as that of one more layer, token by token."""
    opts = context.options
    if opts.statistics is None and not opts.recorders:
        return
    shape = tuple(u_BLD.shape[:2])
    layer = context.layer(gate.index, shape, gate.training)
    assert isinstance(routing.plan, GroupPlan)
    plan = replace(routing.plan, num_tokens=shape[0] * shape[1])
    if opts.statistics is not None:
        load_N = plan.load_N(layer.mask_T)
        opts.statistics.add(gate.index, load_N, load_N.sum() / gate.top_k)
    logits_BE, scores_BE = routing.logits_TN, routing.scores_TN
    assert logits_BE is not None and scores_BE is not None
    if opts.recorders:
        logits_TN, scores_TN = (t.detach().repeat_interleave(shape[1], 0) for t in (logits_BE, scores_BE))
        spread = Routing(plan.spread().map(Tensor.detach), logits_TN, scores_TN)
        for record in opts.recorders:
            record(layer, spread)
