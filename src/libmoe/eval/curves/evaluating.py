"""Every checkpoint of a run on the same text and tasks, each of them once."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from libmoe.core.config import to_dict
from libmoe.core.errors import CheckpointError, ConfigError
from libmoe.core.files import finite, write_atomically, write_json
from libmoe.eval.answers import accuracy
from libmoe.eval.conversing import Held, heldout_conversations, validation_rows
from libmoe.eval.curves.choosing import Point, summarise
from libmoe.eval.curves.picture import draw
from libmoe.eval.harness.scores import TaskScore
from libmoe.eval.harness.settings import Settings
from libmoe.eval.heldout import HeldOut, open_data
from libmoe.eval.opening import OpenModel, open_model
from libmoe.eval.suites import SuiteTask, resolve
from libmoe.train import checkpoint
from libmoe.train.files import remove_folder
from libmoe.train.recipe import Recipe, load_recipe

Progress = Callable[[str, int, int], None]


def curve(
    run_dir: str | Path,
    names: Sequence[str] = ("embedded",),
    settings: Settings | None = None,
    progress: Progress | None = None,
    *,
    out: str | Path | None = None,
    data_dir: str | Path | None = None,
    include: str | Path | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Evaluate every checkpoint of a finished run; writes ``curve.json`` and ``curve.png`` and returns the former.

    What was finished for a checkpoint before is kept.

    Args:
        names: suites and tasks of language, see :func:`libmoe.eval.suites.resolve`.
        progress: called with checkpoint and task, documents done and documents in all.
        out: folder; ``None``: ``eval/checkpoints`` in the run folder.
        data_dir: a local mirror that replaces the hub, see :mod:`libmoe.eval.mirror`.
        include: a folder with further task files of lm-evaluation-harness.
        overwrite: delete what earlier calls left there.

    Raises:
        CheckpointError: no finished run, no checkpoints, or none that can be read.
        ConfigError: an unknown task, or one that needs images.
    """
    run, settings = Path(run_dir), settings or Settings()
    if not (run / "recipe.yaml").is_file():
        raise CheckpointError(f"{run} is no run folder: recipe.yaml is missing")
    steps = checkpoint.list_steps(run / "checkpoints")
    if not steps:
        raise CheckpointError(
            f"{run} keeps no checkpoints; train with train.save_every and train.keep_checkpoints"
        )
    folder = Path(out) if out is not None else run / "eval" / "checkpoints"
    if overwrite:
        remove_folder(folder)
    job = _Job(run, folder, resolve(names, include=include), settings, data_dir, include, progress)
    points, failed = [], dict(job.failed)
    for step in steps:
        try:
            points.append(job.point(step))
        except CheckpointError as error:
            failed[checkpoint.name_of(step)] = str(error)
    if not points:
        raise CheckpointError(next(reversed(failed.values())))
    about = {"run": str(run), "settings": settings.facts(), "failed": failed}
    found = finite(about | summarise(points, job.place))
    write_json(folder / "curve.json", found)
    picture = draw(found)
    if picture is not None:
        write_atomically(folder / "curve.png", picture)
    return found | {"saved_to": str(folder / "curve.json")}


