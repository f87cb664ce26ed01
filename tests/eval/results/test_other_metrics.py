"""Metrics that are no mean of documents are resampled with the harness's own aggregation."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.metrics import perplexity, weighted_perplexity

from libmoe.core.files import write_json
from libmoe.eval.harness.samples import SampleFile
from libmoe.eval.results import compare


def evaluation(folder: Path, metric: str, items: list[Any], value: float) -> Path:
    rows = [
        {
            "doc_id": i,
            "cluster": str(i // 2),
            "document": {"text": i},
            "target": "",
            "metrics": {f"{metric},none": item},
        }
        for i, item in enumerate(items)
    ]
    SampleFile(folder / "samples" / "text").write(0, len(rows), rows)
    score = {
        "name": metric, "filter": "none", "value": value, "harness_stderr": None, "stderr": None, "low": None,
        "high": None, "items": len(items), "clusters": len(items) // 2, "higher_is_better": False,
    }  # fmt: skip
    task = {
        "task": "text",
        "documents": len(items),
        "metrics": [score],
        "shots": 0,
        "version": 1,
        "broken": {},
    }
    write_json(folder / "evaluation.json", {"model": folder.name, "tasks": {"text": task}, "settings": {}})
    return folder


def losses(seed: int, mean: float) -> np.ndarray:
    shared = np.random.default_rng(0).normal(0, 0.3, size=80)
    return -(mean + shared + np.random.default_rng(seed).normal(0, 0.05, size=80))


def test_a_perplexity_is_compared_by_resampling_documents(tmp_path: Path) -> None:
    a, b = losses(1, 2.0).tolist(), losses(2, 1.8).tolist()
    found = compare([
        evaluation(tmp_path / "a", "perplexity", a, perplexity(a)),
        evaluation(tmp_path / "b", "perplexity", b, perplexity(b)),
    ])  # fmt: skip
    (row,) = found.tasks
    assert row.difference == pytest.approx(perplexity(b) - perplexity(a))
    assert row.low < row.difference < row.high < 0
    assert row.high - row.low < 0.3  # pairing: each perplexity alone is uncertain by about one
    assert row.verdict == "better" and row.clusters == 40 and not found.overall
    json.dumps(found.to_dict(), allow_nan=False)


def test_pairs_of_loss_and_weight_are_resampled_together(tmp_path: Path) -> None:
    weight = np.random.default_rng(5).integers(5, 50, size=80)
    a, b = (
        [[float(x * w), int(w)] for x, w in zip(losses(seed, 2.0), weight)] for seed in (1, 2)
    )  # fmt: skip
    found = compare([
        evaluation(tmp_path / "a", "word_perplexity", a, weighted_perplexity(a)),
        evaluation(tmp_path / "b", "word_perplexity", b, weighted_perplexity(b)),
    ])  # fmt: skip
    (row,) = found.tasks
    assert row.a == weighted_perplexity(a)
    assert row.low < row.difference < row.high
    assert row.verdict == "no difference seen" and row.detectable < 0.5


def test_texts_are_not_resampled(tmp_path: Path) -> None:
    items = [["a b c", "a b d"]] * 10
    found = compare([evaluation(tmp_path / name, "bleu", items, 30.0) for name in "ab"])
    assert found.tasks[0].verdict == "not tested"
