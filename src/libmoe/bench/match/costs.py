"""What the entries of a grid cost at a design; each model is built once, and without weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from libmoe.bench.budgets import Calibrator, Design, Quantity, estimate_memory
from libmoe.bench.entry import Entry
from libmoe.bench.grid import Grid
from libmoe.core.config import to_dict
from libmoe.core.files import to_json
from libmoe.layers import moe_layers
from libmoe.models import Account, account
from libmoe.train import build_model
from libmoe.train.build import text_tokens, tokens_of
from libmoe.train.recipe import Recipe


class Costs:
    """Counts, and asks the calibrator for what has to be measured.

    Args:
        calibrator: measures peaks where the grid's ``memory`` is ``measured``.
    """

    def __init__(self, grid: Grid, calibrator: Calibrator) -> None:
        self.grid, self.calibrator = grid, calibrator
        self._recipes: dict[str, Recipe] = {}
        self._models: dict[str, tuple[nn.Module, Account]] = {}
        self._peaks: dict[str, float] = {}
        self._vocabularies: dict[tuple[str, bool], tuple[int, int | None]] = {}

    def count(self, entry: Entry, quantity: Quantity, design: Design) -> float:
        """Every quantity but ``wall_clock``."""
        if quantity == "memory":
            return self._peak(entry, design.options)
        tokens = self.tokens(entry, design.steps)
        if quantity == "tokens":
            return float(tokens)
        cost = self.account(entry, design.options)
        return {
            "active_params": float(cost.active_params),
            "total_params": float(cost.total_params),
            "flops": cost.flops_per_token,
            "train_flops": cost.train_flops_per_token * tokens,
        }[quantity]

    def recipe(self, entry: Entry, options: Mapping[str, Any]) -> Recipe:
        """Of the first seed: costs depend on none."""
        key = to_json([entry.key, options])
        if key not in self._recipes:
            self._recipes[key] = self.grid.cell_recipe(entry, self.grid.seeds[0], dict(options))
        return self._recipes[key]

    def tokens(self, entry: Entry, steps: int) -> int:
        recipe = self.recipe(entry, entry.options)
        return steps * recipe.train.batch_size * recipe.data.seq_len

    def account(self, entry: Entry, options: Mapping[str, Any]) -> Account:
        return self._built(self.recipe(entry, options))[1]

    def has_shared_experts(self, entry: Entry, options: Mapping[str, Any]) -> bool:
        model, _ = self._built(self.recipe(entry, options))
        return any(layer.shared is not None for _, layer in moe_layers(model))

    def _peak(self, entry: Entry, options: Mapping[str, Any]) -> float:
        recipe = self.recipe(entry, options)
        if self.grid.memory == "measured":
            return float(self.calibrator.peak_memory(recipe))
        rows = recipe.train.micro_batch_size or recipe.train.batch_size
        key = to_json([self._what_matters(recipe), rows])
        if key not in self._peaks:
            self._peaks[key] = float(estimate_memory(*self._built(recipe), recipe))
        return self._peaks[key]

    def _built(self, recipe: Recipe) -> tuple[nn.Module, Account]:
        key = self._what_matters(recipe)
        if key not in self._models:
            reads = recipe.data.tokenizer, recipe.data.conversations is not None
            if reads not in self._vocabularies:
                self._vocabularies[reads] = tokens_of(recipe)
            with torch.device("meta"):
                model = build_model(recipe, *self._vocabularies[reads])
            self._models[key] = model, account(model, text_tokens(model, recipe.data.seq_len))
        return self._models[key]

    @staticmethod
    def _what_matters(recipe: Recipe) -> str:
        """Entries of other names, rates or lengths share the model."""
        return to_json(
            [to_dict(recipe.backbone), to_dict(recipe.method), recipe.data.seq_len, recipe.data.tokenizer]
        )


def measure(grid: Grid, entry: Entry, options: Mapping[str, Any]) -> Account:
    """Exact cost of the entry's model; it is built without allocating weights."""
    return Costs(grid, Calibrator()).account(entry, options)
