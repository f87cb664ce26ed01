"""Where cached data lives, and how files get there without ever being half-written."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def cache_dir(folder: str | Path | None = None) -> Path:
    """Return the cache folder: ``folder``, else ``$LIBMOE_CACHE``, else ``~/.cache/libmoe``."""
    return Path(folder or os.environ.get("LIBMOE_CACHE") or Path.home() / ".cache" / "libmoe").expanduser()


def write_atomically(path: Path, content: bytes) -> None:
    """Write ``content`` so that readers see the old file or the whole new one, never a part.

    Two processes that write the same path at once are safe too: each renames its own finished file.
    """
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
