"""Threads of torch, more or fewer for one test."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from libmoe.ops.cpu import team


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def without_openmp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(team, "_runtime", lambda: (None, "no library here"))
