"""The picture shows what shares an axis, and says nothing where there is nothing to show."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from libmoe.eval.results import Comparison, Difference, compare, draw

PNG = b"\x89PNG\r\n\x1a\n"


def answers(share: float, seed: int) -> list[float]:
    return (np.random.default_rng(seed).random(100) < share).astype(float).tolist()


@pytest.mark.parametrize("models", ["ab", "abc"])
def test_it_is_written_for_any_number_of_models(
    models: str, plant: Callable[..., Path], tmp_path: Path
) -> None:
    names = ["x", "y", "a $\\frac{1}{0}$ task"]
    skills = {"x": "reading", "y": "reading"}
    folders = [
        plant(model, {name: answers(0.4 + 0.1 * i, 7 * i + j) for j, name in enumerate(names)}, skills=skills)
        for i, model in enumerate(models)
    ]
    assert draw(compare(folders), tmp_path / "picture.png") == 3
    assert (tmp_path / "picture.png").read_bytes().startswith(PNG)


def test_scores_on_other_scales_are_left_out(tmp_path: Path) -> None:
    row = Difference("x", "b", "perplexity,none", None, False, 20.0, 19.0, -1.0, 10, 10, low=-2.0, high=-0.1)
    found = Comparison([{"label": "a"}, {"label": "b"}], [row])
    assert draw(found, tmp_path / "picture.png") == 0
    assert not (tmp_path / "picture.png").exists()
