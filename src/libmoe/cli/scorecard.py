"""``libmoe scorecard``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.output import emit_json, say, table


def run(
    model: str,
    base: str | None,
    out: Path | None,
    *,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    data: str | None = None,
    batches: Sequence[int] | None = None,
    dtype: str | None = None,
    calibration_tokens: int = 0,
    calibration_seconds: float = 0.0,
    retrained: bool = False,
    as_json: bool = False,
) -> None:
    from libmoe.core.files import write_atomically, write_json
    from libmoe.eval.scorecard import Preparation, Protocol, markdown, scorecard
    from libmoe.eval.scorecard.card import rows

    chosen: dict[str, Any] = {
        "tasks": tuple(tasks) if tasks else None,
        "task_limit": limit,
        "data": data,
        "batches": tuple(batches) if batches else None,
    }
    protocol = Protocol(**{name: value for name, value in chosen.items() if value is not None})
    ours, tokenizer = _open(model, dtype)
    card = scorecard(
        ours,
        tokenizer,
        _open(base, dtype)[0] if base is not None else None,
        name=model,
        base_name=base or "base",
        preparation=Preparation(
            calibration_tokens=calibration_tokens,
            calibration_seconds=calibration_seconds,
            retraining=retrained,
        ),
        protocol=protocol,
    )
    if as_json:
        emit_json(card.to_dict())
    else:
        table(["", model], rows(card))
    if out is not None:
        if out.suffix == ".md":
            write_atomically(out, markdown([card]).encode())
        else:
            write_json(out, card.to_dict())
        say(f"Saved to {out}")


def _open(spec: str, dtype: str | None) -> tuple[Any, Any]:
    """Model and tokenizer; a standard MoE model gets our layers, which say what they route and cost."""
    from libmoe.eval.opening import open_model
    from libmoe.models import import_

    opened = open_model(spec, dtype)
    if any(path.rpartition(".")[2] == "experts" for path, _ in opened.model.named_modules()):
        return import_(opened.model), opened.tokenizer
    return opened.model, opened.tokenizer
