"""What an analysis holds: the keys of ``analysis.json``, which this report reads and nothing else.

Shapes: N experts of a layer, M of the next one, G groups.  Counts are of assignments unless said otherwise; ``None``
stands for a number that could not be measured.  Keys that are ``NotRequired`` may be missing; the
section that needs them says so.  What other keys already tell is not repeated: shares, groups of experts and findings
are computed here.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NotRequired, TypedDict, cast

from libmoe.analysis.studies.figures import Number, Study
from libmoe.core.errors import DataError
from libmoe.core.files import finite

FORMAT = 1


class Balance(TypedDict):
    """Named as in :mod:`libmoe.analysis.metrics.balance`."""

    normalised_entropy: float
    max_violation: float
    coefficient_of_variation: float
    gini: float
    dead: list[int]


class Uncertainty(TypedDict):
    """Means over tokens in nats, named as in :mod:`libmoe.analysis.metrics.uncertainty`; None for routers without
    scores."""

    entropy: Number
    normalised: Number
    weight_entropy: Number
    margin: Number
    confidence: Number


class Groups(TypedDict):
    """Assignments by a column of the tokens: names of its values and counts ``[G, N]``; ``explained`` is the share of
    the expert's entropy that the group explains, corrected for chance."""

    names: list[str]
    counts: list[list[int]]
    explained: Number


class Token(TypedDict):
    """A token id that an expert takes: its text, the share of its occurrences that chose the expert, occurrences."""

    text: str
    share: float
    count: int


class Similarity(TypedDict):
    """Pairwise similarity ``[N, N]`` in [-1, 1] of experts, by what they hold and by what they return; None on
    a diagonal that was not measured."""

    weights: NotRequired[list[list[Number]]]
    outputs: NotRequired[list[list[Number]]]


class Layer(TypedDict):
    layer: int
    num_experts: int
    tokens: int
    experts_per_token: float
    load: list[int]
    weight: NotRequired[list[float]]
    """Sums of the weights of each expert's outputs."""
    first: NotRequired[list[int]]
    """Tokens whose heaviest expert it was."""
    dropped: NotRequired[list[int]]
    balance: Balance
    uncertainty: NotRequired[Uncertainty]
    by: NotRequired[dict[str, Groups]]
    """By column of the tokens: ``domain``, ``task``, ``modality``, ..."""
    explained: NotRequired[dict[str, Number]]
    """Share of the expert's entropy that further columns explain: ``token``, ``position``, ..."""
    coactive: NotRequired[list[list[int]]]
    """``[N, N]`` tokens that chose both; the diagonal is the load."""
    next: NotRequired[list[list[int]]]
    """``[N, M]`` tokens that chose the one here and the other in the next MoE layer."""
    top_tokens: NotRequired[list[list[Token]]]
    """Of each expert, most of its own first."""
    similarity: NotRequired[Similarity]


class CheckpointLayer(TypedDict):
    """``saturation`` and ``change`` (of the heaviest expert) compare with the last checkpoint on the same tokens."""

    layer: int
    load: list[int]
    normalised_entropy: float
    saturation: NotRequired[Number]
    change: NotRequired[Number]


class Checkpoint(TypedDict):
    label: str
    step: int
    layers: list[CheckpointLayer]


class Sample(TypedDict):
    """A text: its tokens, and by layer (as text, for JSON) the experts ``[T, k]``, heaviest first, with weights."""

    domain: str
    tokens: list[str]
    experts: dict[str, list[list[int]]]
    weights: NotRequired[dict[str, list[list[float]]]]


class Drops(TypedDict):
    """Share of the assignments dropped by position: ``edges [B + 1]`` and ``share [B]``."""

    edges: list[float]
    share: list[Number]


class Analysis(TypedDict):
    format: int
    name: str
    facts: dict[str, str | int | float]
    """What was analysed, in the order to show: model, method, data, tokens, ..."""
    layers: list[Layer]
    checkpoints: NotRequired[list[Checkpoint]]
    """Oldest first; the last is the model of ``layers``."""
    samples: NotRequired[list[Sample]]
    drops: NotRequired[Drops]
    studies: NotRequired[list[Study]]
    notes: NotRequired[list[str]]
    """Limits of this analysis that a reader must know."""


def checked(content: Any) -> Analysis:
    """``content`` as an analysis, with None for every number that is not finite.

    Raises:
        DataError: it is none; the line names the place.
    """
    if not isinstance(content, Mapping) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, Mapping) else type(content).__name__
        raise DataError(f"analysis: format is {found!r}; this version reads format {FORMAT}")
    for key in ("name", "facts", "layers"):
        if key not in content:
            raise DataError(f"analysis: {key} is missing")
    if not content["layers"]:
        raise DataError("analysis: layers is empty; trace at least one MoE layer")
    following = [*content["layers"][1:], None]
    for layer, after in zip(content["layers"], following, strict=True):
        _check_layer(layer, after)
    return cast(Analysis, finite(content))


def _check_layer(layer: Mapping[str, Any], after: Mapping[str, Any] | None) -> None:
    place = f"analysis: layer {layer.get('layer', '?')}"
    missing = [name for name in Layer.__required_keys__ if name not in layer]
    if missing:
        raise DataError(f"{place}: {sorted(missing)[0]} is missing")
    n = layer["num_experts"]
    for key in ("load", "weight", "first", "dropped", "top_tokens", "coactive", "next"):
        if key in layer and len(layer[key]) != n:
            raise DataError(f"{place}: {key} has {len(layer[key])} entries; there are {n} experts")
    if "coactive" in layer:
        _check_rows(place, "coactive", layer["coactive"], n)
    if "next" in layer:
        if after is None:
            raise DataError(f"{place}: next is given, but no layer follows")
        _check_rows(place, "next", layer["next"], after["num_experts"])
    for name, groups in layer.get("by", {}).items():
        if len(groups["counts"]) != len(groups["names"]):
            raise DataError(
                f"{place}: by {name} has {len(groups['counts'])} rows, {len(groups['names'])} names"
            )
        _check_rows(place, f"by {name}", groups["counts"], n)


def _check_rows(place: str, key: str, rows: Sequence[Sequence[Any]], width: int) -> None:
    for i, row in enumerate(rows):
        if len(row) != width:
            raise DataError(f"{place}: row {i} of {key} has {len(row)} entries; {width} are needed")