class _Job:
    """What is the same for all checkpoints: the model they fit, text and tasks."""

    def __init__(
        self,
        run: Path,
        folder: Path,
        tasks: Sequence[SuiteTask],
        settings: Settings,
        data_dir: str | Path | None,
        include: str | Path | None,
        progress: Progress | None,
    ) -> None:
        self.run, self.folder, self.settings = run, folder, settings
        self.progress = progress or (lambda task, done, total: None)
        for task in tasks:
            if task.harness != "lm":
                raise ConfigError(f"task {task.name} needs images; curves are of language tasks")
        self.suite = {task.task: task for task in tasks}
        self.recipe = load_recipe(run / "recipe.yaml")
        self.opened = open_model(run)
        self.heldout = _heldout(self.recipe, self.opened, run / "model")
        self.tasks, self.groups, self.failed = _load(list(self.suite), include, data_dir)
        for name in [name for name in self.suite if name in self.groups]:
            for member in self.groups[name].get_all_tasks():  # scored as their group is
                self.suite.setdefault(member.task_name, self.suite[name])

    def place(self, step: int) -> Path:
        return self.folder / checkpoint.name_of(step)

    def point(self, step: int) -> Point:
        """Scores of one checkpoint: read where they are finished, else computed.

        Raises:
            CheckpointError: it is damaged or does not fit.
        """
        stored = self.run / "checkpoints" / checkpoint.name_of(step)
        facts = self._facts(stored)
        file = self.place(step) / "point.json"
        if file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            if there["facts"] == facts and not there["failed"]:
                return there
        checkpoint.verify(stored)
        checkpoint.restore_model(stored, self.opened.model)
        point = {"step": step, "tokens": checkpoint.read_trainer(stored)["state"]["tokens"], "facts": facts}
        text, answers = self._text()
        scores = self._scores(step, facts["weights"])
        point |= text | scores | {"tasks": answers | scores["tasks"]}
        write_json(file, point)
        return json.loads(file.read_text(encoding="utf-8"))

    def _facts(self, stored: Path) -> dict[str, Any]:
        """What the scores depend on."""
        try:
            manifest = json.loads((stored / "manifest.json").read_text(encoding="utf-8"))
            weights = manifest["model.safetensors"]["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            checkpoint.verify(stored)
            raise CheckpointError(f"checkpoint {stored}: manifest.json names no weights") from None
        data, count = self.recipe.data, self.recipe.eval.windows_per_domain
        return {
            "weights": weights,
            "settings": json.loads(json.dumps(self.settings.facts())),
            "tasks": sorted(self.tasks),
            "text": {
                "source": data.source if data.conversations is None else to_dict(data.conversations),
                "seq_len": data.seq_len,
                "windows_per_domain": count,
            },
        }

    def _text(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Bits per byte of what was held out, and scores of the questions among it."""
        validation, test = (self.heldout[name].score(self.opened.model) for name in ("validation", "test"))
        text = {
            "validation": validation["bits_per_byte"],
            "bits_per_byte": test["bits_per_byte"],
            "domains": test["domains"],
            "windows": test["windows"],
        }
        return text, {task: accuracy(score) for task, score in test.get("answers", {}).items()}

    def _scores(self, step: int, weights: str) -> dict[str, Any]:
        if not self.tasks:
            return {"tasks": {}, "failed": {}, "notes": []}
        from libmoe.eval.harness.driver import evaluate_tasks, quiet
        from libmoe.eval.harness.lm import Scorer

        with quiet():
            scorer = Scorer(self.opened.model, self.opened.tokenizer, self.settings.batch_size)
        name = checkpoint.name_of(step)
        found = evaluate_tasks(
            scorer,
            # The driver narrows what a task sees to the slice it works on, and that lasts.
            {task: copy.copy(loaded) for task, loaded in self.tasks.items()},
            self.place(step),
            self.settings,
            groups=self.groups,
            clusters={task: entry.cluster for task, entry in self.suite.items() if entry.cluster},
            model=weights,
            progress=lambda task, done, total: self.progress(f"{name} {task}", done, total),
        )
        return {
            "tasks": {task: self._main(score) for task, score in found.tasks.items()},
            "failed": found.failed,
            "notes": found.notes,
        }

    def _main(self, score: TaskScore) -> dict[str, Any]:
        """The metric that decides: the catalogue's, or the first."""
        entry = self.suite.get(score.task)
        wanted = entry.metrics if entry is not None else ("acc,none",)
        metrics = {f"{m.name},{m.filter}": m for m in score.metrics}
        key = next((key for key in wanted if key in metrics), next(iter(metrics)))
        metric = metrics[key]
        chance = entry.chance if entry is not None and entry.metrics == (key,) else None
        return {
            "metric": key,
            "value": metric.value,
            "low": metric.low,
            "high": metric.high,
            "documents": score.documents,
            "is_mean": metric.stderr is not None,
            "higher_is_better": metric.higher_is_better is not False,
            "chance": None if entry is None or chance is None else chance / entry.scale,
        }


def _heldout(recipe: Recipe, opened: OpenModel, folder: Path) -> dict[str, Held]:
    if recipe.data.conversations is not None:
        test, _, _ = heldout_conversations(opened.model, folder, recipe.data, recipe.eval)
        return {"validation": validation_rows(recipe), "test": test}
    tokenized, _ = open_data(recipe.data)
    longest = getattr(opened.model.config, "max_position_embeddings", None) or recipe.data.seq_len
    length, config = min(recipe.data.seq_len, longest), recipe.eval
    return {
        name: HeldOut(tokenized[name], length, config.windows_per_domain, config.batch_size)
        for name in ("validation", "test")
    }


def _load(
    names: list[str], include: str | Path | None, data_dir: str | Path | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, str]]:
    """Tasks and groups of the harness, and why others cannot be had."""
    if not names:
        return {}, {}, {}
    from libmoe.eval.harness.loading import load_tasks, task_manager

    task_manager(names, include)  # says what to install
    from libmoe.eval.harness.driver import quiet
    from libmoe.eval.mirror import serving

    with quiet():
        return load_tasks(names, include=include, data=serving(data_dir) if data_dir is not None else None)
