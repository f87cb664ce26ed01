"""Evaluate what lies in a folder: a finished run, a saved LibMoE model, or a standard transformers model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from libmoe.analysis import RoutingSummary, TraceRecorder
from libmoe.core.config import build
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.core.files import write_json
from libmoe.data import TASKS, load_corpus, unigram_entropy
from libmoe.eval.heldout import HeldOut, open_data
from libmoe.eval.sample import sample_routing
from libmoe.eval.tasks import run_tasks
from libmoe.layers import moe_layers
from libmoe.models import account, load_any
from libmoe.train.recipe import DataConfig, EvalConfig, Recipe


def evaluate_run(run_dir: str | Path) -> dict[str, Any]:
    """Evaluate a finished run as its own recipe says; writes and returns ``eval.json``."""
    recipe = _recipe_of(Path(run_dir))
    if recipe is None:
        raise ConfigError(
            f"{run_dir} is no run folder: recipe.yaml is missing; use evaluate_folder for a model"
        )
    return _evaluate(Path(run_dir), Path(run_dir) / "model", recipe.data, recipe.eval)


def evaluate_folder(
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    windows: int | None = None,
    task_limit: int | None = None,
    data: str | None = None,
) -> dict[str, Any]:
    """Evaluate a run folder or a model folder; the result is saved as ``eval.json`` beside it.

    Args:
        tasks: harness tasks; ``None`` takes the run's own, or the embedded ones.
        windows: held-out windows per domain.
        task_limit: documents per task.
        data: corpus for bits per byte; ``None`` takes the run's own, or the embedded one.

    Raises:
        CheckpointError: no model that can be loaded safely is there.
    """
    folder = Path(folder)
    model_dir, data_config, config = _settings(folder)
    if data is not None:
        data_config = replace(data_config, source=data, domains=None)
    config = replace(
        config,
        tasks=list(tasks) if tasks is not None else config.tasks or list(TASKS),
        windows_per_domain=windows or config.windows_per_domain,
        task_limit=task_limit or config.task_limit,
    )
    return _evaluate(folder, model_dir, data_config, config)


def analyse_folder(
    folder: str | Path, *, trace: str | Path | None = None, windows: int = 8
) -> dict[str, Any]:
    """Routing of a run or model on held-out text: ``{"layers": [...], "trace": path}``; writes the trace."""
    folder = Path(folder)
    model_dir, data_config, config = _settings(folder)
    model = load_any(model_dir)
    if not list(moe_layers(model)):
        raise ConfigError(f"{model_dir} holds a dense model; there are no experts to analyse")
    tokenized, _ = open_data(data_config, progress=True)
    heldout = HeldOut(tokenized["test"], data_config.seq_len, windows, config.batch_size)
    summary, recorder = RoutingSummary(tokenized.domains), TraceRecorder(side=("domain",))
    heldout.score(model, recorders=[summary, recorder])
    path = recorder.save(trace or folder / "trace.parquet")
    return {"layers": [asdict(layer) for layer in summary.layers()], "trace": str(path)}


def corpus_facts(recipe: Recipe) -> dict[str, Any]:
    """What a report says of the data: fingerprint, domains, licences and the unigram baseline."""
    data = recipe.data
    corpus = load_corpus(
        data.source, domains=data.domains, text_field=data.text_field, domain_field=data.domain_field
    )
    tokenized, _ = open_data(data, progress=True)
    unigram = unigram_entropy(tokenized["train"], tokenized["test"])
    return {
        "data": data.source,
        "data_fingerprint": corpus.fingerprint(),
        "domains": corpus.domains,
        "licences": corpus.licences,
        "unigram_bits_per_byte": unigram.overall,
        "unigram_by_domain": unigram.domains,
    }


def _settings(folder: Path) -> tuple[Path, DataConfig, EvalConfig]:
    """Where the model is, and how it was (or shall be) measured."""
    recipe = _recipe_of(folder)
    if recipe is not None:
        if not (folder / "model").is_dir():
            raise CheckpointError(
                f"{folder} is a run that has not finished; run the same train command again"
            )
        return folder / "model", recipe.data, recipe.eval
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}; give a run folder or a folder with a saved model")
    has_tokenizer = (folder / "tokenizer.json").is_file()
    return folder, DataConfig(tokenizer=str(folder) if has_tokenizer else "embedded"), EvalConfig()


def _recipe_of(folder: Path) -> Recipe | None:
    file = folder / "recipe.yaml"
    return build(Recipe, yaml.safe_load(file.read_text(encoding="utf-8"))) if file.is_file() else None


def _evaluate(folder: Path, model_dir: Path, data: DataConfig, config: EvalConfig) -> dict[str, Any]:
    model = load_any(model_dir)
    tokenized, tokenizer = open_data(data, progress=True)
    _check_vocabulary(model, len(tokenizer), model_dir)
    heldout = HeldOut(tokenized["test"], data.seq_len, config.windows_per_domain, config.batch_size)
    summary = RoutingSummary(tokenized.domains)
    recorders: list[Any] = [summary]
    if config.trace:
        recorders.append(TraceRecorder(side=("domain",)))
    found = heldout.score(model, recorders)
    if config.trace:
        recorders[1].save(folder / "trace.parquet")
    has_experts = bool(list(moe_layers(model)))
    found |= {
        "tasks": run_tasks(
            model, tokenizer, config.tasks, limit=config.task_limit, batch_size=config.batch_size
        ),
        "curve": _curve(folder / "metrics.jsonl"),
        "routing": {"layers": [asdict(layer) for layer in summary.layers()]},
        "sample": sample_routing(model, tokenizer, heldout, config.sample_documents) if has_experts else [],
        "cost": asdict(account(model, seq_len=data.seq_len)),
    }
    write_json(folder / "eval.json", found)
    return found | {"saved_to": str(folder / "eval.json")}


def _check_vocabulary(model: nn.Module, tokens: int, where: Path) -> None:
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < tokens:
        raise ConfigError(f"the model in {where} has {rows} embeddings but the tokenizer has {tokens} tokens")


def _curve(metrics: Path) -> list[dict[str, Any]]:
    """Held-out bits per byte during training, from the evaluations the loop logged."""
    if not metrics.is_file():
        return []
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [
        {"step": r["step"], "tokens": r["tokens"], "bits_per_byte": r["eval"]["bits_per_byte"]}
        for r in records
        if "bits_per_byte" in r.get("eval", {})
    ]
