"""How the blocks of transformers call their experts, read as plans, and plans written as such calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from libmoe.core.plan import SparsePlan

if TYPE_CHECKING:
    from libmoe.analysis.observe import ObservedLayer


def choice_and_weight(inputs: list[Any]) -> tuple[Tensor, Tensor]:
    """What the experts are called with besides tokens; transformers is not of one mind about the order."""
    choice, weight = inputs[1], inputs[2]
    return (weight, choice) if choice.is_floating_point() else (choice, weight)


def is_columns(inputs: list[Any], num_experts: int) -> bool:
    """Whether choices are columns of 0 and 1, one for each expert, and not the numbers of experts."""
    choice, _ = choice_and_weight(inputs)
    if choice.dim() == 3 or choice.shape[-1] != num_experts or choice.dtype == torch.bool:
        return choice.dim() == 3 or choice.dtype == torch.bool
    return num_experts > 2 and int(choice.max()) <= 1


def plan_of(inputs: list[Any], columns: bool, num_experts: int) -> SparsePlan:
    """From what the experts are called with: tokens, choices (numbers or one column for each expert) and weights."""
    choice, weight = choice_and_weight(inputs)
    if columns:
        mask_TN = choice.reshape(-1, num_experts) > 0
        weight_TN = weight.reshape(len(mask_TN), -1).expand_as(mask_TN)
        return SparsePlan.from_mask(weight_TN, mask_TN)
    choice = choice.reshape(-1, choice.shape[-1])
    kept_TK = (
        choice < num_experts
    )  # some families mark a choice that is not computed by an index behind the last
    return SparsePlan.from_topk(
        choice.clamp_max(num_experts - 1),
        weight.reshape(choice.shape),
        num_experts,
        None if bool(kept_TK.all()) else kept_TK,
    )


def arguments_of(inputs: list[Any], plan: SparsePlan) -> list[Tensor]:
    """The other way round: numbers and weights ``[..., K]`` of a plan, in the form of the call that it replaces.

    A choice that is not to be computed gets the weight 0, and so do places that a token with fewer experts leaves.
    """
    assert isinstance(
        plan, SparsePlan
    )  # what was handed out, or what replaced it, after being checked for its sizes
    choice, weight = choice_and_weight(inputs)
    count_T = torch.bincount(plan.token_A, minlength=plan.num_tokens)
    order_A = plan.token_A.argsort(stable=True)
    token_A = plan.token_A[order_A]
    place_A = torch.arange(len(token_A), device=token_A.device) - (count_T.cumsum(0) - count_T)[token_A]
    width = max(choice.shape[-1], int(count_T.max()) if len(count_T) else 0)
    expert_TK = choice.new_zeros(plan.num_tokens, width)
    weight_TK = weight.new_zeros(plan.num_tokens, width)
    weight_A = plan.weight_A if plan.kept_A is None else plan.weight_A * plan.kept_A
    expert_TK[token_A, place_A] = plan.expert_A[order_A].to(choice.dtype)
    weight_TK[token_A, place_A] = weight_A[order_A].to(weight.dtype)
    expert_TK = expert_TK.reshape(*choice.shape[:-1], width)
    weight_TK = weight_TK.reshape(*weight.shape[:-1], width)
    return [weight_TK, expert_TK] if inputs[1].is_floating_point() else [expert_TK, weight_TK]


def _read_llama4(layer: ObservedLayer, output: Any) -> SparsePlan:
    """Its router returns a score for each expert, 0 for those that are not chosen, which scales their *input*."""
    scores_TN, logits_TN = output
    layer.note_logits(logits_TN)
    k = layer.block.top_k
    weight_TK, expert_TK = scores_TN.detach().topk(k, dim=-1)
    return SparsePlan.from_topk(expert_TK, weight_TK, layer.num_experts, scale_input=True)


def _read_jetmoe(layer: ObservedLayer, output: Any) -> SparsePlan:
    """Its gate returns assignments sorted by expert."""
    order_A, token_A, weight_A, size_N, logits_TN = output
    layer.note_logits(logits_TN)
    k = layer.experts.top_k
    expert_A = torch.repeat_interleave(torch.arange(layer.num_experts), torch.as_tensor(size_N)).to(
        token_A.device
    )
    unsorted_A = torch.empty_like(order_A)
    unsorted_A[order_A] = torch.arange(len(order_A), device=order_A.device)
    return SparsePlan.from_topk(
        expert_A[unsorted_A].view(-1, k), weight_A.detach()[unsorted_A].view(-1, k), layer.num_experts
    )


Reader = tuple[str, Callable[["ObservedLayer", Any], SparsePlan]]

READERS: dict[str, Reader] = {
    "Llama4TextMoe": ("router", _read_llama4),
    "JetMoeMoE": ("router", _read_jetmoe),
    "JetMoeMoA": ("router", _read_jetmoe),
}
"""By class of a block: the part of it that decides, and how its output is read."""
