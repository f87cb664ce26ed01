"""Linear attention by additions: queries and keys that are 0 or 1 (ShiftAddViT)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError, unknown

Mean = Literal["batch", "image"]


def binarise(x_BHLd: Tensor, over: Mean = "batch") -> Tensor:
    """``1[x > mean(x)]`` of the shape and dtype of x, with the gradient of ``clamp(x, 0, 1)``: ``1[0 < x < 1]``.

    The mean has no gradient.  It is that of the whole tensor, as released, or of each image; its accumulation is in at
    least float32.
    """
    wide = x_BHLd.detach().to(torch.promote_types(x_BHLd.dtype, torch.float32))
    mean = wide.mean() if over == "batch" else wide.mean(dim=(1, 2, 3), keepdim=True)
    passes = torch.where((x_BHLd > 0) & (x_BHLd < 1), x_BHLd, 0)
    return (wide > mean).to(x_BHLd.dtype) + (passes - passes.detach())


def masked_sums(b_BHLd: Tensor, v_BHLd: Tensor) -> Tensor:
    """``b^T v``: for each feature of b the sum of the tokens where it is 1, ``[B, H, d, d]``."""
    return b_BHLd.mT @ v_BHLd


class BinaryLinearAttention(nn.Module):
    """Attention of every token to all others whose products are additions, in time linear in the tokens.

    ShiftAddViT (You et al., arXiv 2306.06446; constants, means and the convolution as in its released code).  Per
    head, with q and k divided by their norms and b the function :func:`binarise`:

        o = v / 2 + b(q) (b(k)^T v) / pi,    y = o / ||o|| + conv(v),

    conv being a convolution along the tokens whose kernel all features of a head share.  There is no softmax, no scale
    and no order of tokens but the convolution's.  With ``mean="batch"`` what an image gets depends on the others of
    its batch.

    Args:
        heads: H.
        kernel: tokens that the convolution sees, an odd number.
        mean: what thresholds are means of: the whole ``batch``, as released, or each ``image``.

    Raises:
        ConfigError: an even kernel, or an unknown mean.
    """

    def __init__(self, heads: int, kernel: int = 9, mean: Mean = "batch") -> None:
        super().__init__()
        if kernel < 1 or kernel % 2 == 0:
            raise ConfigError(
                f"kernel={kernel}: the convolution needs an odd number of tokens; use 9 as published"
            )
        if mean not in get_args(Mean):
            raise unknown("value of mean", mean, get_args(Mean))
        self.mean: Mean = mean
        self.conv = nn.Conv2d(heads, heads, (kernel, 1), padding=(kernel // 2, 0), groups=heads, bias=False)

    def forward(self, q_BHLd: Tensor, k_BHLd: Tensor, v_BHLd: Tensor) -> Tensor:
        """``[B, H, L, d]``."""
        b_q, b_k = (binarise(F.normalize(x, dim=-1), self.mean) for x in (q_BHLd, k_BHLd))
        o_BHLd = v_BHLd / 2 + b_q @ masked_sums(b_k, v_BHLd) / math.pi
        return F.normalize(o_BHLd, dim=-1) + self.conv(v_BHLd)
