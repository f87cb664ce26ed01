"""Where cached data lives."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir(folder: str | Path | None = None) -> Path:
    """Return the cache folder: ``folder``, else ``$LIBMOE_CACHE``, else ``~/.cache/libmoe``."""
    return Path(folder or os.environ.get("LIBMOE_CACHE") or Path.home() / ".cache" / "libmoe").expanduser()
