"""``libmoe fit``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from libmoe.cli.output import console, emit_json, say, table


def run(
    folders: Sequence[Path],
    law: str = "power",
    methods: Sequence[str] = (),
    fix: Sequence[str] = (),
    out: Path | None = None,
    *,
    draws: int = 299,
    share: float = 0.2,
    flops: float | None = None,
    loss: float | None = None,
    demand: float = 0.0,
    max_tokens: float | None = None,
    experts: Sequence[int] = (1, 4, 8, 16, 32),
    top_k: int = 2,
    as_json: bool = False,
) -> None:
    """Fit a scaling law to grid folders and write ``fit.json`` and pictures.

    Args:
        methods: keys of the entries to use; all of them by default.
        fix: constants that are known, as ``NAME=VALUE``.
        out: folder; ``None``: ``runs/fit-LAW-A-B...``.
        flops: show loss against serving cost for this training budget.
        loss: show the cheapest ways to reach this loss when ``demand`` tokens are served.
        max_tokens: of training data, for ``loss``; ``None``: ten times what the runs had.
        experts, top_k: numbers of experts to look among, and how many of them a token uses.
    """
    from libmoe.bench.scaling import Ask, form_named, read_runs, study
    from libmoe.core.files import write_atomically, write_json

    form = form_named(law)
    fixed = dict(_constant(text) for text in fix)
    runs = read_runs(folders, methods)
    ask = Ask(flops, loss, demand, max_tokens, tuple(experts), top_k)
    found = study(form, runs, fixed=fixed, draws=draws, share=share, ask=ask)
    out = out or Path("runs") / "-".join(["fit", law, *(folder.resolve().name for folder in folders)])
    content = found.to_dict()
    write_json(out / "fit.json", content)
    pictures = found.pictures()
    for name, png in pictures.items():
        write_atomically(out / f"{name}.png", png)
    if as_json:
        emit_json(content)
    else:
        show(content)
    for part, reason in content["reasons"].items():
        say(f"No {part}: {reason}")
    say(f"Saved to {out / 'fit.json'}" + "".join(f", {out / name}.png" for name in pictures))


def _constant(text: str) -> tuple[str, float]:
    from libmoe.core.errors import ConfigError

    name, _, value = text.partition("=")
    try:
        return name.strip(), float(value)
    except ValueError:
        raise ConfigError(f"--fix takes NAME=NUMBER, for example --fix E=1.7; got {text!r}") from None


def show(found: dict[str, Any]) -> None:
    """Constants, how well they fit and predict, the best sizes, and the budgets that were asked for."""
    level = f"{found['level']:.0%}"
    rows = [[name, f"{c['value']:.4g}", _range(c), _note(c)] for name, c in found["constants"].items()]
    runs = f"{found['runs']} runs of {found['configurations']} configurations"
    table(["constant", "value", level, ""], rows, title=f"Law {found['law']} ({found['source']}), {runs}")
    console.print()
    fits, ahead = found["goodness"], found["holdout"]
    rows = [["error of the fit", f"{fits['rmsle']:.2%}"], ["worst run", f"{fits['worst']:.2%}"]]
    if fits["seed_noise"] is not None:
        rows.append(["noise between seeds", f"{fits['seed_noise']:.2%}"])
    rows.append(["variance explained", f"{fits['r2']:.2%}"])
    if ahead:
        held = f"{ahead['configurations']} held-out configurations, {ahead['reach']:.3g}x the FLOPs"
        rows += [
            [f"error on {held}", f"{ahead['error']:.2%}"],
            ["the same, with its sign", f"{ahead['bias']:+.2%}"],
        ]
    table(["fit", found["unit"]], rows)
    if found["isoflop"]:
        console.print()
        rows = [
            [p["experts"] or "-", f"{p['flops']:.3g}", *_minimum(p), p["verdict"]] for p in found["isoflop"]
        ]
        head = ["experts", "training FLOPs", "best size", level, "verdict"]
        table(head, rows, title="Best active parameters by budget")
    _budgets(found, level)


def _budgets(found: dict[str, Any], level: str) -> None:
    if found["best"]:
        console.print()
        rows = [
            [b["experts"], f"{b['params']:.3g}", "{:.3g} to {:.3g}".format(*b["params_interval"]), f"{b['tokens']:.3g}",
             f"{b['loss']:.4f}", _million(b["serve_cost"])]
            for b in found["best"]
        ]  # fmt: skip
        head = ["experts", "best size", level, "tokens", found["unit"], "s/M tokens"]
        table(head, rows, title=f"Lowest loss for {found['best'][0]['train_flops']:.3g} training FLOPs")
    if found["ways"]:
        console.print()
        cheapest: dict[int, dict[str, Any]] = {}
        for way in found["ways"]:  # cheapest first
            cheapest.setdefault(way["experts"], way)
        rows = [
            [w["experts"], f"{w['params']:.3g}", f"{w['tokens']:.3g}", f"{w['train_cost']:.3g}",
             f"{1e6 * w['serve_cost']:.3g}", f"{w['total_cost']:.3g}"]
            for w in cheapest.values()
        ]  # fmt: skip
        head = ["experts", "size", "tokens", "training, s", "s/M tokens", "in all, s"]
        loss = max(w["loss"] for w in found["ways"])
        table(head, rows, title=f"Cheapest ways to {loss:.4f} {found['unit']}, in device-seconds")


def _million(cost: float | None) -> str:
    """Device-seconds for a million tokens."""
    return "does not fit" if cost is None else f"{1e6 * cost:.3g}"


def _range(constant: dict[str, Any]) -> str:
    return "-" if constant["low"] is None else f"{constant['low']:.4g} to {constant['high']:.4g}"


def _note(constant: dict[str, Any]) -> str:
    return "given" if constant["fixed"] else "not determined" if constant["at_bound"] else ""


def _minimum(profile: dict[str, Any]) -> tuple[str, str]:
    if profile["size"] is None:
        return "-", "-"
    ends = [f"{end:.3g}" if end is not None else "open" for end in (profile["low"], profile["high"])]
    return f"{profile['size']:.3g}", " to ".join(ends)
