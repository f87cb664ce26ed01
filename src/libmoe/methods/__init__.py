"""Methods by name.  Each file of this folder defines and registers one method (or one small family)."""

from __future__ import annotations

import importlib
import pkgutil

from libmoe.methods.base import METHODS, Method, create, register_method


def _register_all() -> None:
    # Every module of this folder registers what it defines: a new file is all that a new method takes.
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


_register_all()

__all__ = ["METHODS", "Method", "create", "register_method"]
