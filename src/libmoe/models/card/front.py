"""The front matter of a card, as the hub reads it: library, task, tags, data sets and measured scores."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from libmoe.models.card.facts import ModelFacts, RunFacts

UNKNOWN = "unknown"
BITS = "bits_per_byte"


def front_of(name: str, model: ModelFacts | None, run: RunFacts) -> dict[str, Any]:
    """Metadata; the key ``libmoe`` holds what :class:`ModelFacts` holds."""
    front: dict[str, Any] = {
        "library_name": "transformers" if model is None or model.standard else "libmoe",
        "tags": ["mixture-of-experts", "libmoe", *([model.method] if model else [])],
    }
    if model is not None and model.model_class.endswith("ForCausalLM"):
        front["pipeline_tag"] = "text-generation"
    source = run.data.get("source")
    if source is not None and source.startswith("hf:"):
        front["datasets"] = [source.removeprefix("hf:")]
    if scores := list(_scores(run)):
        front["model-index"] = [{"name": name, "results": scores}]
    if model is not None:
        front["libmoe"] = asdict(model)
    return front


def _scores(run: RunFacts) -> Iterator[dict[str, Any]]:
    found = run.evaluation or {}
    task = {"type": "text-generation"}
    if BITS in found:
        source = str(run.data.get("source", UNKNOWN))
        metric = {"type": BITS, "value": round(found[BITS], 5), "name": "held-out bits per byte"}
        yield {
            "task": task,
            "dataset": {"type": source, "name": f"{source}, held-out text"},
            "metrics": [metric],
        }
    for name, metrics in (found.get("tasks") or {}).items():
        rows = [{"type": key, "value": round(value, 5)} for key, value in metrics.items() if is_number(value)]
        if rows:
            yield {"task": task, "dataset": {"type": name, "name": name}, "metrics": rows}


def is_number(value: Any) -> bool:
    """Whether a score can be shown: tasks report texts and flags among their metrics."""
    return isinstance(value, int | float) and not isinstance(value, bool)
