"""Run folders as bytes, for machines that share no folder with this one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from libmoe.core.files import write_atomically
from libmoe.train import checkpoint
from libmoe.train.files import move_folder, remove_folder

LAST = ("result.json", "row.json")
"""Files that say that something is complete; they are written after everything else."""


def pack(run_dir: Path, done: bool = False) -> dict[str, bytes]:
    """The files of a run folder by relative path: all that a run needs to go on, and all that reports read.

    Of the checkpoints only the newest comes along, and the best unless the cell is ``done``: evaluation asks for it.

    Raises:
        CheckpointError: the newest is damaged.
    """
    wanted = _checkpoints(run_dir, done)
    files = {}
    for path in sorted(run_dir.rglob("*")):
        parts = path.relative_to(run_dir).parts
        if not path.is_file() or any(part.startswith(".") for part in parts):
            continue  # hidden names are locks and what an interrupted write left
        if parts[0] != "checkpoints" or parts[1] in wanted:
            files["/".join(parts)] = path.read_bytes()
    return files


def unpack(files: Mapping[str, bytes], run_dir: Path) -> None:
    """Write what :func:`pack` read: files whole or not at all, likewise checkpoints, and marks of completion last."""
    checkpoints: dict[str, dict[str, bytes]] = {}
    for name, content in files.items():
        if name.startswith("checkpoints/"):
            _, step, file = name.split("/", 2)
            checkpoints.setdefault(step, {})[file] = content
        elif name not in LAST:
            write_atomically(run_dir / name, content)
    for step, content_of in checkpoints.items():
        final = run_dir / "checkpoints" / step
        temporary = final.with_name(f".tmp-{step}")
        remove_folder(temporary)
        for file, content in content_of.items():
            write_atomically(temporary / file, content)
        remove_folder(final)
        move_folder(temporary, final)
    for step in map(checkpoint.name_of, checkpoint.list_steps(run_dir / "checkpoints")):
        if checkpoints and step not in checkpoints:
            remove_folder(run_dir / "checkpoints" / step)
    for name in LAST:
        if name in files:
            write_atomically(run_dir / name, files[name])


def _checkpoints(run_dir: Path, done: bool) -> set[str]:
    steps = checkpoint.list_steps(run_dir / "checkpoints")
    if not steps:
        return set()
    newest = checkpoint.name_of(steps[-1])
    if done:
        return {newest}
    best = checkpoint.read_trainer(run_dir / "checkpoints" / newest)["state"]["best_step"]
    return {newest} if best is None else {newest, checkpoint.name_of(best)}
