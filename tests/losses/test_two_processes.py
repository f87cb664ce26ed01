"""Two processes under DistributedDataParallel against one process and plain formulas."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from libmoe.core.context import options
from libmoe.core.statistics import StepStatistics
from two_ranks import in_two_ranks

EXACT = 1e-5
SCOPES = ("sequence", "micro_batch", "rank", "global_batch")
RUNS = [(scope, count) for scope in SCOPES for count in (True, False)]
# Each process has half of the documents and two micro-batches, with unequal numbers of tokens.
MICRO = {0: [(0, 1), (2, 3)], 1: [(4, 5), (6, 7)]}
ALL = tuple(range(8))


def train_step(lab: Any, scope: str, count: bool, rank: int, sent: list[int]) -> dict[str, torch.Tensor]:
    """Gradients of one optimiser step, averaged by DDP, and the names and sizes of what else was sent."""
    model = lab.model(scope)
    wrapped = DistributedDataParallel(model)
    batches = [lab.padded(documents) for documents in MICRO[rank]]
    statistics = StepStatistics()
    sent.clear()
    # DDP averages gradients over two processes: both losses are over half of the step's totals.
    with options(statistics=statistics, totals={"token": lab.tokens / 2}):
        if count:
            statistics.begin_counting()
            with torch.no_grad():
                for batch in batches:
                    lab.main_loss(wrapped, batch)
            statistics.end_counting()
        for last, batch in enumerate(batches):
            with contextlib.nullcontext() if last else wrapped.no_sync():
                (2 * lab.main_loss(wrapped, batch)).backward()
    return {name: param.grad for name, param in model.named_parameters()}


def process(rank: int, folder: Path, lab: Any) -> None:
    sent: list[int] = []
    all_reduce = dist.all_reduce

    def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel())
        return all_reduce(tensor, *args, **kwargs)

    dist.all_reduce = counted
    messages = {}
    for scope, count in RUNS:
        gradients = train_step(lab, scope, count, rank, sent)
        messages[f"{scope} {count}"] = list(sent)
        safetensors.torch.save_file(gradients, folder / f"{scope} {count} {rank}.safetensors")
    (folder / f"{rank}.json").write_text(json.dumps(messages))


@pytest.fixture(scope="module")
def results(lab: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    in_two_ranks(process, folder, lab, seconds=120)
    return folder


def documented(scope: str, count: bool) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Documents behind f, and those whose probabilities it weighs, by the definition of each scope."""
    if scope == "sequence":
        return [((d,), (d,)) for d in ALL]
    groups = []
    for micro in MICRO.values():
        for place, documents in enumerate(micro):
            mine = sum(micro if count else micro[: place + 1], ())
            everyone = sum((sum(m if count else m[: place + 1], ()) for m in MICRO.values()), ())
            seen = {"micro_batch": documents, "rank": mine, "global_batch": everyone}[scope]
            groups.append((seen, documents))
    return groups


@pytest.mark.distributed
@pytest.mark.parametrize(("scope", "count"), RUNS)
def test_averaged_gradients_are_those_of_the_definition(
    lab: Any, results: Path, scope: str, count: bool
) -> None:
    expected, _ = lab.reference(documented(scope, count))
    for rank in range(2):
        found = safetensors.torch.load_file(results / f"{scope} {count} {rank}.safetensors")
        assert lab.difference(found, expected) < EXACT


@pytest.mark.distributed
@pytest.mark.parametrize("scope", ["sequence", "global_batch"])
def test_processes_equal_one_process(lab: Any, results: Path, scope: str) -> None:
    alone, _ = lab.step(lab.model(scope), [lab.padded(ALL)])
    found = safetensors.torch.load_file(results / f"{scope} True 0.safetensors")
    assert lab.difference(found, alone) < EXACT


@pytest.mark.distributed
def test_one_vector_of_counts_and_the_token_number_is_sent_per_layer(lab: Any, results: Path) -> None:
    vector = lab.num_experts + 1
    for rank in range(2):
        messages = json.loads((results / f"{rank}.json").read_text())
        for scope, count in RUNS:
            # Counting sends each layer's vector once; without it the global scope sends it in every forward.
            running = 2 * 2 if scope == "global_batch" else 0
            assert messages[f"{scope} {count}"] == [vector] * (2 if count else running)
