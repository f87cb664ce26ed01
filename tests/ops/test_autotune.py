"""Measuring instead of estimating, and remembering it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from libmoe.core.errors import ConfigError
from libmoe.ops import Task, choose, explain, select
from libmoe.ops.autotune import autotune, cache_file, use_autotuned

TASK = Task("ffn", "cpu", torch.float32, True, 20, 4, 16, 8)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("LIBMOE_CACHE", str(tmp_path))
    yield
    select._preferred().clear()
    select._best.cache_clear()


def test_auto_takes_what_was_measured_to_be_fastest() -> None:
    times = autotune([TASK], seconds=0.01)[TASK._replace(rows=32)]
    assert {"cpu_fused", "loop", "grouped_mm"} <= set(times) and "reference" not in times
    fastest = min(times, key=lambda name: times[name])
    assert choose(TASK).name == fastest
    assert explain(TASK)[0].name == fastest


def test_a_later_process_takes_it_only_when_asked() -> None:
    """What differs from machine to machine must not creep into runs that are to repeat exactly."""
    by_model = choose(TASK).name
    other = next(c.name for c in explain(TASK) if c.ok and c.name != by_model)
    autotune([TASK], seconds=0.01)
    stored = dict.fromkeys(json.loads(cache_file().read_text()), other)
    cache_file().write_text(json.dumps(stored))
    select._preferred().clear()
    select._best.cache_clear()
    assert choose(TASK).name == by_model
    assert use_autotuned() == 1
    assert choose(TASK._replace(rows=17)).name == other  # the same power of two
    assert choose(TASK._replace(rows=64)).name == by_model


def test_what_another_machine_found_does_not_count() -> None:
    autotune([TASK], seconds=0.01)
    stored = {
        "elsewhere | " + key.split(" | ")[1]: name
        for key, name in json.loads(cache_file().read_text()).items()
    }
    cache_file().write_text(json.dumps(stored))
    assert use_autotuned() == 0


def test_a_preferred_backend_that_cannot_do_a_task_is_passed_over() -> None:
    odd = TASK._replace(dim=15)  # grouped_mm wants whole 16 bytes
    select.prefer(odd, "grouped_mm")
    assert choose(odd).name == "cpu_fused"


def test_a_damaged_file_is_named() -> None:
    cache_file().write_text("{")
    with pytest.raises(ConfigError, match=r"autotune\.json is damaged"):
        use_autotuned()


def test_only_whole_experts_are_measured() -> None:
    with pytest.raises(ConfigError, match="op='ffn', not 'linear'"):
        autotune([TASK._replace(op="linear")])
