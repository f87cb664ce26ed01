"""``libmoe train``."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path

from libmoe.cli.output import emit_json, say


def run(
    source: str,
    out: Path | None,
    overrides: list[str],
    resume: str,
    overwrite: bool,
    evaluate: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from libmoe.eval import evaluate_run, heldout_evaluator
    from libmoe.train import load_recipe, train

    recipe = load_recipe(source, overrides)
    folder = out or Path("runs") / recipe.name
    result = train(
        recipe, folder, resume=resume, overwrite=overwrite, quiet=quiet, evaluate=heldout_evaluator(recipe)
    )
    summary = asdict(result)
    if int(os.environ.get("RANK", "0")) == 0:  # under torchrun one process speaks
        say(
            f"Trained {result.steps} steps, {result.tokens:,} tokens, loss {result.final_loss:.4f} -> {folder}"
        )
        if evaluate:
            found = evaluate_run(folder)
            summary |= {
                "bits_per_byte": found["bits_per_byte"],
                "domains": found["domains"],
                "tasks": found["tasks"],
            }
            say(f"Held-out: {found['bits_per_byte']:.4f} bits per byte. Next: libmoe analyze {folder}")
        if as_json:
            emit_json({k: str(v) if isinstance(v, Path) else v for k, v in summary.items()})
