"""What can be analysed: a finished or unfinished run, its checkpoints, a saved model, or a model of the hub."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from libmoe.core.errors import CheckpointError, ConfigError, nearest
from libmoe.core.files import read_json
from libmoe.eval.heldout import HeldOut, open_data
from libmoe.eval.opening import fingerprint, model_folder
from libmoe.models import load_any
from libmoe.train import checkpoint
from libmoe.train.build import build_model, tokens_of
from libmoe.train.recipe import DataConfig, EvalConfig, Recipe, load_recipe

if TYPE_CHECKING:
    from libmoe.eval.conversing import Held


@dataclass(frozen=True)
class Subject:
    """A model at one point of its training.

    Attributes:
        label, step: of a checkpoint; ``final`` and the last step for a finished model.
        identity: tells these weights from all others.
        open: loads it, in evaluation mode, on the CPU.
    """

    label: str
    step: int
    identity: str
    open: Callable[[], nn.Module]


@dataclass(frozen=True)
class Target:
    """What the user named, and how it was (or shall be) measured.

    Attributes:
        folder: where results go by default.
        subjects: oldest first; the last is what the analysis is about.
        recipe: of a run.
    """

    name: str
    folder: Path
    subjects: list[Subject]
    data: DataConfig
    evaluation: EvalConfig
    recipe: Recipe | None = None

    @property
    def model_folder(self) -> Path:
        """Where the model and its processor lie, if it has finished."""
        own = self.folder / "model"
        return own if own.is_dir() else self.folder


def find_target(spec: str | Path, checkpoints: str | None = None) -> Target:
    """The target ``spec``.

    Args:
        spec: a run folder, a folder saved by LibMoE or by transformers, or a name on the hub.
        checkpoints: also the states of a run on the way: ``all``, or how many, evenly spaced.

    Raises:
        CheckpointError: there is no such thing, or it has no model.
        ConfigError: checkpoints of something that is no run, or no such number.
    """
    folder = Path(spec)
    file = folder / "recipe.yaml"
    recipe = load_recipe(file) if file.is_file() else None
    if recipe is None:
        if checkpoints is not None:
            raise ConfigError(
                f"--checkpoints {checkpoints}: {spec} is no run folder, and only runs have checkpoints"
            )
        return _of_model(spec)
    steps = checkpoint.list_steps(folder / "checkpoints")
    final = [_final(folder, recipe)] if (folder / "model").is_dir() else []
    if final:
        steps = [step for step in steps if step != recipe.train.steps]
    elif not steps:
        raise CheckpointError(f"{folder} is a run without a checkpoint; let it train to its first one")
    if checkpoints is not None:
        kept = _spaced(steps, checkpoints, len(final))
    else:
        kept = [] if final else steps[-1:]
    subjects = [_at(folder, recipe, step) for step in kept] + final
    name = folder.resolve().name
    return Target(name, folder, subjects, recipe.data, recipe.eval, recipe)


def _of_model(spec: str | Path) -> Target:
    source = model_folder(spec)
    local = Path(source)
    if local.is_dir():
        identity, folder, name = fingerprint(local), local, local.resolve().name
    else:
        name = str(spec)
        identity, folder = name, Path("runs") / f"analysis-{name.replace('/', '--')}"
    subject = Subject("final", 0, identity, lambda: _open(source))
    return Target(name, folder, [subject], DataConfig(tokenizer=str(source)), EvalConfig())


def _open(source: str | Path) -> nn.Module:
    try:
        return load_any(source).eval()
    except CheckpointError as error:
        if Path(source).exists():
            raise
        raise CheckpointError(
            f"{source} is neither a folder here nor a model that the hub gives; give a run folder, a folder with a "
            f"saved model, or a name on the hub ({error})"
        ) from error


def _final(folder: Path, recipe: Recipe) -> Subject:
    source = folder / "model"
    return Subject("final", recipe.train.steps, fingerprint(source), lambda: load_any(source).eval())


def _at(folder: Path, recipe: Recipe, step: int) -> Subject:
    path = folder / "checkpoints" / checkpoint.name_of(step)

    def load() -> nn.Module:
        checkpoint.verify(path)
        if (folder / "model").is_dir():
            model = load_any(folder / "model")
        else:
            model = build_model(recipe, *tokens_of(recipe))
        checkpoint.restore_model(path, model)
        return model.eval()

    manifest = read_json(path / "manifest.json") or {}
    identity = str(manifest.get("model.safetensors", {}).get("sha256", path))[:16]
    return Subject(f"step {step}", step, identity, load)


def _spaced(steps: list[int], wanted: str, extra: int) -> list[int]:
    """The steps to look at so that, with ``extra`` later ones, there are as many as wanted."""
    if wanted == "all":
        return steps
    if not re.fullmatch(r"\d+", wanted) or int(wanted) < 2:
        guess = nearest(wanted, ["all"])
        hint = f"did you mean {guess!r}?" if guess else "give 'all' or a number of at least 2"
        raise ConfigError(f"--checkpoints {wanted}: {hint}")
    count = min(int(wanted) - extra, len(steps))
    if count < 2:
        return steps[:1] if count == 1 else []
    places = [round(i * (len(steps) - 1) / (count - 1)) for i in range(count)]
    return [steps[place] for place in places]


def measured_with(target: Target, data: str | None, windows: int) -> tuple[DataConfig, EvalConfig]:
    """How the target's text is cut: as its recipe says, but for what the user asked for."""
    config = replace(target.evaluation, windows_per_domain=windows)
    return (target.data if data is None else replace(target.data, source=data, domains=None)), config


def longest_text(model: nn.Module, data: DataConfig) -> int:
    """Tokens of a window: as many as the recipe says, or as the model has positions for."""
    return min(data.seq_len, getattr(model.config, "max_position_embeddings", None) or data.seq_len)


def heldout_text(
    model: nn.Module, name: str, data: DataConfig, config: EvalConfig, folder: str | Path
) -> tuple[Held, Any, str]:
    """Held-out windows that the model can read, their tokenizer, and what tells this text from others.

    Args:
        folder: of the model.

    Raises:
        ConfigError: the tokenizer has more tokens than the model embeddings.
    """
    if data.conversations is not None:
        from libmoe.eval.conversing import heldout_conversations

        return heldout_conversations(model, folder, data, config)
    tokenized, tokenizer = open_data(data, progress=True)
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < len(tokenizer):
        raise ConfigError(
            f"{name} has {rows} embeddings but the tokenizer {data.tokenizer!r} has {len(tokenizer)} tokens; "
            "use the tokenizer that the model was trained with"
        )
    longest = longest_text(model, data)
    heldout = HeldOut(tokenized["test"], longest, config.windows_per_domain, config.batch_size)
    return heldout, tokenizer, f"{tokenized.key}:{longest}"


def on_device(model: nn.Module) -> nn.Module:
    return model.to("cuda" if torch.cuda.is_available() else "cpu")
