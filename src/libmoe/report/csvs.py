"""The numbers of the page as CSV, one table a question, for spreadsheets and plots of one's own."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from libmoe.report.naming import Summary

Rows = list[dict[str, Any]]

COSTS = (
    "active_params", "total_params", "flops_per_token", "steps", "tokens", "train_flops", "train_seconds",
    "tokens_per_second", "inference_tokens_per_second", "peak_memory_bytes",
)  # fmt: skip
DIFFERENCE = ("mean", "low", "high", "stderr", "freedom", "p_value", "p_corrected", "unit", "clusters")


def csvs(summary: Summary) -> dict[str, bytes]:
    """Return ``{file name: content}`` of every table that has rows."""
    tables: dict[str, Rows] = {
        "methods": [_method(method) for method in summary["methods"]],
        "runs": list(_runs(summary)),
        "domains": list(_domains(summary)),
        "ranks": list(summary["belief"]["ranks"]) if summary["belief"] else [],
        "pairs": list(_pairs(summary)),
        "costs": [_costs(method) for method in summary["methods"]],
        "curves": list(_curves(summary)),
    }
    return {f"{name}.csv": written(rows) for name, rows in tables.items() if rows}


def written(rows: Rows) -> bytes:
    """Rows as CSV; a column for each key, in order of appearance."""
    text = io.StringIO()
    writer = csv.DictWriter(
        text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n"
    )
    writer.writeheader()
    writer.writerows([{key: _cell(value) for key, value in row.items()} for row in rows])
    return text.getvalue().encode("utf-8", "replace")


def _cell(value: Any) -> Any:
    """A text that a spreadsheet would take for a formula gets a mark that makes it text."""
    return f"'{value}" if isinstance(value, str) and value[:1] in ("=", "+", "-", "@") else value


def _name(method: Mapping[str, Any]) -> dict[str, Any]:
    return {"method": method["method"], "label": method["label"]}


def _found(difference: Mapping[str, Any] | None) -> dict[str, Any]:
    return {f"difference_{key}": (difference or {}).get(key) for key in DIFFERENCE}


def _method(method: Mapping[str, Any]) -> dict[str, Any]:
    scores = ("kind", "causal", "bits_per_byte", "best_bits_per_byte", "verdict")
    tasks = {
        f"{task}_{key}": value for task, found in method["tasks"].items() for key, value in found.items()
    }
    return {
        **_name(method),
        **{key: method[key] for key in scores},
        "seeds": len(method["seeds"]),
        **_found(method["difference"]),
        **{f"task_mean_{key}": (method["task_mean"] or {}).get(key) for key in ("acc", "acc_stderr")},
        **tasks,
    }


def _runs(summary: Summary) -> Iterator[dict[str, Any]]:
    for method in summary["methods"]:
        for seed, score in method["bits_per_byte_by_seed"].items():
            by_seed = (method["difference"] or {}).get("by_seed", {})
            rank = method["rank_by_seed"].get(seed)
            yield {
                **_name(method),
                "seed": seed,
                "bits_per_byte": score,
                "difference": by_seed.get(seed),
                "rank": rank,
            }
    for run in summary["failed"]:
        yield {**_name(run), "seed": run["seed"], "error": run["error"]}


def _domains(summary: Summary) -> Iterator[dict[str, Any]]:
    for method in summary["methods"]:
        for domain, score in method["domains"].items():
            found = _found(method["domain_differences"].get(domain))
            yield {**_name(method), "domain": domain, "bits_per_byte": score, **found}


def _pairs(summary: Summary) -> Iterator[dict[str, Any]]:
    groups: Sequence[Mapping[str, Any]] = summary["families"]
    if summary["belief"]:
        groups = [{"name": "", **summary["belief"]}, *groups]
    for group in groups:
        for pair in group["pairs"]:
            yield {"family": group["name"], **pair}


def _costs(method: Mapping[str, Any]) -> dict[str, Any]:
    tuning = method["tuning"] or {}
    return {
        **_name(method),
        **{key: method[key] for key in COSTS},
        **{f"tuning_{key}": tuning.get(key) for key in ("trials", "train_flops", "train_seconds")},
        **{f"all_{key}": value for key, value in method["spent"].items()},
    }


def _curves(summary: Summary) -> Iterator[dict[str, Any]]:
    for quantity, series in summary["curves"].items():
        for line in series:
            for tokens, mean, low, high in zip(
                *(line[key] for key in ("tokens", "mean", "low", "high")), strict=True
            ):
                values = {"tokens": tokens, "mean": mean, "low": low, "high": high}
                yield {"method": line["method"], "quantity": quantity, **values}
