"""Everything a run holds in memory, how it is built from a recipe, and how it is saved and restored."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from libmoe.controllers import StepInfo
from libmoe.core.errors import CheckpointError
from libmoe.core.files import write_json
from libmoe.core.statistics import StepStatistics
from libmoe.data import PackedLoader
from libmoe.data.curriculum import CurriculumLoader
from libmoe.models import param_roles
from libmoe.models import save as save_model
from libmoe.models.trainable import freeze_others
from libmoe.train import checkpoint, parallel
from libmoe.train.alarms import Alarms
from libmoe.train.build import build_model, load_data
from libmoe.train.curriculum import complexity
from libmoe.train.files import disk_errors, remove_folder
from libmoe.train.live import Confidence
from libmoe.train.logs import LOST
from libmoe.train.memory import PeakMemory
from libmoe.train.optim import build_optimizer
from libmoe.train.recipe import Recipe, micro_batches
from libmoe.train.remixing import Remixing
from libmoe.train.state import RunState
from libmoe.train.step import Batch, needs_counting


class Session:
    """Data, model, optimiser and controllers of one recipe in this process.

    Args:
        start: a verified checkpoint to go on from, or ``None``.
        quiet: no progress bar while the text is tokenized.

    Raises:
        ConfigError, DataError: the recipe asks for what there is not.
        CheckpointError: the checkpoint does not fit the recipe's model or data.
    """

    def __init__(
        self, recipe: Recipe, world: parallel.World, start: Path | None, quiet: bool = False
    ) -> None:
        self.recipe, self.world = recipe, world
        cfg = recipe.train
        if cfg.threads:
            torch.set_num_threads(cfg.threads)
        self.data = load_data(recipe, progress=not quiet, processes=world.size)
        self.memory = PeakMemory(world.device)
        self.model = build_model(recipe, len(self.data.tokenizer), self.data.image_token).to(world.device).train()
        roles = param_roles(self.model)  # by name, before sharding replaces the parameters
        if cfg.trainable is not None:
            freeze_others(self.model, cfg.trainable)
        if cfg.activation_checkpointing:
            parallel.recompute_blocks(self.model)
        if cfg.compile:
            parallel.compile_parts(self.model)
        if world.mode == "fsdp":
            parallel.shard(self.model, world, cfg.dtype)
        self.optimizer = build_optimizer(self.model, roles, cfg)
        self.controllers = list(self.model.libmoe.method.build_controllers())
        if recipe.data.reweight is not None:
            assert isinstance(self.data.loader, PackedLoader)  # conversations are refused with it
            self.controllers.append(Remixing(recipe, self.data.loader, self.data.probes, world))
        self.statistics, self.confidence, self.alarms = StepStatistics(), Confidence(), Alarms()
        self.num_micro = micro_batches(cfg, world.size)
        self.counting = needs_counting(self.model, recipe, self.num_micro)
        self.state = RunState()
        self.info = StepInfo(self.model, self.optimizer, total_steps=cfg.steps, statistics=self.statistics)
        self.info.token_shares = self.data.loader.token_shares
        self.curriculum: CurriculumLoader | None = None
        if recipe.data.curriculum is not None:
            self.curriculum = CurriculumLoader(
                self.data.loader, recipe.data.curriculum, lambda batch: complexity(self.model, batch, recipe, world)
            )
        if start is None:
            self._start_controllers()
        else:
            self._restore(start)
        self.replica = parallel.Replica(self.model, world)

    def _start_controllers(self) -> None:
        for controller in self.controllers:
            controller.start(self.info)

    def _restore(self, start: Path) -> None:
        trainer = checkpoint.read_trainer(start)
        if trainer["data"] != self.data.fingerprint:
            raise CheckpointError(
                f"checkpoint {start} was trained on other data than data.source={self.recipe.data.source!r} now holds; "
                "restore the data or start anew with --overwrite"
            )
        self.state = RunState(**trainer["state"])
        self.info.step = self.state.step
        # Controllers come before weights: they may have changed which parameters the model has.
        self._start_controllers()
        for controller, saved in zip(self.controllers, trainer["controllers"], strict=True):
            controller.load_state_dict(saved)
        self.alarms.load_state_dict(trainer["alarms"])
        if self.curriculum is not None:
            self.curriculum.load_state_dict(trainer["curriculum"])
        checkpoint.restore_model(start, self.model)
        checkpoint.restore_optimizer(start, self.model, self.optimizer)

    def batches(self, step: int) -> list[Batch]:
        """This process's micro-batches of a step."""
        rank, size = self.world.rank, self.world.size
        loader = self.data.loader if self.curriculum is None else self.curriculum
        return [loader.shard(step, rank, size, m, self.num_micro) for m in range(self.num_micro)]

    def save(self, folder: Path) -> None:
        """Write a checkpoint of the current step (every rank calls it)."""
        trainer = {
            "state": asdict(self.state),
            "controllers": [c.state_dict() for c in self.controllers],
            "alarms": self.alarms.state_dict(),
            "data": self.data.fingerprint,
        }
        if self.curriculum is not None:
            trainer["curriculum"] = self.curriculum.state_dict()
        with disk_errors(
            folder / checkpoint.name_of(self.state.step), f"earlier checkpoints are intact: {LOST}"
        ):
            checkpoint.save(folder, self.state.step, self.model, self.optimizer, trainer, self.world.is_main)

    def save_model(self, folder: Path) -> None:
        """Write the model with its tokenizer as an ordinary model folder (every rank calls it)."""
        tensors = None
        if self.world.mode == "fsdp":
            tensors = checkpoint.gathered(checkpoint.model_tensors(self.model), self.world.is_main)
        if self.world.is_main:
            save_model(self.model, folder, tokenizer=self.data.processor or self.data.tokenizer, tensors=tensors)

    def save_failure(self, folder: Path, batches: list[Batch], facts: dict[str, Any]) -> None:
        """Keep the model before the step that failed, and this process's batch, for inspection."""
        tensors = checkpoint.gathered(checkpoint.model_tensors(self.model), self.world.is_main)
        if self.world.is_main:
            remove_folder(folder)
            folder.mkdir(parents=True)
            save_file(tensors, folder / "model.safetensors")
            parts = {f"{m}/{k}": v.cpu().contiguous() for m, b in enumerate(batches) for k, v in b.items()}
            save_file(parts, folder / "batch.safetensors")
            write_json(folder / "failure.json", facts)
