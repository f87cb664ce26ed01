"""``libmoe methods``."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from libmoe.cli.output import console, emit_json, table


def run(name: str | None, as_json: bool) -> None:
    from libmoe.methods import METHODS

    if name is None:
        entries = [describe(n) for n in METHODS]
        if as_json:
            emit_json(entries)
            return
        table(
            ["method", "what it is", "paper", "causal", "also called"],
            [
                [e["name"], e["summary"], e["paper"] or "", e["causal"], ", ".join(e["aliases"])]
                for e in entries
            ],
        )
        console.print("\n`libmoe methods NAME` explains one; `libmoe papers` shows the papers.", markup=False)
        return
    entry = describe(name)
    if as_json:
        emit_json(entry)
        return
    console.print(f"{entry['name']}: {entry['summary']}\n", markup=False, style="bold")
    console.print(entry["doc"] + "\n", markup=False)
    table(["option", "type", "default"], [[o["name"], o["type"], o["default"]] for o in entry["options"]])
    console.print(f"\nDefined in {entry['file']}", markup=False)


def describe(name: str) -> dict[str, Any]:
    """What there is to say of a method, as plain data."""
    from libmoe.methods import METHODS

    cls, info = METHODS.get(name), METHODS.info(name)
    options = [
        {"name": f.name, "type": str(f.type), "default": repr(f.default)}
        for f in dataclasses.fields(cls)
        if f.init
    ]
    return {
        "name": info.name,
        "summary": info.summary,
        "paper": info.paper,
        "aliases": list(info.aliases),
        "causal": info.facts.get("causal", True),
        "facts": info.facts,
        "doc": inspect.cleandoc(cls.__doc__ or ""),
        "options": options,
        "file": inspect.getsourcefile(cls),
    }
