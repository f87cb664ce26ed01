"""Recipes: one typed tree that says everything about a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import yaml

from libmoe.core.config import build, override, to_dict
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.files import write_atomically
from libmoe.data.reweighting import Reweighting
from libmoe.methods import METHODS, create
from libmoe.models.backbones import BackboneConfig
from libmoe.models.trainable import check_parts
from libmoe.ops import AUTO, backends
from libmoe.peft import InstanceLoRA
from libmoe.train.schedule import Schedule


@dataclass
class MethodConfig:
    """Which method goes where.

    Attributes:
        name, options: a registered method and its own options.
        where: which layers become MoE layers (``all``, ``every:2``, ``last:6``, a list of numbers, ...).
        init: ``scratch``, or ``copy`` to start every expert from the dense FFN (sparse upcycling).
    """

    name: str = "smoe"
    options: dict[str, Any] = field(default_factory=dict)
    where: str | list[int] = "all"
    init: Literal["scratch", "copy"] = "scratch"


@dataclass
class ConversationConfig:
    """Conversations with images to train on, for a vision-language model.

    Attributes:
        source: ``scenes``, the embedded benchmark; a file in LLaVA's format (``.json`` or ``.jsonl``); or the name of
            a published set (``llava-558k``, ``allava``, ``llava-665k``, ``llava-332k``).
        images: folder with the images (of a published set: the folder that holds all of it).
        template: how turns are written: ``plain``, ``vicuna-v1``, ``phi3``, or ``tokenizer`` for its own.
        rows: rows of ``scenes``; ``tasks``: what they ask about, ``None`` for all; ``captions``: descriptions
            instead (``alone``), after the questions (``last``) or not at all (``none``).
        aspect: images that are not square: ``pad`` or ``stretch``.
        group_by_length: rows of about equal length share a batch.
    """

    source: str = "scenes"
    images: str | None = None
    template: str = "plain"
    rows: int = 50_000
    tasks: list[str] | None = None
    captions: Literal["none", "alone", "last"] = "none"
    aspect: Literal["pad", "stretch"] = "pad"
    group_by_length: bool = True

    def __post_init__(self) -> None:
        _at_least("data.conversations.rows", self.rows, 1)


@dataclass
class DataConfig:
    """Text to train on.

    Attributes:
        source: ``embedded``, a file or folder with documents, or ``hf:<data set>``.
        domains: the domains to use; ``None`` for all.
        mixture: ``uniform``, ``proportional`` or a weight for each domain.
        seq_len: tokens of a training row; documents are packed into rows.
        tokenizer: ``embedded``, a ``tokenizer.json``, a model folder or a name on the hub.
        document_mask: documents that share a row do not see each other.
        unique_tokens: train on so many tokens again and again, in a new order each time; ``None`` for no limit.
        joins: domains that come later, by the first step each is in; those that are there share the rows by their
            weights (:mod:`libmoe.data.phases`).
        curriculum: deal the rows of so many steps out by how hard the model finds them, like ones in a batch
            (:class:`~libmoe.data.curriculum.CurriculumLoader`); ``None`` leaves their order to chance.  It takes a
            forward pass more for each row, which costs do not count, and the order then depends on the method.
        reweight: change the mixture while the model trains (:class:`~libmoe.data.reweighting.Reweighting`); ``None``
            keeps it.  What a run reads then depends on its model.
        text_field, domain_field: columns of tabular sources.
        conversations: train on these instead; ``seq_len`` is then the longest row, image and all turns together, and
            of the rest only ``tokenizer`` is used.
    """

    source: str = "embedded"
    domains: list[str] | None = None
    mixture: str | dict[str, float] = "uniform"
    seq_len: int = 128
    tokenizer: str = "embedded"
    document_mask: bool = True
    unique_tokens: int | None = None
    joins: dict[str, int] = field(default_factory=dict)
    curriculum: int | None = None
    reweight: Reweighting | None = None
    text_field: str = "text"
    domain_field: str | None = None
    conversations: ConversationConfig | None = None

    def __post_init__(self) -> None:
        _at_least("data.seq_len", self.seq_len, 2)
        _at_least("data.unique_tokens", self.unique_tokens, self.seq_len)
        _at_least("data.curriculum", self.curriculum, 1)
        if self.curriculum is not None and self.conversations is not None:
            raise ConfigError(
                f"data.curriculum={self.curriculum} reorders rows of text, all of one length; leave it out beside "
                "data.conversations"
            )
        if self.joins:
            for name in ("conversations", "unique_tokens", "reweight"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"data.joins changes the mixture at steps that are given; leave out data.{name}")
        for domain, step in self.joins.items():
            if self.curriculum is not None and step % self.curriculum:
                raise ConfigError(
                    f"data.joins: {domain!r} joins at step {step}, within rows that data.curriculum={self.curriculum} "
                    "reorders; use a multiple of it"
                )
        if self.reweight is not None:
            for name in ("conversations", "unique_tokens", "curriculum"):
                if getattr(self, name) is not None:
                    raise ConfigError(f"data.reweight changes a mixture of texts as they come; leave out data.{name}")


@dataclass
class TrainConfig:
    """How to train.

    Attributes:
        steps: optimiser steps.
        batch_size: rows of one optimiser step, over all processes and micro-batches.
        micro_batch_size: rows of one forward pass in one process; ``None`` makes one pass of each process's part.
        lr, schedule, warmup_steps, min_lr_ratio, decay_fraction: see :func:`libmoe.train.schedule.learning_rate`.
        weight_decay, betas, eps: of AdamW; norms, biases and embeddings do not decay.
        clip: largest norm of the gradient; ``None`` leaves it alone.
        trainable: parts that are trained, everything else staying as it is: ``vision``, ``connector``, ``language``,
            ``experts``, ``routers`` or patterns on parameter names; ``None`` for all.
        router_lr_scale, expert_lr_scale: learning rates of these parameters relative to ``lr``.
        dtype: ``fp32``, or ``bf16`` for mixed precision (parameters and optimiser state stay in fp32).
        activation_checkpointing: recompute each block in the backward pass: less memory, about a third more time.
        compile: compile attention, norms and dense parts of the blocks; MoE layers stay as they are.
        parallel: ``none``, ``ddp`` (a replica in each process), ``fsdp`` (parameters sharded over processes)
            or ``auto``: ``ddp`` under ``torchrun``, ``none`` without.
        log_every, eval_every, save_every: in steps; ``None`` evaluates or saves only at the end.  Evaluation takes
            the function that :func:`libmoe.train.train` is given.
        keep_checkpoints: how many checkpoints to keep, besides the one with the best evaluation.
        keep_optimizers: how many of the newest can be resumed from; older ones keep the model alone, a third of
            the size, for studies of how a run went.  ``None`` for all.
        exact_counts: with gradient accumulation, count the load of the whole batch in a first pass without
            gradients for losses that balance over it.
        trackers: any of ``tensorboard``, ``wandb``, ``mlflow``.
        threads: CPU threads of each process; ``None`` leaves torch's choice.
        backend: what the experts compute with: a name of :func:`libmoe.ops.backends`, or ``auto``.
    """

    steps: int = 1000
    batch_size: int = 32
    micro_batch_size: int | None = None
    lr: float = 1e-3
    min_lr_ratio: float = 0.1
    schedule: Schedule = "cosine"
    warmup_steps: int = 0
    decay_fraction: float = 0.2
    weight_decay: float = 0.1
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-8
    clip: float | None = 1.0
    trainable: list[str] | None = None
    router_lr_scale: float = 1.0
    expert_lr_scale: float = 1.0
    dtype: Literal["fp32", "bf16"] = "fp32"
    activation_checkpointing: bool = False
    compile: bool = False
    parallel: Literal["auto", "none", "ddp", "fsdp"] = "auto"
    log_every: int = 10
    eval_every: int | None = None
    save_every: int | None = 100
    keep_checkpoints: int = 2
    keep_optimizers: int | None = None
    exact_counts: bool = True
    trackers: list[str] = field(default_factory=list)
    threads: int | None = None
    backend: str = AUTO

    def __post_init__(self) -> None:
        check_parts(self.trainable or [])
        if self.trainable is not None and not self.trainable:
            raise ConfigError("train.trainable=[] trains nothing; leave it out to train everything")
        if self.backend not in (AUTO, *backends()):
            raise unknown("train.backend", self.backend, [AUTO, *backends()])
        for name in (
            "steps",
            "batch_size",
            "micro_batch_size",
            "log_every",
            "eval_every",
            "save_every",
            "keep_optimizers",
            "threads",
        ):
            _at_least(f"train.{name}", getattr(self, name), 1)
        _at_least("train.warmup_steps", self.warmup_steps, 0)
        _at_least("train.keep_checkpoints", self.keep_checkpoints, 1)
        for name in ("lr", "clip", "eps"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"train.{name} must be greater than 0, got {value}")
        for name in ("min_lr_ratio", "decay_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"train.{name} must be between 0 and 1, got {getattr(self, name)}")
        for name in ("weight_decay", "router_lr_scale", "expert_lr_scale"):
            _at_least(f"train.{name}", getattr(self, name), 0)
        if len(self.betas) != 2 or not all(0 <= b < 1 for b in self.betas):
            raise ConfigError(f"train.betas must be two numbers in [0, 1), got {self.betas}")
        if self.warmup_steps >= self.steps:
            raise ConfigError(
                f"train.warmup_steps={self.warmup_steps} leaves nothing of train.steps={self.steps}; "
                f"use at most {self.steps - 1}"
            )
        if (
            self.schedule == "wsd"
            and self.warmup_steps + round(self.decay_fraction * self.steps) > self.steps
        ):
            raise ConfigError(
                f"train.decay_fraction={self.decay_fraction} overlaps the warm-up; "
                f"use at most {(self.steps - self.warmup_steps) / self.steps:.3g}"
            )


@dataclass
class EvalConfig:
    """What is measured when training is over (and, for the held-out loss, on the way).

    Attributes:
        windows_per_domain: held-out windows of ``seq_len`` tokens per domain.
        validation_windows: the same of the validation split, for curves, the best checkpoint and tuning.
        tasks: names of evaluation tasks; ``task_limit`` items of each (``None``: all).
        scenes: which questions a model of the embedded scenes is asked: ``seen`` (new scenes of known things),
            ``style`` (drawn by an artist that was held out) or ``concept`` (things that were held out);
            ``windows_per_domain`` of each task.
        sample_documents: documents whose routing is kept token by token for the report.
        batch_size: rows of a forward pass.
        trace: write every routing decision on the held-out windows to the folder ``trace``.
    """

    windows_per_domain: int = 16
    validation_windows: int = 4
    tasks: list[str] = field(default_factory=list)
    task_limit: int | None = None
    scenes: Literal["seen", "style", "concept"] = "seen"
    sample_documents: int = 1
    batch_size: int = 16
    trace: bool = False

    def __post_init__(self) -> None:
        for name in ("windows_per_domain", "validation_windows", "task_limit", "batch_size"):
            _at_least(f"eval.{name}", getattr(self, name), 1)
        _at_least("eval.sample_documents", self.sample_documents, 0)


@dataclass
class Recipe:
    """A run: which model, which method, which data, how long, how it is measured, which seed.

    ``peft`` trains adapters beside the frozen model, chosen by the instruction of each conversation.
    """

    name: str = "run"
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    peft: InstanceLoRA | None = None
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.peft is not None and self.data.conversations is None:
            raise ConfigError("peft chooses experts by the instruction of a conversation; set data.conversations")
        for domain, step in self.data.joins.items():
            if step >= self.train.steps:
                raise ConfigError(
                    f"data.joins: {domain!r} joins at step {step} of train.steps={self.train.steps}, which is never; "
                    "use less, or leave it out of data.domains"
                )
        longest = self.backbone.max_position_embeddings
        if self.backbone.checkpoint is None and longest is not None and self.data.seq_len > longest:
            raise ConfigError(
                f"data.seq_len={self.data.seq_len} is longer than backbone.max_position_embeddings={longest}; "
                f"use at most {longest} or raise the latter"
            )


def _at_least(name: str, value: float | None, least: int) -> None:
    if value is not None and value < least:
        raise ConfigError(f"{name} must be at least {least}, got {value}")


def validate(recipe: Recipe, world_size: int = 1) -> list[str]:
    """Check what needs the method registry or the number of processes.

    Returns:
        Notes that belong beside the results, for example that the method sees the future.

    Raises:
        ConfigError: unknown method or option, or a batch that cannot be divided evenly.
    """
    create(recipe.method.name, recipe.method.options)
    micro_batches(recipe.train, world_size)
    causal = METHODS.info(recipe.method.name).facts.get("causal", True)
    return [] if causal else [sees_the_future(recipe)]


def sees_the_future(recipe: Recipe) -> str:
    """The note on a method that is not causal, as registered or by its options."""
    return (
        f"method {recipe.method.name!r} is not causal: its routing of a token depends on later tokens, so the "
        "loss of a causal language model is too optimistic"
    )


def micro_batches(train: TrainConfig, world_size: int) -> int:
    """Forward passes of each process per optimiser step.

    Raises:
        ConfigError: the batch is not divisible by processes times micro-batch size.
    """
    size = train.micro_batch_size or max(1, train.batch_size // world_size)
    if train.batch_size % (size * world_size):
        valid = [b for b in range(1, train.batch_size + 1) if train.batch_size % (b * world_size) == 0]
        fix = (
            f"use micro_batch_size={min(valid, key=lambda b: abs(b - size))}"
            if valid
            else f"use batch_size={-(-train.batch_size // world_size) * world_size}"
        )
        raise ConfigError(
            f"train.batch_size={train.batch_size} is not divisible by micro_batch_size={size} x {world_size} "
            f"process(es); {fix}"
        )
    return train.batch_size // (size * world_size)


def packaged(folder: str) -> dict[str, Path]:
    """YAML files that ship in a folder of the package, by name."""
    found = resources.files("libmoe").joinpath(folder).iterdir()
    return {p.name.removesuffix(".yaml"): Path(str(p)) for p in found if p.name.endswith(".yaml")}


def read_yaml(what: str, source: str | Path, folder: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The mapping in a YAML file, given by path or by the name of one that ships in ``folder``, with overrides.

    Its key ``name`` defaults to the file's name.

    Raises:
        ConfigError: no such file, not YAML, not a mapping, or an override that cannot be read.
    """
    shipped = packaged(folder)
    path = shipped.get(str(source), Path(source))
    if not path.is_file():
        raise unknown(what, source, shipped)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a {what} is a mapping of keys, got {type(values).__name__}")
    values.setdefault("name", path.stem)
    for assignment in overrides:
        override(values, assignment)
    return values


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe by packaged name or path and apply ``key.sub=value`` overrides.

    Raises:
        ConfigError: no such recipe, not YAML, an unknown key (naming the nearest one), or an impossible value.
    """
    recipe = build(Recipe, read_yaml("recipe", source, "recipes", overrides))
    validate(recipe)
    return recipe


def save_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe, defaults included, as YAML that :func:`load_recipe` reads back equal."""
    text = yaml.safe_dump(to_dict(recipe), sort_keys=False, allow_unicode=True)
    write_atomically(Path(path), text.encode("utf-8"))
