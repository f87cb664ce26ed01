"""Rows of similar difficulty side by side: an order from how a model routed them, and batches in that order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from libmoe.core.errors import ConfigError, DataError
from libmoe.data.order import shard_rows

if TYPE_CHECKING:
    from torch import Tensor


class Loader(Protocol):
    """What makes the global batch of any step."""

    batch_size: int

    def batch(self, step: int) -> Mapping[str, Tensor]: ...


def complexity_order(share_SL: ArrayLike) -> NDArray[np.int64]:
    """Order of samples by the complexity vectors ``C_s = [r_1, ..., r_L]`` (arXiv 2310.07188 §3.3).

    ``r_l`` is the share of the sample's tokens that use several experts in layer l.  First comes the sample with the
    smallest sum; the others follow by falling cosine with it, equal ones in the order given.  A sample without such
    tokens has no direction and counts as one with equal shares in all layers.

    Raises:
        DataError: not a matrix of finite shares with a layer.
    """
    share_SL = np.asarray(share_SL, dtype=np.float64)
    if share_SL.ndim != 2 or not share_SL.shape[1] or not (np.isfinite(share_SL) & (share_SL >= 0)).all():
        raise DataError(f"complexity of shape {share_SL.shape}: must be shares by sample and layer, none negative")
    if not len(share_SL):
        return np.empty(0, dtype=np.int64)
    direction_SL = np.where(share_SL.any(axis=1, keepdims=True), share_SL, 1.0)
    direction_SL /= np.linalg.norm(direction_SL, axis=1, keepdims=True)
    easiest = int(share_SL.sum(axis=1).argmin())
    # Rounded, so that equal directions are equal whatever their length was.
    similarity_S = (direction_SL @ direction_SL[easiest]).round(12)
    similarity_S[easiest] = np.inf
    return np.argsort(-similarity_S, kind="stable")


class CurriculumLoader:
    """The batches of another loader, whose rows are reordered within pools of ``period`` steps.

    At the first step of a pool ``measure`` is asked for the complexity of its rows, as the model is then, and they are
    dealt out in :func:`complexity_order`; every row is still used exactly once.  ``measure`` gets a batch and answers
    with the shares of its rows by layer, ``[B, L]`` (:func:`libmoe.train.curriculum.several_share`).

    The order of the current pool is state: save :meth:`state_dict` to go on in the middle of one.

    Raises:
        ConfigError: ``period`` is not positive.
    """

    def __init__(
        self, loader: Loader, period: int, measure: Callable[[Mapping[str, Tensor]], ArrayLike]
    ) -> None:
        if period < 1:
            raise ConfigError(f"period={period} must be at least 1 step")
        self.loader, self.period, self.measure = loader, period, measure
        self.batch_size = loader.batch_size
        self._number, self._order = -1, np.empty(0, dtype=np.int64)
        self._pool: dict[str, Tensor] = {}

    def batch(self, step: int) -> dict[str, Tensor]:
        """Like the loader's, of other rows of the same pool."""
        number, place = divmod(step, self.period)
        if number != self._number or not self._pool:
            batches = [self.loader.batch(number * self.period + i) for i in range(self.period)]
            if number != self._number:
                self._order = complexity_order(np.concatenate([np.asarray(self.measure(b)) for b in batches]))
            self._number = number
            self._pool = {name: torch.cat([b[name] for b in batches]) for name in batches[0]}
        rows = torch.from_numpy(self._order[place * self.batch_size : (place + 1) * self.batch_size])
        return {name: value[rows] for name, value in self._pool.items()}

    def shard(self, step: int, rank: int, world: int, micro: int, num_micro: int) -> dict[str, Tensor]:
        """The rows of :meth:`batch` that process ``rank`` handles as a micro-batch.

        Every process asks ``measure`` about the whole pool, and must be given the same answer.
        """
        first, size = shard_rows(self.batch_size, rank, world, micro, num_micro)
        return {name: value[first : first + size] for name, value in self.batch(step).items()}

    def state_dict(self) -> dict[str, object]:
        return {"pool": self._number, "order": self._order.tolist()}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        self._number, self._order = int(str(state["pool"])), np.asarray(state["order"], dtype=np.int64)
        self._pool = {}
