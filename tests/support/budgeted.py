"""A small grid whose sizes are solved in moments, for whatever budget."""

from __future__ import annotations

from typing import Any

import pytest

from libmoe.bench.grid import Grid
from libmoe.bench.match import Matched, match_sizes
from libmoe.core.config import build
from libmoe.core.errors import ConfigError

BACKBONE = {
    "architecture": "llama", "hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 256,
    "num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
RECIPE = {
    "backbone": BACKBONE,
    "data": {"seq_len": 64, "domains": ["novel"]},
    "train": {"steps": 300, "batch_size": 2, "warmup_steps": 10, "threads": 1},
}
DENSE: dict[str, Any] = {"method": "dense"}
SMOE: dict[str, Any] = {"method": "smoe", "options": {"num_experts": 8, "top_k": 2}}


def grid_of(*entries: dict[str, Any], recipe: dict[str, Any] | None = None, **more: Any) -> Grid:
    values = {"name": "mini", "recipe": recipe or RECIPE, "entries": [DENSE, *entries], "seeds": [0]} | more
    return build(Grid, values)


def sizes_of(*entries: dict[str, Any], **more: Any) -> dict[str, Matched]:
    return match_sizes(grid_of(*entries, **more))


def refused(*entries: dict[str, Any], **more: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        sizes_of(*entries, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)
