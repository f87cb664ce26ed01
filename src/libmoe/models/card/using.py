"""The lines of code that load a model folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from libmoe.models.card.facts import ModelFacts

FOLDER = "path/to/this/folder"
"""Stands for the folder in the lines of code."""


def how_to_load(config: Mapping[str, Any], model: ModelFacts | None) -> list[str]:
    """Lines for LibMoE and for transformers, as far as the latter can load the folder."""
    name = (config.get("architectures") or ["AutoModel"])[0]
    own = "libmoe.load" if config.get("libmoe") is not None else "libmoe.models.load_any"
    ours = _code(f"import {own.rpartition('.')[0]}", f'model = {own}("{FOLDER}")')
    if model is None or model.standard:
        theirs = _code(f"from transformers import {name}", f'model = {name}.from_pretrained("{FOLDER}")')
        return [theirs, "", "or with LibMoE:", "", ours]
    auto = "AutoModelForCausalLM" if name.endswith("ForCausalLM") else "AutoModel"
    export = _code(
        f"import libmoe\nfrom transformers import {auto}",
        f'libmoe.export(libmoe.load("{FOLDER}"), "standard")\nmodel = {auto}.from_pretrained("standard")',
    )
    return [
        ours,
        "",
        "transformers cannot load these experts by itself. Where one of its architectures can express the method,",
        "LibMoE writes a folder that it loads, and else refuses with the reason:",
        "",
        export,
    ]


def _code(imports: str, lines: str) -> str:
    return f"```python\n{imports}\n\n{lines}\n```"
