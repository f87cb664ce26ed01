"""The numbers of a profile as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from libmoe.ops import AUTO

Measured = dict[str, Any]
Row = dict[str, Any]
Table = tuple[list[str], list[list[str]]]


def title(case: Measured) -> str:
    """``T=2048 D=256 H=512 N=8 K=2 · training · fp32 · random``."""
    shape = " ".join(f"{letter}={value}" for letter, value in zip("TDHNK", case["shape"].values()))
    return " · ".join([shape, case["pass"], case["dtype"], case["routing"]])


def case_table(case: Measured) -> Table:
    """One line for each implementation that was timed, fastest first."""
    columns = ["implementation", "ms", "min", "IQR", "eta", "roof", "peak", "error", "vs peer"]
    timed = sorted((row for row in case["rows"] if row["status"] == "ok"), key=lambda row: row["ms"])
    return columns, [
        [
            f"{AUTO} ({case['auto']['picked']})" if row["implementation"] == AUTO else row["implementation"],
            number(row["ms"]),
            number(row["min_ms"]),
            number(row["iqr_ms"]),
            _fixed(row["eta"]),
            f"{row['roofline']:.0%}",
            memory(row["peak_bytes"]),
            "" if row["error"] is None else f"{row['error']:.0e}",
            _fixed(row["speedup"]),
        ]
        for row in timed
    ]


def remarks(case: Measured) -> list[str]:
    """A line for each implementation that was not timed: which, and why."""
    return [
        f"{row['implementation']} {row['status']}: {row['reason']}"
        for row in case["rows"]
        if row["status"] != "ok"
    ]


def summary_table(cases: Sequence[Measured]) -> Table:
    """One line for each case: what ``auto`` does beside the best peer."""
    columns = ["T,D,H,N,K", "pass", "dtype", "routing", "auto picks", "ms", "best peer", "its ms", "ratio"]
    columns += ["eta", "roofline", "peak", "its peak", "error"]
    lines = []
    for case in cases:
        shape = ",".join(map(str, case["shape"].values()))
        line = [shape, case["pass"], case["dtype"], case["routing"], case["auto"]["picked"]]
        ours, peer = auto_row(case), best_peer(case)
        line.append(number(ours["ms"]) if ours else "")
        line += [peer["implementation"], number(peer["ms"])] if peer else ["", ""]
        line += (
            [_fixed(ours["speedup"]), _fixed(ours["eta"]), f"{ours['roofline']:.0%}"] if ours else [""] * 3
        )
        line += [memory(row["peak_bytes"]) if row else "" for row in (ours, peer)]
        lines.append([*line, f"{ours['error']:.0e}" if ours else ""])
    return columns, lines


def verdicts(cases: Sequence[Measured]) -> Table:
    """The summary, narrow enough for a terminal."""
    columns, lines = summary_table(cases)
    return ["case", *columns[5:9]], [[" ".join(line[:4]), *line[5:9]] for line in lines]


def noise(cases: Sequence[Measured]) -> list[float]:
    """By how much the medians of ``auto`` and of the backend it picks differ, for each case: both run the same code."""
    found = []
    for case in cases:
        timed = {row["implementation"]: row["ms"] for row in case["rows"] if row["status"] == "ok"}
        if AUTO in timed and case["auto"]["picked"] in timed:
            found.append(abs(timed[AUTO] / timed[case["auto"]["picked"]] - 1.0))
    return found


def auto_row(case: Measured) -> Row | None:
    """The row of ``auto``, if it was timed."""
    return next((r for r in case["rows"] if r["implementation"] == AUTO and r["status"] == "ok"), None)


def best_peer(case: Measured) -> Row | None:
    """The fastest peer."""
    peers = [row for row in case["rows"] if row["kind"] == "peer" and row["status"] == "ok"]
    return min(peers, key=lambda row: row["ms"], default=None)


def markdown(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a README."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def number(value: float) -> str:
    """Three significant digits, without an exponent."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 else "0"


def memory(value: float) -> str:
    """``12 MB``."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e3:.0f} kB"


def _fixed(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
