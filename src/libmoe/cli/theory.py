"""``libmoe theory``."""

from __future__ import annotations

import math
from dataclasses import asdict

from libmoe.cli.output import emit_json, say, table
from libmoe.core.errors import ConfigError, unknown
from libmoe.core.files import finite


def run(name: str | None, seeds: int, quick: bool, as_json: bool, extension: str | None = None) -> None:
    from libmoe.theory import THEORIES

    if name is None:
        found = [
            {
                "name": key,
                "paper": theory.paper,
                "title": theory.title,
                "seconds_per_seed": theory.seconds,
                "extensions": {name: more.title for name, more in theory.extensions.items()},
            }
            for key, theory in THEORIES.items()
        ]
        if as_json:
            emit_json(found)
            return
        columns = ["name", "paper", "seconds a seed", "what it shows"]
        rows = [
            [name, t.paper, f"{t.seconds[0]:g}", t.title]
            for key, theory in THEORIES.items()
            for name, t in [(key, theory), *((f"  --extension {more}", t) for more, t in theory.extensions.items())]
        ]
        table(columns, rows)
        say("`libmoe theory NAME` runs one; `libmoe papers NUMBER` shows its paper.")
        return
    if name not in THEORIES:
        raise unknown("theory", name, THEORIES)
    if seeds < 1:
        raise ConfigError(f"--seeds {seeds}: at least 1 is needed; 3 or more give an interval")
    theory = THEORIES[name]
    if extension is not None:
        if extension not in theory.extensions:
            raise unknown(f"extension of {name}", extension, theory.extensions)
        theory = theory.extensions[extension]
    if not as_json:
        seconds = theory.seconds[quick] * seeds
        say(f"Paper {theory.paper}: {theory.title}. About {seconds:.0f} s on two cores.")
    claims = theory.run(range(seeds), quick)
    if as_json:
        told = [asdict(c) | {"measured": c.measured._asdict(), "verdict": c.verdict} for c in claims]
        what = {"name": name, "extension": extension, "paper": theory.paper, "seeds": seeds, "quick": quick}
        emit_json(finite(what | {"claims": told}))
        return
    rows = [[c.says, f"{c.direction} {c.bound:g}", _measured(c.measured), c.verdict, c.source] for c in claims]
    table(["claim", "should be", "measured", "", "source"], rows)
    say("open: the 95 % interval over seeds holds the bound; more --seeds decide it.")


def _measured(mean: object) -> str:
    value, low, high = (getattr(mean, name) for name in ("value", "low", "high"))
    return f"{value:.3f}" if math.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"
