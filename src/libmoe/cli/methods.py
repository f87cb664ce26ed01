"""``libmoe methods``."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import types
import typing
from typing import Any

from libmoe.cli.output import console, emit_json, table

WIDE = 110
"""From this width on the listing has room for other names."""


def run(name: str | None, as_json: bool) -> None:
    from libmoe.methods import METHODS

    if name is None:
        entries = [describe(n) for n in METHODS]
        if as_json:
            emit_json(entries)
            return
        columns = {"method": "name", "what it is": "summary", "paper": "paper"}
        if console.width >= WIDE:
            columns |= {"causal": "causal", "also called": "aliases"}
        table(list(columns), [[_words(entry[key]) for key in columns.values()] for entry in entries])
        console.print("\n`libmoe methods NAME` explains one; `libmoe papers NUMBER` its paper.", markup=False)
        return
    entry = describe(name)
    if as_json:
        emit_json(entry)
        return
    console.print(f"{entry['name']}: {entry['summary']}\n", markup=False, style="bold")
    for paragraph in entry["doc"].split("\n\n"):
        console.print(textwrap.fill(paragraph, min(console.width, 100)) + "\n", markup=False)
    rows = [[o["name"], o["default"], f"{o['meaning']} ({o['type']})".strip()] for o in entry["options"]]
    table(["option", "default", "meaning"], rows)
    other = f"Also called {', '.join(entry['aliases'])}. " if entry["aliases"] else ""
    paper = f"Paper {entry['paper']} of the catalogue. " if entry["paper"] is not None else ""
    console.print(f"\n{other}{paper}Defined in {entry['file']}", markup=False, soft_wrap=True)
    console.print(
        f"Try it: libmoe train tiny --set method.name={entry['name']}", markup=False, soft_wrap=True
    )


def describe(name: str) -> dict[str, Any]:
    """What there is to say of a method, as plain data; its own options come before those that all methods have."""
    from libmoe.methods import METHODS, Method

    cls, info = METHODS.get(name), METHODS.info(name)
    meanings: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        meanings |= _meanings(base.__dict__.get("__doc__") or "")
    hints = typing.get_type_hints(cls)
    shared = {f.name for f in dataclasses.fields(Method)} - set(cls.__annotations__)
    options = [
        {
            "name": f.name,
            "type": _type(hints[f.name]),
            "default": _default(f),
            "meaning": meanings.get(f.name, ""),
        }
        for f in sorted(dataclasses.fields(cls), key=lambda f: f.name in shared)
        if f.init
    ]
    return {
        "name": info.name,
        "summary": info.summary,
        "paper": info.paper,
        "aliases": list(info.aliases),
        "causal": info.facts.get("causal", True),
        "facts": info.facts,
        "doc": _plain(inspect.cleandoc(cls.__doc__ or "").partition("\nAttributes:")[0]).strip(),
        "options": options,
        "file": inspect.getsourcefile(cls),
    }


def _meanings(doc: str) -> dict[str, str]:
    """What the ``Attributes:`` part of a docstring says of each name."""
    part = inspect.cleandoc(doc).partition("\nAttributes:\n")[2]
    found: dict[str, str] = {}
    # An entry begins at the part's own indentation; its further lines are indented more.
    for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", part, flags=re.MULTILINE):
        found |= dict.fromkeys(names.split(", "), _plain(" ".join(text.split())))
    return found


def _plain(text: str) -> str:
    return text.replace("``", "`")


def _type(hint: Any) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(repr, typing.get_args(hint)))
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " | ".join(map(_type, typing.get_args(hint)))
    return "None" if hint is type(None) else hint.__name__ if isinstance(hint, type) else str(hint)


def _default(option: dataclasses.Field[Any]) -> str:
    if option.default_factory is not dataclasses.MISSING:
        return repr(option.default_factory())
    return "required" if option.default is dataclasses.MISSING else repr(option.default)


def _words(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else "" if value is None else value
