"""What the operations work on: stacked experts, rows, and the description of a task that backends are chosen by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from libmoe.core.errors import ConfigError, unknown
from libmoe.ops.activations import ACTIVATIONS

if TYPE_CHECKING:
    from libmoe.core.dispatch import Dispatch, Segments


@dataclass(frozen=True)
class StackedFFN:
    """Parameters of N feed-forward experts of equal width and the function they compute.

    Expert e maps a row x to ``w_out[e] @ h + b_out[e]`` with ``h = act(g) * u`` and ``[g, u] = w_in[e] @ x + b_in[e]``
    when gated, else ``h = act(w_in[e] @ x + b_in[e])``.

    Args:
        w_in: ``[N, 2H, D]`` when gated (the H rows of the gate first), else ``[N, H, D]``; any strides.
        w_out: ``[N, D, H]``; any strides.
        b_in, b_out: ``[N, 2H or H]`` and ``[N, D]``, or ``None``.
        activation: a name of :data:`libmoe.ops.activations.ACTIVATIONS`.
        gated: see above.

    Raises:
        ConfigError: shapes that do not belong together, or an unknown activation.
    """

    w_in: Tensor
    w_out: Tensor
    b_in: Tensor | None = None
    b_out: Tensor | None = None
    activation: str = "silu"
    gated: bool = True

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise unknown("activation", self.activation, ACTIVATIONS)
        n, dim, hidden = self.w_out.shape
        rows = hidden * (2 if self.gated else 1)
        if tuple(self.w_in.shape) != (n, rows, dim):
            raise ConfigError(
                f"w_in has shape {tuple(self.w_in.shape)}, but with w_out {tuple(self.w_out.shape)} and "
                f"gated={self.gated} it must be {(n, rows, dim)}"
            )
        for name, bias, width in (("b_in", self.b_in, rows), ("b_out", self.b_out, dim)):
            if bias is not None and tuple(bias.shape) != (n, width):
                raise ConfigError(f"{name} has shape {tuple(bias.shape)}, but the weights need {(n, width)}")

    @property
    def num_experts(self) -> int:
        return self.w_out.shape[0]

    @property
    def dim(self) -> int:
        return self.w_out.shape[1]

    @property
    def hidden(self) -> int:
        return self.w_out.shape[2]

    def parameters(self) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        return self.w_in, self.w_out, self.b_in, self.b_out

    def to(self, dtype: torch.dtype) -> StackedFFN:
        """The same experts with parameters in ``dtype`` (differentiable)."""
        b_in, b_out = (None if b is None else b.to(dtype) for b in (self.b_in, self.b_out))
        return StackedFFN(self.w_in.to(dtype), self.w_out.to(dtype), b_in, b_out, self.activation, self.gated)


class Rows:
    """Which source row each computed row reads, and what becomes of the results.

    ``Rows(segments)``: the source *is* the sorted rows, and results come back as such rows.
    ``Rows.of(dispatch)``: rows are gathered from tokens as the dispatch says, and results are summed by token; with
    ``own_inputs`` the source has one row per assignment rather than one per token.
    """

    __slots__ = ("_segments", "dispatch", "own_inputs")

    def __init__(self, segments: Segments) -> None:
        self._segments: Segments | None = segments
        self.dispatch: Dispatch | None = None
        self.own_inputs = False

    @classmethod
    def of(cls, dispatch: Dispatch, own_inputs: bool = False) -> Rows:
        rows = cls.__new__(cls)
        rows._segments, rows.dispatch, rows.own_inputs = None, dispatch, own_inputs
        return rows

    @property
    def segments(self) -> Segments:
        """Rows of each expert; those of a dispatch are computed when first asked for."""
        return self._segments if self.dispatch is None else self.dispatch.segments  # type: ignore[return-value]

    @property
    def source_R(self) -> Tensor | None:
        """Source row of each computed row: int64 ``[R]``; ``None`` means its own number."""
        if self.dispatch is None:
            return None
        return self.dispatch.order_R if self.own_inputs else self.dispatch.token_R


class Task(NamedTuple):
    """What a backend is asked to do, as far as choosing one depends on it.

    ``op`` is ``ffn`` (stacked FFN experts) or ``linear`` (one grouped linear map, whose output width is ``hidden``).
    ``rows`` counts computed rows.
    """

    op: str
    device: str
    dtype: torch.dtype
    gradient: bool
    rows: int
    num_experts: int
    dim: int
    hidden: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False

    @property
    def flops(self) -> float:
        """Multiply-adds counted as two, of the whole pass (backward costs twice the forward)."""
        matrices = 1 if self.op == "linear" else 3 if self.gated else 2
        return (3.0 if self.gradient else 1.0) * 2.0 * matrices * self.rows * self.dim * self.hidden

    @property
    def weight_bytes(self) -> float:
        """Bytes of the weights that are touched when rows spread evenly over the experts."""
        matrices = 1 if self.op == "linear" else 3 if self.gated else 2
        touched = min(self.num_experts, self.rows)
        return float(matrices * touched * self.dim * self.hidden * self.dtype.itemsize)
