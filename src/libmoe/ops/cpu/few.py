"""A few tokens without gradients, as in decoding: where sorting and gathering would take longer than computing."""

from __future__ import annotations

from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from libmoe.core.dispatch import Dispatch
from libmoe.ops.cpu import copied, padded, team
from libmoe.ops.cpu.compiled import compiled, plain_operations
from libmoe.ops.cpu.elementwise import FORMS
from libmoe.ops.cpu.layout import run, schedule
from libmoe.ops.task import StackedFFN

# Bytes from which reading an expert's weights takes much longer than starting a product.
LARGE_EXPERT = 1 << 20


def few_tokens(
    x_TD: Tensor, experts: StackedFFN, dispatch: Dispatch, weight_A: Tensor | None
) -> Tensor | None:
    """Decoding: no sorting, no gathering.  ``None`` where there is too much to do for that."""
    expert_A, tokens, k = dispatch.expert_A, dispatch.num_tokens, dispatch.k
    if not 0 < tokens <= copied.MOST_TOKENS:
        return None
    if dispatch.kept_A is not None:
        if tokens > 1:
            return None
        expert_A = expert_A[dispatch.kept_A]
        weight_A = None if weight_A is None else weight_A[dispatch.kept_A]
        k = len(expert_A)
    copies = copied.worthwhile(tokens, len(expert_A), experts)
    if not k:
        return None
    if not copies and tokens > 1 and x_TD.dtype in padded.CALL_SECONDS and _bytes(experts) < LARGE_EXPERT:
        return None  # there, one product for all experts is faster
    operands = (x_TD.contiguous(), *experts.parameters(), FORMS[experts.activation], experts.gated)
    with plain_operations(), torch.no_grad():
        if copies:
            # Of this size, the C library reuses memory faster than the pool does.
            weights_A = (p.new_empty(len(expert_A), *p.shape[1:]) for p in (experts.w_in, experts.w_out))
            return compiled().copied(expert_A, *operands, weight_A, *weights_A)
        if tokens == 1:
            y_AD = _by_threads(expert_A.tolist(), *operands)
        else:
            y_AD = _by_experts(expert_A.tolist(), k, *operands)
        return copied.combine(y_AD, tokens, weight_A)


def _bytes(experts: StackedFFN) -> int:
    """Of the weights of one expert."""
    return experts.w_in[0].nbytes + experts.w_out[0].nbytes


def _by_experts(chosen: list[int], k: int, x_TD: Tensor, w_in: Tensor, w_out: Tensor, *rest: Any) -> Tensor:
    """Every expert's weights read once; sorted as a list, since a few numbers are too few for tensors: ``[A, D]``."""
    order = sorted(range(len(chosen)), key=chosen.__getitem__)
    experts: list[int] = []
    count: list[int] = []
    row = [0] * len(chosen)
    for position, assignment in enumerate(order):
        row[assignment] = position
        if experts and experts[-1] == chosen[assignment]:
            count[-1] += 1
        else:
            experts.append(chosen[assignment])
            count.append(1)
    y_RD = x_TD.new_empty(len(chosen), x_TD.shape[1])
    operands = (x_TD, torch.tensor([a // k for a in order]), w_in, w_out, *rest, None, y_RD)
    if x_TD.dtype in padded.CALL_SECONDS:
        # These products use all threads well even for one row, and waking a team would only add to them.
        place = list(accumulate(count[:-1], initial=0))
        compiled().forward([0], [0, len(experts)], experts, count, place, count, len(chosen), *operands)
    else:
        run(
            compiled().forward,
            schedule(experts, count, count, len(chosen), w_in[0].nbytes, team.size()),
            operands,
        )
    return y_RD.index_select(0, torch.tensor(row))


def _by_threads(chosen: list[int], x_1D: Tensor, w_in: Tensor, w_out: Tensor, *rest: Any) -> Tensor:
    """The experts of one token, shared out to threads where that pays: ``[A, D]``."""
    y_AD = x_1D.new_empty(len(chosen), x_1D.shape[1])
    operands = (chosen, x_1D, w_in, w_out, *rest, y_AD)
    # Waking threads takes about as long as reading half a megabyte; and other than in float32, where a product of one
    # row runs on one thread, all threads can read the weights of one expert.
    size = len(chosen) * (w_in[0].nbytes + w_out[0].nbytes)
    threads = min(team.size(), len(chosen), 1 + size // (1 << 19))
    if x_1D.dtype in padded.CALL_SECONDS and len(chosen) < 2 * threads:
        threads = 1
    function = compiled().token
    if threads > 1:
        team.run(lambda number: function(list(range(number, len(chosen), threads)), *operands), threads)
    else:
        function(list(range(len(chosen))), *operands)
    return y_AD
