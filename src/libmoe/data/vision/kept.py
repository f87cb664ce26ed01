"""Arrays that take long to find, kept in the cache folder."""

from __future__ import annotations

import hashlib
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from libmoe.core.files import write_atomically
from libmoe.data.files import cache_dir as default_cache_dir

Arrays = dict[str, np.ndarray]


def keep_arrays(
    room: str, key: tuple[str, ...], make: Callable[[], Arrays], cache_dir: str | Path | None = None
) -> Arrays:
    """What ``make`` returns, or what it returned when it was last called for this key.

    A damaged file is made anew; a folder that cannot be written costs only the time.  Both are warned about.

    Args:
        room: the folder below the cache folder.
        key: everything that decides the arrays.
        cache_dir: default ``$LIBMOE_CACHE`` or ``~/.cache/libmoe``.
    """
    name = hashlib.sha256("\n".join(key).encode()).hexdigest()[:32]
    file = default_cache_dir(cache_dir) / room / f"{name}.npz"
    if file.exists():
        try:
            with np.load(file, allow_pickle=False) as found:
                return dict(found)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            warnings.warn(f"{file} is damaged ({error}) and is made anew", stacklevel=2)
    arrays = make()
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    try:
        write_atomically(file, buffer.getvalue())
    except OSError as error:
        warnings.warn(f"{room} is not cached ({error}); set LIBMOE_CACHE to a writable folder", stacklevel=2)
    return arrays
