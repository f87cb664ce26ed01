"""Is the report right as often as it says?  Comparisons whose truth is known, by the hundred, judged by its own code.

    python benchmarks/planted_truth.py [--grids 400] [--out benchmarks/results/planted-truth.json] [--workers 2]

Interrupted, the same command goes on with the settings that are missing; benchmarks/README.md explains the columns.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read by numpy: each worker is one process on one core

import numpy as np
from scipy.stats import binomtest
from tqdm import tqdm

from libmoe.bench.until import Until
from libmoe.core.files import finite, read_json, write_json

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
from planted_rates import CLAIMS, Seen, Setting, decide, line_named, see, tell

PART = 10
"""Comparisons that a worker is given at once."""
SETTINGS = {
    "equal scatter": [Setting(s, r) for r, s in product((1, 4), (2, 3, 5, 8))]
    + [Setting(s, 19) for s in (2, 5)],
    "baseline scatters 3-fold": [Setting(s, 4, scatter=(3.0, 1.0, 1.0, 1.0, 1.0)) for s in (2, 3, 8)],
    "one rival scatters 4-fold": [Setting(s, 4, scatter=(1.0, 1.0, 1.0, 1.0, 4.0)) for s in (2, 3, 8)],
    "scatter half to twofold": [Setting(s, 4, scatter=(1.0, 0.5, 2.0, 1.0, 1.4)) for s in (2, 3, 8)],
    "windows of their own": [Setting(s, r, documents=12, windows=1) for r, s in product((1, 4), (2, 5))],
    "documents not told": [Setting(s, 4, named=False) for s in (2, 8)],
}
LOOKED_AT = Setting(8, 4)
PLANS = [Until([3, 5, 8]), Until([2, 4, 8], rule="pocock"), Until([3, 5, 8], margin=0.02)]
EFFECT = 0.014
"""Bits per byte of the method that plans are to find: about what eight seeds show without looks."""


def one(setting: Setting, effect: float, draw: int, folder: Path) -> Seen:
    return see(setting, draw, folder, effect)


def one_by_look(
    until: Until, effect: float, draw: int, folder: Path
) -> tuple[dict[str, str], dict[str, int]]:
    return decide(LOOKED_AT, until, draw, folder, effect)


def some(what: Callable[..., Any], fixed: tuple[Any, ...], draws: range) -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        return [what(*fixed, draw, Path(folder) / "grid") for draw in draws]


class Many:
    """Imagines ``grids`` comparisons on several processes, under one bar."""

    def __init__(self, pool: ProcessPoolExecutor, grids: int, bar: tqdm) -> None:
        self.pool, self.grids, self.bar = pool, grids, bar

    def __call__(self, what: Callable[..., Any], *fixed: Any, first: int = 0) -> list[Any]:
        stop, found = first + self.grids, []
        parts = [range(start, min(start + PART, stop)) for start in range(first, stop, PART)]
        for part in [self.pool.submit(some, what, fixed, draws) for draws in parts]:
            found += part.result()
            self.bar.update(len(part.result()))
        return found


def rates(setting: Setting, many: Many) -> dict[str, Any]:
    """Without an effect, and with one of the size that those comparisons named as detectable."""
    null = many(one, setting, 0.0)
    line = line_named(null)
    real = many(one, setting, -line, first=many.grids)
    several = setting.rivals > 1
    return {
        "false_alarms": tell(null, lambda each: each.alarms),
        "false_alarms_beside_an_effect": tell(real, lambda each: each.alarms) if several else None,
        "covered": float(np.mean([each.covered for each in null])),
        "omnibus_alarms": tell(null, lambda each: each.omnibus) if several else None,
        "pair_alarms": tell(null, lambda each: each.pairs) if several else None,
        "line": line,
        "line_from_10_to_90_per_cent": np.quantile([each.line for each in null], [0.1, 0.9]).tolist(),
        "found": tell(real, lambda each: each.found),
    }


def rates_by_look(until: Until, many: Many) -> dict[str, Any]:
    null, real = many(one_by_look, until, 0.0), many(one_by_look, until, -EFFECT, first=many.grids)
    method = LOOKED_AT.methods[0]
    return {
        "false_alarms": sum(any(v in CLAIMS for v in verdicts.values()) for verdicts, _ in null),
        "called_equivalent": sum(verdicts[method] == "equivalent within margin" for verdicts, _ in null),
        "seeds_without_effect": float(np.mean([seeds[method] for _, seeds in null])),
        "effect": EFFECT,
        "found": sum(verdicts[method] == "better" for verdicts, _ in real),
        "seeds_with_effect": float(np.mean([seeds[method] for _, seeds in real])),
    }


def everything() -> Iterator[tuple[dict[str, Any], Callable[[Many], dict[str, Any]]]]:
    """What each row of the results is of, and how it is found."""
    for name, settings in SETTINGS.items():
        for setting in settings:
            yield {"name": name, "setting": finite(asdict(setting))}, lambda many, s=setting: rates(s, many)
    for plan in PLANS:
        of = {"name": "seeds added look by look", "until": finite(asdict(plan))}
        yield of, lambda many, p=plan: rates_by_look(p, many)


def share(count: int | None, grids: int) -> str:
    """A share and its exact 95 % interval, in per cent."""
    if count is None:
        return "–"
    low, high = binomtest(count, grids).proportion_ci()
    return f"{100 * count / grids:.1f} ({100 * low:.1f} to {100 * high:.1f})"


def table(rows: list[dict[str, Any]], grids: int) -> Iterator[str]:
    yield "| setting | methods | seeds | false alarms | covered | line | found | omnibus | pairs |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for row in (row for row in rows if "setting" in row):
        alarms, found, omnibus, pairs = (
            share(row[key], grids) for key in ("false_alarms", "found", "omnibus_alarms", "pair_alarms")
        )
        yield (
            f"| {row['name']} | {row['setting']['rivals'] + 1} | {row['setting']['seeds']} | {alarms} | "
            f"{100 * row['covered']:.1f} | {row['line']:.4f} | {found} | {omnibus} | {pairs} |"
        )
    yield "\n| looks | rule | margin | false alarms | equivalent | seeds | found | seeds |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in (row for row in rows if "until" in row):
        plan = row["until"]
        alarms, same, found = (
            share(row[key], grids) for key in ("false_alarms", "called_equivalent", "found")
        )
        yield (
            f"| {', '.join(map(str, plan['looks']))} | {plan['rule']} | {plan['margin'] or '–'} | {alarms} | {same} | "
            f"{row['seeds_without_effect']:.1f} | {found} | {row['seeds_with_effect']:.1f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--grids", type=int, default=400, help="of each setting, without and with an effect")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/planted-truth.json"))
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--overwrite", action="store_true", help="replace results that are there")
    options = parser.parse_args()
    kept = {} if options.overwrite else read_json(options.out) or {}
    if kept and kept["grids"] != options.grids:
        parser.error(f"{options.out} is of {kept['grids']} grids each; choose another --out or --overwrite")
    rows: list[dict[str, Any]] = []
    todo = list(everything())
    with ProcessPoolExecutor(options.workers) as pool, tqdm(total=2 * options.grids * len(todo)) as bar:
        for of, find in todo:
            row = next((row for row in kept.get("rows", ()) if of.items() <= row.items()), None)
            if row is not None:
                bar.update(2 * options.grids)
            rows.append(row or of | find(Many(pool, options.grids, bar)))
            write_json(options.out, {"grids": options.grids, "rows": rows})
    print("\n".join(table(rows, options.grids)))


if __name__ == "__main__":
    main()
