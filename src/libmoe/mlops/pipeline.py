"""Pipelines: steps that depend on each other, each known by what decides its result.

A pipeline is a YAML file::

    name: nightly
    steps:
      train:
        libmoe: train tiny --out {out}/run --set seed=1
        inputs: [recipes/mine.yaml]
        outputs: [run/model/model.safetensors]
      score:
        call: my_steps.score
        with: {run: "{train}/run"}

A step is a ``libmoe`` command or a Python function. ``{out}`` is its own folder and ``{train}`` that of the step
``train``, which it thereby needs. Its **key** is a hash over its command, the content of its inputs, the code of its
function, the version of LibMoE and the keys of the steps it needs; the folder is called after the key. So whatever
changes a result changes the folder, a step that is done is never run again, and going back to an earlier state of the
file finds its results. Changing a step invalidates what needs it and nothing else (arXiv 2205.02302, P2 and C3).
"""

from __future__ import annotations

import graphlib
import importlib.util
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import libmoe
from libmoe.core.config import build
from libmoe.core.errors import ConfigError, DataError, unknown
from libmoe.core.files import digest
from libmoe.train.provenance import digest_of
from libmoe.train.recipe import read_yaml

OUT = "out"
_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_PLACE = re.compile(r"\{([\w-]+)\}")


@dataclass
class Step:
    """A step as it is written.

    Attributes:
        libmoe: arguments of the ``libmoe`` command, as a line or a list.
        call: a function by its dotted name, looked for beside the pipeline's file and among installed packages; it is
            called as ``function(out, **with)`` and may return what JSON can hold.
        arguments: the key ``with`` of the file.
        inputs: files and folders from outside, relative to where the pipeline is run.
        outputs: files in the step's folder that must be there afterwards; when one is damaged the step runs anew.
        needs: steps that come before it, besides those whose folders it names.
    """

    libmoe: str | list[str] | None = None
    call: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    needs: list[str] = field(default_factory=list)

    @property
    def command(self) -> list[str]:
        """Arguments of the command, with placeholders."""
        return shlex.split(self.libmoe) if isinstance(self.libmoe, str) else list(self.libmoe or [])

    def places(self) -> set[str]:
        """Placeholders that it uses."""
        texts = [*self.command, *_texts(self.arguments)]
        return {name for text in texts for name in _PLACE.findall(text)}


@dataclass
class _File:
    name: str
    steps: dict[str, Step]


@dataclass(frozen=True)
class Pipeline:
    """A pipeline whose steps are in an order in which they can run.

    Attributes:
        name: of its folder.
        file: where it was read from.
        steps, needs: by name.
    """

    name: str
    file: Path
    steps: dict[str, Step]
    needs: dict[str, list[str]]

    def keys(self) -> dict[str, str]:
        """SHA-256 of each step.

        Raises:
            DataError: an input is not there.
            ConfigError: a function's module cannot be found.
        """
        found: dict[str, str] = {}
        for name, step in self.steps.items():
            found[name] = digest_of({
                "libmoe": [libmoe.__version__, *step.command],
                "call": None if step.call is None else [step.call, digest(module_file(step.call, self.file.parent))],
                "with": step.arguments,
                "inputs": {path: _content(Path(path), name) for path in step.inputs},
                "outputs": step.outputs,
                "needs": {other: found[other] for other in self.needs[name]},
            })  # fmt: skip
        return found


def load_pipeline(file: str | Path) -> Pipeline:
    """Read a pipeline.

    Raises:
        ConfigError: no such file, an unknown key or step, a circle, or a step that is not one command or function.
    """
    file = Path(file)
    if not file.is_file():
        raise ConfigError(f"pipeline {str(file)!r} is not a file; give the path of a YAML file with 'steps'")
    values = read_yaml("pipeline", file, "recipes", ())
    if isinstance(values.get("steps"), dict):
        values["steps"] = {name: _renamed(step) for name, step in values["steps"].items()}
    found = build(_File, values)
    needs = {name: _needs(name, step, found.steps) for name, step in found.steps.items()}
    try:
        order = list(graphlib.TopologicalSorter(needs).static_order())
    except graphlib.CycleError as error:
        raise ConfigError(f"steps need each other in a circle: {' -> '.join(error.args[1])}") from None
    return Pipeline(found.name, file, {name: found.steps[name] for name in order}, needs)


def fill(value: Any, places: dict[str, Path]) -> Any:
    """``value`` with placeholders replaced by folders, in texts however deep."""
    if isinstance(value, str):
        return _PLACE.sub(lambda found: str(places[found[1]]), value)
    if isinstance(value, dict):
        return {key: fill(each, places) for key, each in value.items()}
    return [fill(each, places) for each in value] if isinstance(value, list) else value


def module_file(call: str, beside: Path) -> Path:
    """The file of the module that a dotted name begins with.  Raises ConfigError when there is none."""
    module, _, function = call.rpartition(".")
    sys.path.insert(0, str(beside.resolve()))
    try:
        spec = importlib.util.find_spec(module) if module else None
    except (ImportError, ValueError):
        spec = None
    finally:
        sys.path.remove(str(beside.resolve()))
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ConfigError(
            f"call: there is no module {module!r} with {function!r}; put it beside the pipeline's file"
        )
    return Path(spec.origin)


def _renamed(step: Any) -> Any:
    """``with`` is a word of Python's own."""
    if not isinstance(step, dict) or "with" not in step:
        return step
    return {**{key: value for key, value in step.items() if key != "with"}, "arguments": step["with"]}


def _needs(name: str, step: Step, steps: dict[str, Step]) -> list[str]:
    if not _NAME.fullmatch(name) or name == OUT:
        raise ConfigError(f"step {name!r}: use small letters, digits, '_' and '-', and not 'out'")
    if (step.libmoe is None) == (step.call is None):
        raise ConfigError(f"steps.{name}: give either 'libmoe' (a command) or 'call' (a function)")
    if step.arguments and step.call is None:
        raise ConfigError(
            f"steps.{name}: 'with' belongs to 'call'; a command takes its arguments in 'libmoe'"
        )
    found = list(dict.fromkeys([*step.needs, *sorted(step.places() - {OUT})]))
    for other in found:
        if other not in steps:
            raise unknown(f"step in steps.{name}", other, [*steps, OUT])
    return found


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for each in inner for text in _texts(each)]


def _content(path: Path, step: str) -> Any:
    """Digest of a file, or of all files of a folder by name."""
    if path.is_file():
        return digest(path)
    if not path.is_dir():
        raise DataError(f"steps.{step}.inputs: {path} is not there; paths are relative to {Path.cwd()}")
    return {str(each.relative_to(path)): digest(each) for each in sorted(path.rglob("*")) if each.is_file()}
