"""Ticks are round, labels keep apart, and pictures open."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import matplotlib.image
import numpy as np
import pytest

from libmoe.report import summarise
from libmoe.report.bars import load_bars, load_scale
from libmoe.report.forest import forest
from libmoe.report.numbers import binary_bytes, count, duration, interval, percent, si, signed
from libmoe.report.pictures import PAINTERS, figures
from libmoe.report.svg import decades, fit, spread, ticks

NAMES = [
    "comparison", "difference", "critical_difference", "learning_curves", "load", "specialisation", "text", "domains",
    "pareto_flops", "pareto_memory", "pareto_time",
]  # fmt: skip


def draw(summary: dict[str, Any], *names: str) -> None:
    for name in names:
        figure = PAINTERS[name](summary)
        assert figure is not None
        figure.savefig(io.BytesIO(), format="svg")


def test_every_picture_opens_and_is_not_blank(grid_dir: Path) -> None:
    drawn = figures(summarise(grid_dir))
    assert list(drawn) == [f"{name}.{kind}" for name in NAMES for kind in ("png", "svg")]
    for name, content in drawn.items():
        if name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("svg")
            continue
        pixels = matplotlib.image.imread(io.BytesIO(content))
        assert min(pixels.shape[:2]) > 300
        assert len(np.unique((pixels[..., :3] * 255).astype(np.int64) @ [65536, 256, 1])) > 20


def test_names_are_not_read_as_formulas(spoiled: Callable[..., Path]) -> None:
    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            row["label"] = r"$\frac{" + row["label"]
            row["domains"] = {f"${name}_^": value for name, value in row["domains"].items()}

    draw(summarise(spoiled(change)), "domains", "difference", "critical_difference", "comparison")


def test_methods_with_equal_costs_and_scores_still_make_pictures(spoiled: Callable[..., Path]) -> None:
    def change(results: dict[str, Any]) -> None:
        for row in results["rows"]:
            row.update(flops_per_token=1e6, bits_per_byte=2.0, domains={"a": 2.0, "b": 2.0})

    draw(summarise(spoiled(change)), "difference", "domains", "pareto_flops", "critical_difference")


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (1.507, 2.119), (-0.13, 0.02), (0, 1.97e6), (3.0, 3.0)]
)
def test_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 9
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)
    if len(found) > 1:
        mantissa = f"{found[1] - found[0]:e}"[:3]
        assert mantissa in ("1.0", "2.0", "5.0")


def test_small_differences_have_an_axis_that_tells_them_apart(grid_dir: Path) -> None:
    methods = [m for m in summarise(grid_dir)["methods"] if m["difference"]]
    for method in methods:
        method["difference"] |= {"mean": 0.0, "low": -0.014, "high": 0.015}
    labels = re.findall(r'class="tick"[^>]*>([^<]*)<', str(forest(methods, 800)))
    assert "−0.005" in labels and "+0.015" in labels and len(set(labels)) == len(labels) >= 5


def test_decades_hold_round_numbers_of_a_logarithmic_axis() -> None:
    assert decades(5.9, 7.1) == [1e6, 2e6, 5e6, 1e7]


def test_spread_labels_keep_their_order_and_distance_and_move_little() -> None:
    wanted = [10.0, 11.0, 50.0, 10.5, 99.0]
    placed = spread(wanted, 10, 0, 100)
    assert [placed[i] for i in (0, 3, 1)] == pytest.approx([0.5, 10.5, 20.5])
    assert placed[2] == 50.0 and placed[4] == 99.0
    crowded = sorted(spread([5.0] * 30, 10, 0, 100))
    assert crowded[0] >= -1e-9 and crowded[-1] <= 100 + 1e-9
    assert np.diff(crowded).min() == pytest.approx(100 / 29)


def test_idle_experts_are_marked_and_tall_bars_are_cut() -> None:
    layer = {"layer": "0", "load": [0.9, 0.1] + [0.0] * 14}
    drawn = load_bars(layer, load_scale([layer]))
    assert load_scale([layer]) == 6.0
    assert 'class="idle"' in drawn and "busiest expert 0 (90.0 %)" in drawn
    assert 'class="idle"' not in load_bars({"layer": "0", "load": [0.5, 0.5]}, 2.0)


def test_numbers_are_written_for_reading() -> None:
    assert si(12_340_000) == "12.3M" and si(2.5e9, "FLOP") == "2.50 GFLOP" and si(999_900) == "1.00M"
    assert si(42) == "42" and si(None) == "–"
    assert signed(-0.0314) == "−0.031" and signed(0.0001) == "0.000" and signed(0.25, 2) == "+0.25"
    assert interval(-0.2, 0.1, 1) == "[−0.2, +0.1]" and interval(None, 0.1) == ""
    assert binary_bytes(474 * 2**20) == "474 MiB" and binary_bytes(12) == "12 B"
    assert duration(61.2) == "61.2 s" and duration(4000) == "67 min" and duration(8000) == "2 h 13 min"
    assert percent(0.5, 0) == "50 %" and count(1, "run") == "one run" and count(31, "run") == "31 runs"
    assert fit("a long label indeed", 74) == "a long la…"
