"""From traces to one plain dictionary: every number that the report of the experts draws.

The keys are those of ``analysis.json``, documented in :mod:`libmoe.report.experts.schema`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from libmoe.analysis.counts import Counts, LayerCounts, count, split
from libmoe.analysis.metrics import balance, information
from libmoe.analysis.metrics.change import Change
from libmoe.analysis.metrics.drops import drop_curve
from libmoe.analysis.metrics.tokens import top_tokens
from libmoe.analysis.metrics.uncertainty import experts_per_token, uncertainty
from libmoe.analysis.series import Series
from libmoe.analysis.trace import Trace

FORMAT = 1
Texts = Callable[[Sequence[int]], list[str]]
"""The text of each of some token ids that follow one another."""

CELLS = 1 << 26
"""Counts by token and position that are held in memory at once; layers are counted in as many passes as that takes."""
SAMPLE_TOKENS = 96
SAMPLE_EXPERTS = 8
"""Experts kept for a token of a sample text: plans that use all experts would swamp the page."""
SAMPLES = 3


def gather(
    trace: Trace,
    *,
    name: str,
    facts: Mapping[str, Any],
    texts: Texts | None = None,
    series: Series | None = None,
    similarity: Mapping[int, Mapping[str, Any]] | None = None,
    layers: Sequence[int] | None = None,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """The analysis of a trace.

    Args:
        name, facts: what was analysed, for the head of the report.
        texts: turns token ids into text; without it there are no token tables and no sample texts.
        series: the model over its training, with ``trace`` as the last.
        similarity: by layer, what is known of the experts' weights and outputs.
        layers: only these.
        notes: limits that a reader must know.

    Raises:
        DataError: checkpoints were traced on different text.
    """
    columns = [column for column in trace.facts.get("side", []) if trace.labels(column)]
    chosen = trace.layers if layers is None else sorted(layers)
    seen = _seen(trace)
    wide = sum(len(counted) for _, counted in seen.values())
    parts = list(_chunks(chosen, [wide * trace.num_experts(layer) for layer in chosen]))
    whole = len(parts) == 1  # else tokens and positions take passes of their own, some layers in each
    counts = count(trace, by=[*columns, *(seen if whole else ())], layers=chosen)
    rows = {layer: _layer(layer, counts, trace, columns) for layer in chosen}
    for part in parts:
        by_token = counts if whole else count(trace, by=list(seen), layers=part)
        for layer in part:
            rows[layer] |= _of_tokens(by_token.layers[layer], seen, texts)
    for layer, known in (similarity or {}).items():
        rows[layer]["similarity"] = dict(known)
    found: dict[str, Any] = {
        "format": FORMAT,
        "name": name,
        "facts": dict(facts) | {"tokens": trace.facts["num_tokens"], "routing rows": trace.facts["rows"]},
        "layers": list(rows.values()),
        "notes": [*notes, *_limits(trace)],
    }
    if series is not None:
        found["checkpoints"] = list(_checkpoints(series, counts))
    if any(counts.layers[layer].dropped_N.any() for layer in chosen):
        edges, share = drop_curve(trace, layers=chosen)
        found["drops"] = {"edges": edges.tolist(), "share": share.tolist()}
    if texts is not None and trace.facts.get("sample", 1.0) >= 1:
        found["samples"] = _samples(trace, chosen, texts)
    return found


def _limits(trace: Trace) -> Iterator[str]:
    if not trace.facts["complete"]:
        yield "The trace was cut short; this is what had been written."
    if trace.facts.get("sample", 1.0) < 1:
        yield f"A sample of {trace.facts['sample']:.0%} of the tokens was traced; sample texts need all."


def _layer(layer: int, counts: Counts, trace: Trace, columns: Sequence[str]) -> dict[str, Any]:
    mine = counts.layers[layer]
    row = {
        "layer": layer,
        "num_experts": mine.num_experts,
        "tokens": mine.tokens,
        "experts_per_token": experts_per_token(mine),
        "load": mine.load_N.tolist(),
        "weight": mine.weight_N.tolist(),
        "first": mine.first_N.tolist(),
        "dropped": mine.dropped_N.tolist(),
        "balance": _balance(mine),
        "uncertainty": _uncertainty(mine),
        "coactive": mine.coactive_NN.tolist(),
        "by": {name: _groups(mine, counts, trace, name) for name in columns},
    }
    if mine.next_NM is not None:
        row["next"] = mine.next_NM.tolist()
    return row


def _balance(mine: LayerCounts) -> dict[str, Any]:
    load = mine.load_N
    return {
        "normalised_entropy": balance.normalised_entropy(load),
        "max_violation": balance.max_violation(load),
        "coefficient_of_variation": balance.coefficient_of_variation(load),
        "gini": balance.gini(load),
        "dead": balance.dead(load),
    }


def _uncertainty(mine: LayerCounts) -> dict[str, Any]:
    found = uncertainty(mine)._asdict()
    return {"normalised": found.pop("normalised_entropy"), **found}


def _groups(mine: LayerCounts, counts: Counts, trace: Trace, name: str) -> dict[str, Any]:
    labels, values = trace.labels(name) or [], counts.values[name].tolist()
    known = [labels[value] if 0 <= value < len(labels) else str(value) for value in values]
    return {
        "names": known,
        "counts": mine.by[name].tolist(),
        "explained": information.explained(mine.by[name]),
    }


Seen = dict[str, tuple[np.ndarray, np.ndarray]]
"""By column: the values that occur, in order, and how often each does."""


def _seen(trace: Trace) -> Seen:
    """Of ``token`` and ``position``, as far as they tell tokens apart."""
    found = {
        name: np.unique(values, return_counts=True)
        for name, values in trace.tokens(["token", "position"]).items()
    }
    return {
        name: (value, counted) for name, (value, counted) in found.items() if len(value) > 1 and value[0] >= 0
    }


def _of_tokens(mine: LayerCounts, seen: Seen, texts: Texts | None) -> dict[str, Any]:
    """What the id and the position of a token tell about its experts, and which ids each expert takes."""
    if not seen:
        return {}
    found: dict[str, Any] = {"explained": {name: information.explained(mine.by[name]) for name in seen}}
    if texts is not None and "token" in seen:
        ids, occurrences = seen["token"]
        found["top_tokens"] = [
            [
                {"text": texts([int(ids[t.place])])[0], "share": t.share, "count": t.occurrences}
                for t in tokens
            ]
            for tokens in top_tokens(mine.by["token"], occurrences)
        ]
    return found


def _chunks(layers: Sequence[int], cells: Sequence[int]) -> Iterator[list[int]]:
    """Layers whose counts fit into memory together."""
    together: list[int] = []
    room = CELLS
    for layer, size in zip(layers, cells, strict=True):
        if together and size > room:
            yield together
            together, room = [], CELLS
        together.append(layer)
        room -= size
    yield together


def _checkpoints(series: Series, last: Counts) -> Iterator[dict[str, Any]]:
    counted = [*(series.counts(place) for place in range(len(series) - 1)), last]
    for step, counts, changes in zip(series.steps, counted, series.against_last(), strict=True):
        rows = [_checkpoint_layer(layer, counts.layers[layer], changes[layer]) for layer in last.layers]
        yield {"label": f"step {step:,}", "step": step, "layers": rows}


def _checkpoint_layer(layer: int, mine: LayerCounts, change: Change) -> dict[str, Any]:
    return {
        "layer": layer,
        "load": mine.load_N.tolist(),
        "normalised_entropy": balance.normalised_entropy(mine.load_N),
        "saturation": change.saturation,
        "change": change.first_changed,
    }


def _samples(trace: Trace, layers: Sequence[int], texts: Texts) -> list[dict[str, Any]]:
    """The first sequence of a few domains (or of the whole trace), with the experts of each token."""
    side = next((name for name in trace.facts.get("side", []) if trace.labels(name)), None)
    tokens = trace.tokens(["uid", "sequence", "position", "token", *([side] if side else [])])
    if tokens["token"].min(initial=0) < 0 or not len(tokens["uid"]):
        return []
    group = tokens[side] if side else np.zeros(len(tokens["uid"]), np.int64)
    values = np.unique(group)
    spread = values[[i * len(values) // min(SAMPLES, len(values)) for i in range(min(SAMPLES, len(values)))]]
    samples, places = [], []
    for value in spread:
        mine = np.flatnonzero(group == value)
        lengths = np.unique(tokens["sequence"][mine], return_counts=True)
        first = lengths[0][np.argmax(lengths[1] >= min(SAMPLE_TOKENS, lengths[1].max()))]
        rows = mine[tokens["sequence"][mine] == first][:SAMPLE_TOKENS]
        places.append(tokens["uid"][rows])
        labels = trace.labels(side) if side else None
        domain = labels[int(value)] if labels else ""
        samples.append(
            {"domain": domain, "tokens": texts(tokens["token"][rows].tolist()), "experts": {}, "weights": {}}
        )
    wanted = np.concatenate(places)
    for piece in trace.pieces(layers=layers):
        if not np.isin(piece.row["uid"], wanted).any():
            continue
        for layer, part in split(piece):
            for sample, uid in zip(samples, places, strict=True):
                _fill(sample, layer, part, uid)
    return samples


def _fill(sample: dict[str, Any], layer: int, part: Any, uid: np.ndarray) -> None:
    """Add the choices of those of a sample's tokens that are in this part of the trace."""
    here = np.flatnonzero(np.isin(part.uid_R, uid))
    if not len(here):
        return
    experts = sample["experts"].setdefault(str(layer), [[] for _ in uid])
    weights = sample["weights"].setdefault(str(layer), [[] for _ in uid])
    for row, place in zip(here, np.searchsorted(uid, part.uid_R[here]), strict=True):
        used = part.kept_RK[row][:SAMPLE_EXPERTS]
        experts[place] = part.expert_RK[row][:SAMPLE_EXPERTS][used].tolist()
        weights[place] = np.round(part.weight_RK[row][:SAMPLE_EXPERTS][used], 4).tolist()
