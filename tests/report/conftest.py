"""An invented grid with planted numbers, written once, and copies of it to spoil."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fake_grid


@pytest.fixture(scope="session")
def grid_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven methods, two seeds, three layers of eight experts, eight domains.  Read only."""
    return fake_grid.write_fake_grid(tmp_path_factory.mktemp("grid") / "quickstart")


@pytest.fixture
def spoiled(grid_dir: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """Copy the grid, let a function edit ``results.json``, return the copy's folder."""

    def edit(change: Callable[[dict[str, Any]], None] = lambda results: None) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(grid_dir, folder)
        results = json.loads((folder / "results.json").read_text(encoding="utf-8"))
        change(results)
        (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
        return folder

    return edit
