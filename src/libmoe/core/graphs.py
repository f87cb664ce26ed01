"""What ``torch.compile`` leaves to eager mode, so that a compiled model breaks its graph in few and known places."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch


@cache
def between_graphs(function: Callable[..., Any], reason: str) -> Callable[..., Any]:
    """``function`` as it runs between two compiled graphs, with ``reason`` in the compiler's report of the break.

    Call it when something is built and not where a module is imported: the compiler takes a second to import.
    """
    return torch.compiler.disable(function, reason=reason)
