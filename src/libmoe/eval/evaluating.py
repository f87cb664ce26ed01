"""One model on any tasks of both harnesses, into one folder that can be resumed, compared and queried."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError, DataError
from libmoe.core.files import write_json
from libmoe.core.machine import installed_version
from libmoe.eval.flags import flags_of
from libmoe.eval.harness.scores import Evaluation
from libmoe.eval.harness.settings import Settings
from libmoe.eval.mirror import serving
from libmoe.eval.opening import OpenModel, open_model
from libmoe.eval.suites import SuiteTask, resolve
from libmoe.eval.vlm.packages import VERSION
from libmoe.models import account

LIBRARIES = ("libmoe", "torch", "transformers", "lm-eval", "datasets")


def evaluate_model(
    model: str | Path,
    names: Sequence[str] = ("embedded",),
    *,
    out: str | Path | None = None,
    settings: Settings | None = None,
    dtype: str | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Evaluate ``model`` on suites and tasks; returns what is written to ``evaluation.json``.

    A run that was interrupted goes on where it stopped when called again; finished tasks are not computed again.

    Args:
        model: a run folder, a folder saved by LibMoE or by transformers, or a name on the hub.
        names: suites and tasks, see :func:`libmoe.eval.suites.resolve`.
        out: folder for results; ``None``: ``eval`` in the model's folder, for hub names ``runs/eval-NAME``.
        settings: how tasks are run.
        dtype: compute in this dtype; ``None`` keeps the saved one.
        options: as of :func:`evaluate_opened`.

    Raises:
        CheckpointError: no such model.
        ConfigError: unknown suite or task, or the folder holds results of another model or of other settings.
    """
    # A misspelt name shall not wait for the model.
    resolve(names, include=options.get("include"), judge=options.get("judge", False))
    opened = open_model(model, dtype)
    return evaluate_opened(
        opened, names, Path(out) if out is not None else opened.folder, settings, **options
    )


def evaluate_opened(
    opened: OpenModel,
    names: Sequence[str],
    folder: Path,
    settings: Settings | None = None,
    *,
    data_dir: str | Path | None = None,
    include: str | Path | None = None,
    trace: int = 0,
    judge: bool = False,
    overwrite: bool = False,
    progress: Any = None,
) -> dict[str, Any]:
    """As :func:`evaluate_model`, for a model that is in memory.

    Args:
        data_dir: a local mirror that replaces the hub, see :mod:`libmoe.eval.mirror`.
        include: a folder with further task files (YAML) of lm-evaluation-harness.
        trace: documents per task whose routing is kept in ``routing/TASK.parquet``.
        judge: let vision-language tasks ask the judge that lmms-eval's environment variables name.
        overwrite: delete what the folder holds.
        progress: called with a task's name, documents done and documents in all.
    """
    settings = settings or Settings()
    tasks = resolve(names, include=include, judge=judge, code=settings.unsafe_code)
    if overwrite:
        _clear(folder)
    report = progress or (lambda task, done, total: None)
    found = Evaluation({}, {}, {}, [])
    spoken = [task for task in tasks if task.harness == "lm"]
    seen = [task for task in tasks if task.harness == "lmms"]
    of = {task.task: task for task in tasks}
    if spoken:
        found, members = _language(opened, spoken, folder, settings, data_dir, include, trace, report)
        of |= members
    if seen:
        from libmoe.eval.vlm import evaluate_vision

        more = evaluate_vision(
            opened, seen, folder, settings, data_dir=data_dir, judge=judge, progress=report
        )
        found = Evaluation(
            found.tasks | more.tasks,
            found.groups | more.groups,
            found.failed | more.failed,
            found.notes + more.notes,
        )
    facts = {
        "model": opened.name,
        "identity": opened.identity,
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings.facts(),
        "versions": {name: installed_version(name) for name in LIBRARIES}
        | ({"lmms-eval": VERSION} if seen else {}),
        "cost": _cost(opened),
        "flags": flags_of(opened.model),
        "about": {name: _about(task) for name, task in of.items()},
        **found.to_dict(),
    }
    write_json(folder / "evaluation.json", facts)
    return facts | {"saved_to": str(folder / "evaluation.json")}


def _about(task: SuiteTask) -> dict[str, Any]:
    """What results need to know of a task: the entry of the catalogue that it belongs to, and how it is judged."""
    return {
        "entry": task.name,
        "skill": task.skill,
        "metric": task.metric,
        "scale": task.scale,
        "chance": task.chance,
    }


def rows_of(evaluation: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """``{task: {"n", "acc", "acc_stderr", ...}}``: unfiltered metrics with the harness's own standard errors."""
    rows: dict[str, dict[str, float]] = {}
    for name, score in sorted(evaluation["tasks"].items()):
        rows[name] = {"n": score["documents"]}
        for metric in score["metrics"]:
            if metric["filter"] == "none":
                rows[name][metric["name"]] = metric["value"]
                if metric["harness_stderr"] is not None:
                    rows[name][f"{metric['name']}_stderr"] = metric["harness_stderr"]
    return rows


def _language(
    opened: OpenModel,
    tasks: Sequence[SuiteTask],
    folder: Path,
    settings: Settings,
    data_dir: str | Path | None,
    include: str | Path | None,
    trace: int,
    progress: Any,
) -> tuple[Evaluation, dict[str, SuiteTask]]:
    """Tasks of lm-evaluation-harness: scores, and the entry of the catalogue that each single task belongs to."""
    if opened.model.get_output_embeddings() is None:
        raise ConfigError(
            f"{type(opened.model).__name__} has no language-model head; zero-shot tasks need one"
        )
    from libmoe.eval.harness.loading import load_tasks, task_manager

    task_manager([task.task for task in tasks], include)  # says what to install
    from libmoe.eval.harness.driver import evaluate_tasks, quiet
    from libmoe.eval.harness.lm import Scorer

    with quiet():
        mirror = serving(data_dir) if data_dir is not None else None
        loaded, groups, failed = load_tasks([task.task for task in tasks], include=include, data=mirror)
        scorer = Scorer(opened.model, opened.tokenizer, settings.batch_size)
    members = {task.task: task for task in tasks if task.task in loaded}
    for task in tasks:
        if task.task in groups:
            members |= {member.task_name: task for member in groups[task.task].get_all_tasks()}
    found = evaluate_tasks(
        scorer,
        loaded,
        folder,
        settings,
        groups=groups,
        clusters={name: task.cluster for name, task in members.items() if task.cluster},
        model=opened.identity,
        progress=progress,
    )
    found.failed = failed | found.failed
    if trace:
        from libmoe.eval.routing import trace_samples

        for name, score in found.tasks.items():
            try:
                trace_samples(opened.model, opened.tokenizer, folder, name, trace, settings.batch_size)
            except DataError as error:  # scores are worth keeping without it
                score.notes.append(f"no routing: {error}")
    return found, members


def _cost(opened: OpenModel) -> dict[str, Any] | None:
    try:
        found = account(
            opened.model, seq_len=getattr(opened.model.config, "max_position_embeddings", None) or 1024
        )
    except ConfigError:  # a layout that the accounting does not know
        return None
    return {"total_params": found.total_params, "active_params": found.active_params}


def _clear(folder: Path) -> None:
    """Delete the results of an evaluation, and nothing else that may lie in the folder."""
    for name in ("samples", "answers", "routing"):
        shutil.rmtree(folder / name, ignore_errors=True)
    (folder / "evaluation.json").unlink(missing_ok=True)
