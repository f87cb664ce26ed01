"""Trace what the experts of a target do on held-out text or on tasks; what was traced is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import libmoe.core.context as context
from libmoe.analysis.observe import find_layers, observe
from libmoe.analysis.trace import Trace, TraceRecorder
from libmoe.core.errors import ConfigError
from libmoe.core.files import read_json, to_json
from libmoe.eval.heldout import HeldOut, evaluating, open_data
from libmoe.eval.subjects import Subject, Target, measured_with, on_device
from libmoe.eval.task_text import task_batches
from libmoe.layers import moe_layers

Progress = Callable[[str, int, int], None]
"""Told what is traced, and how many batches of how many are done."""


@dataclass(frozen=True)
class Look:
    """How a target is looked at.

    Attributes:
        data: corpus; ``None``: that of the run, or the embedded one.
        tasks: trace these tasks of the harness instead, prompts with right answers.
        windows: of each domain, or documents of each task.
        sample, scores: shares of the tokens that are traced, and of those that keep all scores.
        layers: only these MoE layers.
    """

    data: str | None = None
    tasks: tuple[str, ...] = ()
    windows: int = 8
    sample: float = 1.0
    scores: float = 0.0
    layers: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise ConfigError(f"--windows {self.windows}: at least 1 is needed")
        if self.tasks and self.data is not None:
            raise ConfigError(
                f"--data {self.data} and --task {self.tasks[0]} exclude each other: text comes from one"
            )


@dataclass(frozen=True)
class Text:
    """Batches to run, their tokenizer, and what the side input ``column`` stands for."""

    batches: list[dict[str, torch.Tensor]]
    tokenizer: Any
    column: str
    names: list[str]
    key: str


@dataclass(frozen=True)
class Traced:
    """``traces`` of subjects, oldest first, the text they read, and the last subject's model."""

    traces: list[tuple[Subject, Trace]]
    text: Text
    model: nn.Module


def trace_target(
    target: Target, look: Look, trace: Path, others: Path, progress: Progress | None = None
) -> Traced:
    """Traces of a target's subjects on the same text; finished ones of the same kind are kept.

    Args:
        trace: folder for the last subject's.
        others: folder for those of earlier checkpoints.

    Raises:
        CheckpointError, ConfigError, DataError: no such model, text or layer; a dense model.
    """
    text: Text | None = None
    found: list[tuple[Subject, Trace]] = []
    for subject in target.subjects:
        last = subject is target.subjects[-1]
        folder = trace if last else others / subject.label.replace(" ", "-")
        model = on_device(subject.open())
        check_layers(model, target, look)
        text = text or text_for(target, look, model)
        kind = _fingerprint(subject, look, text)
        if not _is_kept(folder, kind):
            _trace(model, subject, text, look, folder, kind, progress)
        found.append((subject, Trace.open(folder)))
    assert text is not None  # a target has at least one subject
    return Traced(found, text, model)


def check_layers(model: nn.Module, target: Target, look: Look) -> None:
    """Raises ConfigError for a dense model and for a layer that it does not have."""
    known = sorted([own.index for _, own in moe_layers(model)] + [seen.index for seen in find_layers(model)])
    if not known:
        raise ConfigError(f"{target.name} is a dense model; there are no experts to analyse")
    for layer in look.layers or ():
        if layer not in known:
            raise ConfigError(f"--layer {layer}: MoE layers are numbered {known[0]} to {known[-1]}")


def text_for(target: Target, look: Look, model: nn.Module) -> Text:
    """What the model reads.

    Raises:
        ConfigError: the tokenizer has more tokens than the model embeddings.
    """
    data, config = measured_with(target, look.data, look.windows)
    longest = min(data.seq_len, getattr(model.config, "max_position_embeddings", None) or data.seq_len)
    if look.tasks:
        from libmoe.data import load_tokenizer

        tokenizer = load_tokenizer(data.tokenizer)
        batches, names = task_batches(model, tokenizer, look.tasks, look.windows, longest, config.batch_size)
        return Text(batches, tokenizer, "task", names, ",".join(look.tasks))
    tokenized, tokenizer = open_data(data, progress=True)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(
            f"{target.name} has {rows} embeddings but the tokenizer {data.tokenizer!r} has {len(tokenizer)} tokens; "
            "use the tokenizer that the model was trained with"
        )
    heldout = HeldOut(tokenized["test"], longest, config.windows_per_domain, config.batch_size)
    batches = [
        {"input_ids": b["input_ids"], "position_ids": b["position_ids"], "domain": b["domain_ids"]}
        for windows in heldout.windows.values()
        for b in windows
    ]
    return Text(batches, tokenizer, "domain", heldout.names, f"{tokenized.key}:{longest}")


def _fingerprint(subject: Subject, look: Look, text: Text) -> str:
    """What decides the rows of a trace."""
    facts = {"weights": subject.identity, "text": text.key, **asdict(look)}
    return hashlib.blake2b(to_json(facts).encode(), digest_size=8).hexdigest()


def _is_kept(folder: Path, kind: str) -> bool:
    facts = read_json(folder / "trace.json") or {}
    return bool(facts.get("complete")) and facts.get("fingerprint") == kind


def _trace(
    model: nn.Module,
    subject: Subject,
    text: Text,
    look: Look,
    folder: Path,
    kind: str,
    progress: Progress | None,
) -> None:
    device = next(model.parameters()).device
    recorder = TraceRecorder(
        folder,
        side=(text.column,),
        labels={text.column: text.names},
        layers=look.layers,
        sample=look.sample,
        scores=look.scores,
        facts={
            "fingerprint": kind,
            "label": subject.label,
            "step": subject.step,
            "weights": subject.identity,
        },
    )
    with recorder, observe(model), evaluating(model):
        for done, batch in enumerate(text.batches, start=1):
            inputs = {name: value.to(device) for name, value in batch.items()}
            side = {text.column: inputs.pop(text.column)}
            with context.options(side=side, recorders=[recorder]):
                model(**inputs, use_cache=False)
            if progress is not None:
                progress(subject.label, done, len(text.batches))
