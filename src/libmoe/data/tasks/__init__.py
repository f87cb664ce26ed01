"""Five zero-shot multiple-choice tasks from the embedded test split, for lm-evaluation-harness.

They are ordinary task files over local data, so the harness runs them on any model without a network::

    manager = lm_eval.tasks.TaskManager(include_path=str(task_dir()), include_defaults=False)
    lm_eval.simple_evaluate(model, tasks=[GROUP], task_manager=manager)

(``include_defaults=False`` spares the seconds in which the harness reads its own thousands of tasks.)

Each item has four choices and the right one is in each place equally often, so chance is 0.25:

* ``moe_continue``: how a passage goes on; the wrong continuations come from other works of the same domain.
* ``moe_domain``: the same, but the wrong continuations come from three other domains (an easy task).
* ``moe_cloze``: the last word of a sentence; the wrong words end other sentences of the same domain.
* ``moe_order``: the rest of a sentence as written, against versions with two neighbouring words exchanged.
* ``moe_definition``: what a word means; the wrong definitions belong to other words.

Three scores are reported: ``acc`` (the likeliest choice), ``acc_norm`` (likeliest per character) and
``acc_mutual_info`` (the choice whose likelihood the context raises most).  The last tells small models apart
best, because it cancels how likely a choice is by itself; for ``moe_order``, where that is the point, look at
``acc``.

The texts come from the test split only, which shares no window of 120 characters with the training split.
"""

from __future__ import annotations

import hashlib
import json
from importlib.resources import files
from pathlib import Path

from libmoe.core.files import write_atomically
from libmoe.data.files import cache_dir

TASKS = ("moe_continue", "moe_domain", "moe_cloze", "moe_order", "moe_definition")
GROUP = "libmoe_embedded"
CHANCE = 0.25  # every item has four choices


def task_dir(folder: str | Path | None = None) -> Path:
    """Return a folder of task files with absolute paths, for the harness's ``include_path``.

    The harness looks data files up from the working directory, so the installed task files are copied, with
    their paths made absolute, into ``folder`` (default: the cache folder).  The copy is named by its content
    and written only once.
    """
    shipped = {item.name: item.read_bytes() for item in files(__name__).iterdir() if _is_task_file(item.name)}
    key = hashlib.sha256(b"".join(name.encode() + data for name, data in sorted(shipped.items()))).hexdigest()
    target = (Path(folder) if folder is not None else cache_dir() / "tasks").absolute() / key[:16]
    for name, data in shipped.items():
        if name.endswith(".yaml"):
            items = name.replace(".yaml", ".jsonl")
            path = json.dumps(str(target / items))  # a JSON string is a YAML string
            data = data.replace(f"test: {items}".encode(), f"test: {path}".encode())
        if not (target / name).exists() or (target / name).read_bytes() != data:
            write_atomically(target / name, data)
    return target


def _is_task_file(name: str) -> bool:
    return name.endswith((".yaml", ".jsonl", "_template"))
