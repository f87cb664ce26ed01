"""``libmoe train``."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from libmoe.cli.output import emit_json, say


def run(
    source: str,
    out: Path | None,
    overrides: Sequence[str],
    plugins: Sequence[str],
    *,
    resume: str,
    overwrite: bool,
    evaluate: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from libmoe.eval import evaluate_run, heldout_evaluator
    from libmoe.train import Interrupted, load_recipe, train

    recipe = load_recipe(source, overrides)
    folder = out or Path("runs") / recipe.name
    try:
        result = train(
            recipe,
            folder,
            resume=resume,
            overwrite=overwrite,
            quiet=quiet,
            evaluate=heldout_evaluator(recipe),
        )
    except Interrupted:
        if quiet:  # else the progress display has said so
            say(f"interrupted; {folder} is saved: run the same command again to go on")
        raise
    if int(os.environ.get("RANK", "0")) != 0:  # under torchrun one process speaks
        return
    summary = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(result).items()}
    say(f"Trained {result.steps} steps, {result.tokens:,} tokens, loss {result.final_loss:.4f} -> {folder}")
    if evaluate:
        found = evaluate_run(folder)
        summary |= {k: found[k] for k in ("bits_per_byte", "domains", "tasks")}
        follow_up = ["libmoe", "analyze", str(folder), *(part for p in plugins for part in ("--plugin", p))]
        say(f"Held-out: {found['bits_per_byte']:.4f} bits per byte. Next: {shlex.join(follow_up)}")
    if as_json:
        emit_json(summary)
