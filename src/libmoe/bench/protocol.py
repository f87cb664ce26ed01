"""What is said of how a comparison was made: sizes in words, and the protocol of the report."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from typing import Any

from libmoe.bench.grid import Grid
from libmoe.bench.match import Matched
from libmoe.core.config import to_dict
from libmoe.train.provenance import command_line


def describe_sizes(sizes: dict[str, Matched]) -> list[str]:
    width = max(map(len, sizes))
    lines = []
    for key, matched in sizes.items():
        cost = matched.cost
        shares = matched.residuals.items()
        off = [f"{name} {share:+.2%}" if len(shares) > 1 else f"{share:+.2%}" for name, share in shares]
        clock = "" if matched.clock_spread is None else f"  clock scatters by {matched.clock_spread:.1%}"
        again = (
            ""
            if matched.unique_tokens is None
            else f"  {matched.tokens / matched.unique_tokens:.2f} epochs of its data"
        )
        lines.append(
            f"{key:<{width}}  active {cost.active_params:>11,}  total {cost.total_params:>11,}  "
            f"{matched.steps:,} steps{'  off target ' + ', '.join(off) if off else ''}{clock}{again}"
        )
    return lines


def describe_protocol(grid: Grid, sizes: dict[str, Matched]) -> dict[str, Any]:
    """What the report says about how the comparison was made."""
    import torch
    import transformers

    import libmoe
    from libmoe.data.tasks import CHANCE, TASKS
    from libmoe.eval import corpus_facts

    recipe = grid.recipe
    return {
        "name": grid.name,
        "budget": f"{grid.match} equal to {grid.baseline}" if grid.match != "none" else "sizes as given",
        "steps_by_entry": {key: m.steps for key, m in sizes.items()},
        "tokens_per_param": {key: m.tokens_per_param for key, m in sizes.items()},
        "baseline": grid.baseline,
        "families": grid.families,
        "tuning": None if grid.tuning is None else grid.tuning.protocol(),
        "until": None,
        "documents": True,  # windows of cells carry the number of their document
        "seeds": grid.seeds,
        "steps": recipe.train.steps,
        "tokens": recipe.train.steps * recipe.train.batch_size * recipe.data.seq_len,
        "seq_len": recipe.data.seq_len,
        "batch_size": recipe.train.batch_size,
        "backbone": to_dict(recipe.backbone),
        "task_chance": {task: CHANCE for task in recipe.eval.tasks if task in TASKS},
        "mismatch": {key: m.residual for key, m in sizes.items()},
        "clock_spread": {key: m.clock_spread for key, m in sizes.items() if m.clock_spread is not None},
        "unique_tokens": {key: m.unique_tokens for key, m in sizes.items() if m.unique_tokens is not None},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command_line(),
        "versions": {
            "libmoe": libmoe.__version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        **corpus_facts(recipe),
    }
