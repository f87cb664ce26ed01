"""Hierarchical group attention: tokens of several encoders exchange what their nearest neighbours hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from libmoe.core.errors import ConfigError
from libmoe.ops.autocast import without_autocast


class GroupAttention(nn.Module):
    """The mixing of MoCHA's image tokens (Pang et al., arXiv 2507.22805; steps as in its released code).

    For the M tokens of one image, each in a group (its encoder), with S their cosines:

    1. an edge leads from each token to its nearest neighbours, so many in its group and so many outside;
    2. edges weigh ``(S - min S) / (max S - min S)``, over the chosen ones of the image, and lead both ways;
    3. ``a_i = sum_j w_ij x_j / (sum_j w_ij + 1e-8)``;
    4. ``y_i = LayerNorm((1 - g_i) x_i + g_i a_i)`` with ``g_i = sigmoid(10 (mean |x_i - a_i| - 0.2))``.

    There are no parameters; the gradient goes through x and through S, not through the choice.  The paper multiplies
    S by ``exp(1 / mean_i ||x_i||)``, which cancels in step 2 and is left out here: of tokens near zero, as a new
    connector makes them, it is infinite.  Where no two chosen cosines differ by more than rounding, all edges weigh 1.

    A text's tokens must not pass through: each sees all others.

    Args:
        neighbours: k, of each token.
        intra: part of them from the token's own group, rounded down; fewer where the group has no more.
        chunk: rows of S, or edges, that are held at a time: memory is O(M * chunk) for each image instead of O(M * M).
    """

    def __init__(self, neighbours: int = 10, intra: float = 0.7, chunk: int = 512) -> None:
        super().__init__()
        if neighbours < 1 or chunk < 1 or not 0 <= intra <= 1:
            raise ConfigError(
                f"neighbours={neighbours} and chunk={chunk} must be at least 1, and intra={intra} between 0 and 1"
            )
        self.intra = int(neighbours * intra + 1e-9)  # 10 * 0.7 must not become 6
        self.inter, self.chunk = neighbours - self.intra, chunk

    def forward(self, x_IMD: Tensor, group_M: Sequence[int] | Tensor) -> Tensor:
        """``[I, M, D]`` in the dtype of ``x_IMD``, computed in at least float32.

        Args:
            group_M: the group of each token; the same for all I images.

        Raises:
            ConfigError: not one group for each token.
        """
        with without_autocast(x_IMD):
            x = x_IMD.to(torch.promote_types(x_IMD.dtype, torch.float32))
            x_TD = x.flatten(0, 1)
            row_A, column_A, weight_A = self.edges(x, group_M)
            total_T = x_TD.new_zeros(len(x_TD)).index_add(0, row_A, weight_A)
            sum_TD = _WeightedSum.apply(x_TD, weight_A, row_A, column_A, self.chunk)
            aggregate_TD = sum_TD / (total_T.unsqueeze(1) + 1e-8)
            change_T1 = (x_TD - aggregate_TD).abs().mean(-1, keepdim=True)
            gate_T1 = torch.sigmoid(10 * (change_T1 - 0.2))
            y_TD = F.layer_norm(torch.lerp(x_TD, aggregate_TD, gate_T1), x_TD.shape[-1:])
        return y_TD.to(x_IMD.dtype).view_as(x_IMD)

    def edges(self, x_IMD: Tensor, group_M: Sequence[int] | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Row, column and weight of every edge, first as they were chosen and then the other way round, each ``[A]``.

        Tokens are numbered through all images.
        """
        images, tokens = x_IMD.shape[:2]
        row_E, column_IE, cosine_IE = self._neighbours(x_IMD, _members(group_M, tokens, x_IMD.device))
        first_I1 = tokens * torch.arange(images, device=x_IMD.device).unsqueeze(1)
        row_A, column_A = (first_I1 + row_E).flatten(), (first_I1 + column_IE).flatten()
        weight_A = _normalised(cosine_IE).flatten()
        return torch.cat([row_A, column_A]), torch.cat([column_A, row_A]), torch.cat([weight_A, weight_A])

    def _neighbours(
        self, x_IMD: Tensor, members: Sequence[tuple[Tensor, Tensor]]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Where the edges begin ``[E]``, where they end ``[I, E]``, and the cosines of the two ``[I, E]``."""
        unit_IMD = F.normalize(x_IMD, dim=-1)
        rows, columns, cosines = [], [], []
        for inside, outside in members:
            for part_C in inside.split(self.chunk):
                cosine_ICM = unit_IMD[:, part_C] @ unit_IMD.mT
                for pool, wanted in ((inside, min(self.intra, len(inside) - 1)), (outside, self.inter)):
                    chosen_ICK = _nearest(cosine_ICM.detach(), part_C, pool, min(wanted, len(pool)))
                    rows.append(part_C.repeat_interleave(chosen_ICK.shape[-1]))
                    columns.append(chosen_ICK.flatten(1))
                    cosines.append(cosine_ICM.gather(-1, chosen_ICK).flatten(1))
        return torch.cat(rows), torch.cat(columns, 1), torch.cat(cosines, 1)


class _WeightedSum(torch.autograd.Function):
    """``y_i = sum_a weight_a x_(column_a)`` over the edges with ``row_a = i``; never all edges' tokens at once."""

    @staticmethod
    def forward(ctx: Any, x_TD: Tensor, weight_A: Tensor, row_A: Tensor, column_A: Tensor, chunk: int) -> Tensor:
        ctx.save_for_backward(x_TD, weight_A, row_A, column_A)
        ctx.chunk = chunk
        return _summed(x_TD, weight_A, row_A, column_A, chunk)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_TD: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        x_TD, weight_A, row_A, column_A = ctx.saved_tensors
        pairs = zip(row_A.split(ctx.chunk), column_A.split(ctx.chunk), strict=True)
        grad_weight_A = torch.cat([(grad_TD[row] * x_TD[column]).sum(-1) for row, column in pairs])
        return _summed(grad_TD, weight_A, column_A, row_A, ctx.chunk), grad_weight_A, None, None, None


def _summed(x_TD: Tensor, weight_A: Tensor, row_A: Tensor, column_A: Tensor, chunk: int) -> Tensor:
    y_TD = torch.zeros_like(x_TD)
    for weight, row, column in zip(weight_A.split(chunk), row_A.split(chunk), column_A.split(chunk), strict=True):
        y_TD.index_add_(0, row, weight.unsqueeze(1) * x_TD[column])
    return y_TD


@torch.no_grad()
def _nearest(cosine_ICM: Tensor, part_C: Tensor, pool_P: Tensor, wanted: int) -> Tensor:
    """The tokens of ``pool_P`` with the largest cosines, the token itself left out: int64 ``[I, C, wanted]``."""
    own_CP = part_C.unsqueeze(1) == pool_P
    return pool_P[cosine_ICM[:, :, pool_P].masked_fill(own_CP, -torch.inf).topk(wanted).indices]


def _normalised(cosine_IE: Tensor) -> Tensor:
    """From the image's weakest edge, 0, to its strongest, 1; all 1 where they are the same but for rounding."""
    if not cosine_IE.numel():
        return cosine_IE
    low_I1, high_I1 = cosine_IE.amin(1, keepdim=True), cosine_IE.amax(1, keepdim=True)
    same_I1 = high_I1 - low_I1 <= 16 * torch.finfo(cosine_IE.dtype).eps
    span_I1 = torch.where(same_I1, 1, high_I1 - low_I1)
    return torch.where(same_I1, 1, (cosine_IE - low_I1) / span_I1)


def _members(group_M: Sequence[int] | Tensor, tokens: int, device: torch.device) -> list[tuple[Tensor, Tensor]]:
    """For each group the places of its tokens, and those of all others."""
    groups = group_M.tolist() if isinstance(group_M, Tensor) else list(group_M)
    if len(groups) != tokens:
        raise ConfigError(f"group_M tells the groups of {len(groups)} tokens, and there are {tokens}")
    found = []
    for group in dict.fromkeys(groups):
        inside = [place for place, other in enumerate(groups) if other == group]
        outside = [place for place, other in enumerate(groups) if other != group]
        found.append((torch.tensor(inside, device=device), torch.tensor(outside, dtype=torch.long, device=device)))
    return found
