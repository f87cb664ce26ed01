"""Frozen feed-forward experts, each with low-rank adapters of its own (LoRA, Hu et al., arXiv 2106.09685)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.experts.base import Experts
from libmoe.experts.ffn import FFN, FFNExperts
from libmoe.ops import grouped_linear

if TYPE_CHECKING:
    from libmoe.core.plan import Segments


class LowRank(nn.Module):
    """``scale * B_e A_e dropout(x)`` for each expert e; A is drawn from ``U(-I^-1/2, I^-1/2)`` and B is 0.

    Parameters: ``a [N, r, I]``, ``b [N, O, r]``.
    """

    def __init__(self, num_experts: int, inner: int, out: int, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        self.scale, self.dropout = scale, dropout
        self.a = nn.Parameter(torch.empty(num_experts, rank, inner).uniform_(-(inner**-0.5), inner**-0.5))
        self.b = nn.Parameter(torch.zeros(num_experts, out, rank))

    def forward(self, x_RI: Tensor, segments: Segments, backend: str) -> Tensor:
        x_RI = F.dropout(x_RI, self.dropout, self.training)
        u_Rr = grouped_linear(x_RI, self.a, segments, backend=backend)
        return self.scale * grouped_linear(u_Rr, self.b, segments, backend=backend)

    def of_one(self, x: Tensor) -> Tensor:
        """Of the first expert, for inputs ``[..., I]``."""
        x = F.dropout(x, self.dropout, self.training)
        return self.scale * F.linear(F.linear(x, self.a[0]), self.b[0])

    def product(self) -> Tensor:
        """What is added to the weights: ``[N, O, I]``."""
        return self.scale * self.b @ self.a


class LoRALinear(nn.Module):
    """``W x + b + (alpha / r) B A dropout(x)`` with a frozen linear.

    Args:
        linear: an ``nn.Linear``, or anything that computes as one with ``weight`` as its matrix.
        inner, out: I and O.
    """

    def __init__(self, linear: nn.Module, inner: int, out: int, rank: int, alpha: float, dropout: float) -> None:
        super().__init__()
        self.linear = linear.requires_grad_(False)
        self.lora = LowRank(1, inner, out, rank, alpha / rank, dropout).to(linear.weight.device, linear.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + self.lora.of_one(x)


class LoRAExperts(Experts):
    """``W_e x + (alpha / r) B_e A_e x`` in the place of each linear W_e of frozen experts.

    A gated expert has adapters at its gate, up and down projections, each with a dropout of its own.  Low-rank
    products are added rather than merged into the weights: merging would take gradients as large as the weights
    in training, and time for all experts, however few rows there are.  :meth:`merged` is for when training is over.

    Args:
        base: the experts to adapt; their parameters are frozen.
        rank, alpha, dropout: r, the numerator of the scale, and the dropout of the adapters' inputs.

    Raises:
        ConfigError: a rank below 1, or a dropout outside [0, 1).
    """

    def __init__(self, base: FFNExperts, rank: int = 8, alpha: float = 16.0, dropout: float = 0.0) -> None:
        super().__init__(base.num_experts)
        if rank < 1:
            raise ConfigError(f"lora_rank={rank} must be at least 1")
        if not (0 <= dropout < 1 and math.isfinite(alpha)):
            raise ConfigError(f"lora_dropout={dropout} must be in [0, 1) and lora_alpha={alpha} a finite number")
        self.base, self.out_dim = base.requires_grad_(False), base.out_dim
        ins = ("gate", "up") if base.gated else ("up",)
        shapes = dict.fromkeys(ins, (base.dim, base.hidden)) | {"down": (base.hidden, base.out_dim)}
        self.lora = nn.ModuleDict(
            {name: LowRank(base.num_experts, *shape, rank, alpha / rank, dropout) for name, shape in shapes.items()}
        ).to(base.w_in.device, base.w_in.dtype)

    @property
    def _inputs(self) -> list[LowRank]:
        """Adapters of the linears that read the experts' input, in the order of their rows in ``w_in``."""
        return [adapter for name, adapter in self.lora.items() if name != "down"]

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        base, backend = self.base, self.base.backend
        h_RH = grouped_linear(x_RD, base.w_in, segments, base.b_in, backend)
        h_RH = h_RH + torch.cat([adapter(x_RD, segments, backend) for adapter in self._inputs], dim=-1)
        h_RH = base._hidden(h_RH)
        y_RD = grouped_linear(h_RH, base.w_out, segments, base.b_out, backend)
        return y_RD + self.lora["down"](h_RH, segments, backend)

    @torch.no_grad()
    def merged(self) -> FFNExperts:
        """Plain experts that compute the same (a copy)."""
        base = self.base
        with torch.device("meta"):
            plain = FFNExperts(
                base.num_experts,
                base.dim,
                base.hidden,
                base.activation,
                base.gated,
                base.b_in is not None,
                dropout=base.dropout,
                backend=base.backend,
                out_dim=base.out_dim,
            )
        added = {
            "w_in": torch.cat([adapter.product() for adapter in self._inputs], dim=1),
            "w_out": self.lora["down"].product(),
        }
        for name, weight in base.named_parameters():
            setattr(plain, name, nn.Parameter(weight.detach().clone() + added.get(name, 0)))
        return plain.train(self.training)

    def materialise(self, expert: int) -> LoRAFFN:
        pairs = {
            name: (adapter.a[expert].detach().clone(), adapter.b[expert].detach().clone())
            for name, adapter in self.lora.items()
        }
        return LoRAFFN(self.base.materialise(expert), pairs, self.lora["down"].scale)

    def flops_per_row(self) -> list[float]:
        matrices = (p for p in self.parameters() if p.dim() == 3)
        return [2.0 * sum(p.shape[1:].numel() for p in matrices)] * self.num_experts


class LoRAFFN(nn.Module):
    """One expert of :class:`LoRAExperts`, written out; without dropout.

    Args:
        pairs: A ``[r, I]`` and B ``[O, r]`` by the name of the linear: ``gate`` (if there is one), ``up``, ``down``.
    """

    def __init__(self, ffn: FFN, pairs: dict[str, tuple[Tensor, Tensor]], scale: float) -> None:
        super().__init__()
        self.ffn, self.scale = ffn.requires_grad_(False), scale
        self.a = nn.ParameterDict({name: a for name, (a, _) in pairs.items()})
        self.b = nn.ParameterDict({name: b for name, (_, b) in pairs.items()})

    def _low_rank(self, name: str, x: Tensor) -> Tensor:
        return self.scale * F.linear(F.linear(x, self.a[name]), self.b[name])

    def forward(self, x: Tensor) -> Tensor:
        ffn = self.ffn
        h = F.linear(x, ffn.w_in, ffn.b_in)
        if ffn.gated:
            gate, up = h.chunk(2, dim=-1)
            h = ffn.act(gate + self._low_rank("gate", x)) * (up + self._low_rank("up", x))
        else:
            h = ffn.act(h + self._low_rank("up", x))
        return F.linear(h, ffn.w_out, ffn.b_out) + self._low_rank("down", h)
