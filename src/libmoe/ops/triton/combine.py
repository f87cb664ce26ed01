"""From rows back to tokens and assignments, in a fixed order and without atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from libmoe.core.dispatch import Dispatch


def sum_by_token(y_RD: Tensor, dispatch: Dispatch, weight_A: Tensor | None) -> Tensor:
    """Each token's rows, weighted and added in float32 in the order of its assignments: ``[R, D] -> [T, D]``.

    Rows of dropped assignments, which lie behind the last offset, are neither read nor are their weights.
    """
    tokens, dim = dispatch.num_tokens, y_RD.shape[1]
    out_TD = y_RD.new_empty(tokens, dim)
    if not tokens:
        return out_TD
    by_token_A = start_T1 = None
    if dispatch.k is None:
        by_token_A = torch.argsort(dispatch.token_A, stable=True)
        numbers = torch.arange(tokens + 1, device=by_token_A.device)
        start_T1 = torch.searchsorted(dispatch.token_A[by_token_A], numbers)
    block = min(triton.next_power_of_2(dim), 1024)
    _sum_by_token[(tokens, triton.cdiv(dim, block))](
        y_RD,
        dispatch.place_A,
        dispatch.offsets,
        weight_A,
        by_token_A,
        start_T1,
        out_TD,
        dispatch.num_experts,
        dispatch.k or 0,
        dim,
        BLOCK_D=block,
        enable_fp_fusion=True,
    )
    return out_TD


@triton.jit
def _sum_by_token(y, place, offsets, weight, by_token, start, out, num_experts, k, D, BLOCK_D: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK_D + tl.arange(0, BLOCK_D)
    first, last = token * k, token * k + k
    if start is not None:
        first, last = tl.load(start + token), tl.load(start + token + 1)
    kept_rows = tl.load(offsets + num_experts)
    total = tl.zeros((BLOCK_D,), tl.float32)
    for i in tl.range(first, last, loop_unroll_factor=4):
        assignment = i
        if by_token is not None:
            assignment = tl.load(by_token + i)
        row = tl.load(place + assignment)
        kept = row < kept_rows
        part = tl.load(y + row * D + cols, mask=cols < tl.where(kept, D, 0), other=0.0).to(tl.float32)
        if weight is not None:
            part *= tl.load(weight + assignment, mask=kept, other=0.0).to(tl.float32)
        total += part
    tl.store(out + token * D + cols, total.to(out.dtype.element_ty), mask=cols < D)


def routing_gradient(
    dots_RP: Tensor, dispatch: Dispatch, dy_TD: Tensor, b_out: Tensor | None, weight_A: Tensor
) -> Tensor:
    """Gradient of the weight of each assignment: all parts of ``<dA, a>``, and ``<dy, b_out>``; 0 if dropped."""
    grad_A = torch.empty_like(weight_A)
    assignments, parts = weight_A.shape[0], dots_RP.shape[1]
    block = 128 if b_out is None else 16
    _routing_gradient[(triton.cdiv(assignments, block),)](
        dots_RP,
        dispatch.place_A,
        dispatch.offsets,
        dispatch.token_A,
        dispatch.expert_A,
        dy_TD,
        b_out,
        grad_A,
        assignments,
        dispatch.num_experts,
        parts,
        dy_TD.shape[1],
        dy_TD.stride(0),
        BLOCK_A=block,
        BLOCK_P=triton.next_power_of_2(parts),
        BLOCK_D=128,
        enable_fp_fusion=True,
    )
    return grad_A


@triton.jit(do_not_specialize=["A"])  # it may be different in every step
def _routing_gradient(
    dots,
    place,
    offsets,
    token,
    expert,
    dy,
    bias,
    grad,
    A,
    num_experts,
    P,
    D,
    stride_dy,
    BLOCK_A: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    assignments = tl.program_id(0) * BLOCK_A + tl.arange(0, BLOCK_A)
    row = tl.load(place + assignments, mask=assignments < A, other=0)
    kept = (assignments < A) & (row < tl.load(offsets + num_experts))
    parts = tl.arange(0, BLOCK_P)
    mask = kept[:, None] & (parts[None, :] < P)
    total = tl.sum(tl.load(dots + row[:, None] * P + parts[None, :], mask=mask, other=0.0), 1)
    if bias is not None:
        tokens = tl.load(token + assignments, mask=kept, other=0)
        experts = tl.load(expert + assignments, mask=kept, other=0)
        for d in range(0, D, BLOCK_D):
            cols = d + tl.arange(0, BLOCK_D)
            in_d = kept[:, None] & (cols[None, :] < D)
            dy_d = tl.load(dy + tokens[:, None] * stride_dy + cols[None, :], mask=in_d, other=0.0)
            bias_d = tl.load(bias + experts[:, None] * D + cols[None, :], mask=in_d, other=0.0)
            total += tl.sum(dy_d.to(tl.float32) * bias_d.to(tl.float32), 1)
    tl.store(grad + assignments, total.to(grad.dtype.element_ty), mask=assignments < A)
