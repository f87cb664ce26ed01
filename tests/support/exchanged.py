"""Rows that ranks send each other, and what each of them must receive, by plain loops."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from two_ranks import in_ranks

CASES = ("even", "uneven", "one receiver", "silent rank", "nothing")
WIDTH = 3


def counts(case: str, size: int) -> Tensor:
    """Rows from each rank to each rank: ``[source, destination]``."""
    count_WW = torch.randint(0, 5, (size, size), generator=torch.Generator().manual_seed(size))
    if case == "even":
        count_WW.fill_(4)
    elif case == "one receiver":
        count_WW[:, :-1] = 0
        count_WW[:, -1] += 1
    elif case == "silent rank":
        count_WW[1] = 0
    elif case == "nothing":
        count_WW.zero_()
    return count_WW


def rows(count: int, seed: int) -> Tensor:
    return torch.randn(int(count), WIDTH, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def inputs(count_WW: Tensor) -> list[Tensor]:
    """Rows of every rank."""
    return [rows(total, rank) for rank, total in enumerate(count_WW.sum(1))]


def weights(count_WW: Tensor) -> list[Tensor]:
    """The gradient of what every rank receives."""
    return [rows(total, 100 + rank) for rank, total in enumerate(count_WW.sum(0))]


def received(x: Sequence[Tensor], count_WW: Tensor, rank: int) -> Tensor:
    """What ``rank`` has after the exchange, if rank r had ``x[r]`` before."""
    parts = [x[source].split(count_WW[source].tolist())[rank] for source in range(len(x))]
    return torch.cat(parts)


def returned(y: Sequence[Tensor], count_WW: Tensor, rank: int) -> Tensor:
    """What ``rank`` had before, if rank r has ``y[r]`` after the exchange."""
    return received(y, count_WW.t(), rank)


def leave(folder: Path, name: str, rank: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
    safetensors.torch.save_file(
        {k: v.detach().contiguous() for k, v in tensors.items()}, folder / f"{name}{rank}.st"
    )
    (folder / f"{name}{rank}.json").write_text(json.dumps(facts))


def find(folder: Path, name: str, size: int) -> list[tuple[dict[str, Tensor], dict[str, Any]]]:
    """By rank, what :func:`leave` was given."""
    return [
        (
            safetensors.torch.load_file(folder / f"{name}{r}.st"),
            json.loads((folder / f"{name}{r}.json").read_text()),
        )
        for r in range(size)
    ]


def with_sizes(
    sizes: Iterable[int], work: Callable[..., None], name: str, folders: pytest.TempPathFactory
) -> dict[int, list[tuple[dict[str, Tensor], dict[str, Any]]]]:
    """By number of processes, what ``work(rank, folder, size)`` left in each of them."""
    found = {}
    for size in sizes:
        folder = folders.mktemp(name)
        in_ranks(size, work, folder, size, seconds=120)
        found[size] = find(folder, name, size)
    return found


def assert_exchanged(
    found: dict[str, Tensor], name: str, flat: tuple[str, str], count_WW: Tensor, rank: int
) -> None:
    """Rows, gradient and counts of ``name`` are bit by bit those of the flat exchange, and those that they must be.

    ``flat``: what the rows and the gradient of the flat exchange are called.
    """
    rows, grad = found[f"{name}/y"], found[f"{name}/grad"]
    assert torch.equal(rows, found[flat[0]]) and torch.equal(grad, found[flat[1]])
    assert torch.equal(rows, received(inputs(count_WW), count_WW, rank))
    assert torch.equal(grad, returned(weights(count_WW), count_WW, rank))
    assert torch.equal(found[f"{name}/received"], count_WW[:, rank])
    assert torch.equal(found[f"{name}/back"], inputs(count_WW)[rank])
