"""Files that are never half-written, folders held by one process, and JSON without numbers that JSON lacks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from libmoe.core.errors import ConfigError

try:
    import fcntl
except ImportError:  # Windows: nothing keeps two processes apart there
    fcntl = None  # type: ignore[assignment]


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


def digest(path: str | Path) -> str:
    """SHA-256 of a file, read piece by piece.  Raises OSError where it cannot be read."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def hold(folder: str | Path, lock: str = ".lock") -> Iterator[None]:
    """Make the folder and keep other processes from holding it while the block runs.

    Args:
        lock: name of the file that is locked; holders of different names do not keep each other out.

    Raises:
        ConfigError: another process holds it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / lock, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        if fcntl is not None:
            try:
                fcntl.flock(
                    handle, fcntl.LOCK_EX | fcntl.LOCK_NB
                )  # the system lets go of it even after kill -9
            except OSError:
                raise ConfigError(
                    f"{folder} is in use by another process; wait or choose another folder"
                ) from None
        yield
    finally:
        os.close(handle)


def is_held(folder: str | Path, lock: str = ".lock") -> bool:
    """Whether a process holds the folder (:func:`hold`); always false on Windows."""
    path = Path(folder) / lock
    if fcntl is None or not path.is_file():
        return False
    with open(path, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
    return False


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
    return json.dumps(
        finite(value), indent=indent, separators=separators, ensure_ascii=False, allow_nan=False
    )


def write_json(path: str | Path, value: Any, indent: int | None = 1) -> None:
    """Write ``value`` as JSON, atomically."""
    write_atomically(path, (to_json(value, indent) + "\n").encode())


def read_json(path: str | Path) -> dict[str, Any] | None:
    """The JSON object in a file; ``None`` where there is no file, or none that holds one."""
    try:
        found = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None
