"""A few tokens through small experts: the weights of each assignment copied side by side, then batched products.

Copying costs time for each assignment but nothing else does: no sorting, no threads to wake, two products in all.
"""

from __future__ import annotations

import torch
from torch import Tensor

from libmoe.ops.cpu.elementwise import hidden_units
from libmoe.ops.task import StackedFFN

MOST_TOKENS = 16
# Reading weights twice costs more than it saves where there are many; one token has a cheaper way (``token_pass``).
MOST_BYTES, MOST_BYTES_OF_ONE = 8 << 20, 2 << 20


def worthwhile(tokens: int, assignments: int, experts: StackedFFN) -> bool:
    """Whether there is little enough to copy."""
    copied = assignments * (experts.w_in[0].nbytes + experts.w_out[0].nbytes)
    return copied <= (MOST_BYTES_OF_ONE if tokens == 1 else MOST_BYTES)


def copied_pass(
    expert_A: Tensor,
    x_TD: Tensor,
    w_in: Tensor,
    w_out: Tensor,
    b_in: Tensor | None,
    b_out: Tensor | None,
    form: str,
    gated: bool,
    weight_A: Tensor | None,
    w_in_A: Tensor,  # memory for the copies
    w_out_A: Tensor,
) -> Tensor:
    """``[T, D]``, where every token has equally many assignments, one after the other (compiled by TorchScript)."""
    torch.index_select(w_in, 0, expert_A, out=w_in_A)
    torch.index_select(w_out, 0, expert_A, out=w_out_A)
    tokens, dim = x_TD.size(0), x_TD.size(1)
    assignments, hidden = expert_A.size(0), w_out.size(2)
    if tokens == 1:
        h = torch.mm(x_TD, w_in_A.view(-1, dim).t()).view(assignments, -1)
    else:
        k = assignments // tokens
        x_A1D = x_TD.unsqueeze(1).expand(tokens, k, dim).reshape(assignments, 1, dim)
        h = torch.bmm(x_A1D, w_in_A.transpose(1, 2)).squeeze(1)
    if b_in is not None:
        h.add_(b_in.index_select(0, expert_A))
    a = torch.empty((assignments, hidden), dtype=h.dtype)
    hidden_units(form, gated, h, a)
    y = torch.bmm(a.unsqueeze(1), w_out_A.transpose(1, 2)).squeeze(1)
    if b_out is not None:
        y.add_(b_out.index_select(0, expert_A))
    return combine(y, tokens, weight_A)


def combine(y_AD: Tensor, tokens: int, weight_A: Tensor | None) -> Tensor:
    """Each token's weighted sum: ``[T, D]``."""
    if tokens == 1 and weight_A is not None:
        return torch.mm(weight_A.to(y_AD.dtype).view(1, -1), y_AD)
    k = y_AD.size(0) // tokens
    y_TKD = y_AD.view(tokens, k, y_AD.size(1))
    if weight_A is None:
        return y_TKD.sum(1)
    return torch.bmm(weight_A.to(y_AD.dtype).view(tokens, 1, k), y_TKD).squeeze(1)
