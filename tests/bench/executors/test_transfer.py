"""Run folders as bytes: what is needed comes along, and a damaged checkpoint is one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from libmoe.bench.executors.transfer import pack, unpack
from libmoe.core.errors import CheckpointError
from libmoe.core.files import write_json
from libmoe.train import checkpoint


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Three checkpoints, the best of which is the second; a lock, and a row that says that all is over."""
    folder = tmp_path / "run"
    for step in (2, 4, 6):
        place = folder / "checkpoints" / checkpoint.name_of(step)
        write_json(place / "trainer.json", {"format": checkpoint.FORMAT, "state": {"best_step": 4}})
    write_json(folder / "row.json", {"status": "ok"})
    (folder / ".cell").touch()
    return folder


def steps(folder: Path) -> list[int]:
    return checkpoint.list_steps(folder / "checkpoints")


def test_the_newest_and_the_best_checkpoint_come_along_and_older_ones_go(
    run_dir: Path, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    write_json(home / "checkpoints" / checkpoint.name_of(2) / "trainer.json", {})
    unpack(pack(run_dir), home)
    assert steps(home) == [4, 6] and (home / "row.json").exists() and not (home / ".cell").exists()
    assert {name.split("/")[1] for name in pack(run_dir, done=True) if "/" in name} == {"step-00000006"}


@pytest.mark.parametrize("content", ["", "{", "[]", None])
def test_a_damaged_checkpoint_is_one_line_that_names_another(content: str | None, run_dir: Path) -> None:
    file = run_dir / "checkpoints" / checkpoint.name_of(6) / "trainer.json"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(CheckpointError) as raised:
        pack(run_dir)
    assert str(raised.value) == (
        f"checkpoint {file.parent}: trainer.json is missing or damaged; "
        "resume from the one before it with --resume step-00000004"
    )
