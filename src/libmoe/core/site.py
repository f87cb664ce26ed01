"""A site: the place in a model where an MoE layer goes, and what the dense FFN there looks like."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Site:
    """Shape of the FFN that an MoE layer replaces.

    Attributes:
        dim: model width D; ``out_dim`` is the width it returns, ``None`` for the same (connectors change it).
        hidden: hidden width of the dense FFN.
        activation: name of the activation (``silu``, ``gelu``, ``relu``, ...).
        gated: ``act(gate(x)) * up(x)`` rather than ``act(up(x))``.
        bias: whether the FFN's linears have biases.
        index: place among the model's MoE layers, from 0; ``count`` is how many there are.
        path: module path in the model, for messages.
        init_std: standard deviation of the backbone's weight initialisation.
        seed: base seed of this site's initial weights; ``None`` draws from torch's global generator.
        vocab_size: how many token ids the model knows; ``None`` for one that reads none, or where nobody said.
    """

    dim: int
    hidden: int
    activation: str = "silu"
    gated: bool = True
    bias: bool = False
    index: int = 0
    count: int = 1
    path: str = ""
    init_std: float = 0.02
    seed: int | None = None
    out_dim: int | None = None
    vocab_size: int | None = None

    @property
    def out(self) -> int:
        """Width of the output."""
        return self.dim if self.out_dim is None else self.out_dim
