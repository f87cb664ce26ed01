"""Tables that sort by any column."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from libmoe.report.markup import Markup, el, join
from libmoe.report.naming import Method
from libmoe.report.numbers import MISSING, binary_bytes, duration, si
from libmoe.report.svg import swatch

LEAKS = "† sees future tokens: not comparable as a language model"


@dataclass(frozen=True)
class Cell:
    """Content, the number it sorts by (``None`` sorts last), and its look."""

    content: object
    value: float | str | None = None
    class_: str = ""
    style: str | None = None


def table(
    heads: Sequence[tuple[str, str]],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    foot: Sequence[Cell] | None = None,
    class_: str = "",
) -> Markup:
    """Return a table that sorts by any column; the first column names the row.

    ``heads`` are (title, explanation) pairs, the explanation shown on hovering; ``foot`` is a line of sums, ``class_``
    the look of the whole.
    """
    header = el(
        "tr",
        *[
            el("th", el("button", title, type="button", title=help_ or None), scope="col")
            for title, help_ in heads
        ],
    )
    body_and_head = el(
        "table",
        el("thead", header),
        el("tbody", *map(_row, rows)),
        el("tfoot", _row(foot)) if foot else None,
        class_="sortable",
        aria_label=caption,
    )
    scroll = el(
        "div", body_and_head, class_=f"scroll {class_}".strip(), tabindex=0, role="region", aria_label=caption
    )
    return join([el("p", caption, class_="caption"), scroll])


def _row(cells: Sequence[Cell]) -> Markup:
    return el(
        "tr",
        *[
            el(
                "th" if place == 0 else "td",
                cell.content,
                scope="row" if place == 0 else None,
                class_=cell.class_ or None,
                style=cell.style,
                data_v=f"{cell.value:.9g}" if isinstance(cell.value, float) else cell.value,
            )
            for place, cell in enumerate(cells)
        ],
    )


def name_cell(method: Method, brief: bool = True) -> Cell:
    """The method's label with what must be known of it."""
    badges = []
    if method["is_baseline"]:
        badges.append(el("span", "baseline", class_="badge"))
    if not method["causal"]:
        badges.append(el("span", LEAKS if not brief else LEAKS.split(":")[0], class_="badge warn"))
    if method["failed_seeds"]:
        all_seeds = len(method["seeds"]) + len(method["failed_seeds"])
        badges.append(el("span", f"{len(method['seeds'])} of {all_seeds} seeds", class_="badge warn"))
    paper = (
        el("small", f"paper {method['paper']:03d}", class_="faint") if method["paper"] is not None else None
    )
    name = el("span", swatch(method), " ", method["label"], class_="method")
    return Cell(join([name, el("span", *badges, paper, class_="badges")]), method["label"])


FORMATS: dict[str, Any] = {
    "active_params": si,
    "total_params": si,
    "flops_per_token": si,
    "train_flops": si,
    "tokens_per_second": si,
    "peak_memory_bytes": binary_bytes,
    "train_seconds": duration,
    "steps": lambda value: MISSING if value is None else f"{value:,.0f}".replace(",", "\u2009"),
    "inference_tokens_per_second": si,
    "tokens": si,
}


def cost_cells(method: Method, *names: str) -> list[Cell]:
    return [Cell(FORMATS[name](method[name]), method[name], "num") for name in names]
