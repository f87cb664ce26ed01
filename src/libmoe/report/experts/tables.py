"""The numbers of each figure, and of each expert, as CSV in long form."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from libmoe.analysis.studies.figures import Figure
from libmoe.report.csvs import written
from libmoe.report.experts.relations import alike, groups, onwards, together
from libmoe.report.experts.schema import Analysis, Token
from libmoe.report.experts.specs import load_ratio
from libmoe.report.experts.studied import study_tables

Row = dict[str, Any]


def tables(analysis: Analysis, figures: dict[str, Figure]) -> dict[str, bytes]:
    """``{file name: content}``: one table for each figure, those of studies, of experts, relations and texts."""
    found = figure_tables(figures) | study_tables(analysis.get("studies", []))
    more = {"experts": _experts(analysis), "relations": _relations(analysis), "text": _text(analysis)}
    return found | {f"{name}.csv": written(rows) for name, part in more.items() if (rows := list(part))}


def figure_tables(figures: Mapping[str, Figure]) -> dict[str, bytes]:
    """``{file name: CSV}`` of the numbers of each figure."""
    return {f"{name}.csv": written(list(_rows(figure))) for name, figure in figures.items()}


def _rows(figure: Figure) -> Iterator[Row]:
    if figure["kind"] == "heat":
        down, across = figure["y"] or "row", figure["x"] or "column"
        across = across if across != down else f"other {across}"
        for row, values in zip(figure["rows"], figure["values"], strict=True):
            for column, value in zip(figure["columns"], values, strict=True):
                if value is not None:
                    yield {down: row, across: column, "value": value}
        return
    for series in figure["series"]:
        for i, (x, y) in enumerate(zip(series["x"], series["y"], strict=True)):
            ends = {"low": series["low"][i], "high": series["high"][i]} if "low" in series else {}
            yield {"series": series["label"], figure["x"] or "x": x, "value": y} | ends


def _experts(analysis: Analysis) -> Iterator[Row]:
    for layer in analysis["layers"]:
        ratio, group = load_ratio(layer["load"]), groups(layer)
        none: list[list[Token]] = [[] for _ in layer["load"]]
        tops = layer.get("top_tokens", none)
        for expert in range(layer["num_experts"]):
            yield {
                "layer": layer["layer"],
                "expert": expert,
                "assignments": layer["load"][expert],
                "fair_shares": ratio[expert],
                "first": layer["first"][expert] if "first" in layer else None,
                "dropped": layer["dropped"][expert] if "dropped" in layer else None,
                "dead": expert in layer["balance"]["dead"],
                "group": group[expert],
                "top_tokens": " ".join(token["text"] for token in tops[expert]),
            }


def _relations(analysis: Analysis) -> Iterator[Row]:
    for layer in analysis["layers"]:
        kinds = {"together": together(layer), "onwards": onwards(layer)}
        kinds |= {kind: alike(layer, kind) for kind in ("weights", "outputs")}
        for kind, edges in kinds.items():
            for edge in edges:
                share = None if math.isnan(edge.share) else edge.share
                ends = {"layer": layer["layer"], "left": edge.left, "right": edge.right}
                yield {"relation": kind, **ends, "strength": edge.strength, "share": share}


def _text(analysis: Analysis) -> Iterator[Row]:
    for number, sample in enumerate(analysis.get("samples", [])):
        for layer, rows in sample["experts"].items():
            for place, (token, experts) in enumerate(zip(sample["tokens"], rows, strict=False)):
                where = {"text": number, "domain": sample["domain"], "place": place, "token": token}
                yield {**where, "layer": layer, "experts": " ".join(map(str, experts))}
