"""``libmoe analyze``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from libmoe.cli.output import console, emit_json, say, table

LEGEND = """
k: experts a token used on average. entropy: of the load, 1 = even. worst: load of the busiest expert above its
fair share (0.5 = half as much again). dead: experts without a token. bits: what the expert tells about the domain.
""".strip().replace("\n", " ")


def run(model: Path, trace: Path | None, windows: int, as_json: bool) -> None:
    from libmoe.eval import analyse_folder

    found = analyse_folder(model, trace=trace, windows=windows)
    if as_json:
        emit_json(found)
        return
    table(
        ["layer", "experts", "k", "entropy", "worst", "dead", "bits", "strongest preference"],
        [
            [
                layer["layer"],
                layer["num_experts"],
                f"{layer['experts_per_token']:.2f}",
                f"{layer['normalised_entropy']:.3f}",
                f"{layer['max_violation']:.2f}",
                layer["dead"],
                f"{layer['mutual_information_bits']:.3f}",
                _preference(layer),
            ]
            for layer in found["layers"]
        ],
    )
    console.print(f"\n{LEGEND}", style="dim", markup=False)
    say(f"Routing trace: {found['trace']}")


def _preference(layer: dict[str, Any]) -> str:
    """The largest share that one expert has of a domain."""
    shares = [
        (share, expert, domain)
        for domain, load in layer["domain_load"].items()
        for expert, share in enumerate(load)
    ]
    if not shares:
        return ""
    share, expert, domain = max(shares)
    return f"expert {expert} gets {share:.0%} of {domain}"
