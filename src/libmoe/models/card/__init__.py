"""Model cards: the ``README.md`` of a model folder, in the hub's format, made from what the files around it say."""

from __future__ import annotations

from libmoe.models.card.writing import write_card

__all__ = ["write_card"]
