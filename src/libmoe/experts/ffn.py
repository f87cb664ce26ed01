"""Feed-forward experts: stacked parameters on the grouped operations."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from libmoe.core.errors import ConfigError
from libmoe.core.plan import SparsePlan
from libmoe.experts.base import Experts
from libmoe.ops import AUTO, Rows, StackedFFN, ffn, grouped_linear
from libmoe.ops.activations import activation as get_activation
from libmoe.ops.merged import merged_linear
from libmoe.ops.soft import batched_ffn

if TYPE_CHECKING:
    from libmoe.core.plan import Plan, Segments


class FFN(nn.Module):
    """One dense feed-forward network with the same parameters as one expert of :class:`FFNExperts`.

    ``w_in`` is ``[H, D]``, or ``[2H, D]`` when gated with the gate's H rows first; ``w_out`` is ``[D, H]``, or
    ``[O, H]`` for one that returns ``out_dim`` features.
    """

    def __init__(
        self,
        dim: int,
        hidden: int,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        init_std: float = 0.02,
        out_dim: int | None = None,
    ) -> None:
        super().__init__()
        out = dim if out_dim is None else out_dim
        self.activation, self.gated = activation, gated
        self.act = get_activation(activation)
        self.w_in = nn.Parameter(torch.randn(hidden * (2 if gated else 1), dim) * init_std)
        self.w_out = nn.Parameter(torch.randn(out, hidden) * init_std)
        self.b_in = nn.Parameter(torch.zeros(self.w_in.shape[0])) if bias else None
        self.b_out = nn.Parameter(torch.zeros(out)) if bias else None

    def hidden_units(self, x: Tensor) -> Tensor:
        """What the output matrix reads: ``[..., H]``."""
        h = F.linear(x, self.w_in, self.b_in)
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            return self.act(gate) * up
        return self.act(h)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.hidden_units(x), self.w_out, self.b_out)


class SharedExpert(nn.Module):
    """An always-on FFN beside the routed experts, optionally scaled by ``sigmoid(w . x)`` (Qwen2-MoE)."""

    def __init__(self, ffn: FFN, gated_by_input: bool = False) -> None:
        super().__init__()
        self.ffn = ffn
        dim = ffn.w_in.shape[1]
        self.gate = nn.Parameter(torch.zeros(1, dim)) if gated_by_input else None

    def forward(self, x_TD: Tensor) -> Tensor:
        y_TD = self.ffn(x_TD)
        return y_TD if self.gate is None else torch.sigmoid(F.linear(x_TD, self.gate)) * y_TD


class FFNExperts(Experts):
    """N feed-forward experts of equal width.

    Args:
        dim, hidden: D and H.
        activation, gated, bias: form of the FFN, as in :class:`FFN`.
        init_std: standard deviation of the normal initialisation; ``None`` leaves ``D^-1/2`` and ``H^-1/2``.
        dropout: probability of dropping hidden units while training (expert dropout, arXiv 2101.03961 §2.4).
        backend: a name of :func:`libmoe.ops.backends`, or ``auto``; may be changed at any time.
        out_dim: width O of the output; ``None`` for D.  Where they differ, the two products are computed one after
            the other.

    Parameters: ``w_in [N, H or 2H, D]``, ``w_out [N, O, H]``, ``b_in``, ``b_out``.

    Attribute ``copies_dense``: whether upcycling makes them copies of the dense FFN.
    """

    copies_dense = True

    def __init__(
        self,
        num_experts: int,
        dim: int,
        hidden: int,
        activation: str = "silu",
        gated: bool = True,
        bias: bool = False,
        init_std: float | None = 0.02,
        dropout: float = 0.0,
        backend: str = AUTO,
        out_dim: int | None = None,
    ) -> None:
        super().__init__(num_experts)
        if hidden < 1:
            raise ConfigError(f"expert_hidden must be at least 1, got {hidden}")
        self.dim, self.hidden, self.dropout, self.backend = dim, hidden, dropout, backend
        self.out_dim = dim if out_dim is None else out_dim
        self.activation, self.gated = activation, gated
        self.act = get_activation(activation)
        rows = hidden * (2 if gated else 1)
        std_in, std_out = (dim**-0.5, hidden**-0.5) if init_std is None else (init_std, init_std)
        self.w_in = nn.Parameter(torch.randn(num_experts, rows, dim) * std_in)
        self.w_out = nn.Parameter(torch.randn(num_experts, self.out_dim, hidden) * std_out)
        self.b_in = nn.Parameter(torch.zeros(num_experts, rows)) if bias else None
        self.b_out = nn.Parameter(torch.zeros(num_experts, self.out_dim)) if bias else None

    def _hidden(self, h: Tensor) -> Tensor:
        if self.gated:
            gate, up = h.chunk(2, dim=-1)
            h = self.act(gate) * up
        else:
            h = self.act(h)
        return F.dropout(h, self.dropout, self.training) if self.dropout else h

    @property
    def stacked(self) -> StackedFFN:
        """The parameters as the operations take them."""
        return StackedFFN(self.w_in, self.w_out, self.b_in, self.b_out, self.activation, self.gated)

    @property
    def _apart(self) -> bool:
        """Whether something happens that the fused operations do not know."""
        return self.out_dim != self.dim or bool(self.dropout and self.training)

    def execute(self, x_TD: Tensor, plan: Plan, x_AD: Tensor | None = None) -> Tensor:
        # A subclass may compute something else.
        own = type(self).forward_rows is not FFNExperts.forward_rows
        if own or type(plan) is not SparsePlan or plan.scale_input or self._apart:
            return plan.execute(self, x_TD, x_AD)
        source, rows = (
            (x_TD, Rows.of(plan.dispatch)) if x_AD is None else (x_AD, Rows.of(plan.dispatch, True))
        )
        return ffn(source, self.stacked, rows, plan.weight_A, self.backend).to(x_TD.dtype)

    def forward_rows(self, x_RD: Tensor, segments: Segments) -> Tensor:
        if not self._apart:
            if segments.rows_each is None:
                return ffn(x_RD, self.stacked, Rows(segments), backend=self.backend)
            x_NRD = x_RD.reshape(self.num_experts, segments.rows_each, self.dim)
            return batched_ffn(x_NRD, self.stacked, self.backend).flatten(0, 1)
        h_RH = grouped_linear(x_RD, self.w_in, segments, self.b_in, self.backend)
        return grouped_linear(self._hidden(h_RH), self.w_out, segments, self.b_out, self.backend)

    def forward_merged(self, x_GLD: Tensor, gate_GN: Tensor) -> Tensor:
        h_GLH = merged_linear(x_GLD, gate_GN, self.w_in, self.b_in)
        return merged_linear(self._hidden(h_GLH), gate_GN, self.w_out, self.b_out)

    def materialise(self, expert: int) -> FFN:
        with torch.device("meta"):  # no random numbers drawn, no memory for weights that are replaced
            bias = self.b_in is not None
            ffn = FFN(self.dim, self.hidden, self.activation, self.gated, bias, out_dim=self.out_dim)
        for name, _ in list(ffn.named_parameters()):
            setattr(ffn, name, nn.Parameter(getattr(self, name)[expert].detach().clone()))
        return ffn

    def load_ffn(self, expert: int, ffn: FFN) -> None:
        """Copy a dense FFN of the same form into expert number ``expert``."""
        with torch.no_grad():
            for name, param in ffn.named_parameters():
                getattr(self, name)[expert].copy_(param)

    def flops_per_row(self) -> list[float]:
        return [2.0 * (self.w_in.shape[1:].numel() + self.w_out.shape[1:].numel())] * self.num_experts

    def extra_repr(self) -> str:
        form = "gated" if self.gated else "plain"
        return (
            f"num_experts={self.num_experts}, dim={self.dim}, hidden={self.hidden}, {form} {self.activation}"
        )
