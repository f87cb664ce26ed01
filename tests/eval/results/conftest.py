"""Evaluation folders: real ones of two tiny models, and planted ones with known scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from libmoe.core.files import write_json
from libmoe.data import load_tokenizer
from libmoe.eval.evaluating import evaluate_model
from libmoe.eval.harness import Settings
from libmoe.eval.harness.samples import SampleFile
from libmoe.models import BackboneConfig, build_backbone, moeify, save
from libmoe.stats import clustered_mean

LIMIT = 24


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders ``dense`` and ``moe``, each with its evaluation on the embedded tasks."""
    home = tmp_path_factory.mktemp("models")
    config = BackboneConfig(
        architecture="llama", hidden_size=32, num_hidden_layers=2, intermediate_size=48, num_attention_heads=2,
        num_key_value_heads=2, vocab_size=2048, max_position_embeddings=128,
    )  # fmt: skip
    for name in ("dense", "moe"):
        model = build_backbone(config, seed=0)
        with torch.no_grad():  # sharper predictions, so that choices are not ties
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(8)
        if name == "moe":
            save(moeify(model, "smoe", options={"num_experts": 4, "top_k": 2}, seed=7), home / name)
        else:
            model.save_pretrained(home / name)
        load_tokenizer().save_pretrained(home / name)
        evaluate_model(home / name, ["embedded"], settings=Settings(limit=LIMIT))
    return {name: home / name for name in ("dense", "moe")}


@pytest.fixture
def plant(tmp_path: Path) -> Callable[..., Path]:
    """Write an evaluation folder with the scores that are given for each task, ``None`` for a broken document."""

    def write(
        name: str,
        tasks: Mapping[str, Sequence[float | None]],
        *,
        clusters: Sequence[str] | None = None,
        skills: Mapping[str, str] | None = None,
        entries: Mapping[str, str] | None = None,
        better: bool | None = True,
        version: Any = 1,
        data: str = "",
        flags: Sequence[Mapping[str, Any]] = (),
        part: int = 1000,
        **settings: Any,
    ) -> Path:
        folder = tmp_path / name / "eval"
        scores = {}
        for task, values in tasks.items():
            of = [str(clusters[i]) if clusters else str(i) for i in range(len(values))]
            rows = [
                {
                    "doc_id": i,
                    "cluster": of[i],
                    "document": {"question": f"{task} {data}{i}"},
                    "target": 0,
                    "metrics": {"acc,none": value, "rank,none": [i, value]},
                    "error": None,
                }
                if value is not None
                else {"doc_id": i, "cluster": of[i], "error": "column question is missing"}
                for i, value in enumerate(values)
            ]
            for start in range(0, len(rows), part):
                chosen = rows[start : start + part]
                SampleFile(folder / "samples" / task).write(start, start + len(chosen), chosen)
            sound = [i for i, value in enumerate(values) if value is not None]
            mean = clustered_mean([float(values[i]) for i in sound], [of[i] for i in sound])
            metric = {
                "name": "acc", "filter": "none", "value": mean.value, "harness_stderr": None, "stderr": mean.stderr,
                "low": mean.low, "high": mean.high, "items": mean.items, "clusters": mean.clusters,
                "higher_is_better": better,
            }  # fmt: skip
            rank = metric | {"name": "rank", "value": 17.0, "stderr": None, "low": None, "high": None}
            scores[task] = {
                "task": task, "documents": len(sound), "metrics": [metric, rank], "shots": 0, "version": version,
                "broken": {str(i): "column question is missing" for i in range(len(values)) if i not in sound},
                "notes": [],
            }  # fmt: skip
        about = {
            task: {
                "skill": (skills or {}).get(task),
                "entry": (entries or {}).get(task, task),
                "metric": "acc,none",
            }
            for task in tasks
        }
        write_json(
            folder / "evaluation.json",
            {
                "model": f"runs/{name}",
                "identity": name,
                "when": "2025-01-01T00:00:00+00:00",
                "settings": {"limit": None, "shots": None, "batch_size": 8, "seed": 1234} | settings,
                "versions": {"lm-eval": "0.4.13"},
                "cost": {"total_params": 10, "active_params": 5},
                "flags": list(flags),
                "about": about,
                "tasks": scores,
                "groups": {},
                "failed": {},
                "notes": [],
            },
        )
        return folder.parent

    return write
