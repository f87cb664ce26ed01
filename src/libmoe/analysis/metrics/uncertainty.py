"""How sure the router is, from what one pass over a trace adds up (:class:`libmoe.analysis.counts.LayerCounts`)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from libmoe.analysis.counts import BINS, LayerCounts


class Uncertainty(NamedTuple):
    """Means over the tokens of one layer; NaN where the router gave no scores.

    Attributes:
        entropy: of a token's scores over all experts, in nats; ln N for a router that knows nothing.
        normalised_entropy: the same over ln N.
        weight_entropy: of the weights of the chosen experts, made to sum to 1, in nats; at most ln k.
        margin: largest score minus the second largest, in [0, 1].
        confidence: 1 - normalised entropy (LibMoE Fig. 6 shows its course over tasks).
    """

    entropy: float
    normalised_entropy: float
    weight_entropy: float
    margin: float
    confidence: float


def uncertainty(counts: LayerCounts) -> Uncertainty:
    """Mean entropy, margin and confidence of a layer's tokens (LibMoE, arXiv 2411.00918 §4)."""
    scored = counts.scored or float("nan")
    entropy = counts.entropy_sum / scored
    normalised = entropy / np.log(counts.num_experts) if counts.num_experts > 1 else entropy * 0
    return Uncertainty(
        entropy,
        float(normalised),
        counts.weight_entropy_sum / counts.tokens if counts.tokens else float("nan"),
        counts.margin_sum / scored,
        float(1 - normalised),
    )


def quantile(histogram_B: np.ndarray, share: float) -> float:
    """Below which value in [0, 1] this share of a histogram lies (within one of its bins, evenly); NaN if empty."""
    total = histogram_B.sum()
    if not total:
        return float("nan")
    cumulative = np.r_[0, np.cumsum(histogram_B)] / total
    return float(np.interp(share, cumulative, np.linspace(0, 1, BINS + 1)))


def experts_per_token(counts: LayerCounts) -> float:
    """Mean number of experts of a token: k, or what a router of variable k took for tokens of this difficulty.

    By task or layer it is how arXiv 2403.07652 §4 measures that harder tasks need more experts.
    """
    numbers = np.arange(len(counts.experts_K))
    return float((numbers * counts.experts_K).sum() / counts.tokens) if counts.tokens else float("nan")


def drop_rate(counts: LayerCounts) -> float:
    """Share of the assignments that capacity dropped."""
    return float(counts.dropped_N.sum() / max(1, counts.load_N.sum()))
