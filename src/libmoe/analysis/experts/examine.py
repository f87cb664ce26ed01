"""All metrics of the experts of a model in one call, as plain data that JSON can hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from torch import nn

from libmoe.analysis.experts.gates import gate_association
from libmoe.analysis.experts.layers import ExpertLayer, expert_matrices, layers_of, shared_matrices
from libmoe.analysis.experts.matrices import ExpertMatrices, Name
from libmoe.analysis.experts.neurons import reordering
from libmoe.analysis.experts.norms import NormRanks
from libmoe.analysis.experts.outputs import OutputSimilarity
from libmoe.analysis.experts.pca import projection_of_gram
from libmoe.analysis.experts.probing import probing
from libmoe.analysis.experts.pruning import Importance
from libmoe.analysis.experts.redundancy import redundancy
from libmoe.analysis.experts.similarity import averaged_similarity, cosine_of_gram, gram
from libmoe.core.errors import ConfigError

NEURONS = 256
PAIRS = 6


def weights(
    layer: ExpertLayer,
    *,
    reference: ExpertMatrices | None = None,
    neurons: int | None = NEURONS,
    pairs: int = PAIRS,
    seed: int = 0,
) -> dict[str, Any]:
    """What the weights of a layer tell.

    Args:
        reference: a dense FFN to compare with; a shared expert is taken along anyway.  Both come after the experts, and
            only matrices that all have are compared.
        neurons: how many neurons of an expert are paired with another's (``None`` for all); the result says so.
        pairs: how many pairs of experts are paired neuron by neuron, drawn with ``seed``.

    Returns:
        ``experts``: labels in order; ``matrix`` and ``averaged``: by matrix, similarities ``[N, N]``; ``weights``: that
        of these matrices together, experts only; ``reordering``: by matrix, a list of pairs; ``gate_association``: by
        matrix; ``projection``: of experts by their up matrix; ``redundancy``; ``notes``: what could not be measured.

    Raises:
        ConfigError: weights are quantised, or the experts have no matrices.
    """
    found = expert_matrices(layer)
    if not found:
        raise ConfigError(
            f"the experts of layer {layer.index} ({type(layer.experts).__name__}) have no matrices of a known form"
        )
    own = list(found.values())
    extra = {"shared": shared_matrices(layer), "dense": reference}
    beside = {name: matrices for name, matrices in extra.items() if matrices is not None}
    compared = [*own, *beside.values()]
    size = len(own)
    names = [name for name in own[0].names if all(name in other.names for other in compared)]
    grams = {name: gram([matrices[name] for matrices in compared]) for name in names}
    alike = cosine_of_gram(sum(gram_NN[:size, :size] for gram_NN in grams.values()))
    result: dict[str, Any] = {
        "experts": [*map(str, found), *beside],
        "matrix": {name: plain(cosine_of_gram(gram_NN)) for name, gram_NN in grams.items()},
        "averaged": {name: plain(averaged_similarity(compared, name)) for name in names},
        "weights": plain(_all_experts(alike, list(found), layer.num_experts)),
        "notes": [],
    }
    if size < layer.num_experts:
        result["notes"].append(f"{layer.num_experts - size} experts have no matrices")
    if len({expert.up_HD.shape for expert in own}) > 1:
        result["notes"].append("experts differ in size; only those of equal size are compared by matrix")
    elif size > 1:
        result["reordering"] = _reorderings(found, names, neurons, pairs, seed)
        result["redundancy"] = redundancy(own)._asdict()
        projection = projection_of_gram(grams["up"][:size, :size])
        result["projection"] = {
            "points": plain(projection.point_NC),
            "explained": plain(projection.explained_C),
        }
    try:
        associations = gate_association(layer).items()
        result["gate_association"] = {name: _finite(found._asdict()) for name, found in associations}
    except ConfigError as error:
        result["notes"].append(str(error))
    return result


def outputs(
    model: nn.Module, forward: Callable[[], Any], *, layers: Sequence[int] | None = None
) -> dict[int, dict[str, Any]]:
    """What the outputs of all experts tell, while ``forward`` runs the model on some text.

    Returns:
        By layer: ``outputs`` and ``angular``: similarities ``[N, N]``; ``norm_ranks``: counts ``[N, N]`` of ranks of
        score and norm; ``norm_correlation``: Spearman's; ``selected_by_norm``: the share chosen, by rank of the norm;
        ``hints``: experts, least important first.

    Raises:
        ConfigError: see :func:`~libmoe.analysis.experts.probing.probing`.
    """
    alike, ranked, importance = OutputSimilarity(), NormRanks(), Importance()
    with probing(model, [alike, ranked, importance], layers=layers):
        forward()
    found: dict[int, dict[str, Any]] = {}
    for layer in alike.layers:
        row = found[layer] = {"outputs": plain(alike.cosine(layer)), "angular": plain(alike.angular(layer))}
        if layer in ranked.layers:
            row["norm_ranks"] = ranked.counts(layer).tolist()
            row["norm_correlation"] = _number(ranked.correlation(layer))
            row["selected_by_norm"] = plain(ranked.selected(layer))
        if layer in importance.layers:
            hints = importance.hints(layer, alike.cosine(layer))
            row["hints"] = [_finite(hint._asdict()) for hint in hints]
    return found


def examine(
    model: nn.Module,
    forward: Callable[[], Any] | None = None,
    *,
    layers: Sequence[int] | None = None,
    **options: Any,
) -> dict[int, dict[str, Any]]:
    """By layer, what :func:`weights` and (with ``forward``) :func:`outputs` find; ``options`` go to the former.

    Raises:
        ConfigError: there is no MoE layer, or not the one that is asked for.
    """
    found = outputs(model, forward, layers=layers) if forward is not None else {}
    for layer in layers_of(model, layers):
        row = found.setdefault(layer.index, {})
        try:
            row |= weights(layer, **options)
        except ConfigError as error:
            row["notes"] = [str(error)]
    return dict(sorted(found.items()))


def plain(values: ArrayLike) -> Any:
    """Nested lists, with ``None`` for what is not a number."""
    array = np.asarray(values, dtype=np.float64)
    return np.where(np.isfinite(array), array, None).tolist()  # type: ignore[call-overload]


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {key: _number(value) if isinstance(value, float) else value for key, value in row.items()}


def _all_experts(value_MM: ArrayLike, numbers: Sequence[int], size: int) -> Any:
    """With rows and columns of NaN for experts without matrices."""
    value_NN = np.full((size, size), np.nan)
    value_NN[np.ix_(numbers, numbers)] = value_MM
    return value_NN


def _reorderings(
    experts: dict[int, ExpertMatrices], names: Sequence[Name], neurons: int | None, pairs: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    every = list(combinations(experts, 2))
    drawn = sorted(np.random.default_rng(seed).permutation(len(every))[:pairs])
    found: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        for i, j in (every[place] for place in drawn):
            row = reordering(experts[i][name], experts[j][name], neurons, seed)._asdict()
            del row["partner_H"]
            found.setdefault(name, []).append({"first": i, "second": j, **_finite(row)})
    return found
