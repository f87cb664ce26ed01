"""What the task files of scenes call."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from libmoe.data.vision.scenes import draw, from_record


def visual(document: Mapping[str, Any]) -> list[Any]:
    """The image that a question is about."""
    return [draw(from_record(json.loads(document["scene"])))]


def score(document: Mapping[str, Any], results: Sequence[tuple[float, bool]]) -> dict[str, Any]:
    """Whether the likeliest choice is the right one.

    Args:
        results: loss per token, and whether it is the greedy answer, for each choice.
    """
    losses = [loss for loss, _ in results]
    right = float(losses.index(min(losses)) == document["gold"])
    found: dict[str, Any] = {"acc": right, f"acc_{document['split']}": right}
    if document["group"]:
        found["acc_plus"] = {"score": right, "group": document["group"]}
    return found


def acc_plus(items: Sequence[Mapping[str, Any]]) -> float:
    """Share of images of which all questions were answered rightly (MME, arXiv:2306.13394)."""
    groups: dict[str, list[float]] = defaultdict(list)
    for item in items:
        groups[item["group"]].append(item["score"])
    return sum(map(min, groups.values())) / len(groups)
