"""Has routing drifted?  Live use of the experts against a reference, with a threshold that noise rarely passes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.metrics.information import jensen_shannon
from libmoe.core.errors import ConfigError
from libmoe.mlops.usage import Usage, check_same

Floats = NDArray[np.float64]
FALSE_ALARMS = 0.01
"""Share of checks that may raise an alarm although nothing has changed."""


@dataclass(frozen=True)
class LayerDrift:
    """One layer: its divergence in nats, what noise stays below, and the expert whose share has changed most."""

    layer: int
    divergence: float
    threshold: float
    expert: int
    share_then: float
    share_now: float

    @property
    def drifted(self) -> bool:
        return self.divergence > self.threshold


@dataclass(frozen=True)
class Drift:
    """A check of all layers; ``sequences`` of the reference and live."""

    layers: list[LayerDrift]
    sequences: tuple[int, int]
    false_alarms: float

    @property
    def drifted(self) -> list[LayerDrift]:
        """Layers that have drifted, worst first."""
        found = [layer for layer in self.layers if layer.drifted]
        return sorted(found, key=lambda layer: layer.threshold / layer.divergence)

    @property
    def words(self) -> str:
        if not self.drifted:
            return (
                f"no drift: {len(self.layers)} layers below the threshold over {self.sequences[1]} sequences"
            )
        worst = self.drifted[0]
        return (
            f"routing has drifted in {len(self.drifted)} of {len(self.layers)} layers; in layer {worst.layer} expert "
            f"{worst.expert} went from {worst.share_then:.1%} to {worst.share_now:.1%} of the load"
        )


class DriftDetector:
    """Compares live use of the experts with a reference.

    Tokens of one sequence choose alike, so the unit of noise is the sequence: the threshold comes from drawing two
    samples of sequences, as many as the reference and the live sample have, from the reference itself, and
    asking how far these lie apart.  All layers are judged together: of the checks of an unchanged model, a share of
    ``false_alarms`` raises an alarm in any layer.

    Args:
        reference: by layer ``[U, N]``, see :class:`libmoe.mlops.usage.UsageRecorder`.
        false_alarms: that share.
        draws: pairs of samples that are drawn.
        seed: of the draws.

    Raises:
        DataError: fewer than two sequences.
        ConfigError: a share that so few draws cannot resolve.
    """

    def __init__(
        self, reference: Usage, *, false_alarms: float = FALSE_ALARMS, draws: int = 2000, seed: int = 0
    ) -> None:
        if not 10 / draws <= false_alarms < 1:
            raise ConfigError(
                f"false_alarms must be from {10 / draws:g} to below 1 with {draws} draws, got {false_alarms:g}"
            )
        check_same(reference, reference)
        self.reference, self.false_alarms, self._draws, self._seed = reference, false_alarms, draws, seed
        self._thresholds: dict[int, dict[int, float]] = {}

    def check(self, live: Usage) -> Drift:
        """Compare ``live``, of the same form as the reference.

        Raises:
            DataError: fewer than two sequences, or other layers and experts.
        """
        check_same(self.reference, live)
        size = min(map(len, live.values()))
        thresholds = self.thresholds(size)
        layers = [self._layer(layer, live[layer], thresholds[layer]) for layer in sorted(live)]
        sequences = (min(map(len, self.reference.values())), size)
        return Drift(layers, sequences, self.false_alarms)

    def thresholds(self, size: int) -> dict[int, float]:
        """The divergence of each layer that noise passes rarely in live samples of ``size`` sequences."""
        if size not in self._thresholds:
            noise = {layer: self._noise(count_UN, size) for layer, count_UN in self.reference.items()}
            scale = {
                layer: max(float(np.median(each)), np.finfo(float).tiny) for layer, each in noise.items()
            }
            # The worst layer of each draw, layers made comparable by their usual noise.
            worst = np.max([noise[layer] / scale[layer] for layer in noise], axis=0)
            factor = float(np.quantile(worst, 1 - self.false_alarms, method="higher"))
            self._thresholds[size] = {layer: factor * each for layer, each in scale.items()}
        return self._thresholds[size]

    def _noise(self, count_UN: Floats, size: int) -> Floats:
        """Divergence of pairs of samples; layers of as many sequences draw the same ones."""
        units = len(count_UN)
        generator = np.random.default_rng(self._seed)
        chance_U = np.full(units, 1 / units)
        pair = [generator.multinomial(n, chance_U, self._draws) @ count_UN for n in (units, size)]
        # Drawing from a sample shows too little of the scatter, by so much.
        return jensen_shannon(*pair) * units / (units - 1)

    def _layer(self, layer: int, live_UN: Floats, threshold: float) -> LayerDrift:
        then_N, now_N = (_shares(each.sum(0)) for each in (self.reference[layer], live_UN))
        expert = int(np.abs(now_N - then_N).argmax())
        return LayerDrift(
            layer=layer,
            divergence=float(jensen_shannon(then_N, now_N)),
            threshold=threshold,
            expert=expert,
            share_then=float(then_N[expert]),
            share_now=float(now_N[expert]),
        )


def _shares(load_N: Floats) -> Floats:
    return np.asarray(load_N / load_N.sum(-1, keepdims=True))
