"""The passes as they are run: compiled by TorchScript where that is to be had."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from typing import NamedTuple

import torch

from libmoe.ops.cpu import copied, passes


class Passes(NamedTuple):
    """Each pass, and in words whether they are compiled or why not."""

    forward: Callable
    backward: Callable
    token: Callable
    copied: Callable
    how: str


@cache
def compiled() -> Passes:
    plain = (passes.forward_pass, passes.backward_pass, passes.token_pass, copied.copied_pass)
    if os.environ.get("PYTORCH_JIT") == "0":
        return Passes(*plain, "passes run as Python, since PYTORCH_JIT=0")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is in maintenance, and says so
            forward, backward, token, copies = map(torch.jit.script, plain)
            return Passes(forward, backward, token, copies, "passes compiled by TorchScript")
    except Exception as error:
        why = " ".join(str(error).split())[:120]
        return Passes(*plain, f"passes run as Python: TorchScript failed with {why}")


def plain_operations() -> AbstractContextManager:
    """No autocast: dtypes have been settled.  Entering its context costs too much to do so for nothing."""
    return torch.autocast("cpu", enabled=False) if torch.is_autocast_enabled("cpu") else nullcontext()
