"""Building modules without drawing the initial weights that are about to be overwritten."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _ZerosForRandom(TorchFunctionMode):
    """Continuous random numbers become zeros; everything else, hash tables and positions too, is computed."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.randn, torch.rand):
            kwargs.pop("generator", None)
            return torch.zeros(*args, **kwargs)
        if func in (torch.Tensor.normal_, torch.Tensor.uniform_):
            return args[0].detach().zero_()
        return func(*args, **kwargs)


@contextmanager
def without_init() -> Iterator[None]:
    """Inside, modules are made with zeros where their weights would be drawn at random."""
    with _ZerosForRandom(), torch.no_grad():
        yield
