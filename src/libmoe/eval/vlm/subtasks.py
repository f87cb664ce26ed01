"""Parts of benchmarks that are reported for themselves."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

COLUMNS = {
    r"mme": "category",
    r"mmstar": "l2_category",
    r"mmbench_\w+": "category",
    r"pope\w*": "category",
    r"hallusion_bench_image": "subcategory",
    r"scienceqa\w*": "topic",
    r"chartqa": "type",
    r"mathvista_\w+": "metadata.task",
    r"mmmu_val\w*": "id",
}
"""By task: the column of its documents that names the part; a dot goes into a column."""


def subtask_of(task: Any, document: Mapping[str, Any]) -> str | None:
    """The part of its benchmark that a document belongs to; ``None`` where there are none."""
    name = str(task.config.task)
    column = next((c for pattern, c in COLUMNS.items() if re.fullmatch(pattern, name)), None)
    if column is None:
        return None
    value: Any = document
    for key in column.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    if value is None:
        return None
    # MMMU's subjects are in its ids: validation_Art_Theory_12.
    found = re.fullmatch(r"[a-z]+_(\w+)_\d+", str(value)) if column == "id" else None
    return found.group(1) if found else str(value)
