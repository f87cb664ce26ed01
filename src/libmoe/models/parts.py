"""The parts of a vision-language model, by the paths of its modules."""

from __future__ import annotations

from typing import Literal

from torch import nn

Part = Literal["vision", "connector", "language"]

CONNECTORS = ("multi_modal_projector",)
"""Modules between an encoder and a language model, as transformers calls them (LLaVA and its kin)."""


def part_of(path: str) -> Part:
    """Where a module or parameter belongs; in a model without images all is language."""
    names = path.split(".")
    if any(name in CONNECTORS for name in names):
        return "connector"
    return "vision" if any("vision" in name for name in names) else "language"


def has_connector(model: nn.Module) -> bool:
    """Whether the model reads images through an encoder and a connector."""
    return any(name.rpartition(".")[2] in CONNECTORS for name, _ in model.named_modules())
