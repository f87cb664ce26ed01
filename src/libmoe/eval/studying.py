"""From run folders to studies: checkpoints are traced and scored on one text, and named analyses compare them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from torch import nn

from libmoe.analysis.series import Series
from libmoe.analysis.studies import STUDIES, Quality, Run, run_studies
from libmoe.analysis.studies.optimality import Losses, hide_best
from libmoe.analysis.studies.runs import TELLING
from libmoe.core.errors import CheckpointError, ConfigError, DataError, unknown
from libmoe.core.files import write_json
from libmoe.eval.analysing import STUDIES_FILE, take_up_studies
from libmoe.eval.conversing import Held
from libmoe.eval.curves import curve
from libmoe.eval.subjects import Target, find_target, heldout_text, longest_text, measured_with
from libmoe.eval.tracing import Look, Traced, trace_target
from libmoe.layers import moe_layers
from libmoe.train.recipe import Recipe

Progress = Callable[[str, int, int], None]


def study_runs(
    specs: Sequence[str | Path],
    names: Sequence[str] = (),
    *,
    out: str | Path,
    look: Look | None = None,
    tasks: Sequence[str] = (),
    facts: Mapping[str, Mapping[str, Any]] | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Studies of runs; writes ``studies.json`` into ``out`` and returns it.

    Traces and scores are kept in the run folders, so an interrupted or repeated call computes nothing twice.  An
    analysis in ``out`` takes the studies up, and so does one that is made there later.

    Args:
        specs: run folders, saved models, or folders of runs (a grid), whose dense runs are left out.
        names: of studies; none: all that the runs allow.
        look: text and size of the traces.
        tasks: zero-shot tasks whose scores are followed over training.
        facts: by spec, what tells runs apart (``encoder``, ``init``, ``regime``), see
            :class:`libmoe.analysis.studies.Run`.
        progress: called with what is done, and how much of how much.

    Raises:
        ConfigError: an unknown study.
        CheckpointError, DataError: no runs, or a study that was asked for by name needs what they do not have.
    """
    for name in names:
        if name not in STUDIES:
            raise unknown("study", name, STUDIES)
    wanted, look = set(names or STUDIES), look or Look()
    runs: list[Run] = []
    places: list[str] = []
    notes: list[str] = []
    for spec in specs:
        told, folders = (facts or {}).get(str(spec), {}), runs_in(spec)
        for folder in folders:
            try:
                runs.append(open_run(folder, wanted, look, tasks, told, notes, progress))
                places.append(str(folder))
            except ConfigError as error:
                if len(folders) == 1:
                    raise
                notes.append(f"{folder}: {error}")
    if not runs:
        raise DataError(
            f"{', '.join(map(str, specs))}: no run with experts to study; {notes[0] if notes else 'give run folders'}"
        )
    runs = _told_apart(runs)
    studies, missing = run_studies(runs, names)
    file = Path(out) / STUDIES_FILE
    found = {"studies": studies, "missing": missing, "notes": notes, "runs": list(map(_row, places, runs))}
    write_json(file, found)
    take_up_studies(file.parent)
    return found | {"saved_to": str(file)}


def runs_in(spec: str | Path) -> list[str | Path]:
    """The runs of a grid's folder, by name; otherwise what was given."""
    folder = Path(spec)
    if not folder.is_dir() or (folder / "recipe.yaml").is_file() or (folder / "config.json").is_file():
        return [spec]
    found: list[str | Path] = [path.parent for path in sorted(folder.glob("*/recipe.yaml"))]
    if not found:
        raise CheckpointError(f"{folder} holds neither a run, nor a model, nor runs of a grid")
    return found


def open_run(
    spec: str | Path,
    wanted: set[str],
    look: Look,
    tasks: Sequence[str],
    told: Mapping[str, Any],
    notes: list[str],
    progress: Progress | None = None,
) -> Run:
    """Trace and measure a run as far as the studies ``wanted`` need it; what cannot be measured goes to ``notes``."""
    is_run = (Path(spec) / "recipe.yaml").is_file()
    target = find_target(spec, "all" if is_run else None)
    home = target.folder / "analysis"
    traced = trace_target(target, look, target.folder / "trace", home / "checkpoints", progress)
    subjects, traces = zip(*traced.traces)
    recipe = target.recipe
    facts: dict[str, Any] = {**_model_facts(traced.model), **(_recipe_facts(recipe) if recipe else {}), **told}
    quality: dict[int, Quality] = {}
    if is_run and wanted & {"quality", "regimes", "initialisation"}:
        try:
            quality = _qualities(target, tasks, {subject.step for subject in subjects}, progress)
        except CheckpointError as error:
            notes.append(f"{target.name}: quality over training is not measured: {error}")
    if "optimality" in wanted:
        try:
            facts["hidden"] = _hidden(target, traced, look, home / "hidden.json", progress)
        except ConfigError as error:
            notes.append(f"{target.name}: the drop-top-1 test is not possible: {error}")
    series = Series([subject.step for subject in subjects], traces)
    method, seed = (target.name, 0) if recipe is None else (recipe.method.name, recipe.seed)
    return Run(method, seed, series, quality, facts)


