"""An invented analysis of experts whose findings are known: what is planted in it must come out of the report."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from libmoe.analysis.metrics import balance
from libmoe.analysis.metrics.information import explained

DOMAINS = ("code", "law", "maths", "novel")
WORDS = " the of and to in that was for with said not return def shall court sum integral whale sea".split(
    " "
)


def planted(
    layers: int = 4, experts: int = 8, k: int = 2, tokens: int = 4000, checkpoints: int = 3, seed: int = 0
) -> dict[str, Any]:
    """Sound routing: even load, domains that prefer experts of their own more in later layers, no drops."""
    rng = np.random.default_rng(seed)
    chosen = [_choices(rng, layer / max(1, layers - 1), experts, k, tokens) for layer in range(layers)]
    return {
        "format": 1,
        "name": "runs/planted",
        "facts": {"model": "planted mixture", "data": "four domains", "tokens": tokens, "parameters": 12_340_000},
        "layers": [
            _layer(rng, place, expert_TK, chosen[place + 1] if place + 1 < layers else None, experts)
            for place, expert_TK in enumerate(chosen)
        ],
        "checkpoints": [_checkpoint(i, checkpoints, chosen, experts) for i in range(checkpoints)],
        "samples": [
            {
                "domain": domain,
                "tokens": [f" {WORDS[(7 * i + g) % len(WORDS)]}" for i in range(60)],
                "experts": {
                    str(layer): expert_TK[g::4][:60].tolist() for layer, expert_TK in enumerate(chosen)
                },
                "weights": {str(layer): [[0.7] + [0.3 / max(1, k - 1)] * (k - 1)] * 60 for layer in range(layers)},
            }
            for g, domain in enumerate(DOMAINS)
        ],
        "drops": {"edges": [0, 16, 32, 48, 64], "share": [0.0, 0.0, 0.0, 0.0]},
        "studies": [
            {
                "name": "seeds",
                "title": "A study",
                "text": "What a study says.",
                "tables": {"scores": {"method": ["smoe", "remoe"], "value": [2.1, None]}},
                "figures": [
                    {
                        "kind": "bars", "title": "Bars", "x": "method", "y": "bits per byte",
                        "series": [{"label": "smoe", "x": ["scratch", "upcycled"], "y": [2.1, 2.0],
                                    "low": [2.0, 1.9], "high": [2.2, 2.1]}],
                    },
                    {
                        "kind": "lines", "title": "Lines", "x": "step", "y": "entropy",
                        "series": [{"label": "smoe", "x": [1, 2], "y": [2.1, None], "low": [2.0, None],
                                    "high": [2.2, None]}],
                    },
                ],
            }
        ],
    }  # fmt: skip


def _choices(
    rng: np.random.Generator, sharpness: float, experts: int, k: int, tokens: int
) -> NDArray[np.int64]:
    """``[T, k]`` experts; token t is of domain ``t % 4``, which prefers the experts e with ``e % 4`` the same."""
    logits_TN = rng.normal(size=(tokens, experts))
    fits_TN = np.arange(tokens)[:, None] % 4 == np.arange(experts)[None] % 4
    return np.argsort(-(logits_TN + 1.5 * sharpness * fits_TN), axis=1)[:, :k]


def _layer(
    rng: np.random.Generator,
    place: int,
    expert_TK: NDArray[np.int64],
    next_TK: NDArray[np.int64] | None,
    n: int,
) -> dict[str, Any]:
    tokens = len(expert_TK)
    one_TN = np.zeros((tokens, n), np.int64)
    np.put_along_axis(one_TN, expert_TK, 1, 1)
    load = one_TN.sum(0)
    counts = np.stack([one_TN[g::4].sum(0) for g in range(4)])
    similar = 0.1 * rng.random((n, n))
    similar = (similar + similar.T) / 2
    np.fill_diagonal(similar, 1.0)
    layer: dict[str, Any] = {
        "layer": place,
        "num_experts": n,
        "tokens": tokens,
        "experts_per_token": float(expert_TK.shape[1]),
        "load": load.tolist(),
        "weight": (load / expert_TK.shape[1]).tolist(),
        "first": np.bincount(expert_TK[:, 0], minlength=n).tolist(),
        "dropped": [0] * n,
        "balance": balance_of(load),
        "uncertainty": {
            "entropy": 1.4,
            "normalised": 0.6,
            "weight_entropy": 0.6,
            "margin": 0.2,
            "confidence": 0.4,
        },
        "by": {"domain": {"names": list(DOMAINS), "counts": counts.tolist(), "explained": explained(counts)}},
        "explained": {"token": 0.3, "position": 0.01},
        "coactive": (one_TN.T @ one_TN).tolist(),
        "top_tokens": [
            [
                {"text": f" {WORDS[(e + i) % len(WORDS)]}", "share": 0.9 - 0.1 * i, "count": 100}
                for i in range(6)
            ]
            for e in range(n)
        ],
        "similarity": {"weights": similar.tolist()},
    }
    if next_TK is not None:
        after_TN = np.zeros((tokens, n), np.int64)
        np.put_along_axis(after_TN, next_TK, 1, 1)
        layer["next"] = (one_TN.T @ after_TN).tolist()
    return layer


def balance_of(load: Any) -> dict[str, Any]:
    return {
        name: getattr(balance, name)(load)
        for name in ("normalised_entropy", "max_violation", "coefficient_of_variation", "gini", "dead")
    }


def _checkpoint(place: int, of: int, chosen: list[NDArray[np.int64]], n: int) -> dict[str, Any]:
    done = (place + 1) / of
    layers = []
    for index, expert_TK in enumerate(chosen):
        load = np.bincount(expert_TK.ravel(), minlength=n) * done + (1 - done) * np.arange(1, n + 1) * 50
        layers.append(
            {
                "layer": index,
                "load": load.round().astype(int).tolist(),
                "normalised_entropy": balance.normalised_entropy(load),
                "saturation": 0.2 + 0.8 * done,
                "change": 0.2 * (1 - done),
            }
        )
    return {"label": f"step {100 * (place + 1)}", "step": 100 * (place + 1), "layers": layers}
