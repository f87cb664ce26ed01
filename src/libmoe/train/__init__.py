"""Training: recipes, the loop, checkpoints that resume exactly.

Names are imported when first used, so that reading a recipe does not load the training loop.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from libmoe.core.on_demand import on_demand

if TYPE_CHECKING:
    from libmoe.train.build import build_model, load_data
    from libmoe.train.folder import TrainResult
    from libmoe.train.loop import train
    from libmoe.train.recipe import Recipe, load_recipe, save_recipe, validate
    from libmoe.train.stopping import Interrupted

_HOMES = {
    "Interrupted": "stopping",
    "Recipe": "recipe",
    "TrainResult": "folder",
    "build_model": "build",
    "load_data": "build",
    "load_recipe": "recipe",
    "save_recipe": "recipe",
    "train": "loop",
    "validate": "recipe",
}

__all__ = [
    "Interrupted",
    "Recipe",
    "TrainResult",
    "build_model",
    "load_data",
    "load_recipe",
    "save_recipe",
    "train",
    "validate",
]

__getattr__, __dir__ = on_demand(__name__, _HOMES)