def _qualities(
    target: Target, tasks: Sequence[str], steps: set[int], progress: Progress | None
) -> dict[int, Quality]:
    """By step: what the run logged of its validation text where that is all that is asked and every checkpoint has it,
    else scores of the checkpoints, computed now.

    Raises:
        CheckpointError: the run has not finished, or its checkpoints cannot be read.
    """
    logged = _logged(target.folder / "metrics.jsonl")
    if not tasks and steps <= logged.keys():
        return {step: logged[step] for step in sorted(steps)}
    points = curve(target.folder, tasks, progress=progress)["checkpoints"]
    return {point["step"]: _quality(point) for point in points}


def _logged(metrics: Path) -> dict[int, Quality]:
    records = map(json.loads, metrics.read_text(encoding="utf-8").splitlines()) if metrics.is_file() else ()
    return {
        record["step"]: Quality(record["eval"]["bits_per_byte"], record["eval"].get("domains", {}))
        for record in records
        if "bits_per_byte" in record.get("eval", {})
    }


def _model_facts(model: nn.Module) -> dict[str, str]:
    vision = getattr(model.config, "vision_config", None)
    return {} if vision is None else {"encoder": str(vision.model_type)}


def _recipe_facts(recipe: Recipe) -> dict[str, str]:
    """What a recipe tells of its run."""
    grid, _, entry = recipe.name.rpartition("/")
    return {
        "regime": "from scratch" if recipe.method.init == "scratch" else "upcycled",
        "init": f"{recipe.method.options.get('router_init_scale', 1.0):g}x",
        **({"entry": entry} if grid else {}),
    }


def _told_apart(runs: Sequence[Run]) -> list[Run]:
    """Runs of one method that neither seed nor facts tell apart go by their entries in the grid."""
    places = Counter(_place(run) for run in runs)
    crowded = {run.method for run in runs if places[_place(run)] > 1}
    return [
        replace(run, method=run.facts.get("entry", run.method)) if run.method in crowded else run
        for run in runs
    ]


def _row(place: str, run: Run) -> dict[str, Any]:
    """Where a run lies and what tells it from others."""
    facts = {name: str(value) for name, value in run.facts.items() if name != "hidden"}
    return {"run": place, "method": run.method, "seed": run.seed, "steps": run.series.steps, "facts": facts}


def _place(run: Run) -> tuple[Any, ...]:
    return run.method, run.seed, *(str(run.facts.get(name)) for name in TELLING)


def _quality(point: Mapping[str, Any]) -> Quality:
    tasks = {name: score["value"] for name, score in point["tasks"].items()}
    falling = frozenset(name for name, score in point["tasks"].items() if not score["higher_is_better"])
    return Quality(point["bits_per_byte"], point["domains"], tasks, falling)


def _hidden(
    target: Target, traced: Traced, look: Look, file: Path, progress: Progress | None
) -> dict[str, Any]:
    """Bits of each held-out window with each layer's best-ranked experts hidden."""
    model: nn.Module = traced.model
    layers = [layer.index for _, layer in moe_layers(model)]
    if not layers:
        raise ConfigError(f"{target.name} has routers of transformers; libmoe.import_ it first")
    data, config = measured_with(target, look.data, look.windows)
    longest = longest_text(model, data)

    @cache
    def heldout() -> Held:  # not opened where everything is finished
        return heldout_text(model, target.name, data, config, target.model_folder)[0]

    def score() -> Losses:
        found = heldout().score(model)
        rows = [(bits, size) for windows in found["windows"].values() for bits, size in windows]
        documents = [
            f"{name} {number}" for name, them in found["window_documents"].items() for number in them
        ]
        return Losses([bits for bits, _ in rows], [size for _, size in rows], documents)

    def report(done: int, total: int) -> None:
        if progress is not None:
            progress(f"{target.name}, best expert hidden", done, total)

    identity = traced.traces[-1][0].identity
    key = f"{identity} {traced.text.key} {data.source} {longest} {config.windows_per_domain}"
    return hide_best(score, layers, file, key=key, progress=report)
