"""Experts that upcycling makes from slices of the dense FFN instead of copies of it."""

from __future__ import annotations

from typing import Any

import torch

from libmoe.core.errors import ConfigError
from libmoe.experts.ffn import FFN, FFNExperts


class SlicedExperts(FFNExperts):
    """N feed-forward experts; upcycled, expert i gets slice ``i mod G`` of the dense FFN (arXiv 2410.07524 §3).

    Slice s of G holds hidden units ``s H / G`` to ``(s + 1) H / G``: their rows of each input matrix and bias and their
    columns of ``w_out``.  The sum of all slices is the dense FFN, but for ``b_out``, which every slice has in full.

    Args:
        slices: G, which divides N and the width of the dense FFN.
        scale_in, scale_out: factors of the input matrices and biases, and of ``w_out``, when they are sliced.
        others: those of :class:`~libmoe.experts.ffn.FFNExperts`.
    """

    def __init__(
        self, *args: Any, slices: int = 1, scale_in: float = 1.0, scale_out: float = 1.0, **others: Any
    ) -> None:
        super().__init__(*args, **others)
        if slices < 1 or self.num_experts % slices:
            raise ConfigError(f"{slices} slices must divide the {self.num_experts} experts")
        self.slices, self.scale_in, self.scale_out = slices, scale_in, scale_out

    @torch.no_grad()
    def load_slices(self, ffn: FFN, path: str = "the dense FFN") -> None:
        """Cut ``ffn`` and put its slices in.

        Raises:
            ConfigError: it is not G times as wide as an expert, or of another form.
        """
        ours, width = dict(self.named_parameters()), ffn.w_out.shape[1]
        theirs = dict(ffn.named_parameters())
        if ours.keys() != theirs.keys() or (self.activation, self.gated) != (ffn.activation, ffn.gated):
            raise ConfigError(f"{path} is an FFN of another form than the experts; use init='scratch'")
        if width != self.slices * self.hidden or ffn.w_in.shape[1] != self.dim or ffn.w_out.shape[0] != self.out_dim:
            raise ConfigError(
                f"{path} of width {width} cannot be cut into {self.slices} slices as wide as the experts, "
                f"{self.hidden}; leave expert_hidden unset or use init='scratch'"
            )
        parts = 2 if self.gated else 1  # the gate's rows come before the others, each cut by itself
        for expert in range(self.num_experts):
            piece = slice(expert % self.slices * self.hidden, (expert % self.slices + 1) * self.hidden)
            for name in ("w_in", "b_in"):
                if name in ours:
                    rows = theirs[name].unflatten(0, (parts, width))[:, piece].flatten(0, 1)
                    ours[name][expert].copy_(rows * self.scale_in)
            ours["w_out"][expert].copy_(theirs["w_out"][:, piece] * self.scale_out)
            if "b_out" in ours:
                ours["b_out"][expert].copy_(theirs["b_out"])
