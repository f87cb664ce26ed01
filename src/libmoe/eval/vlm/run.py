"""The evaluating side: starts the worker in lmms-eval's environment and listens to it."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import torch

from libmoe.core import errors
from libmoe.core.errors import CheckpointError, ConfigError, LibMoEError
from libmoe.core.files import hold, write_json
from libmoe.eval.harness.driver import Progress
from libmoe.eval.harness.scores import Evaluation, Metric, TaskScore
from libmoe.eval.harness.settings import Settings
from libmoe.eval.opening import OpenModel, model_folder
from libmoe.eval.suites import SuiteTask
from libmoe.eval.vlm.environment import clean_environ, ensure

LOG = "vision.log"
"""What lmms-eval and its libraries print, in the evaluation's folder."""

JUDGE_KEYS = ("OPENAI_API_KEY", "AZURE_API_KEY", "AZURE_OPENAI_API_KEY")
"""Variables by which lmms-eval finds a judge; it sees them only if a judge is asked for."""

PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json")


def evaluate_vision(
    opened: OpenModel,
    tasks: Sequence[SuiteTask],
    folder: Path,
    settings: Settings,
    *,
    data_dir: str | Path | None = None,
    include: str | Path | None = None,
    judge: bool = False,
    progress: Progress = lambda task, done, total: None,
) -> Evaluation:
    """Evaluate a vision-language model on tasks of lmms-eval; samples go under ``folder`` as those of other tasks do.

    The first call makes lmms-eval's environment.  What was finished before is not computed again, and after a kill a
    task goes on at the batch where it stopped.

    Args:
        opened: the model; on a GPU it makes room while the worker, which loads it again, is running.
        tasks: tasks or groups of lmms-eval.
        data_dir: a local mirror that replaces the hub.
        include: a folder with further task files (YAML) of lmms-eval.
        judge: let a language model judge answers where lmms-eval does so; which one is said by lmms-eval's own
            environment variables (``OPENAI_API_KEY``, ``OPENAI_API_URL``, ``MODEL_VERSION``, ...).  Without it rules
            decide, and tasks that have none are refused.
        progress: called with a task, how many of its documents are done and how many there are.

    Raises:
        ConfigError: an unknown task, a judge without a key, or ``folder`` holds samples of other settings.
        CheckpointError: the model has no processor, or is none that lmms-eval's classes can ask.
        LibMoEError: the worker ended before its first task.
        DataError: lmms-eval's environment cannot be made.
    """
    if judge and not any(os.environ.get(name) for name in JUDGE_KEYS):
        raise ConfigError(f"a judge needs a key: set one of {', '.join(JUDGE_KEYS)}")
    source = model_folder(opened.name)
    if isinstance(source, Path) and not any((source / name).is_file() for name in PROCESSOR_FILES):
        raise CheckpointError(
            f"{source} holds a model without a processor of images; put the model's own there with "
            "processor.save_pretrained(folder)"
        )
    python = ensure(lambda text: progress(text, 0, 0))
    job = {
        "model": str(source.resolve() if isinstance(source, Path) else source),
        "name": opened.name,
        "identity": opened.identity,
        "dtype": _dtype(opened),
        "out": str(folder.resolve()),
        "settings": {name: getattr(settings, name) for name in settings.__dataclass_fields__},
        "data_dir": None if data_dir is None else str(Path(data_dir).resolve()),
        "include": None if include is None else str(Path(include).resolve()),
        "judge": judge,
    }
    found = Evaluation({}, {}, {}, [])
    left = [{"task": task.task, "cluster": task.cluster} for task in tasks]
    with hold(folder), _elsewhere(opened.model):
        while left:
            finished = _work(python, job | {"tasks": left}, folder, found, progress)
            if finished >= len(left):
                break
            # The process is gone, and with it the task it was at; the others do not suffer for it.
            left = left[finished + 1 :]
    return found


def _work(
    python: Path,
    job: dict[str, Any],
    folder: Path,
    found: Evaluation,
    progress: Progress,
) -> int:
    """Run one worker and collect what it says; how many of the job's tasks it dealt with."""
    environ = clean_environ()
    if not job["judge"]:
        environ = {k: v for k, v in environ.items() if k not in JUDGE_KEYS}
    ready, finished = False, 0
    with tempfile.TemporaryDirectory() as scratch, open(folder / LOG, "ab") as log:
        write_json(Path(scratch) / "job.json", job)
        process = subprocess.Popen(
            [str(python), "-P", "-m", "libmoe.eval.vlm.worker", str(Path(scratch) / "job.json")],
            stdin=subprocess.PIPE,  # closed when this process ends in whatever way, and the worker ends with it
            stdout=subprocess.PIPE,
            stderr=log,
            env=environ,
            cwd=folder,  # a few tasks write where they are
        )
        try:
            for event in _events(process.stdout):
                kind = event["event"]
                if kind == "progress":
                    progress(event["task"], event["done"], event["total"])
                elif kind == "score":
                    found.tasks[event["score"]["task"]] = _score(event["score"])
                elif kind == "group":
                    found.groups[event["group"]] = event["scores"]
                elif kind == "failed":
                    found.failed[event["task"]] = event["why"]
                elif kind == "note":
                    found.notes.append(event["text"])
                elif kind == "error":
                    raise _error(event)
                elif kind == "ready":
                    ready = True
                elif kind == "finished":
                    finished += 1
            code = process.wait()
        finally:
            _end(process)
    if finished < len(job["tasks"]):
        task = job["tasks"][finished]["task"]
        how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
        if not ready:
            raise LibMoEError(f"the process of lmms-eval {how} before its first task; see {folder / LOG}")
        found.failed[task] = f"its process {how}; {folder / LOG} may say more"
    return finished


def _events(stream: IO[bytes] | None) -> Iterator[dict[str, Any]]:
    assert stream is not None
    for line in stream:
        if line.endswith(b"\n"):  # a killed worker may leave half of one
            yield json.loads(line)


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def _score(event: dict[str, Any]) -> TaskScore:
    metrics = [Metric(**metric) for metric in event["metrics"]]
    broken = {int(number): why for number, why in event["broken"].items()}
    return TaskScore(**(event | {"metrics": metrics, "broken": broken}))


def _error(event: dict[str, Any]) -> LibMoEError:
    kind = getattr(errors, event["kind"], LibMoEError)
    found: LibMoEError = kind(event["why"])
    return found


def _dtype(opened: OpenModel) -> str | None:
    """The dtype that was asked for when the model was opened."""
    last = opened.identity.rpartition(":")[2]
    return last if last in ("float32", "bfloat16", "float16") else None


@contextlib.contextmanager
def _elsewhere(model: torch.nn.Module) -> Iterator[None]:
    """Keep ``model`` off the GPU while the worker, which has a copy there, is running."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    if device.type == "cpu":
        yield
        return
    model.to("cpu")
    torch.cuda.empty_cache()
    try:
        yield
    finally:
        model.to(device)
