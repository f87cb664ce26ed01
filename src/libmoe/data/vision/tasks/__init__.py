"""The test items of scenes as tasks of lmms-eval, one per subtask.

They are ordinary task files, so that lmms-eval asks any vision-language model without a network::

    python -m lmms_eval --include_path $(python -m libmoe.data.vision.tasks) --tasks scenes_existence ...

A choice is taken by its likelihood.  ``acc_seen``, ``acc_style`` and ``acc_concept`` are the accuracies on the three
splits (``acc``: of all items), and ``acc_plus`` the share of images of which both questions were answered rightly.

Only the scenes are kept, as text; images are drawn when they are asked for.  The items do not move: they are made from
the code, and used only if they are those of ``fingerprint.json``.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

from libmoe.core.errors import DataError
from libmoe.core.files import to_json, write_atomically
from libmoe.data.files import cache_dir
from libmoe.data.vision.scenes import TASKS as SUBTASKS
from libmoe.data.vision.scenes import questions, tasks_of
from libmoe.data.vision.scenes.blocks import SPLITS

TASKS = tuple(f"scenes_{subtask}" for subtask in SUBTASKS)
GROUP = "libmoe_scenes"

RECORD = "fingerprint.json"
"""SHA-256 of every task's items."""

_SCENE = ("top left", "top right", "bottom left", "bottom right", "background", "style")


def scene_task_dir(folder: str | Path | None = None) -> Path:
    """A folder of task files with their data, for lmms-eval's ``include_path``.

    It is made once, in a few seconds, in ``folder`` (default: the cache folder), and named by its content.

    Raises:
        DataError: this version makes other items than the published ones.
    """
    shipped = {item.name: item.read_bytes() for item in files(__name__).iterdir() if _is_task_file(item.name)}
    key = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(shipped.items()))).hexdigest()
    target = (Path(folder) if folder is not None else cache_dir() / "tasks").absolute() / f"scenes-{key[:16]}"
    if (target / RECORD).is_file():
        return target
    for subtask, sha256 in json.loads(shipped.pop(RECORD)).items():
        items = items_of(subtask)
        if hashlib.sha256(items).hexdigest() != sha256:
            raise DataError(f"the items of scenes_{subtask} are not the published ones; reinstall libmoe")
        write_atomically(target / f"scenes_{subtask}.jsonl", items)
    for name, data in shipped.items():
        if name.endswith(".yaml"):
            items_name = name.replace(".yaml", ".jsonl")
            path = json.dumps(str(target / items_name))  # a JSON string is a YAML string
            data = data.replace(f"test: {items_name}".encode(), f"test: {path}".encode())
        write_atomically(target / name, data)
    write_atomically(target / RECORD, (files(__name__) / RECORD).read_bytes())  # last: the folder is whole
    return target


def items_of(subtask: str) -> bytes:
    """The items of a subtask in all splits that have it, one JSON object a line."""
    lines = []
    for split in SPLITS:
        if subtask not in tasks_of(split):
            continue
        for item in questions(split, [subtask]):
            line = {
                "name": item.name,
                "split": split,
                "block": item.name.rpartition("-")[0],
                "group": item.group,
                "question": item.question.partition("\n")[2],
                "choices": list(item.choices),
                "gold": item.gold,
                "scene": to_json({key: item.facts[key] for key in _SCENE if key in item.facts}),
                "facts": to_json({key: value for key, value in item.facts.items() if key not in _SCENE}),
            }
            lines.append(to_json(line) + "\n")
    return "".join(lines).encode()


def fingerprint() -> dict[str, str]:
    """What :data:`RECORD` holds if the items are published as they are made now."""
    return {subtask: hashlib.sha256(items_of(subtask)).hexdigest() for subtask in SUBTASKS}


def _is_task_file(name: str) -> bool:
    return name.endswith((".yaml", "_template")) or name in ("utils.py", RECORD)
