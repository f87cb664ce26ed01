"""``libmoe analyze``."""

from __future__ import annotations

from pathlib import Path

from libmoe.cli.output import emit_json, say, table


def run(model: Path, trace: Path | None, windows: int, as_json: bool) -> None:
    from libmoe.eval import analyse_folder

    found = analyse_folder(model, trace=trace, windows=windows)
    if as_json:
        emit_json(found)
        return
    rows = []
    for layer in found["layers"]:
        best = max(layer["domain_load"].items(), key=lambda item: max(item[1]), default=None)
        words = ""
        if best is not None:
            share = max(best[1])
            words = f"expert {best[1].index(share)} gets {share:.0%} of {best[0]}"
        rows.append(
            [
                layer["layer"], layer["num_experts"], layer["experts_per_token"], layer["normalised_entropy"],
                layer["max_violation"], layer["dead"], layer["mutual_information_bits"], words,
            ]
        )  # fmt: skip
    table(
        [
            "layer",
            "experts",
            "per token",
            "entropy/max",
            "max violation",
            "dead",
            "I(expert; domain) bits",
            "strongest",
        ],
        rows,
    )
    say(f"Routing trace: {found['trace']}")
