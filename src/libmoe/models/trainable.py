"""Which parameters a stage of training changes."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch

from torch import nn

from libmoe.core.errors import ConfigError, unknown
from libmoe.models.parts import part_of
from libmoe.models.roles import param_roles

PARTS = ("vision", "connector", "language", "experts", "routers")


def freeze_others(model: nn.Module, parts: Sequence[str]) -> list[str]:
    """Freeze all parameters but those of ``parts``; returns the names of those that are left to train.

    Args:
        parts: any of ``vision``, ``connector`` and ``language`` (of a vision-language model; any other is all
            language), ``experts`` and ``routers`` (shared experts belong to the former), and shell patterns on the
            names of parameters (``*.mlp.*``).

    Raises:
        ConfigError: an unknown part, or one without parameters.
    """
    roles = param_roles(model)
    kept: set[str] = set()
    for part in parts:
        found = [name for name in roles if _belongs(name, roles[name], part)]
        if not found:
            raise ConfigError(f"train.trainable: {type(model).__name__} has no parameters of {part!r}")
        kept |= set(found)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in kept)
    return sorted(kept)


def check_parts(parts: Sequence[str]) -> None:
    """Raises ConfigError for a word that is neither a part nor a pattern."""
    for part in parts:
        if part not in PARTS and not any(sign in part for sign in "*?["):
            raise unknown("train.trainable", part, PARTS)


def _belongs(name: str, role: str, part: str) -> bool:
    if part not in PARTS:
        return fnmatch(name, part)
    if part in ("experts", "routers"):
        return role in {"experts": ("expert", "shared"), "routers": ("router",)}[part]
    return part == part_of(name)
