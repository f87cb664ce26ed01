"""What a model card can say of a model: from the model itself and from the files of the run that made it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.core.files import read_json
from libmoe.layers import moe_layers
from libmoe.models.accounting import active_parameters
from libmoe.models.loading import libmoe_section, load
from libmoe.models.receipt import count_parameters

RUN_MODEL = "model"
"""Where a run keeps its final model; a model folder of another name beside a recipe is not taken for it."""


@dataclass(frozen=True)
class ModelFacts:
    """What the model itself tells; kept in the card's front matter, because an exported model no longer tells it.

    Attributes:
        method, options: how its feed-forward networks were replaced.
        model_class: the class of transformers.
        standard: a plain transformers model: exported, or one whose networks were left as they are.
        init, seed: ``scratch`` or ``copy``, and the seed of what was drawn.
        moe_layers, num_experts: how many MoE layers there are, and how many experts each has.
        total_params, active_params: distinct parameters, and those that one token uses (``None``: a router does not
            declare its load).
        causal, batch_independent: what its routers declare (the contract tests audit the declarations).
    """

    method: str
    options: dict[str, Any]
    model_class: str
    standard: bool
    init: str
    seed: int | None
    moe_layers: int
    num_experts: list[int]
    total_params: int
    active_params: int | None
    causal: bool
    batch_independent: bool

    @classmethod
    def of(cls, model: nn.Module, exported_as: str | None = None) -> ModelFacts:
        """The facts of a LibMoE model; ``exported_as``: the class it was written as instead."""
        section = model.config.libmoe
        layers = [layer for _, layer in moe_layers(model)]
        return cls(
            method=section["method"],
            options=section["options"],
            model_class=exported_as or type(model).__name__,
            standard=exported_as is not None or not model.libmoe.sites,
            init=section["init"],
            seed=section["seed"],
            moe_layers=len(layers),
            num_experts=sorted({layer.router.num_experts for layer in layers}),
            total_params=count_parameters(model),
            active_params=_active(model),
            causal=all(layer.router.causal for layer in layers),
            batch_independent=all(layer.router.batch_independent for layer in layers),
        )

    @classmethod
    def of_folder(cls, folder: Path, front: Mapping[str, Any]) -> ModelFacts | None:
        """From the weights' shapes, or, for an exported model, from the front matter that export wrote.

        Raises:
            CheckpointError: the folder holds no model, or a damaged one.
        """
        if libmoe_section(folder) is not None:
            with torch.device("meta"):
                return cls.of(load(folder))
        try:
            return cls(**front["libmoe"])
        except (KeyError, TypeError):
            return None


@dataclass(frozen=True)
class RunFacts:
    """What the files of a run tell; ``None`` for each that is not there.

    Attributes:
        recipe, provenance, result, evaluation: ``recipe.yaml``, ``provenance.json``, ``result.json`` and ``eval.json``.
    """

    recipe: dict[str, Any] | None = None
    provenance: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    evaluation: dict[str, Any] | None = None

    @property
    def data(self) -> dict[str, Any]:
        """The recipe's section of that name; empty without a recipe."""
        return (self.recipe or {}).get("data") or {}

    @classmethod
    def beside(cls, folder: Path, *, evaluated: bool) -> RunFacts:
        """The run whose final model lies in ``folder``; a model of no run may still have been evaluated.

        Args:
            evaluated: use an evaluation if there is one that is younger than the weights.
        """
        run = run_of(folder)
        return cls(
            recipe=_read_yaml(run / "recipe.yaml"),
            provenance=read_json(run / "provenance.json"),
            result=read_json(run / "result.json"),
            evaluation=_evaluation(run / "eval.json", folder) if evaluated else None,
        )


def run_of(model: Path) -> Path:
    """The run folder that a model belongs to; its own folder where it belongs to none."""
    return model.parent if model.name == RUN_MODEL and (model.parent / "recipe.yaml").is_file() else model


def _active(model: nn.Module) -> int | None:
    try:
        return active_parameters(model)
    except ConfigError:
        return None


def config_of(folder: Path) -> dict[str, Any]:
    """``config.json`` of a model folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder} holds no model with a readable config.json: {error}") from None
    return dict(config)


def _evaluation(file: Path, weights: Path) -> dict[str, Any] | None:
    """An evaluation that is older than the weights was one of others."""
    if not file.is_file():
        return None
    newest = max((path.stat().st_mtime for path in weights.glob("*.safetensors")), default=0.0)
    return read_json(file) if file.stat().st_mtime >= newest else None


def _read_yaml(file: Path) -> dict[str, Any] | None:
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return None
    return found if isinstance(found, dict) else None
