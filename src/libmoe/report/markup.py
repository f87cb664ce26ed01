"""Build HTML and SVG where text is escaped unless it was built here.

Names of methods, domains, tokens and error messages come from data; :func:`el` escapes every child and attribute
that is not :class:`Markup` already, so forgetting to escape is not possible.
"""

from __future__ import annotations

import html
from collections.abc import Iterable

VOID = frozenset({"br", "hr", "img", "input", "meta", "link", "wbr", "col"})


class Markup(str):
    """Text that is already safe to put into a page."""

    __slots__ = ()


def escape(text: object) -> Markup:
    return text if isinstance(text, Markup) else Markup(html.escape(str(text), quote=True))


def join(parts: Iterable[object], separator: str = "") -> Markup:
    return Markup(escape(separator).join(escape(part) for part in parts if part is not None))


def el(name: str, *children: object, **attributes: object) -> Markup:
    """Return an element.  ``class_`` and ``data_x`` become ``class`` and ``data-x``; ``None`` is left out."""
    written = []
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        written.append(f" {key}" if value is True else f' {key}="{escape(_short(value))}"')
    opening = f"<{name}{''.join(written)}>"
    return Markup(opening if name in VOID else f"{opening}{join(children)}</{name}>")


def _short(value: object) -> object:
    """Coordinates keep two decimals: a tenth of what a screen shows, and a page half as large."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
