"""Files that are never half-written, and JSON without numbers that JSON lacks."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_atomically(path: str | Path, content: bytes) -> None:
    """Write ``content`` so that readers see the old file or the whole new one, never a part.

    Two processes that write the same path at once are safe too: each renames its own finished file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def finite(value: Any) -> Any:
    """``value`` with NaN and infinities, which JSON does not have, replaced by ``None``."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return value


def to_json(value: Any, indent: int | None = None) -> str:
    """JSON text; compact without ``indent``."""
    separators = (",", ":") if indent is None else None
    return json.dumps(finite(value), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False)


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomically(path, (to_json(value, indent) + "\n").encode())
