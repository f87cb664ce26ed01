"""Durable files: whole or absent, and one clear line when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from libmoe.core.errors import TrainingError


def sync(path: Path) -> None:
    """Flush a file, or a folder's list of names, to the disk."""
    if os.name == "nt" and path.is_dir():
        return  # Windows has no handle for a folder
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_folder(temporary: Path, final: Path) -> None:
    """Give a finished folder its name, after everything in it has reached the disk."""
    for file in temporary.rglob("*"):
        sync(file)
    sync(temporary)
    os.rename(temporary, final)
    sync(final.parent)


def remove_folder(folder: Path) -> None:
    """Delete a folder; if that is cut short, nothing that looks complete is left."""
    if folder.exists():
        doomed = folder.with_name(f".tmp-delete-{folder.name.lstrip('.')}")
        shutil.rmtree(doomed, ignore_errors=True)
        os.rename(folder, doomed)
        shutil.rmtree(doomed)


@contextlib.contextmanager
def disk_errors(writing: Path, advice: str) -> Iterator[None]:
    """Turn a failed write inside the block into one line.

    Raises:
        TrainingError: no space is left, or the quota is exceeded.
    """
    try:
        yield
    except Exception as error:
        if not _is_full(error):
            raise
        free = shutil.disk_usage(next(p for p in writing.absolute().parents if p.exists())).free
        raise TrainingError(f"disk full while writing {writing} ({free / 2**20:.0f} MiB free); {advice}") from error


def _is_full(error: Exception) -> bool:
    full = (errno.ENOSPC, errno.EDQUOT)
    if isinstance(error, OSError):
        return error.errno in full
    # safetensors reports the operating system's errors as text.
    return any(f"(os error {number})" in str(error) for number in full)
