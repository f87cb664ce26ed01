"""A mixture of domains that follows what the model does with them, while it trains (arXiv 2406.11256)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from libmoe.controllers import Controller, StepInfo
from libmoe.core.context import LayerContext, options
from libmoe.core.errors import ConfigError
from libmoe.core.routing import Routing
from libmoe.core.statistics import all_reduce_sum
from libmoe.data import PackedLoader
from libmoe.train import parallel
from libmoe.train.parallel import World
from libmoe.train.recipe import Recipe
from libmoe.train.step import Batch, next_token_loss, seed_everything


class Remixing(Controller):
    """Every ``data.reweight.every`` steps, measure each domain on its probes and change the mixture that follows.

    Weights begin as the loader's mixture; domains without a share in it stay out.  They are logged as
    ``mixture/<domain>``.  The changes so far are its state, from which a resumed run makes the same batches.

    Args:
        probes: by domain, batches of its training text, labelled.

    Raises:
        ConfigError: the recipe asks for a layer that is not there, or lacks the reference of a domain.
    """

    def __init__(
        self, recipe: Recipe, loader: PackedLoader, probes: Mapping[str, Sequence[Batch]], world: World
    ) -> None:
        assert recipe.data.reweight is not None
        self.recipe, self.rule, self.loader, self.world = recipe, recipe.data.reweight, loader, world
        self.probes = {domain: probes[domain] for domain, share in loader.mixture.items() if share}
        self.weights = {domain: loader.mixture[domain] for domain in self.probes}
        self._changes: list[list[Any]] = []  # step, and the weights from then on
        if self.rule.by == "loss":
            self.rule.excess(self.weights)  # a domain without reference is found out before anything is trained

    def before_step(self, info: StepInfo) -> None:
        if info.step and info.step % self.rule.every == 0:
            distance_D = self._measured(info.model)
            weight_D = self.rule.updated(list(self.weights.values()), distance_D)
            self._change(info.step, weight_D.tolist())
        info.metrics |= {f"mixture/{domain}": weight for domain, weight in self.weights.items()}

    def state_dict(self) -> dict[str, Any]:
        return {"changes": self._changes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for step, weight_D in state["changes"]:
            self._change(step, weight_D)

    def _change(self, step: int, weight_D: Sequence[float]) -> None:
        self.weights = dict(zip(self.weights, weight_D, strict=True))
        self._changes.append([step, list(weight_D)])
        self.loader.remix(step, self.weights)

    @torch.no_grad()
    def _measured(self, model: nn.Module) -> np.ndarray:
        training = model.training
        model.eval()  # without noise and dropout: loads are those of the router as it is
        try:
            found = {domain: self._domain(model, batches) for domain, batches in self.probes.items()}
        finally:
            model.train(training)
        # Rounding may differ from process to process, and the mixture must not.
        whole_DM = torch.stack([torch.cat(parts) for parts in found.values()]).to(self.world.device)
        agreed_DM = all_reduce_sum(whole_DM if self.world.is_main else torch.zeros_like(whole_DM)).cpu()
        if self.rule.by == "loss":
            return self.rule.excess(dict(zip(found, agreed_DM[:, -1].tolist(), strict=True)))
        return self.rule.distances(agreed_DM[:, :-1].numpy())

    def _domain(self, model: nn.Module, batches: Sequence[Batch]) -> tuple[torch.Tensor, torch.Tensor]:
        """Load of each expert of the layer, ``[N]``, and the mean loss, ``[1]``: float64."""
        loads: dict[int, torch.Tensor] = {}

        def record(ctx: LayerContext, routing: Routing) -> None:
            if not ctx.tokens.apart:
                loads[ctx.index] = loads.get(ctx.index, 0.0) + routing.plan.load_N(ctx.mask_T).double()

        loss, predicted = 0.0, 0
        for number, batch in enumerate(batches):
            seed_everything(self.world.device, self.recipe.seed, "remixing", number)  # some routers draw here, too
            on_device = {name: value.to(self.world.device) for name, value in batch.items()}
            with parallel.precision(self.world, self.recipe.train.dtype), options(recorders=[record]):
                loss += float(next_token_loss(model, on_device))
            predicted += int((batch["labels"][:, 1:] != -100).sum())
        mean = torch.tensor([loss / max(predicted, 1)], dtype=torch.double, device=self.world.device)
        layers = sorted(loads)
        if self.rule.by == "loss" and not layers:
            return mean[:0], mean
        if not -len(layers) <= self.rule.layer < len(layers):
            raise ConfigError(
                f"data.reweight.layer={self.rule.layer}: the model has {len(layers)} MoE layers; use 0 to "
                f"{len(layers) - 1}, or negative numbers from the last"
            )
        return loads[layers[self.rule.layer]], mean
