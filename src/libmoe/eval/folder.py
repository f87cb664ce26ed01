"""Evaluate what lies in a folder: a finished run, a saved LibMoE model, or a standard transformers model."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.analysis import RoutingSummary, TraceRecorder
from libmoe.core.errors import CheckpointError
from libmoe.core.files import write_json
from libmoe.data import load_corpus, unigram_entropy
from libmoe.eval.conversing import Held, conversation_facts
from libmoe.eval.evaluating import evaluate_opened, rows_of
from libmoe.eval.harness.settings import Settings
from libmoe.eval.heldout import open_data
from libmoe.eval.opening import OpenModel, fingerprint, model_folder
from libmoe.eval.sample import sample_routing
from libmoe.eval.subjects import heldout_text, on_device
from libmoe.layers import moe_layers
from libmoe.models import account, load_any
from libmoe.models.card import write_card
from libmoe.train import checkpoint, provenance
from libmoe.train.build import text_tokens
from libmoe.train.recipe import DataConfig, EvalConfig, Recipe, load_recipe


def evaluate_run(run_dir: str | Path) -> dict[str, Any]:
    """Evaluate a finished run as its own recipe says; writes and returns ``eval.json``.

    Raises:
        CheckpointError: no run folder, a run that has not finished, or a damaged model.
    """
    folder = Path(run_dir)
    recipe = _recipe_of(folder)
    if recipe is None:
        raise CheckpointError(
            f"{folder} is no run folder: recipe.yaml is missing; use evaluate_folder for a model"
        )
    names = recipe.eval.tasks
    settings = Settings(limit=recipe.eval.task_limit, batch_size=recipe.eval.batch_size)
    return _evaluate(
        folder, Path(model_folder(folder)), recipe.data, recipe.eval, names, settings, overwrite=True
    )


def evaluate_folder(
    folder: str | Path,
    *,
    tasks: Sequence[str] | None = None,
    windows: int | None = None,
    data: str | None = None,
    settings: Settings | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate a run folder or a model folder: held-out text, tasks, routing and cost.

    The result is saved as ``eval.json`` in the folder, samples of the tasks in its ``eval`` folder.

    Args:
        tasks: suites and tasks; ``None`` takes the run's own, or the embedded ones.
        windows: held-out windows per domain.
        data: corpus for bits per byte; ``None`` takes the run's own, or the embedded one.
        settings: how tasks are run; ``None``: as the run's recipe says.
        options: ``data_dir``, ``include``, ``trace``, ``overwrite`` and ``progress``, see :func:`evaluate_opened`.

    Raises:
        CheckpointError: no model that can be loaded safely is there.
        ConfigError: an unknown task, or samples of other settings are there.
    """
    folder = Path(folder)
    model_dir, data_config, config = _settings(folder)
    if data is not None:
        data_config = replace(data_config, source=data, domains=None)
    if windows is not None:
        config = replace(config, windows_per_domain=windows)
    if settings is None:
        settings = Settings(limit=config.task_limit, batch_size=config.batch_size)
    names = list(tasks) if tasks is not None else config.tasks or ["embedded"]
    return _evaluate(folder, model_dir, data_config, config, names, settings, **options)


def _domain_trace(path: Path, heldout: Held) -> TraceRecorder:
    return TraceRecorder(path, side=("domain",), labels={"domain": heldout.names})


def corpus_facts(recipe: Recipe) -> dict[str, Any]:
    """What a report says of the data: fingerprint, domains, licences and the unigram baseline."""
    data = recipe.data
    if data.conversations is not None:
        return conversation_facts(recipe)
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
    if not folder.is_dir():
        raise CheckpointError(f"no folder {folder}; give a run folder or a folder with a saved model")
    model_dir = Path(model_folder(folder))
    recipe = _recipe_of(folder)
    if recipe is not None:
        return model_dir, recipe.data, recipe.eval
    return model_dir, DataConfig(tokenizer=str(folder)), EvalConfig()


def _recipe_of(folder: Path) -> Recipe | None:
    file = folder / "recipe.yaml"
    return load_recipe(file) if file.is_file() else None


def _prepare(model_dir: Path, data: DataConfig, config: EvalConfig) -> tuple[nn.Module, Any, Held]:
    """The model on the device it will run on, its tokenizer and the held-out windows."""
    model = on_device(load_any(model_dir))
    heldout, tokenizer, _ = heldout_text(model, f"the model in {model_dir}", data, config, model_dir)
    return model, tokenizer, heldout


def _evaluate(
    folder: Path,
    model_dir: Path,
    data: DataConfig,
    config: EvalConfig,
    names: Sequence[str],
    settings: Settings,
    **options: Any,
) -> dict[str, Any]:
    model, tokenizer, heldout = _prepare(model_dir, data, config)
    evaluation = None
    if names:
        opened = OpenModel(str(folder), fingerprint(model_dir), folder / "eval", model, tokenizer)
        evaluation = evaluate_opened(opened, names, folder / "eval", settings, **options)
    summary = RoutingSummary(heldout.names)
    with _domain_trace(folder / "trace", heldout) if config.trace else nullcontext() as recorder:
        found = heldout.score(model, [summary] if recorder is None else [summary, recorder])
    has_experts = bool(list(moe_layers(model)))
    curve = _curve(folder / "metrics.jsonl")
    found |= {
        "tasks": found.pop("answers", {}) | ({} if evaluation is None else rows_of(evaluation)),
        "curve": curve,
        "routing": {"layers": [asdict(layer) for layer in summary.layers()]},
        "sample": sample_routing(model, tokenizer, heldout, config.sample_documents) if has_experts else [],
        "cost": asdict(account(model, text_tokens(model, data.seq_len))),
    }
    found["best"] = _best(folder / "checkpoints", curve, model, heldout, found["bits_per_byte"])
    write_json(folder / "eval.json", found)
    provenance.add_packages(folder)
    if model_dir.parent == folder:  # the model of a run: its card can tell the scores now
        write_card(model_dir)
    return found | {"evaluation": evaluation, "saved_to": str(folder / "eval.json")}


def _curve(metrics: Path) -> list[dict[str, Any]]:
    """Validation bits per byte during training, from the evaluations the loop logged."""
    if not metrics.is_file():
        return []
    records = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [
        {"step": r["step"], "tokens": r["tokens"], "bits_per_byte": r["eval"]["bits_per_byte"]}
        for r in records
        if "bits_per_byte" in r.get("eval", {})
    ]


def _best(
    checkpoints: Path, curve: list[dict[str, Any]], model: nn.Module, heldout: Held, final: float
) -> dict[str, Any] | None:
    """The checkpoint that validation would choose, and its bits per byte on the test split.

    ``None`` when there was no validation, or that checkpoint is not there.  ``model`` gets its weights.
    """
    if not curve:
        return None
    step = min(curve, key=lambda point: point["bits_per_byte"])["step"]
    if step == curve[-1]["step"]:
        return {"step": step, "bits_per_byte": final}
    with contextlib.suppress(CheckpointError):
        checkpoint.verify(checkpoints / checkpoint.name_of(step))
        checkpoint.restore_model(checkpoints / checkpoint.name_of(step), model)
        return {"step": step, "bits_per_byte": heldout.score(model)["bits_per_byte"]}
    return None
