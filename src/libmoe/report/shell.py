"""What every page sits in: one file with its style, its script and its data inside, asking nobody for anything."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from importlib.resources import files
from string import Template
from typing import Any

from libmoe.core.files import to_json
from libmoe.report.markup import Markup, el, join
from libmoe.report.palette import style_sheet


def shell(
    title: str,
    sections: Sequence[tuple[str, str]],
    body: Sequence[Markup],
    data: Any,
    scripts: Sequence[str],
    styles: Sequence[str] = (),
) -> str:
    """Return a page as HTML.

    Args:
        sections: anchor and short title of each, in order; a keyboard can skip to the first.
        data: what the scripts find in ``data``, JSON-ready.
        scripts, styles: files of this package, after those that all pages share.
    """
    script = "".join(map(_asset, ("shared.js", *scripts)))
    return Template(_asset("page.html")).substitute(
        title=el("title", title),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=style_sheet() + "".join(map(_asset, ("page.css", *styles))),
        navigation=_navigation(sections),
        body=join(body),
        data=_embedded(data),
        script=script,
    )


def _navigation(sections: Sequence[tuple[str, str]]) -> Markup:
    anchor, short = sections[0]
    skip = el("a", f"Skip to the {short.lower()}", class_="skip", href=f"#{anchor}")
    links = [el("a", short, href=f"#{anchor}") for anchor, short in sections]
    return join([skip, el("nav", *links, aria_label="Sections")], "\n")


def _asset(name: str) -> str:
    return files("libmoe.report").joinpath(name).read_text(encoding="utf-8")


def _embedded(data: Any) -> str:
    """JSON that cannot end the script element it sits in."""
    written = to_json(data)
    for character in "<>&\u2028\u2029":
        written = written.replace(character, f"\\u{ord(character):04x}")
    return written
