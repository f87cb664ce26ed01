"""Which part of a card is generated: what a person has changed is never overwritten."""

from __future__ import annotations

import hashlib
import re
from typing import Any

import yaml

END = "<!-- libmoe card: end -->"
_MARK = re.compile(r"<!-- libmoe card: front=(\w+) body=(\w+);[^>]*-->\n")
_CARD = re.compile(rf"\A---\n(.*?)---\n+{_MARK.pattern}(.*?){re.escape(END)}\n?(.*)\Z", re.DOTALL)


def compose(front: dict[str, Any], body: str, old: str | None) -> str | None:
    """The text of a card in place of ``old``.

    What follows the closing mark is kept, and so is a front matter that was edited.

    Returns:
        ``None`` where ``old`` is to be left alone: it has no marks, or was edited between them.
    """
    head, tail = yaml.safe_dump(front, sort_keys=False, allow_unicode=True, width=110), ""
    front_digest = _digest(head)
    if old is not None:
        found = _CARD.match(old)
        if found is None:
            return None
        old_head, old_front, old_body_digest, old_body, tail = found.groups()
        if _digest(old_body) != old_body_digest:
            return None
        if _digest(old_head) != old_front:
            head, front_digest = old_head, old_front
    mark = (
        f"<!-- libmoe card: front={front_digest} body={_digest(body)}; `libmoe card` renews what stands up to the "
        "closing mark, unless it was edited; what stands below is yours -->\n"
    )
    return f"---\n{head}---\n\n{mark}{body}{END}\n{tail}"


def front_matter(text: str | None) -> dict[str, Any]:
    """The metadata of a card; empty where there is none that can be read."""
    found = re.match(r"\A---\n(.*?)^---$", text or "", re.DOTALL | re.MULTILINE)
    if found is None:
        return {}
    try:
        values = yaml.safe_load(found.group(1))
    except yaml.YAMLError:
        return {}
    return values if isinstance(values, dict) else {}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
