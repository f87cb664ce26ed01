"""Pictures of single texts: how active the neurons of all experts are, and which experts each token gets
(arXiv 2406.18219 §4.3, §4.4)."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from libmoe.analysis.experts.layers import expert_matrices
from libmoe.analysis.experts.matrices import ExpertMatrices
from libmoe.analysis.experts.probing import Probed
from libmoe.core.errors import DataError

TOKENS = 64
"""Of a map, unless told otherwise."""


@dataclass
class Maps:
    """Keeps the first tokens of each layer.  A consumer of :func:`~libmoe.analysis.experts.probing.probing`.

    Args:
        tokens: how many.
        states: keep intermediate states too, ``tokens * N * H`` numbers for each layer.
    """

    tokens: int = TOKENS
    states: bool = True
    _weights: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)
    _states: dict[int, list[Tensor]] = field(default_factory=dict, repr=False)

    def __call__(self, probed: Probed) -> None:
        index = probed.layer.index
        kept = self._weights.setdefault(index, [])
        room = self.tokens - sum(map(len, kept))
        if room <= 0 or probed.weight_TN is None:
            return
        kept.append(probed.weight_TN[:room].cpu())
        if self.states:
            matrices, activation = expert_matrices(probed.layer), probed.layer.activation
            x_TD = probed.x_TD[:room]
            state_NTH = [self._of(matrices.get(e), x_TD, activation) for e in range(probed.layer.num_experts)]
            width = max(state.shape[1] for state in state_NTH)
            pad = torch.nn.functional.pad
            stacked = [pad(state, (0, width - state.shape[1]), value=torch.nan) for state in state_NTH]
            self._states.setdefault(index, []).append(torch.stack(stacked))

    @staticmethod
    def _of(expert: ExpertMatrices | None, x_TD: Tensor, activation: object) -> Tensor:
        if expert is None:
            return torch.zeros(len(x_TD), 0)
        dtype = expert.up_HD.dtype
        return expert.states(x_TD.to(dtype), activation).float().cpu()  # type: ignore[arg-type]

    def routing(self, layer: int) -> NDArray[np.float32]:
        """``[T, N]``: the weights of each token's experts, 0 for the others.

        Two models (a base model and what was tuned from it) on one text are compared by the maps' difference.

        Raises:
            DataError: nothing was kept of this layer.
        """
        return self._joined(self._weights, layer, 0)

    def intermediate(self, layer: int) -> NDArray[np.float32]:
        """``[N, T, H]``: ``act(W_gate x)`` of every expert, chosen or not; NaN where an expert has fewer neurons.

        Raises:
            DataError: nothing was kept of this layer.
        """
        return self._joined(self._states, layer, 1)

    @staticmethod
    def _joined(kept: dict[int, list[Tensor]], layer: int, dim: int) -> NDArray[np.float32]:
        if not kept.get(layer):
            raise DataError(
                f"no map of layer {layer} was kept; there are {sorted(k for k in kept if kept[k])}"
            )
        found: NDArray[np.float32] = torch.cat(kept[layer], dim).numpy()
        return found
