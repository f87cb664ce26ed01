"""``libmoe analyze``."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.evaluate import bars
from libmoe.cli.output import console, emit_json, say, table
from libmoe.core.errors import ConfigError

LEGEND = """
k: experts a token used on average. entropy: of the load, 1 = even. worst: load of the busiest expert above its
fair share (0.5 = half as much again). dead: experts with hardly a token. bits: what the expert tells about the group.
""".strip().replace("\n", " ")


def run(
    targets: Sequence[str],
    *,
    look: Mapping[str, Any],
    checkpoints: str | None,
    out: Path | None,
    trace: Path | None,
    experts: bool,
    trace_only: bool,
    quiet: bool,
    as_json: bool,
) -> None:
    from libmoe.eval import Look, analyse, find_target
    from libmoe.eval.tracing import trace_target

    if len(targets) > 1 and trace is not None:
        raise ConfigError(f"--trace {trace} is one folder, but there are {len(targets)} targets; use --out")
    wanted = Look(**look)
    found = [find_target(spec, checkpoints) for spec in targets]
    names = Counter(target.name for target in found)
    twice = next((name for name, number in names.items() if number > 1), None)
    if twice is not None and out is not None:
        raise ConfigError(f"--out {out}: two targets are called {twice}, so their folders would be one")
    shown = []
    for target in found:
        home = out if out is None or len(found) == 1 else out / target.name
        with bars(quiet or as_json) as progress:
            if trace_only:
                place = trace or (home or target.folder) / "trace"
                trace_target(
                    target, wanted, place, (home or target.folder / "analysis") / "checkpoints", progress
                )
                shown.append({"name": target.name, "trace": str(place)})
                continue
            analysis = analyse(target, wanted, out=home, trace=trace, experts=experts, progress=progress)
        shown.append(analysis | _reported(analysis))
    if as_json:
        emit_json(shown[0] if len(shown) == 1 else {"targets": shown})
        return
    for analysis in shown:
        _show(analysis)
    if len(shown) > 1 and not trace_only:
        _compare(shown)
        beside = shlex.join(["libmoe", "study", *targets, "--out", str(out or "FOLDER")])
        say(f"Side by side with pictures: {beside}")


def _reported(analysis: dict[str, Any]) -> dict[str, Any]:
    """The page, its figures and what stands out."""
    from libmoe.report.experts import write_expert_report
    from libmoe.report.experts.findings import findings

    folder = Path(analysis["saved_to"]).parent
    paths = write_expert_report(folder)
    return {"report": str(paths.html), "findings": [vars(found) for found in findings(analysis)]}  # type: ignore[arg-type]


def _show(analysis: dict[str, Any]) -> None:
    if "layers" in analysis:
        table(
            ["layer", "experts", "k", "entropy", "worst", "dead", "bits", "strongest preference"],
            [_row(layer) for layer in analysis["layers"]],
            title=analysis["name"],
        )
        console.print(f"\n{LEGEND}", style="dim", markup=False)
        for found in analysis["findings"]:
            say(f"{found['weight']}: {found['title']}. {found['evidence']} {found['fix']}")
        for note in analysis["notes"]:
            say(f"note: {note}")
        say(f"Report: {analysis['report']}")
    say(f"Routing trace: {analysis['trace']}")


def _row(layer: dict[str, Any]) -> list[Any]:
    balance = layer["balance"]
    bits, preference = _groups(layer)
    return [
        layer["layer"],
        layer["num_experts"],
        f"{layer['experts_per_token']:.2f}",
        f"{balance['normalised_entropy']:.3f}",
        f"{balance['max_violation']:.2f}",
        len(balance["dead"]),
        bits,
        preference,
    ]


def _groups(layer: dict[str, Any]) -> tuple[str, str]:
    """Mutual information in bits of expert and group, and the largest share that one expert has of a group."""
    import math

    from libmoe.analysis.metrics.information import mutual_information, profiles

    by = next(iter(layer["by"].values()), None)
    if by is None or len(by["names"]) < 2:
        return "", ""
    share_GN = profiles(by["counts"])
    group, expert = divmod(int(share_GN.argmax()), share_GN.shape[1])
    words = f"expert {expert} gets {share_GN[group, expert]:.0%} of {by['names'][group]}"
    return f"{mutual_information(by['counts']) / math.log(2):.3f}", words


def _compare(analyses: Sequence[dict[str, Any]]) -> None:
    """One line for each target: means over its layers."""

    def mean(values: Sequence[float]) -> str:
        return f"{sum(values) / len(values):.3f}"

    table(
        ["target", "layers", "entropy", "worst", "dead", "margin"],
        [
            [
                analysis["name"],
                len(analysis["layers"]),
                mean([layer["balance"]["normalised_entropy"] for layer in analysis["layers"]]),
                mean([layer["balance"]["max_violation"] for layer in analysis["layers"]]),
                sum(len(layer["balance"]["dead"]) for layer in analysis["layers"]),
                mean([layer["uncertainty"]["margin"] for layer in analysis["layers"]]),
            ]
            for analysis in analyses
        ],
        title="Means over layers",
    )
