"""Trace what the experts of a target do on held-out text or on tasks; what was traced is kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

import libmoe.core.context as context
from libmoe.analysis.observe import find_layers, observe
from libmoe.analysis.trace import Trace, TraceRecorder
from libmoe.core.errors import ConfigError
from libmoe.core.files import read_json, to_json
from libmoe.data import load_tokenizer
from libmoe.eval.heldout import evaluating, model_inputs
from libmoe.eval.subjects import Subject, Target, heldout_text, longest_text, measured_with, on_device
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


Batches = list[dict[str, torch.Tensor]]


@dataclass(frozen=True)
class Text:
    """What a model reads.

    Attributes:
        key: tells this text from others.
        column: the side input of the batches that numbers domains or tasks.
        read: makes the batches, and the names of the values of ``column``; what is traced already needs neither.
    """

    key: str
    tokenizer: Any
    column: str
    read: Callable[[], tuple[Batches, list[str]]]

    @cached_property
    def _made(self) -> tuple[Batches, list[str]]:
        return self.read()

    @property
    def batches(self) -> Batches:
        return self._made[0]

    @property
    def names(self) -> list[str]:
        return self._made[1]


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
    last = target.subjects[-1]
    model = on_device(last.open())
    check_layers(model, target, look)
    text = text_for(target, look, model)
    found: list[tuple[Subject, Trace]] = []
    for subject in target.subjects:
        folder = trace if subject is last else others / subject.label.replace(" ", "-")
        kind = _fingerprint(subject, look, text)
        if not _is_kept(folder, kind):
            its_model = model if subject is last else on_device(subject.open())
            _trace(its_model, subject, text, look, folder, kind, progress)
        found.append((subject, Trace.open(folder)))
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
    if look.tasks:
        tokenizer, longest = load_tokenizer(data.tokenizer), longest_text(model, data)
        return Text(
            f"{','.join(look.tasks)}:{longest}:{target.subjects[-1].identity}",  # which scored the answers
            tokenizer,
            "task",
            lambda: task_batches(model, tokenizer, look.tasks, look.windows, longest, config.batch_size),
        )
    heldout, tokenizer, key = heldout_text(model, target.name, data, config, target.model_folder)

    def read() -> tuple[Batches, list[str]]:
        batches = []
        for batch in (b for windows in heldout.windows.values() for b in windows):
            inputs, side = model_inputs(batch, torch.device("cpu"))
            batches.append(inputs | {"domain": side["domain"]})
        return batches, heldout.names

    return Text(key, tokenizer, "domain", read)


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
