"""Running a pipeline: what is done is kept, what was interrupted goes on, the rest runs in order."""

from __future__ import annotations

import importlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from libmoe.core.config import to_dict
from libmoe.core.errors import ConfigError, TrainingError
from libmoe.core.files import digest, hold, read_json, to_json, write_json
from libmoe.core.plugins import describe
from libmoe.mlops.pipeline import OUT, Pipeline, Step, fill, module_file

DONE = "done.json"
"""Written last into a step's folder: with it the step is done."""
LOG = "log.txt"
State = Literal["done", "interrupted", "damaged", "to run"]


@dataclass(frozen=True)
class Place:
    """A step and its folder.

    Attributes:
        state: ``done``; ``interrupted``, which goes on in the same folder; ``damaged``, an output is gone or changed
            and the step runs anew; ``to run``.
    """

    name: str
    key: str
    folder: Path
    state: State


def default_folder(pipeline: Pipeline) -> Path:
    return Path("runs") / "pipelines" / pipeline.name


def status(pipeline: Pipeline, folder: str | Path | None = None) -> list[Place]:
    """Where each step stands, in the order in which they run.

    Raises:
        DataError, ConfigError: see :meth:`Pipeline.keys`.
    """
    root = Path(folder) if folder is not None else default_folder(pipeline)
    found = []
    for name, key in pipeline.keys().items():
        place = root / f"{name}-{key[:12]}"
        found.append(Place(name, key, place, _state(place)))
    return found


def run_pipeline(
    pipeline: Pipeline,
    folder: str | Path | None = None,
    *,
    quiet: bool = False,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Run what is not done.

    Args:
        folder: where the steps' folders are; ``None``: ``runs/pipelines/NAME``.
        quiet: what commands print goes to ``log.txt`` of their step.
        say: told when a step begins and ends.

    Returns:
        Names of the steps that ran.

    Raises:
        TrainingError: a step failed (says where its log is); those that need it were not begun.
        ConfigError, DataError: see :meth:`Pipeline.keys`; or another process runs this pipeline.
    """
    root = Path(folder) if folder is not None else default_folder(pipeline)
    with hold(root):
        places = {place.name: place for place in status(pipeline, root)}
        ran = []
        for number, (name, step) in enumerate(pipeline.steps.items(), start=1):
            place, head = places[name], f"[{number}/{len(places)}] {name}"
            if place.state == "done":
                say(f"{head}: done already, {place.folder}")
                continue
            if place.state == "damaged":
                shutil.rmtree(place.folder)
            say(f"{head}: {'goes on' if place.state == 'interrupted' else 'begins'} in {place.folder}")
            folders = {OUT: place.folder, **{other: places[other].folder for other in pipeline.needs[name]}}
            begun = time.perf_counter()
            place.folder.mkdir(parents=True, exist_ok=True)
            result = _run(step, name, folders, pipeline.file.parent, quiet)
            seconds = time.perf_counter() - begun
            _finish(step, place, result, seconds)
            ran.append(name)
            say(f"{head}: done after {seconds:.1f} s")
        return ran


def _run(step: Step, name: str, folders: dict[str, Path], beside: Path, quiet: bool) -> Any:
    if step.call is not None:
        return _call(step, name, folders, beside)
    command = [sys.executable, "-m", "libmoe", *fill(step.command, folders)]
    if not quiet:
        code, log = subprocess.run(command, check=False).returncode, ""
    else:
        with open(folders[OUT] / LOG, "ab") as file:
            code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
        log = f"; its log is {folders[OUT] / LOG}"
    if code:
        raise TrainingError(f"step {name!r} ended with code {code}: libmoe {' '.join(command[3:])}{log}")
    return None


def _call(step: Step, name: str, folders: dict[str, Path], beside: Path) -> Any:
    module, _, function = str(step.call).rpartition(".")
    module_file(str(step.call), beside)
    sys.path.insert(0, str(beside.resolve()))
    try:
        found = getattr(importlib.import_module(module), function, None)
        if not callable(found):
            raise ConfigError(f"steps.{name}.call: {module} has no function {function!r}")
        result = found(folders[OUT], **fill(step.arguments, folders))
        to_json(result)
        return result
    except ConfigError:
        raise
    except Exception as error:
        raise TrainingError(f"step {name!r} failed: {step.call}: {describe(error)}") from error
    finally:
        sys.path.remove(str(beside.resolve()))


def _finish(step: Step, place: Place, result: Any, seconds: float) -> None:
    missing = [name for name in step.outputs if not (place.folder / name).is_file()]
    if missing:
        raise TrainingError(f"step {place.name!r} ended well but did not write {place.folder / missing[0]}")
    outputs = {name: digest(place.folder / name) for name in step.outputs}
    facts = {
        "step": to_dict(step),
        "key": place.key,
        "seconds": seconds,
        "outputs": outputs,
        "result": result,
    }
    write_json(place.folder / DONE, facts)


def _state(folder: Path) -> State:
    done = read_json(folder / DONE)
    if done is None:
        return "interrupted" if folder.is_dir() else "to run"
    return "damaged" if any(_changed(folder, done)) else "done"


def _changed(folder: Path, done: dict[str, Any]) -> Iterator[bool]:
    for name, then in done["outputs"].items():
        file = folder / name
        yield not file.is_file() or digest(file) != then
